# Runs as root on a host: compiles the plugin whose sources come as a tar archive on
# standard input against the host's own uWSGI, and writes the .so to standard output.
#
# The compiler is installed into an overlay of / that exists only in a mount namespace of
# this process. However the build ends, be it by a power cut, the namespace goes with it,
# and the host's packages and files are what they were.
set -eu
if [ "${1:-}" != inside ]; then
    exec unshare --mount --propagation private sh -c "$SCRIPT" compile inside
fi
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 HOME=/root
apt='apt-get -qq -y -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-unsafe-io --no-install-recommends'
packages='gcc libc6-dev uwsgi-dev libcurl4-openssl-dev libyaml-dev libyajl-dev libxml2-dev'

stage() { echo "## $*" >&2; }

# A toolchain takes 400 MB. In memory if there is room (and where / is an overlay itself,
# which can't carry another one's upper layer), else on disk.
available=$(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo)
if [ "$available" -gt 1500000 ]; then
    scratch=/mnt
    mount -t tmpfs -o mode=700,size=1g uwsgi-consul-fleet "$scratch"
else
    rm -rf /var/tmp/uwsgi-consul-fleet-build.*
    scratch=$(mktemp -d /var/tmp/uwsgi-consul-fleet-build.XXXXXX)
    trap 'umount -R "$scratch/root" 2>/dev/null; rm -rf "$scratch"' EXIT INT TERM HUP
fi
root=$scratch/root
mkdir "$root" "$scratch/out"

# / and the folders under it that are file systems of their own.
for folder in / /usr /var /var/cache /var/lib; do
    [ "$folder" = / ] || mountpoint -q "$folder" || continue
    layer=$scratch/layer$(echo "$folder" | tr / -)
    mkdir "$layer" "$layer/upper" "$layer/work"
    mount -t overlay overlay \
        -o "lowerdir=$folder,upperdir=$layer/upper,workdir=$layer/work" "$root$folder" || {
        echo "this host's kernel puts no overlay on $folder (a container, perhaps):" \
            "the compiler can't be installed in a scratch layer" >&2
        exit 5
    }
done
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mkdir "$root/build"
# A link into /run on many machines, and /run is another file system.
resolver=$(readlink -f /etc/resolv.conf)
mkdir -p "$root$(dirname "$resolver")"
cp "$resolver" "$root$resolver.new"
mv "$root$resolver.new" "$root$resolver"
# Nothing that gets installed may start a service.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod +x "$root/usr/sbin/policy-rc.d"
tar -xz -C "$root/build"

stage 'installing the compiler in a scratch layer'
chroot "$root" sh -euc "$apt install $packages >/dev/null 2>&1 || { $apt update; $apt install $packages; }" >&2

stage "compiling against uWSGI $(uwsgi --version)"
chroot "$root" sh -c 'cd /build && uwsgi --build-plugin .' >"$scratch/out/log" 2>&1 || {
    cat "$scratch/out/log" >&2
    exit 3
}

stage 'checking that this uWSGI loads it'
cp "$root"/build/*_plugin.so "$scratch/out/"
# In the host's own root, where the libraries are those that will be there at run time.
if ! uwsgi --plugin "$(echo "$scratch"/out/*_plugin.so)" --help >"$scratch/out/help" 2>&1 ||
    ! grep -q -- --consul-register "$scratch/out/help"; then
    tail -n 20 "$scratch/out/help" >&2
    echo "this uWSGI does not know consul-register with the plugin loaded" >&2
    exit 4
fi
cat "$scratch"/out/*_plugin.so
