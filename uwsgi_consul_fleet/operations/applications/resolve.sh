# shellcheck disable=SC2154 # variables come from dependencies.py and scratch.sh
# Resolves an application's requirements as they are written, once for all hosts with the same kind
# of Python; see resolution.sh. Runs as root on one of them, after give_way.sh, scratch.sh,
# resolution.sh and venv.sh.
#   $app $id $kind  what it makes
#   $python         the application's Python
#   $main           the requirements, by their path in the archive
#   $like           on which host they were resolved for another kind, or ''
#   $build_packages Debian packages that it is compiled with, beside the compiler
#   $frozen         the release here whose versions are to stay, or ''
# Its standard input: pip's own variables, one a line, an empty line, and a .tar with the
# requirements and, where another kind was first, what they were resolved to in resolved.txt.
set -eu
begin "$app" "$id" "$kind"
# They may be secret: they lie in no file, and stand in no command line.
while IFS= read -r line && [ -n "$line" ]; do export "${line?}"; done
work=$half_done/work
# What was built for resolutions before, by pip's own way to tell what it was built from.
built=/srv/$app/resolutions/.built-$kind
install -d -m 750 -g "$(id -g "$app")" "$work"
give "$work/home" "$work/cache" "$work/tmp" "$work/wheels"
if [ -d "$built" ]; then
    cp -a "$built" "$work/cache/wheels"
    chown -R "$app:" "$work/cache/wheels"
fi
tar -xf - -C "$work" --no-same-owner

# attempt WHERE FOLDER: makes the wheels; FOLDER is $work as it is seen WHERE it runs. Large ones do
# not fit into /tmp where that lies in memory.
attempt() {
    rm -rf "${build:-$work}/wheels" "$work/complete"
    give "${build:-$work}/wheels"
    {
        as_app "$1" env HOME="$2/home" TMPDIR="$2/tmp" "$2/venv/bin/python" -m pip --disable-pip-version-check --no-input \
            wheel --use-pep517 --cache-dir "$2/cache" --wheel-dir "$2/wheels" \
            --requirement "$2/$main" ${limits:+--constraint "$2/$limits"} && touch "$work/complete"
    } 2>&1 | tee "$work/log" |
        sed -un 's/^ *Building wheel for \([^ ]*\).*: started$/## building \1/p' >&2
    [ -e "$work/complete" ]
}

needs_compiler() {
    grep -qE 'Failed building wheel|Failed to build|Command errored out|subprocess-exited-with-error|metadata-generation-failed' "$work/log"
}

# Whether it says nothing about the requirements: another host, or a later deploy, may fare better.
may_pass() {
    grep -qE 'Retrying \(|Read timed out|Connection(Error| refused| reset| aborted| broken)|HTTP error 5|No space left' "$work/log"
}

give_up() {
    grep -v '^ *$' "$work/log" | tail -n 20 >&2
    stage 'failed: its requirements could not be resolved; nothing was installed'
    if may_pass; then exit 1; else exit 3; fi
}

attempt_with_compiler() {
    if [ -z "${build:-}" ]; then
        # shellcheck disable=SC2086 # names of packages
        use_compiler gcc g++ make pkgconf libc6-dev python3-dev $build_packages
        # The wheels may be larger than the layer; and no mount may outlive this script.
        [ -n "${own_namespace:-}" ] && mount --bind "$work" "$build" || cp -a "$work/." "$build/"
    fi
    attempt inside "${build#"$root"}" || return
    mountpoint -q "$build" || cp -a "$build/wheels" "$work/"
}

resolve() { attempt '' "$work" || { needs_compiler && attempt_with_compiler; }; }

stage "resolving its requirements for $("$python" --version)"
make_venv "$python" "$work/venv" >&2 || fail "no virtual environment can be made with $python"
limits=
if [ -n "$frozen" ]; then
    like=$frozen
    as_app '' "/srv/$app/releases/$frozen/venv/bin/python" -m pip freeze | grep '==' >"$work/resolved.txt" || like=
fi
# Hashes are of versions, which are given then.
if [ -n "$like" ] && ! grep -qe '--hash' "$work/$main"; then
    sed 's/ .*//' "$work/resolved.txt" >"$work/limits.txt"
    limits=limits.txt
fi
resolve || {
    [ -n "$limits" ] && ! may_pass || give_up
    stage "the versions of $like do not fit here: others are taken"
    limits=
    resolve || give_up
}

take "$work/wheels"
"$python" -I - "$work/wheels" >"$half_done/requirements.txt" <<'PYTHON'
import email, hashlib, pathlib, sys, zipfile

for wheel in sorted(pathlib.Path(sys.argv[1]).glob("*.whl")):
    with zipfile.ZipFile(wheel) as opened:
        names = (each for each in opened.namelist() if each.count("/") == 1)
        name = next(each for each in names if each.endswith(".dist-info/METADATA"))
        said = email.message_from_bytes(opened.read(name))
    digest = hashlib.sha256()
    with wheel.open("rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    print(f"{said['Name']}=={said['Version']} --hash=sha256:{digest.hexdigest()}")
PYTHON
chmod 644 "$half_done/requirements.txt"
mv "$work/wheels" "$half_done/wheels"
stage "resolved: $(wc -l <"$half_done/requirements.txt") wheels, $(du -sh "$half_done/wheels" | cut -f 1)"
[ -z "${build:-}" ] || umount "$build" 2>/dev/null || true
find "$work/cache/wheels" -name '*.whl' 2>/dev/null | while read -r wheel; do
    [ -e "$half_done/wheels/${wheel##*/}" ] || rm "$wheel" # of no use any more
done
rm -rf "$built"
if [ -d "$work/cache/wheels" ]; then
    take "$work/cache/wheels"
    mv "$work/cache/wheels" "$built"
fi
rm -rf "$work"
keep
