# shellcheck disable=SC2154 # variables come from resolution.sh
# Keeps a resolution that was made on another host; see resolution.sh.
# usage: receive.sh APP ID KIND <ARCHIVE
#   ARCHIVE      a .tar in base64
set -eu
begin "$@"
refuse() {
    echo "$(hostname): its dependencies $*" >&2
    exit 1
}
base64 -d | tar -xf - -C "$half_done" --no-same-owner || refuse "do not fit into ${wanted%/*}"
# An archive that was cut between two files is one for tar.
[ "$(find "$half_done" -mindepth 2 ! -type d | wc -l)" = "$(wc -l <"$half_done/requirements.txt")" ] ||
    refuse "did not arrive whole: deploy again"
keep
