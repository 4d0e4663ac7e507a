# Lets each instance serve one release; usage: switch.sh APP RELEASE PORT...
# Started again after an interruption it goes on where it was.
set -eu
# One at a time: a run that was killed may have left its script working on this host.
exec 9>/run/lock/uwsgi-consul-fleet
flock 9
app=$1 name=$2
shift 2
systemctl daemon-reload
for port; do
    unit=$app-$port
    new=$unit@$name.service
    systemctl start "$unit.socket"
    # Returns when uWSGI says READY=1: the application is loaded and accepts requests.
    if ! systemctl start "$new"; then
        journalctl --no-pager --lines 20 --output cat --unit "$new" >&2
        systemctl stop "$new"
        echo "$(hostname): $unit does not start with release $name: what served before still does" >&2
        exit 1
    fi
    systemctl --quiet enable "$new"
    systemctl list-units --all --plain --no-legend "$unit@*.service" | while read -r old _; do
        [ "$old" = "$new" ] || systemctl --quiet disable --now "$old"
    done
    for link in "/etc/systemd/system/$app.target.wants/$unit@"*.service; do
        [ "${link##*/}" = "$new" ] || rm -f "$link"
    done
done
ln -sfn "releases/$name" "/srv/$app/current"
