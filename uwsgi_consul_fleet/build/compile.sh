# shellcheck disable=SC2154 # variables come from builder.py and scratch.sh
# Runs as root on a host, after identify.sh and scratch.sh: compiles the plugin whose sources
# come as a tar archive on standard input against the uWSGI $uwsgi_binary, and writes the .so to
# standard output.
#   $fingerprint  what deploys and services know this uWSGI by
#   $packages     Debian packages that this plugin needs, beside the compiler
#   $option       an option of the plugin by which it is known to be loaded; '' if none is known
set -eu

# wait_for TEST...: for ten seconds at most
wait_for() {
    tries=0
    until test "$@" || [ "$tries" = 200 ]; do
        tries=$((tries + 1))
        sleep 0.05
    done
}

# shellcheck disable=SC2086 # $packages holds several
use_compiler gcc libc6-dev binutils python3 uwsgi-dev libcurl4-openssl-dev libpcre2-dev libyaml-dev \
    libyajl-dev libxml2-dev $packages
tar -xz -C "$build"

stage "compiling against uWSGI $("$uwsgi_binary" --version)"
inside sh -c "cd '${build#"$root"}' && PYTHON=python3 '$uwsgi_binary' --build-plugin ." >"$scratch/out/log" 2>&1 || {
    cat "$scratch/out/log" >&2
    fail 'it does not compile'
}
plugin=$(find "$build" -maxdepth 1 -name '*_plugin.so' | head -n 1)
[ -n "$plugin" ] || fail 'uwsgi --build-plugin made no plugin'
# Read back by plugin_mark: a file that lies in the wrong place says so itself.
printf 'uwsgi-consul-fleet fingerprint %s\n' "$fingerprint" >"$build/mark"
inside objcopy --add-section ".note.uwsgi-consul-fleet=${build#"$root"}/mark" "${plugin#"$root"}"
inside gcc --version | sed -n '1s/^/## compiler /p' >&2

stage 'checking that this uWSGI loads it'
cp "$plugin" "$scratch/out/"
plugin=$scratch/out/${plugin##*/}
# In the host's own root, where the libraries are those that will be there at run time.
if ! "$uwsgi_binary" --plugin "$plugin" --help >"$scratch/out/help" 2>&1 ||
    { [ -n "$option" ] && ! grep -q -- "--$option" "$scratch/out/help"; }; then
    grep -F '.so' "$scratch/out/help" >&2 || true
    fail "this uWSGI does not load it${option:+, or does not know $option with it}"
fi

if [ "$option" = consul-register ]; then
    stage 'checking that it registers'
    # Plays the agent for one registration, which it prints.
    cat >"$build/listener.py" <<'LISTENER'
import http.server
import sys


class Agent(http.server.BaseHTTPRequestHandler):
    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.send_response(200)
        self.end_headers()
        if self.path == "/v1/agent/service/register":
            print(body, flush=True)

    def do_GET(self):
        self.send_error(404)

    def log_message(self, *_):
        pass


with http.server.HTTPServer(("127.0.0.1", 0), Agent) as server:
    with open(sys.argv[1], "w") as file:
        print(server.server_port, file=file)
    server.serve_forever()
LISTENER
    inside timeout 30 python3 "${build#"$root"}/listener.py" "${build#"$root"}/port" >"$scratch/out/registered" 2>&1 &
    listener=$!
    wait_for -s "$build/port"
    timeout --signal INT --kill-after 5 20 "$uwsgi_binary" --plugin "$plugin" --master --processes 1 \
        --socket "$scratch/out/socket" --consul-register \
        "url=http://127.0.0.1:$(cat "$build/port"),name=build-check,drain=0" >"$scratch/out/log" 2>&1 &
    instance=$!
    wait_for -s "$scratch/out/registered"
    kill -s INT "$instance" && wait "$instance" || true
    kill "$listener" 2>/dev/null || true
    grep -q '"Name":"build-check"' "$scratch/out/registered" || {
        grep -F '[consul]' "$scratch/out/log" >&2 || tail -n 20 "$scratch/out/log" >&2
        fail 'uWSGI loads it, but it registers nothing'
    }
fi
cat "$plugin"
