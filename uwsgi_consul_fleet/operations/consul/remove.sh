# Removes from a host that has left the cluster what was put there for Consul, and what asked it,
# and nothing else; usage: remove.sh purge|keep ours|theirs, which says whose the agent is
timer=uwsgi-consul-fleet-expiry.timer units=/etc/systemd/system
if [ -e $units/$timer ]; then
    systemctl --quiet disable --now $timer 2>/dev/null
    rm -f $units/${timer%.timer}.service $units/$timer /var/lib/systemd/timers/stamp-$timer
    systemctl daemon-reload
    systemctl reset-failed ${timer%.timer}.service 2>/dev/null
fi
if [ "$2" != ours ]; then
    theirs=yes
elif [ -e /etc/systemd/system/consul.service ]; then
    systemctl --quiet disable --now consul 2>/dev/null
    rm -f /etc/systemd/system/consul.service
    systemctl daemon-reload
    systemctl reset-failed consul 2>/dev/null
elif [ -e /lib/systemd/system/consul.service ]; then
    theirs=yes # which came when ours had gone
fi
if [ -z "${theirs:-}" ]; then
    if [ "$1" = purge ]; then rm -rf /var/lib/consul; fi
    case $(getent passwd consul) in *:/nonexistent:*nologin) userdel consul ;; esac
fi
case $(readlink /usr/local/bin/consul) in /opt/uwsgi-consul-fleet/*) rm -f /usr/local/bin/consul ;; esac
rm -rf /opt/uwsgi-consul-fleet
# The record last: by it the next deploy looks here again.
if [ "$1" = purge ]; then
    rm -f /etc/systemd/system/a-newer-uwsgi-consul-fleet-*.socket
    rm -rf /etc/uwsgi-consul-fleet
else # it says whose it is what stays
    find /etc/uwsgi-consul-fleet -mindepth 1 ! -name fleet.json ! -name 'a-newer-*' -delete
fi
