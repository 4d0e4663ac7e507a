# A place to compile in, for scripts that run as root on a host.
#
# The compiler is installed into an overlay of / that exists only in a mount namespace of
# the script. However the build ends, be it by a power cut, the namespace goes with it, and
# the host's packages and files are what they were. A host that can't have such an overlay
# (some containers) gets the packages for real, and loses them again at the end.
#
# $SCRIPT is the text of the whole script, $keep_toolchain is `yes` where the packages are
# to be installed for real and to stay.
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 HOME=/root
before=/var/lib/uwsgi-consul-fleet/packages-before-toolchain
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
    if grep -q 'No space left on device\|enough free space' "$scratch/apt.log"; then
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
        rm -rf /var/tmp/uwsgi-consul-fleet-build.*
        scratch=$(mktemp -d /var/tmp/uwsgi-consul-fleet-build.XXXXXX)
    fi
    trap 'clean_up' EXIT
    trap 'exit 130' INT TERM HUP
    mkdir "$scratch/out"
}

clean_up() {
    umount -R "$scratch/root" 2>/dev/null || true
    [ "$keep_toolchain" = yes ] || remove_toolchain
    # What lies in memory goes with the namespace.
    [ "$scratch" = /mnt ] || rm -rf "$scratch"
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
    # A link into /run on many machines, and /run is another file system.
    resolver=$(readlink -f /etc/resolv.conf)
    mkdir -p "$root$(dirname "$resolver")"
    cp "$resolver" "$root$resolver.new"
    mv "$root$resolver.new" "$root$resolver"
    # Nothing that gets installed may start a service.
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod +x "$root/usr/sbin/policy-rc.d"
}

list_packages() {
    dpkg-query --show --showformat '${db:Status-Status} ${binary:Package}\n' |
        sed -n 's/^installed //p' | sort
}

# What was there before is written down first: a run that is killed is cleaned up by the next.
note_packages() {
    mkdir -p "${before%/*}"
    [ -e "$before" ] || { list_packages >"$before.part" && mv "$before.part" "$before"; }
}

remove_toolchain() {
    [ -e "$before" ] || return 0
    added=$(list_packages | comm -13 "$before" -)
    # shellcheck disable=SC2086 # the names of packages hold no blanks
    if [ -z "$added" ] || apt-get -qq -y -o DPkg::Lock::Timeout=120 purge $added >/dev/null 2>&1; then
        rm -f "$before"
    else
        stage "could not remove again: $added"
    fi
}

# use_compiler PACKAGE...: after it, `inside` finds these packages, and $root/build is empty.
use_compiler() {
    make_scratch
    if [ "$keep_toolchain" = yes ]; then
        stage 'installing the compiler, to stay'
    elif [ -n "${own_namespace:-}" ] && mount_root; then
        stage 'installing the compiler in a scratch layer'
    else
        # One at a time: another build would take our packages for the host's own.
        exec 9>/run/lock/uwsgi-consul-fleet
        flock 9
        remove_toolchain
        note_packages
        stage 'installing the compiler, for as long as the build takes'
    fi
    if [ -n "$root" ]; then build=$root/build; else build=$scratch/build; fi
    mkdir "$build"
    apt install "$@" || { apt update && apt install "$@"; } || explain_apt
}
