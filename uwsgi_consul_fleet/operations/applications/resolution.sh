# shellcheck disable=SC2154 # $app comes from dependencies.py
# Functions for scripts that run as root on a host and put a resolution there:
# /srv/APP/resolutions/ID/KIND has the wheels of an application's dependencies for a kind of Python,
# and in requirements.txt their names, versions and hashes; of another language vendor.d, with the
# names of its files. It appears when it is complete.

# begin APP ID KIND: makes $half_done, a folder that keep() puts in its place; ends the script where
# that is there.
begin() {
    wanted=/srv/$1/resolutions/$2/$3 half_done=/srv/$1/resolutions/.part-$2
    # One at a time: a run that was killed may have left its script working on this host.
    umask 077 # who can read it can hold it
    exec 9>/run/uwsgi-consul-fleet-resolution.lock
    umask 022
    flock 9
    if [ -d "$wanted" ]; then
        cat >/dev/null
        exit 0
    fi
    rm -rf "/srv/$1/resolutions"/.part-*
    trap 'rm -rf "$half_done"' EXIT
    trap 'exit 130' INT TERM HUP
    mkdir -p "$half_done"
}

# as_app HOW COMMAND...: as the application's user, since what a dependency runs while it is installed
# is anybody's code. HOW is `inside` (see scratch.sh) or nothing.
as_app() {
    how=$1
    shift
    $how setpriv --reuid="$app" --regid="$(id -g "$app")" --init-groups --no-new-privs "$@"
}

# give FOLDER...: new ones of that user's; others can't look into them.
give() {
    mkdir -m 700 "$@"
    chown "$app:" "$@"
}

# take FOLDER: is root's from now on, with nothing in it that leads elsewhere but links.
take() {
    find "$1" ! -type d ! -type f ! -type l -delete
    chown -R root:root "$1"
    chmod -R u=rwX,go=rX "$1"
}

keep() {
    sync -f "$half_done"
    mkdir -p "${wanted%/*}"
    mv -T "$half_done" "$wanted"
    sync -f "${wanted%/*}"
}
