# Runs as root on a host: installs Debian's uWSGI if there is none, then identifies it.
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
apt='apt-get -qq -y -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 --no-install-recommends'

if ! command -v uwsgi >/dev/null; then
    # A fresh cloud image has no package lists yet: then the first try can't know the package.
    $apt install uwsgi-core libcurl4 >/dev/null 2>&1 || {
        $apt update >&2
        $apt install uwsgi-core libcurl4 >&2
    }
fi
identify_uwsgi
