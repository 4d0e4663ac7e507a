# Removes Consul from a host that has left the cluster, and what asked it; usage:
# remove.sh purge|keep
systemctl --quiet disable --now consul 2>/dev/null
rm -f /etc/systemd/system/consul.service
systemctl daemon-reload
systemctl reset-failed consul 2>/dev/null
rm -rf /etc/consul.d /opt/consul /etc/uwsgi-consul-fleet /opt/uwsgi-consul-fleet
case $(readlink /usr/local/bin/consul) in
    /opt/consul/*) rm -f /usr/local/bin/consul ;;
esac
if [ "$1" = purge ]; then rm -rf /var/lib/consul; fi
# The user last: as long as it is there, the next deploy looks here again.
if getent passwd consul >/dev/null; then userdel consul; fi
