# shellcheck disable=SC2154 # variables come from builder.py and scratch.sh
# Runs as root on a host, after identify.sh, packages.sh and scratch.sh: builds PyPI's uWSGI
# $uwsgi_version for the Python $python, unless that is there, and identifies it. What stays is
# /opt/uwsgi-consul-fleet/uwsgi/$name, with the wheel and the program out of it; applications install the wheel into their own
# virtual environments.
set -eu
kept_in=/opt/uwsgi-consul-fleet/uwsgi
wanted=$kept_in/${name:?}

# The plugin's library, and part of what the fingerprint is made of.
/sbin/ldconfig -p | grep -q 'libcurl\.so\.4 ' || install_packages libcurl4
tag=$("$python" -c 'import sys; print(sys.implementation.cache_tag)') ||
    fail "$python does not run: install it, or set app_python"
if [ "$(cat "$wanted/python" 2>/dev/null)" != "$tag" ] || ! "$wanted/uwsgi" --version >/dev/null 2>&1; then
    use_compiler gcc libc6-dev python3-dev python3-venv libpcre2-dev libssl-dev

    stage "building uWSGI $uwsgi_version for $tag"
    inside "$python" -m venv "${build#"$root"}/venv" &&
        inside "${build#"$root"}/venv/bin/pip" --quiet --disable-pip-version-check wheel --no-deps --use-pep517 \
            --wheel-dir "${build#"$root"}/wheel" "uwsgi==$uwsgi_version" >"$scratch/out/log" 2>&1 || {
        grep -iE 'error' "$scratch/out/log" | tail -n 10 >&2
        fail "uWSGI $uwsgi_version can't be built; does it exist, and can it reach its package index?"
    }
    part=$kept_in/.$name.part
    rm -rf "$part"
    mkdir -p "$part"
    cp "$build/wheel"/*.whl "$part/"
    "$python" -m zipfile -e "$part"/*.whl "$scratch/out/wheel"
    install -m 755 "$scratch"/out/wheel/*.data/scripts/uwsgi "$part/uwsgi"
    echo "$tag" >"$part/python"

    # The compiler's packages brought libraries that the program needs without them, too.
    missing=$(ldd "$part/uwsgi" | sed -n 's/^[[:space:]]*\([^ ]*\) => not found$/\1/p')
    libraries=
    for library in $missing; do
        owner=$(inside dpkg --search "*/$library" | sed -n '1s/:.*//p')
        libraries="$libraries $owner"
    done
    # shellcheck disable=SC2086 # names of packages
    [ -z "$libraries" ] || install_packages $libraries
    "$part/uwsgi" --version >/dev/null || fail "uWSGI $uwsgi_version does not run on this host"
    rm -rf "$wanted"
    mv -T "$part" "$wanted"
fi
identify_uwsgi "$wanted/uwsgi"
