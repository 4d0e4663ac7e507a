# Waits until this host votes as a Consul server; usage: vote.sh NODE SECONDS
# A cluster gives a new server its vote when it has been healthy for ten seconds.
node=$1
end=$(($(date +%s) + $2))

votes() {
    consul operator raft list-peers 2>/dev/null | awk -v node="$node" '
        NR == 1 { for (i = 1; i <= NF; i++) if ($i == "Voter") voter = i }
        $1 == node && $voter == "true" { found = 1 }
        END { exit !found }'
}

until votes; do
    if [ "$(date +%s)" -ge "$end" ]; then
        echo "$node: the Consul servers gave it no vote within $2 s; no server is removed meanwhile" >&2
        journalctl --no-pager -n 20 -u consul >&2
        exit 1
    fi
    sleep 0.2
done
