# look_around APP PORTS: prints whose this host is, and what lies where the fleet of APP would put
# something of its own; a line for each, see belongings.py:
#   fleet JSON          what the host carries
#   mark WHAT           made by a version of ours that kept no record: consul, or app:NAME
#   joins ADDRESS ...   the Consul servers that such an agent looks for
#   stranger WHAT TEXT  not ours: WHAT is consul, app:NAME, or port:N
look_around() {
    carried=$(cat /etc/uwsgi-consul-fleet/fleet.json 2>/dev/null)
    if [ -n "$carried" ]; then echo "fleet $carried"; fi
    case $carried in *'"consul"'*) ;; *) look_for_consul ;; esac
    look_for_marks
    case "$carried $marks " in
        *"\"app:$1\""* | *" app:$1 "*) ;;
        *) look_for_application "$1" ;;
    esac
    look_for_ports "$1" "$2"
}

# Whether the first line of a file says that we wrote it.
is_ours() { read -r first 2>/dev/null <"$1" && case $first in '# Written by uwsgi-consul-fleet'*) ;; *) false ;; esac; }

look_for_consul() {
    unit=/etc/systemd/system/consul.service
    if is_ours "$unit"; then
        echo "mark consul"
        tr -d ' \n"' </etc/consul.d/consul.json 2>/dev/null |
            sed -n 's/.*retry_join:\[\([^]]*\)\].*/joins \1/p' | tr ',' ' '
        echo
        return
    fi
    for place in "$unit" /lib/systemd/system/consul.service /usr/local/bin/consul /var/lib/consul; do
        if [ -e "$place" ] || [ -L "$place" ]; then echo "stranger consul $place"; fi
    done
    if getent passwd consul >/dev/null; then echo "stranger consul the user consul"; fi
    for process in /proc/[0-9]*; do
        if read -r name 2>/dev/null <"$process/comm" && [ "$name" = consul ]; then
            echo "stranger consul the process ${process#/proc/} ($(tr '\0' ' ' <"$process/cmdline"))"
        fi
    done
    listening 8300 8301 8302 8500 | while read -r port who; do
        echo "stranger consul ${who:-something} listens on port $port"
    done
}

# Applications of ours from before there was a record.
look_for_marks() {
    marks=
    for place in /etc/uwsgi-consul-fleet/*.conf /srv/*/releases/*/release.json; do
        name=${place#/srv/} name=${name#/etc/uwsgi-consul-fleet/} name=${name%%/*} name=${name%.conf}
        case $place in *.conf) is_ours "$place" ;; *) [ -e "$place" ] ;; esac || continue
        case "$carried $marks " in *"\"app:$name\""* | *" app:$name "*) continue ;; esac
        [ "$name" = a-newer-uwsgi-consul-fleet ] && continue
        marks="$marks app:$name"
        echo "mark app:$name"
    done
}

look_for_application() {
    for place in "/srv/$1" "/etc/systemd/system/$1.target" "/etc/systemd/system/$1"-[0-9]*.socket \
        "/etc/systemd/system/$1"-[0-9]*@*.service; do
        if [ -e "$place" ]; then echo "stranger app:$1 $place"; fi
    done
    if getent passwd "$1" >/dev/null; then echo "stranger app:$1 the user $1"; fi
}

# look_for_ports APP PORTS: those on which something else listens.
look_for_ports() {
    new=
    for port in $2; do
        [ -e "/etc/systemd/system/$1-$port.socket" ] || new="$new $port"
    done
    [ -z "$new" ] && return
    listening $new | while read -r port who; do echo "stranger port:$port $who"; done
}

# listening PORT ...: those on which something listens, and who, where ss can tell.
listening() {
    for port; do
        hex=$(printf ':%04X' "$port")
        cat /proc/net/tcp /proc/net/tcp6 2>/dev/null |
            awk -v port="$hex" '$4 == "0A" && substr($2, length($2) - 4) == port { found = 1 }
                END { exit !found }' || continue
        who=$(ss -Hltnp "sport = :$port" 2>/dev/null |
            sed -n 's/.*users:(("\([^"]*\)",pid=\([0-9]*\).*/\1 (process \2)/p' | head -n 1)
        echo "$port $who"
    done
}
