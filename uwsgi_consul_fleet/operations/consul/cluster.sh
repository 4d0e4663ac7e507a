# Prints how this agent sees its cluster, a line of JSON for each question; see cluster.py.
for question in \
    'servers /v1/operator/raft/configuration?stale' \
    'members /v1/agent/members' \
    'nodes /v1/catalog/nodes'; do
    echo "${question%% *} $(ask "${question#* }" 2>/dev/null)"
done
