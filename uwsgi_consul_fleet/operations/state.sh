# Prints the state of this host, a line for each thing; see parse() in state.py. Every deploy waits
# for it on each host, so what the shell can do by itself starts no other program.
# usage: sh -c SCRIPT state KIND PROGRAM DIGEST RUN ASK [APP PORTS UWSGI PYTHON PACKAGES]...
# DIGEST is that of the host PROGRAM as it should be, which RUN starts; ASK what it is asked about
# Consul where the agent was here before us, else ''. Of each application that should be here, UWSGI
# is the one to look at, '' for the one on the PATH, PYTHON its own, '' for none, and PACKAGES
# those of Debian that it needs; KIND is the program by which its Python says what it is.
kind=$1 program=$2 digest=$3 run=$4 ask=$5
shift 5
export LC_ALL=C
# What is asked meanwhile says so here, and at the end: in between it would tear lines apart.
aside=$(mktemp -d /run/uwsgi-consul-fleet.XXXXXX) || exit
trap 'rm -rf "$aside"' EXIT
trap 'exit 130' INT TERM HUP

if command -v python3 >/dev/null; then echo "python yes"; fi
if [ -d /var/lib/consul ]; then echo "consul_data yes"; fi
# A Consul server: whom it follows, and which servers it counts; asked while the rest is looked
# at. Where the program is missing or another version's, state.py brings it along.
if [ -n "$ask" ]; then
    echo "consul_agent yes"
elif [ -d /var/lib/consul/raft ]; then
    echo "consul_raft yes"
    ask='--access-stdin consul status'
fi
if [ -n "$ask" ] && [ "$(sha256sum 2>/dev/null <"$program")" = "$digest  -" ]; then
    exec 3<&0 # a command in the background reads nothing else
    # shellcheck disable=SC2086 # several words
    printf 'consul %s\n' "$(python3 -IS -c "$run" "$program" $ask <&3)" >"$aside/consul" &
fi

# As somebody who may as much as the application's user.
look_at_python() {
    setpriv --reuid=65534 --regid=65534 --clear-groups "$1" -ISc "$kind" "$1" 2>/dev/null && return
    "$1" -ISc "$kind" "$1" && echo "app_python_closed $1 $1"
}

echo "architecture $(dpkg --print-architecture)"

# Whose this host is; it sets these.
unit='' made='' marks=''
look_around
wanted='' pythons='' packages='' asked=none
while [ $# -gt 0 ]; do
    name=$1 wanted="$wanted $1"
    look_for "$name" "$2"
    if [ "$asked" != "$3" ]; then asked=$3 identity=$(identify_uwsgi "$3"); fi
    while read -r line; do echo "of $name $line"; done <<END
$identity
END
    echo "of $name app_python_at $4"
    case $pythons in *" $4 "*) ;; *) if [ -x "$4" ]; then look_at_python "$4" >"$aside/python-$name" & fi ;; esac
    pythons="$pythons $4 " packages="$packages $5"
    shift 5
done

# shellcheck disable=SC2086 # a word for each
getent passwd consul $wanted | while IFS=: read -r user _; do echo "user $user"; done

# shellcheck disable=SC2086 # as above
dpkg-query --show --showformat 'package ${Package} ${db:Status-Status}\n' \
    nftables uwsgi-core uwsgi-plugin-python3 libcurl4 libcurl4t64 python3-venv \
    libplack-perl ruby-rack bundler php-cli $packages 2>/dev/null

find /usr/lib/uwsgi/plugins -name '*_plugin.so' -printf 'uwsgi_plugin %f\n' 2>/dev/null

# Mode, owner and group first, then the sums, in the same order.
find /etc/uwsgi-consul-fleet /etc/systemd/system /opt/uwsgi-consul-fleet -type f \
    \( -path '/etc/uwsgi-consul-fleet/consul.d/*' -o -name consul.service \
    -o -path /etc/uwsgi-consul-fleet/dns.json \
    -o -path '/etc/uwsgi-consul-fleet/agent*' -o -path '/etc/uwsgi-consul-fleet/firewall/*' \
    -o -path '/etc/uwsgi-consul-fleet/tls/*' -o -path '/etc/uwsgi-consul-fleet/tokens/*' \
    -o -name uwsgi-consul-fleet-firewall.service -o -name 'uwsgi-consul-fleet-expiry.*' \
    -o -name consul_plugin.so -o -name start-uwsgi -o -path /opt/uwsgi-consul-fleet/release \) \
    -printf 'file %m %u %g %p\n' -exec sha256sum {} + 2>/dev/null

# The certificate that its agent shows, without its key; and whether tokens were about to be made.
sed -n 'H; /-----END CERTIFICATE/ { x; s/\n/ /g; s/^/certificate/p; q; }' \
    /etc/uwsgi-consul-fleet/tls/node.pem 2>/dev/null
if [ -e /etc/uwsgi-consul-fleet/bootstrap ]; then
    sed 's/^/consul_bootstrap /' /etc/uwsgi-consul-fleet/bootstrap
fi

# Whom the packet filter lets in, as the disk and as the kernel has it.
sed -n 's/^# host /admits /p' /etc/uwsgi-consul-fleet/firewall/fleet.nft 2>/dev/null
/usr/sbin/nft list table inet uwsgi_consul_fleet 2>/dev/null |
    sed -n 's/^[[:space:]]*chain \(is_[0-9a-f]*\) {/filter \1/p'
# Where it has no way to such an address, it says so and goes on.
/sbin/ip -force -o -batch - 2>/dev/null <<END |
address show scope global primary
route get 192.0.2.1
route get 2001:db8::1
END
    sed -n '/\/\(32\|128\) /!s/^[0-9]*: *\([^ ]*\) *inet6* *\([^/ ]*\).*/address \1 \2/p
        s/.* src \([^ ]*\).*/source \1/p'

for binary in /opt/uwsgi-consul-fleet/consul/*/consul; do
    if [ -x "$binary" ]; then binary=${binary%/consul}; echo "consul_binary ${binary##*/}"; fi
done

if [ -L /usr/local/bin/consul ]; then
    binary=$(readlink /usr/local/bin/consul)
    binary=${binary%/consul}
    echo "consul_in_use ${binary##*/}"
fi

# Whichever applications of ours are here, and their ports.
recorded='' rest=$made
while [ "$rest" != "${rest#*'"app:'}" ]; do
    rest=${rest#*'"app:'}
    recorded="$recorded ${rest%%\"*}"
done
for mark in $marks; do recorded="$recorded ${mark#app:}"; done
for name in $recorded; do
    ports=''
    for socket in "/etc/systemd/system/$name"-*.socket; do
        port=${socket#"/etc/systemd/system/$name-"} port=${port%.socket}
        case $port in *[!0-9]*) ;; *) ports="$ports $port" ;; esac
    done
    # What a host keeps of one that is gone has no user any more.
    if getent passwd "$name" >/dev/null || [ -e "/etc/uwsgi-consul-fleet/$name.conf" ]; then
        echo "application $name$ports"
        sed -n "s/^ *\"id\": \"\(.*\)\",*$/id $name \1/p" "/srv/$name/current/release.json" 2>/dev/null
    elif [ -n "$(find "/srv/$name" -mindepth 1 -maxdepth 1 ! -name shared 2>/dev/null)" ]; then
        echo "kept $name"
    fi
done
# Until 0.3 these were where HashiCorp's package has its data and its configuration.
for binary in /opt/consul/debian-*/consul /opt/consul/release-*/consul /opt/consul/file-*/consul; do
    if [ -x "$binary" ]; then binary=${binary%/consul}; echo "consul_before ${binary##*/}"; fi
done
if is_ours "$unit" && grep -q -e '-config-dir=/etc/consul.d$' "$unit"; then
    for file in /etc/consul.d/*.json /etc/consul.d/*.hcl; do
        if [ -e "$file" ]; then echo "consul_before $file"; fi
    done
fi

grep -ohs '/etc/uwsgi-consul-fleet/agent/[a-z0-9./-]*' /srv/*/releases/*/*.ini

look_at_releases() {
    # Each on one line; without one, the pattern names no file.
    awk 'BEGIN {
        ORS = ""
        for (i = 2; i < ARGC; i++) {
            more = getline line <ARGV[i]
            if (more < 0) continue
            split(ARGV[i], at, "/")
            print "of " ARGV[1] " generation " at[5] " "
            for (; more > 0; more = getline line <ARGV[i]) print line
            print "\n"
            close(ARGV[i])
        }
    }' "$1" "/srv/$1/releases"/*/release.json
    for place in "/srv/$1/resolutions"/*/*/requirements.txt; do
        if [ -e "$place" ]; then echo "of $1 resolution_kept ${place#"/srv/$1/resolutions/"}"; fi
    done
    # The one drop-in of all its sockets; see host/store.py.
    current=$(sed -n 's/^Service=%N@\(.*\)\.service$/\1/p' "/etc/uwsgi-consul-fleet/$1.conf" 2>/dev/null)
    if [ "$current" ]; then
        echo "of $1 current_generation $current"
        echo "of $1 current_plugin $(readlink "/srv/$1/releases/$current/consul_plugin.so")"
        # As it is: some shells' echo takes out backslashes.
        printf 'of %s last_switch %s\n' "$1" "$(tail -n 1 "/srv/$1/history" 2>/dev/null)"
        if [ -e "/srv/$1/writable" ]; then sed "s/^/of $1 writable /" "/srv/$1/writable"; fi
    fi
}
set -- consul.service uwsgi-consul-fleet-firewall.service uwsgi-consul-fleet-expiry.timer
looked=' '
for name in $wanted $recorded; do
    case $looked in *" $name "*) continue ;; esac
    looked="$looked$name "
    look_at_releases "$name"
    set -- "$@" "$name.target" "$name-*.socket" "$name-*@*.service" "$name.*@*.service"
done

# What the agent that runs was started with. A process that is only about to become one, or has just
# ended, as where it fails again and again, does not say: then what it would be started with.
print_agent() {
    started=
    if read -r comm 2>/dev/null <"/proc/$1/comm" && [ "$comm" = consul ]; then
        started=$(tr '\0' '\n' 2>/dev/null <"/proc/$1/environ")
    fi
    if [ "$started" ]; then
        sed -n 's/^CONFIGURATION_DIGEST=/consul_running /p; s/^ROUND=/consul_round /p' <<END
$started
END
    else
        sed -n 's/^Environment=ROUND=/consul_round /p' /etc/systemd/system/consul.service 2>/dev/null
    fi
}

print_unit() {
    echo "unit $id $active $stale $enabled"
    if [ "$id" = consul.service ]; then print_agent "${pid:-0}"; fi
    pid=0
}

# A block of properties for each unit, and an empty line after it.
{
    systemctl show --property Id,ActiveState,UnitFileState,NeedDaemonReload,MainPID "$@"
    echo
} |
    while IFS='=' read -r key value; do
        case $key in
            Id) id=$value ;;
            NeedDaemonReload) stale=$value ;;
            MainPID) pid=$value ;;
            ActiveState) active=$value ;;
            UnitFileState) enabled=$value ;;
            '') print_unit ;;
        esac
    done
wait
cat "$aside"/* 2>/dev/null || true
