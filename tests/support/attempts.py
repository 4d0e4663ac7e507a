"""What somebody on a host tries who should not have it: each by a command that root can do."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from lab_commands import Lab


def on(lab: Lab, host: str, app: str) -> dict[str, str]:
    """Commands of a shell against an application, by what each is about."""
    release = lab.ssh(host, f"sudo readlink -f /srv/{app}/current").stdout.strip()
    unit = f"{app}-[0-9]*@*.service"  # not those of an application whose name begins so
    shown = lab.ssh(host, f"systemctl show --value --property MainPID,Id '{unit}' | head -n 2")
    process, name = sorted(shown.stdout.split())
    port = name.rpartition("@")[0].rpartition("-")[2]
    socket = f"/run/uwsgi-consul-fleet/{port}@{release.rpartition('/')[2]}/http"
    connect = f"import socket; socket.socket(socket.AF_UNIX).connect({socket!r})"
    read = {
        "sources": f"ls {release} && cat {release}/{port}.ini",
        "environment": f"cat {release}/environment",
        "environment of a process": f"cat /proc/{process}/environ",
        "socket": f"python3 -c {shlex.quote(connect)}",
        "Consul's configuration": "cat /etc/uwsgi-consul-fleet/consul.d/consul.json",
        "Consul's secrets": "cat /etc/uwsgi-consul-fleet/consul.d/secrets.json",
        "key of the certificate": "cat /etc/uwsgi-consul-fleet/tls/node.pem",
        "token": f"cat /etc/uwsgi-consul-fleet/tokens/{app}",
        "environment of Consul": "cat /proc/$(systemctl show --value -p MainPID consul)/environ",
        "Consul's data": "ls /var/lib/consul/serf",
    }
    folders = {
        "releases": f"/srv/{app}/releases",
        "release": release,
        "units": "/etc/systemd/system",
        "pointers": "/etc/uwsgi-consul-fleet",
        "plugins": "/opt/uwsgi-consul-fleet/plugins",
        "tokens": "/etc/uwsgi-consul-fleet/tokens",
        "runtime": "/run/uwsgi-consul-fleet",
        "Consul's data folder": "/var/lib/consul",
    }
    put = {what: f"rmdir $(mktemp -d {place}/XXXXXX)" for what, place in folders.items()}
    files = {
        "plugin": f"{release}/consul_plugin.so",
        "program": "/opt/uwsgi-consul-fleet/release",
        "unit": f"/etc/systemd/system/{name}",
    }
    changed = {what: f": >>{path}" for what, path in files.items()}
    return {**read, **put, **changed, "process": f"kill -0 {process}"}


def script(attempts: Mapping[str, str]) -> str:
    """Prints what of it was done."""
    lines = (
        f"if ( {command} ) >/dev/null 2>&1; then echo {shlex.quote(what)}; fi"
        for what, command in attempts.items()
    )
    return "\n".join(lines)


def done(lab: Lab, host: str, user: str, attempts: Mapping[str, str]) -> set[str]:
    """What of it a user can do there."""
    words = f"sudo -u {user} sh -c {shlex.quote(script(attempts))}"
    return {*lab.ssh(host, words).stdout.splitlines()}


def exposure(lab: Lab, host: str, *units: str) -> dict[str, float]:
    """What systemd says of units, which may be patterns, by their names: 0 is the best."""
    names = f"systemctl list-units --plain --no-legend {' '.join(map(shlex.quote, units))}"
    look = f"{names} | while read -r unit rest; do systemd-analyze security --no-pager $unit; done"
    told = lab.ssh(host, f"sudo sh -c {shlex.quote(look)} | grep 'Overall exposure'").stdout
    found = (line.partition("level for ")[2].split() for line in told.splitlines())
    return {name.rstrip(":"): float(figure) for name, figure, *_ in found}
