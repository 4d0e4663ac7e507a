# Takes files of the packet filter over and loads them all, where nft takes them; usage:
# firewall.sh UNIT [NAME TEXT]...: a file without a TEXT goes
set -eu
umask 022

place() {
    if ! cmp -s "$1" "$2"; then
        mkdir -p "${2%/*}"
        mv "$1" "$2"
        stale=yes
    fi
}

exec 9>/run/lock/uwsgi-consul-fleet.firewall # what an interrupted run began comes first
flock 9
folder=/etc/uwsgi-consul-fleet/firewall service=uwsgi-consul-fleet-firewall.service
mkdir -p "$folder"
rm -rf "$folder"/.new.*
new=$(mktemp -d "$folder/.new.XXXXXX")
trap 'rm -rf "$new"' EXIT
find "$folder" -maxdepth 1 -name '*.nft' -exec cp {} "$new" \;
printf %s "$1" >"$new/unit"
shift
while [ $# -gt 0 ]; do
    if [ -n "$2" ]; then printf %s "$2" >"$new/$1"; else rm -f "$new/$1"; fi
    shift 2
done
{ cat "$new/fleet.nft" && find "$new" -name 'app.*.nft' -exec cat {} +; } >"$new/all"
/usr/sbin/nft -c -f "$new/all" >&2 || {
    echo "$(uname -n): the packet filter can't be loaded, and is as it was; a host whose kernel has no nf_tables needs firewall = False" >&2
    exit 1
}
# A boot reads this one alone.
mv "$new/all" "$folder/all"
for file in "$folder"/*.nft; do [ -e "$new/${file##*/}" ] || rm -f "$file"; done
find "$new" -name '*.nft' -exec mv {} "$folder" \;
# The unit of the host's own rules flushes all that there are, whatever is done with it.
load="-/usr/sbin/nft -f $folder/all"
printf '%s\n' '# Written by uwsgi-consul-fleet: changes are overwritten.' '[Service]' \
    "ExecStartPost=$load" "ExecReload=$load" "ExecStopPost=$load" >"$new/drop-in"
stale=$(systemctl show --property NeedDaemonReload "$service" nftables.service)
place "$new/unit" "/etc/systemd/system/$service"
place "$new/drop-in" /etc/systemd/system/nftables.service.d/uwsgi-consul-fleet.conf
systemctl --quiet --no-reload enable "$service"
case $stale in *yes*) systemctl daemon-reload ;; esac
systemctl restart "$service"
