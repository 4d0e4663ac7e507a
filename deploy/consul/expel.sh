# On a server: removes a node that is gone; usage: expel.sh NODE DATACENTER [PEER_ID]
set -e
if [ -n "$3" ]; then consul operator raft remove-peer -id="$3" >/dev/null; fi
consul force-leave -prune "$1" >/dev/null 2>&1 || true
consul force-leave "$1.$2" >/dev/null 2>&1 || true
tell /v1/catalog/deregister "{\"Datacenter\": \"$2\", \"Node\": \"$1\"}"
