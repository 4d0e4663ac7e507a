# Prints of the Consul agent of this host:
#   round N             how far access control and encryption are, as it runs; nothing where it does not
#   certificate LINE    what it shows to other agents, without the key, in base64
#   authorities LINE    whose certificates it believes
pid=$(systemctl show --property MainPID --value consul.service)
if environment=$(tr '\0' '\n' 2>/dev/null <"/proc/${pid:-0}/environ"); then
    round=$(printf '%s\n' "$environment" | sed -n 's/^ROUND=//p')
    echo "round ${round:-0}"
fi
certificates() { sed -n '/^-----BEGIN CERTIFICATE-/,/^-----END CERTIFICATE-/p' "$1" 2>/dev/null | base64 --wrap 0; }
echo "certificate $(certificates /etc/uwsgi-consul-fleet/tls/node.pem)"
echo "authorities $(certificates /etc/uwsgi-consul-fleet/tls/ca.pem)"
