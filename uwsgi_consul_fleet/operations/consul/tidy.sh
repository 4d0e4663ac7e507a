# On a server that stays, when another one has become a client; usage: tidy.sh NODE PEER_ID DATACENTER
set -e
for _ in $(seq 100); do
    if consul members | awk -v node="$1" '$1 == node && $4 == "client" { found = 1 } END { exit !found }'; then
        break
    fi
    sleep 0.1
done

# The leader adds every server that it sees, so it may just have added this one again.
if ask '/v1/operator/raft/configuration' | grep -q "\"$2\""; then
    consul operator raft remove-peer -id="$2" >/dev/null
fi
tell /v1/catalog/deregister "{\"Datacenter\": \"$3\", \"Node\": \"$1\", \"ServiceID\": \"consul\"}"
# Among the servers of several datacenters it has another name, and is not known any more.
consul force-leave "$1.$3" >/dev/null 2>&1 || true
