# On a server: removes a node that is gone; usage: expel.sh NODE DATACENTER [PEER_ID]
set -e
if [ -n "$3" ]; then consul operator raft remove-peer -id="$3" >/dev/null; fi
# The second name is that of a server among those of several datacenters.
for member in "$1" "$1.$2"; do
    if { consul members && consul members -wan; } | awk -v node="$member" '
        $1 == node && $3 == "failed" { found = 1 }
        END { exit !found }'; then
        consul force-leave -prune "$member" >/dev/null
    fi
done
tell /v1/catalog/deregister "{\"Datacenter\": \"$2\", \"Node\": \"$1\"}"
