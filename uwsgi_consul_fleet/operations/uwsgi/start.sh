# start-uwsgi UWSGI PLUGIN ARGUMENT...: becomes UWSGI, if PLUGIN was compiled for it. uWSGI itself
# does not check, and crashes or corrupts its memory with another one's plugin.
set -eu
uwsgi_binary=$1 plugin=$2
shift 2
refuse() {
    echo "start-uwsgi: not started: $*: run invoke build-plugin, then deploy" >&2
    exit 78 # EX_CONFIG: systemd does not try again
}

[ -x "$uwsgi_binary" ] || refuse "there is no $uwsgi_binary"
identity=$(identify_uwsgi "$uwsgi_binary")
here=$(echo "$identity" | sed -n 's/^fingerprint //p')
version=$(echo "$identity" | sed -n 's/^part version //p')
made_for=$(plugin_mark "$plugin") || refuse "$plugin is not one that build-plugin made"
[ "$made_for" = "$here" ] ||
    refuse "$plugin is for the uWSGI with fingerprint $made_for, and this is uWSGI $version with fingerprint $here"
exec "$uwsgi_binary" "$@"
