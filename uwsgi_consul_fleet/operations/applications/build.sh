# shellcheck disable=SC2154 # variables come from steps.py and scratch.sh
# Makes a release complete (see host/steps.py) where its build needs Debian packages that do not
# stay. Runs as root on a host, after give_way.sh and scratch.sh.
#   $app $name  the release
#   $about      what its commands are told
#   $packages   the Debian packages
#   $program    where the host program lies, which $run starts
set -eu
# In a copy of the system what is built would be lost with it.
copy_root() {
    fail 'app_build_packages: no scratch layer can be put on this host: install them by app_packages'
}
# shellcheck disable=SC2086 # names of packages
use_compiler $packages
for place in "/srv/$app" /opt/uwsgi-consul-fleet /run; do
    mkdir -p "$root$place"
    mount --bind "$place" "$root$place"
done
inside python3 -IS -c "$run" "$program" finish "$app" "$name" "$about"
