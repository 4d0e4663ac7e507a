# Unpacks a release beside the others; it appears under its name only when it is complete. Runs after
# give_way.sh and venv.sh.
# usage: install.sh APP RELEASE ENVIRONMENT RESOLUTION PLUGIN PYTHON WHEELS MANIFEST <ARCHIVE
#   ENVIRONMENT  names the virtual environment; - for none
#   RESOLUTION   of its requirements, as ID/KIND (see resolution.sh); '' where it has none
#   WHEELS       a folder with the wheel of PyPI's uWSGI; '' where uWSGI is Debian's
#   MANIFEST     what its release.json is called for now: another name where more is to be done
#   ARCHIVE      a .tar.gz in base64. It holds secrets: it comes on standard input and
#                never lies in a file
set -eu
base=/srv/$1 name=$2 environment=$3 resolved=/srv/$1/resolutions/$4 plugin=$5 python=$6 wheels=$7 manifest=$8
venv=$base/venvs/$environment part=$base/releases/.part-$name

fail() {
    echo "$(hostname): $*" >&2
    cat >/dev/null # who sends the archive must not find nobody there
    exit 1
}
# One at a time: a run that was killed may have left its script working on this host.
umask 077 # who can read it can hold it
exec 9>>/run/uwsgi-consul-fleet.lock
chmod 600 /run/uwsgi-consul-fleet.lock
umask 022
flock 9
echo "installation of $1" >/run/uwsgi-consul-fleet.lock # who waits is told
if [ -e "$base/releases/$name/release.json" ]; then cat >/dev/null; exit 0; fi # by the run that held the lock

# Nothing half-done stays, neither of this run nor of one that was killed.
clean() {
    rm -rf "$base"/releases/.part-*
    for folder in "$base"/venvs/*; do [ -e "$folder/complete" ] || rm -rf "$folder"; done
}
mkdir -p "$base/releases" "$base/venvs" || fail "can't make $base"
chgrp "$1" "$base" && chmod 750 "$base" # for nobody else on this host
clean
for left in "$base"/releases/*/unfinished.json; do rm -rf "${left%/*}"; done
trap clean EXIT
mkdir "$part" || fail "can't make $part"
base64 -d | tar -xzf - -C "$part" --no-same-owner || fail "the release does not fit into $base"
[ "$manifest" = release.json ] || mv "$part/release.json" "$part/$manifest"
ln -s "$plugin" "$part/consul_plugin.so"

# Nothing but what is here: neither an index nor this host's own configuration of pip decides.
install() {
    PIP_CONFIG_FILE=/dev/null "$venv/bin/pip" --quiet --disable-pip-version-check --no-input install \
        --no-index --no-deps "$@" || fail "the application's requirements could not be installed"
}

if [ "$environment" != - ]; then
    if [ ! -e "$venv/complete" ]; then
        [ -z "$4" ] || [ -e "$resolved/requirements.txt" ] ||
            fail "the application's dependencies are gone from $resolved: deploy again"
        # A virtual environment knows its own path: it is made in place and marked at the end.
        make_venv "$python" "$venv" || fail "no virtual environment in $venv"
        [ -z "$wheels" ] || install "$wheels"/*.whl
        [ ! -s "$resolved/requirements.txt" ] || install --require-hashes \
            --find-links "$resolved/wheels" --requirement "$resolved/requirements.txt"
        touch "$venv/complete"
    fi
    ln -s "../../venvs/$environment" "$part/venv"
elif [ -n "$4" ]; then
    [ -e "$resolved/requirements.txt" ] ||
        fail "the application's dependencies are gone from $resolved: deploy again"
    # The same files, unless another file system has the releases.
    cp -al "$resolved/vendor.d" "$part/" 2>/dev/null || cp -a "$resolved/vendor.d" "$part/" ||
        fail "the application's dependencies do not fit into $base"
    [ ! -d "$part/vendor.d/composer" ] || ln -s ../vendor.d "$part/source/vendor"
fi
sync -f "$part"
rm -rf "$base/releases/${name:?}" # what a version before 0.3 had half removed
mv -T "$part" "$base/releases/$name"
sync -f "$base/releases"
