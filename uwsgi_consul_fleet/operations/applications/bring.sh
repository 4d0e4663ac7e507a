# shellcheck disable=SC2154 # variables come from dependencies.py and scratch.sh
# Installs what an application in another language than Python depends on, once for all hosts of a
# kind, into a folder that is sent to the others; see resolution.sh. Runs as root on one of them, after
# give_way.sh, scratch.sh and resolution.sh. What installs it does not stay on the host.
#   $app $id $kind      what it makes
#   $type               the language
#   $tools $compiler    Debian's packages that install it, and those that compile
#   $folder             what it is called in a release
# Its standard input: variables, one a line, an empty line, and a .tar with the requirements, below
# requirements.d.
set -eu
begin "$app" "$id" "$kind"
# They may be secret: they lie in no file, and stand in no command line.
while IFS= read -r line && [ -n "$line" ]; do export "${line?}"; done

# attempt: in $build, as it is seen from where the tools are, and with an empty home.
attempt() {
    rm -rf "${build:?}/${folder:?}" "${build:?}/home" "${build:?}/complete"
    give "$build/$folder" "$build/home"
    {
        as_app inside env HOME="$here/home" TMPDIR="$here/home" sh -euc "$install" install "$here" "$here/$folder" &&
            touch "$build/complete"
    } >"$build/log" 2>&1 || true
    [ -e "$build/complete" ]
}

# Whether another host, or a later deploy, may fare better.
may_pass() {
    grep -qiE 'timed out|timeout|could not resolve|connection (refused|reset)|network is unreachable|50[0-4] (internal|bad|service|gateway)|No space left' "$build/log"
}

case $type in
psgi)
    # shellcheck disable=SC2016 # the shell that runs it has them
    install='cd "$1/source"
        [ ! -e cpanfile.snapshot ] || set -- "$@" --deployment
        shift; path=$1; shift
        carton install --path "$path" --without develop --without test "$@"
        rm -rf "$path/cache"'
    ;;
rack)
    # shellcheck disable=SC2016
    install='cd "$1/source"
        export BUNDLE_PATH="$2" BUNDLE_FROZEN=true BUNDLE_WITHOUT=development:test BUNDLE_APP_CONFIG="$1/home"
        export BUNDLE_JOBS=2
        bundle install
        rm -rf "$2"/ruby/*/cache; mkdir -p "$2"'
    ;;
php)
    # By this path from there its autoloader finds the source, which is not here.
    # shellcheck disable=SC2016
    install='cd "$1/source"
        export COMPOSER_VENDOR_DIR="../${2##*/}" COMPOSER_HOME="$1/home"
        composer install --no-interaction --no-ansi --no-progress --no-dev --no-scripts --no-plugins --prefer-dist'
    ;;
esac
stage "installing what it depends on, by ${tools%% *}"
# shellcheck disable=SC2086 # a word for each
use_compiler $tools
here=${build#"$root"}
# Beside each other as in a release.
tar -xf - -C "$build" --no-same-owner
mv "$build/requirements.d" "$build/source"
chown -R "$app:" "$build/source"
# What has to be compiled does not say so in one way.
attempt || may_pass || [ -z "$compiler" ] || {
    stage 'installing a compiler too'
    # shellcheck disable=SC2086
    apt install gcc g++ make pkgconf libc6-dev $compiler || explain_apt
    attempt || true
}
[ -e "$build/complete" ] || {
    grep -v '^ *$' "$build/log" | tail -n 30 >&2
    stage 'failed: what it depends on could not be installed; nothing was changed'
    if may_pass; then exit 1; else exit 3; fi
}
cp -a "$build/$folder" "$half_done/$folder"
take "$half_done/$folder"
(cd "$half_done" && find "$folder" ! -type d) >"$half_done/requirements.txt"
chmod 644 "$half_done/requirements.txt"
stage "installed: $(wc -l <"$half_done/requirements.txt") files, $(du -sh "$half_done/$folder" | cut -f 1)"
keep
