# shellcheck disable=SC2154 # the variables of the next paragraphs come from builder.py
# A place to compile in, for scripts that run as root on a host.
#
# The compiler is installed into an overlay of / that exists only in a mount namespace of
# the script. However the build ends, be it by a power cut, the namespace goes with it, and
# the host's packages and files are what they were. A host that can't have such an overlay
# (some containers) gets a copy of its system instead, in a folder that is removed at the end.
#
# $SCRIPT is the text of the whole script, $keep_toolchain is `yes` where the packages are
# to be installed for real and to stay.
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 HOME=/root
root=

if [ -z "${own_namespace:-}" ] && [ "$keep_toolchain" != yes ] && unshare --mount true 2>/dev/null; then
    export own_namespace=yes
    exec unshare --mount --propagation private sh -c "$SCRIPT"
fi

# What a person who watches is told, and what says how the build failed.
stage() { echo "## $*" >&2; }
fail() {
    stage "failed: $*"
    exit 1
}

# inside COMMAND...: runs it where the compiler is; / there is $root here.
inside() {
    if [ -n "$root" ]; then chroot "$root" "$@"; else "$@"; fi
}

# apt COMMAND...: inside, its output in a log that explain_apt can show.
apt() {
    inside apt-get -qq -y -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 \
        -o Dpkg::Options::=--force-unsafe-io --no-install-recommends "$@" >>"$scratch/apt.log" 2>&1
}

explain_apt() {
    grep -E '^(E|Err|W):|^dpkg: error|No space left' "$scratch/apt.log" | tail -n 10 >&2
    # Where no byte is left, the log has not kept the reason either.
    if grep -q 'No space left on device\|enough free space' "$scratch/apt.log" ||
        [ "$(df --output=avail "$scratch" | tail -n 1)" -lt 1024 ]; then
        fail "no room for the compiler in $scratch (it takes 400 MB)"
    elif grep -q 'Unable to locate package\|no installation candidate' "$scratch/apt.log"; then
        fail "its package sources have no compiler, or not all that is needed"
    fi
    fail "the compiler's packages can't be installed: can it reach its package mirror?"
}

# A toolchain takes 400 MB. In memory if there is room (and where / is an overlay itself,
# which can't carry another one's upper layer), else on disk.
make_scratch() {
    available=$(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo)
    if [ -n "${own_namespace:-}" ] && [ "$available" -gt 1500000 ]; then
        scratch=/mnt
        mount -t tmpfs -o mode=700,size=1g uwsgi-consul-fleet "$scratch"
    else
        scratch_on_disk
    fi
    trap 'clean_up' EXIT
    trap 'exit 130' INT TERM HUP
    mkdir "$scratch/out"
}

# What runs that were killed left there is removed: mounts of theirs ended with their namespace.
# Who builds holds a lock on its folder.
scratch_on_disk() {
    for left in /var/tmp/uwsgi-consul-fleet-build.*; do
        [ ! -d "$left" ] || flock --nonblock "$left" rm -rf --one-file-system "$left" || true
    done
    scratch=$(mktemp -d /var/tmp/uwsgi-consul-fleet-build.XXXXXX)
    exec 8<"$scratch"
    flock 8
}

# $half_done is what a script has made elsewhere, until it is complete.
clean_up() {
    umount -R "$scratch/root/build" "$scratch/root/dev" "$scratch/root/proc" "$scratch/root" 2>/dev/null || true
    [ -z "${half_done:-}" ] || rm -rf "$half_done"
    # What lies in memory goes with the namespace. And never into what is mounted still.
    [ "$scratch" = /mnt ] || mountpoint -q "$scratch/root/build" || mountpoint -q "$scratch/root/dev" ||
        mountpoint -q "$scratch/root" || rm -rf --one-file-system "$scratch"
}

# Where an overlay of / can be had: mounts it as $root.
mount_root() {
    root=$scratch/root
    mkdir "$root"
    # / and the folders under it that are file systems of their own.
    for lower in / /usr /var /var/cache /var/lib; do
        [ "$lower" = / ] || mountpoint -q "$lower" || continue
        layer=$scratch/layer$(echo "$lower" | tr / -)
        mkdir "$layer" "$layer/upper" "$layer/work"
        mount -t overlay overlay \
            -o "lowerdir=$lower,upperdir=$layer/upper,workdir=$layer/work" "$root$lower" 2>/dev/null || {
            umount -R "$root" 2>/dev/null || true
            root=
            return 1
        }
    done
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    lacks_python || return 0
    its=$(stat --format %m "$its")
    mkdir -p "$root$its"
    mount --bind "$its" "$root$its"
}

# Whether there is an application's $python that is not in $root: /opt may be a file system.
lacks_python() {
    its=$(readlink -f "${python:-/}")
    [ ! -e "$root$its" ]
}

# Where it can't: copies what a compiler is installed into as $root, on disk.
copy_root() {
    stage 'copying the system, as no scratch layer can be put on it'
    [ "$scratch" != /mnt ] || umount /mnt
    scratch_on_disk
    mkdir "$scratch/out"
    root=$scratch/root
    mkdir -p "$root/var/lib" "$root/var/cache/apt/archives/partial" "$root/var/log" "$root/opt"
    mkdir -m 1777 "$root/tmp" "$root/var/tmp"
    mkdir -p "$root/proc" "$root/dev" "$root/run" "$root/root"
    for part in /bin /sbin /lib /lib32 /lib64 /libx32 /usr /etc; do
        [ ! -e "$part" ] || cp -a --one-file-system "$part" "$root/" || full
    done
    cp -a /var/lib/dpkg /var/lib/apt "$root/var/lib/" || full
    [ ! -d /opt/uwsgi-consul-fleet ] || cp -a /opt/uwsgi-consul-fleet "$root/opt/" || full
    if lacks_python; then
        its=$("$python" -Ic 'import sys; print(sys.base_prefix)')
        mkdir -p "$root$its"
        cp -a "$its/." "$root$its/" || full
    fi
    # Mounts only where they end with the script, whatever ends it.
    if [ -z "${own_namespace:-}" ] || ! mount --rbind /dev "$root/dev" 2>/dev/null; then
        cp -a /dev/null /dev/zero /dev/random /dev/urandom "$root/dev/"
    elif ! mount -t proc proc "$root/proc" 2>/dev/null; then
        stage 'going on without /proc'
    fi
}

full() { fail "no room in $scratch for a copy of the system (it takes 1 GB)"; }

# Inside $root, whatever it is.
prepare_root() {
    # A link into /run on many machines, and /run is another file system.
    resolver=$(readlink -f /etc/resolv.conf)
    mkdir -p "$root$(dirname "$resolver")"
    cp "$resolver" "$root$resolver.new"
    mv "$root$resolver.new" "$root$resolver"
    # Nothing that gets installed may start a service.
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod +x "$root/usr/sbin/policy-rc.d"
}

# use_compiler PACKAGE...: after it, `inside` finds these packages, and $root/build is empty.
use_compiler() {
    make_scratch
    if [ "$keep_toolchain" = yes ]; then
        stage 'installing the compiler, to stay'
    elif [ -n "${own_namespace:-}" ] && mount_root; then
        stage 'installing the compiler in a scratch layer'
    else
        copy_root
        stage 'installing the compiler in the copy'
    fi
    [ -z "$root" ] || prepare_root
    if [ -n "$root" ]; then build=$root/build; else build=$scratch/build; fi
    mkdir "$build"
    apt install "$@" || { apt update && apt install "$@"; } || explain_apt
}
