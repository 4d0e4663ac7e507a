# Unpacks a release beside the others; it appears under its name only when it is complete.
# usage: install.sh APP RELEASE ARCHIVE ENVIRONMENT REQUIREMENTS_FILE PLUGIN PYTHON WHEELS
#   ENVIRONMENT  names the virtual environment; - for none
#   WHEELS       a folder with the wheel of PyPI's uWSGI; '' where uWSGI is Debian's
set -eu
# One at a time: a run that was killed may have left its script working on this host.
exec 9>/run/lock/uwsgi-consul-fleet
flock 9
base=/srv/$1 name=$2 archive=$3 environment=$4 requirements=$5 plugin=$6 python=$7 wheels=$8
umask 022
trap 'rm -f "$archive"' EXIT
if [ -d "$base/releases/$name" ]; then exit 0; fi # by the run that held the lock
mkdir -p "$base/releases" "$base/venvs"
# What an interrupted run left behind.
rm -rf "$base"/releases/.part-* "$base"/venvs/.part-*

part=$base/releases/.part-$name
mkdir "$part"
tar -xzf "$archive" -C "$part" --no-same-owner
ln -s "$plugin" "$part/consul_plugin.so"

install() {
    "$venv/bin/pip" --quiet --disable-pip-version-check --no-input install "$@" || {
        echo "the application's requirements could not be installed on $(hostname)" >&2
        exit 1
    }
}

if [ "$environment" != - ]; then
    venv=$base/venvs/$environment
    if [ ! -e "$venv/complete" ]; then
        # A virtual environment knows its own path: it is made in place and marked at the end.
        rm -rf "$venv"
        "$python" -m venv "$venv"
        [ -z "$wheels" ] || install --no-index "$wheels"/*.whl
        [ ! -e "$part/$requirements" ] || install --requirement "$part/$requirements"
        touch "$venv/complete"
    fi
    ln -s "../../venvs/$environment" "$part/venv"
fi
sync -f "$part"
mv -T "$part" "$base/releases/$name"
