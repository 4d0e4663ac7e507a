# Prints what makes this host's uWSGI interchangeable with another one for a plugin:
#   fingerprint FP
#   uwsgi PATH VERSION
# or nothing where there is no uWSGI. A plugin is compiled against the layout of
# `struct uwsgi_server`, which follows from the version, the flags and the header that
# are embedded in the binary; uWSGI checks none of them when it loads a plugin.
identify_uwsgi() {
    uwsgi=$(command -v uwsgi) || return 0
    libc=$(getconf GNU_LIBC_VERSION)
    # Asking uWSGI takes longer than all else that a deploy looks at, so the answer is kept
    # until the binary is another one or the host reboots.
    kept=/run/uwsgi-consul-fleet.identity
    key="$(stat --dereference --format '%n %i %s %Z' "$uwsgi") $libc"
    if [ -O "$kept" ] && [ "$(head -n 1 "$kept")" = "$key" ]; then
        tail -n +2 "$kept"
        return 0
    fi
    version=$("$uwsgi" --version)
    fingerprint=$(
        {
            echo "$version"
            "$uwsgi" --cflags
            "$uwsgi" --dot-h
            uname -m
            echo "$libc"
        } | sha256sum | cut -c 1-16
    )
    printf 'fingerprint %s\nuwsgi %s %s\n' "$fingerprint" "$uwsgi" "$version"
    if [ "$(id -u)" = 0 ]; then
        printf '%s\nfingerprint %s\nuwsgi %s %s\n' "$key" "$fingerprint" "$uwsgi" "$version" \
            >"$kept.part" && mv "$kept.part" "$kept"
    fi
}
