# identify_uwsgi [PATH]: prints what makes a uWSGI (the host's own without PATH) interchangeable
# with another one for a plugin:
#   fingerprint FP
#   uwsgi PATH VERSION
#   part NAME VALUE         for each thing that the fingerprint is made of
# or nothing where there is no uWSGI. A plugin is compiled against the layout of
# `struct uwsgi_server`, which follows from the version, the flags and the header that
# are embedded in the binary; uWSGI checks none of them when it loads a plugin.
identify_uwsgi() {
    uwsgi=${1:-$(command -v uwsgi)} || return 0
    [ -x "$uwsgi" ] || return 0
    # Asking uWSGI takes longer than all else that a deploy looks at, so the answer is kept until
    # the binary is another one, or the libraries that the linker knows, or the host reboots. What
    # lies in /run is root's.
    known=$(stat --dereference --printf '%d-%i %s-%Z ' "$uwsgi" /etc/ld.so.cache 2>/dev/null) || known=
    key="$uwsgi $known" kept=/run/uwsgi-consul-fleet.identity-${known%% *}
    if [ "$known" ] && [ -r "$kept" ] && [ "$(stat --format %u "$kept")" = 0 ]; then
        {
            IFS= read -r first
            if [ "$first" = "$key" ]; then
                while read -r line; do echo "$line"; done
                return 0
            fi
        } <"$kept"
    fi
    libc=$(getconf GNU_LIBC_VERSION)
    libcurl=$(/sbin/ldconfig -p | sed -n 's/^[[:space:]]*\(libcurl\.so\.[0-9]*\) .*/\1/p' | sort -u | tail -n 1)
    version=$("$uwsgi" --version)
    parts=$(
        echo "part version $version"
        echo "part flags $("$uwsgi" --cflags | sha256sum | cut -c 1-16)"
        echo "part header $("$uwsgi" --dot-h | sha256sum | cut -c 1-16)"
        echo "part architecture $(uname -m)"
        echo "part libc $libc"
        echo "part libcurl ${libcurl:-none}"
    )
    fingerprint=$(echo "$parts" | sha256sum | cut -c 1-16)
    identity=$(printf 'fingerprint %s\nuwsgi %s %s\n%s' "$fingerprint" "$uwsgi" "$version" "$parts")
    echo "$identity"
    if [ "$known" ] && [ "$(id -u)" = 0 ]; then
        printf '%s\n%s\n' "$key" "$identity" >"$kept.$$" && mv "$kept.$$" "$kept"
    fi
}

# plugin_mark FILE: the fingerprint of the uWSGI that a plugin was compiled for; fails where
# somebody else compiled it.
plugin_mark() {
    mark=$(grep -aom 1 'uwsgi-consul-fleet fingerprint [0-9a-f]\{16\}' "$1") || return 1
    echo "${mark##* }"
}
