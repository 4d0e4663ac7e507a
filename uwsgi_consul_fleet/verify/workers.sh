# Prints which generation of an application serves, how many seconds the host is up, and properties of
# each unit of its workers, with an empty line after each.
# Standard input names the application.
read -r app
echo "Serves=$(readlink "/srv/$app/current" | sed 's/.*\///')"
echo "Uptime=$(cut -d' ' -f1 /proc/uptime)"
echo
systemctl show --property Id,ActiveState,SubState,NRestarts,ActiveEnterTimestampMonotonic \
    "$app.*@*.service"
