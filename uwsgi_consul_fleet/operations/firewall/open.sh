# Removes the fleet's packet filter from a host, and nothing else.
service=uwsgi-consul-fleet-firewall.service units=/etc/systemd/system
if [ -e $units/$service ]; then
    systemctl --quiet disable --now $service
    rm -f $units/$service $units/nftables.service.d/uwsgi-consul-fleet.conf
    rmdir $units/nftables.service.d 2>/dev/null
    systemctl daemon-reload
fi
rm -rf /etc/uwsgi-consul-fleet/firewall
if [ -x /usr/sbin/nft ]; then
    /usr/sbin/nft 'table inet uwsgi_consul_fleet; delete table inet uwsgi_consul_fleet'
fi
