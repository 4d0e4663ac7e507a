# shellcheck disable=SC2154 # variables come from resolution.sh
# Keeps a resolution that was made on another host; see resolution.sh.
# usage: receive.sh APP ID KIND <ARCHIVE
#   ARCHIVE      a .tar in base64
set -eu
begin "$@"
base64 -d | tar -xf - -C "$half_done" --no-same-owner || {
    echo "$(hostname): its dependencies do not fit into ${wanted%/*}" >&2
    exit 1
}
keep
