# Removes what versions before 0.3 put where HashiCorp's package has its data and configuration.
if grep -qs '"data_dir": "/var/lib/consul"' /etc/consul.d/consul.json; then
    rm -f /etc/consul.d/consul.json
fi
case $(readlink /usr/local/bin/consul) in
    /opt/consul/debian-* | /opt/consul/release-* | /opt/consul/file-*) rm -f /usr/local/bin/consul ;;
esac
# By these the next deploy looks here again.
rm -rf /opt/consul/debian-* /opt/consul/release-* /opt/consul/file-*
# Folders in which others have something stay.
rmdir /etc/consul.d /opt/consul 2>/dev/null
true
