# Starts the agent anew with what lies on this host now; usage: run.sh BINARY ROLE
# ROLE is client; or, of a server: first, in a cluster that is being made; joining, in one that
# does not count it among its servers yet; or member.
set -e
binary=$1
role=$2

"$binary" validate /etc/consul.d >/dev/null
ln -sfn "$binary" /usr/local/bin/consul
systemctl daemon-reload
systemctl --quiet enable consul
systemctl stop consul
case $role in
    client | joining)
        # The log of a cluster as it was when this host last was a server: as a server with
        # that it would call for an election again and again.
        rm -rf /var/lib/consul/raft /var/lib/consul/serf/remote.snapshot
        ;;
esac
systemctl start consul || {
    journalctl --no-pager -n 20 -u consul >&2
    exit 1
}
if [ "$role" != member ]; then exit; fi

# The next server may be restarted when this one follows a leader again.
for _ in $(seq 300); do
    case $(ask /v1/status/leader) in '"'[0-9]*) exit ;; esac
    sleep 0.1
done 2>/dev/null
echo "$(hostname): after 30 s its Consul server knows no leader" >&2
journalctl --no-pager -n 20 -u consul >&2
exit 1
