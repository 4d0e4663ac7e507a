# install_packages NAME...: Debian packages, without asking and without what is only recommended.
install_packages() {
    export DEBIAN_FRONTEND=noninteractive
    # One at a time: a run that was killed may have left its apt-get working on this host.
    exec 9>/run/lock/uwsgi-consul-fleet
    flock 9
    apt='apt-get -qq -y -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 --no-install-recommends'
    # The lists of a fresh cloud image are missing or old: then the first try fails at once.
    $apt install "$@" >/dev/null 2>&1 || {
        $apt update >&2
        $apt install "$@" >&2
    }
}
