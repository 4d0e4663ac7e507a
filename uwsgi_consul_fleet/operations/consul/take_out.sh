# On a server that stays: takes another one's vote away; usage: take_out.sh PEER_ID ADDRESS:PORT
set -e
consul operator raft remove-peer -id="$1" >/dev/null

# If it was the leader, it must run on until there is another one: until then, it is the one
# who keeps everybody's questions waiting; without it they would fail.
for _ in $(seq 300); do
    case $(ask /v1/status/leader) in
        "\"$2\"") ;;
        '"'[0-9]*) exit ;;
    esac
    sleep 0.1
done
echo "$(hostname): the Consul servers have no leader after 30 s" >&2
exit 1
