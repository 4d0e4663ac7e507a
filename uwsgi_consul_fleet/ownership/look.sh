# look_around: prints whose this host is, and what lies where a fleet would put its Consul; and then
# look_for APP PORTS: what lies where it would put an application. A line for each; see belongings.py:
#   fleet JSON          what the host carries
#   guard PORT          what stops versions that know no fleets
#   mark WHAT           made by a version of ours that kept no record: consul, or app:NAME
#   joins ADDRESS ...   the Consul servers that such an agent looks for
#   stranger WHAT TEXT  not ours: WHAT is consul, app:NAME, or port:N
# It sets $made, what the record names, and $marks.
look_around() {
    unit=/etc/systemd/system/consul.service marks='' made=''
    carried=$(cat /etc/uwsgi-consul-fleet/fleet.json 2>/dev/null)
    if [ -n "$carried" ]; then
        printf 'fleet %s\n' "$carried"
        made=${carried##*\"made\":}
    else
        look_for_marks
    fi
    for guard in /etc/systemd/system/a-newer-uwsgi-consul-fleet-*.socket; do
        guard=${guard##*-} guard=${guard%.socket}
        [ "$guard" = '*' ] || echo "guard $guard"
    done
    look_for_consul
}

look_for() {
    case "$made $marks " in
        *"\"app:$1\""* | *" app:$1 "*) ;;
        *) look_for_application "$1" ;;
    esac
    look_for_ports "$1" "$2"
}

# Whether the first line of a file says that we wrote it.
is_ours() { read -r first 2>/dev/null <"$1" && case $first in '# Written by uwsgi-consul-fleet'*) ;; *) false ;; esac; }

# Whether a user is as we make them, on a host on which a version without records was at work.
is_our_user() {
    [ -z "$carried" ] && [ -e /opt/uwsgi-consul-fleet ] &&
        case $(getent passwd "$1") in *:/nonexistent:*nologin) ;; *) false ;; esac
}

look_for_consul() {
    if is_ours "$unit"; then
        case $made in *'"consul"'*) return ;; esac
        echo "mark consul"
        cat /etc/consul.d/consul.json /etc/uwsgi-consul-fleet/consul.d/consul.json 2>/dev/null |
            tr -d ' \n"' | sed -n 's/.*retry_join:\[\([^]]*\)\].*/joins \1/p' | tr ',' ' '
        echo
        return
    fi
    look_for_a_running_consul
    # A record stays where data was kept; what came since is its owner's.
    case $made in *'"consul"'*) return ;; esac
    for place in "$unit" /lib/systemd/system/consul.service /usr/local/bin/consul; do
        if [ -e "$place" ] || [ -L "$place" ]; then echo "stranger consul $place"; fi
    done
    # What a version without records kept of a host that retired has no user any more.
    if [ -e /var/lib/consul ] && [ -z "$(find /var/lib/consul -prune -nouser)" ]; then
        is_our_user consul || echo "stranger consul /var/lib/consul"
    fi
    if getent passwd consul >/dev/null && ! is_our_user consul; then
        echo "stranger consul the user consul"
    fi
}

look_for_a_running_consul() {
    for process in /proc/[0-9]*; do
        if read -r name 2>/dev/null <"$process/comm" && [ "$name" = consul ]; then
            command=$(tr '\0' ' ' <"$process/cmdline")
            # Ours, of which the unit is gone.
            case $command in /opt/uwsgi-consul-fleet/*) return ;; esac
            echo "stranger consul the process ${process#/proc/} ($command)"
        fi
    done
    listening 8300 8301 8302 8500 8600 | while read -r port who; do
        echo "stranger consul ${who:-something} listens on port $port"
    done
}

# Applications of ours from before there was a record.
look_for_marks() {
    for place in /etc/uwsgi-consul-fleet/*.conf /srv/*/releases/*/release.json; do
        name=${place#/srv/} name=${name#/etc/uwsgi-consul-fleet/} name=${name%%/*} name=${name%.conf}
        case $name in *[!a-z0-9-]* | a-newer-uwsgi-consul-fleet) continue ;; esac
        case "$marks " in *" app:$name "*) continue ;; esac
        case $place in *.conf) is_ours "$place" ;; *) grep -qs '"health_path"' "$place" ;; esac || continue
        marks="$marks app:$name"
        echo "mark app:$name"
    done
}

# Whether nothing is in an application's folder but what its releases shared, as remove() in
# host/retire.py leaves that.
was_left() {
    [ "$(ls -A "/srv/$1")" = shared ] && [ "$(find "/srv/$1/shared" -prune -type d -user 0 -perm 700)" ]
}

look_for_application() {
    user=theirs
    if is_our_user "$1"; then user=ours; fi
    # An installation that failed has left these.
    if [ -e "/srv/$1" ]; then
        more=$(find "/srv/$1" -mindepth 1 -maxdepth 1 ! -name releases ! -name venvs ! -name resolutions ! -name shared)
        if [ -n "$more" ] || { [ $user = theirs ] && ! was_left "$1"; }; then
            echo "stranger app:$1 /srv/$1"
        fi
    fi
    for place in "/lib/systemd/system/$1.target" "/etc/systemd/system/$1.target"; do
        if [ -e "$place" ] && ! is_ours "$place"; then echo "stranger app:$1 $place"; fi
    done
    find /etc/systemd/system -maxdepth 1 -regextype posix-extended \
        -regex ".*/$1-[0-9]+(\.socket|@.*\.service)" -printf "stranger app:$1 %p\n"
    if [ $user = ours ]; then return; fi
    if getent passwd "$1" >/dev/null; then
        echo "stranger app:$1 the user $1"
    elif getent group "$1" >/dev/null; then
        echo "stranger app:$1 the group $1"
    fi
}

# look_for_ports APP PORTS: those on which something else listens.
look_for_ports() {
    new=
    for port in $2; do
        [ -e "/etc/systemd/system/$1-$port.socket" ] || new="$new $port"
    done
    [ -z "$new" ] && return
    # shellcheck disable=SC2086 # a word for each port
    listening $new | while read -r port who; do echo "stranger port:$port $who"; done
}

# listening PORT ...: those on which something listens, and who, where ss can tell.
listening() {
    # Read once: for each reading the kernel goes through its whole table of connections.
    open=$(cat /proc/net/tcp /proc/net/tcp6 2>/dev/null |
        awk '$4 == "0A" { print substr($2, length($2) - 4) }')
    for port; do
        case $open in *$(printf ':%04X' "$port")*) ;; *) continue ;; esac
        who=$(ss -Hltnp "sport = :$port" 2>/dev/null |
            sed -n 's/.*users:(("\([^"]*\)",pid=\([0-9]*\).*/\1 (process \2)/p' | head -n 1)
        echo "$port $who"
    done
}
