# Prints what makes this host's uWSGI interchangeable with another one for a plugin:
#   fingerprint FP
#   uwsgi PATH VERSION
# or nothing where there is no uWSGI. A plugin is compiled against the layout of
# `struct uwsgi_server`, which follows from the version, the flags and the header that
# are embedded in the binary; uWSGI checks none of them when it loads a plugin.
identify_uwsgi() {
    uwsgi=$(command -v uwsgi) || return 0
    version=$("$uwsgi" --version)
    fingerprint=$(
        {
            echo "$version"
            "$uwsgi" --cflags
            "$uwsgi" --dot-h
            uname -m
            getconf GNU_LIBC_VERSION
        } | sha256sum | cut -c 1-16
    )
    echo "fingerprint $fingerprint"
    echo "uwsgi $uwsgi $version"
}
