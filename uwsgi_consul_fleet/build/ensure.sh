# Runs as root on a host: installs Debian's uWSGI if there is none, then identifies it.
set -eu
export LC_ALL=C.UTF-8
if ! command -v uwsgi >/dev/null; then install_packages uwsgi-core libcurl4; fi
identify_uwsgi
