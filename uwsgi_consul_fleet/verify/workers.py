"""Do an application's other processes run, and those of the release that serves alone?"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.host.systemd import worker_kind
from uwsgi_consul_fleet.inventory.model import AppHost, Fleet
from uwsgi_consul_fleet.ssh import connection as ssh
from uwsgi_consul_fleet.verify.comparison import Difference, Row

SCRIPT = (Path(__file__).parent / "workers.sh").read_text()
SHORT = 10  # seconds within which one that was started again may well end again

Found = tuple[Row, Difference | None]


def check(fleet: Fleet) -> tuple[list[Row], list[Difference]]:
    """A row for each worker of the fleet, and what is wrong with them; hosts side by side."""
    hosts = [each for each in fleet.applications if each.settings.app_workers]
    with ssh.side_by_side(len(hosts)) as pool:
        found = [one for each in pool.map(_check, hosts) for one in each]
    return [row for row, _ in found], [each for _, each in found if each]


def _check(host: AppHost) -> list[Found]:
    try:
        with ssh.connect(host) as connection:
            said = ssh.run_script(connection, SCRIPT, host.app.encode()).stdout.decode()
    except FleetError:  # which the check of its plugin tells
        return [(_row(host, name, "", "unknown"), None) for name in host.worker_names]
    return list(compare(host, said))


def compare(host: AppHost, said: str) -> Iterator[Found]:
    """Each worker with what is wrong with it, if anything, from what the script said."""
    about, *blocks = (
        dict(line.split("=", 1) for line in block.splitlines()) for block in said.split("\n\n")
    )
    generation, uptime = about["Serves"], float(about["Uptime"])
    units = {block["Id"]: block for block in blocks if worker_kind(host.app, block.get("Id", ""))}
    for name in host.worker_names:
        unit = f"{host.app}.{name}@{generation}.service"
        found = _difference(_subject(host, name), unit, units.pop(unit, {}), uptime)
        yield _row(host, name, generation, found.kind if found else "running"), found
    for unit, state in sorted(units.items()):
        if state["ActiveState"] not in ("inactive", "failed"):
            name, _, its = unit.removeprefix(f"{host.app}.").removesuffix(".service").partition("@")
            detail = f"{unit} is not meant to run; deploy again, which ends it"
            difference = Difference("unexpected", _subject(host, name), detail)
            yield _row(host, name, its, "unexpected"), difference


def _difference(
    subject: str, unit: str, state: Mapping[str, str], uptime: float
) -> Difference | None:
    active = state.get("ActiveState", "inactive")
    if active == "inactive":
        return Difference("missing", subject, f"{unit} does not run; deploy again")
    told = f"{active} ({state['SubState']})"
    if active == "active":
        up = uptime - int(state["ActiveEnterTimestampMonotonic"]) / 10**6
        if state["NRestarts"] == "0" or up > SHORT:
            return None
        told = f"ends again and again, and was started {up:.0f} s ago"
    return Difference("failing", subject, f"{told}: journalctl -u {unit} there says why")


def _subject(host: AppHost, name: str) -> str:
    return f"{host.app} {name} on {host.node}"


def _row(host: AppHost, name: str, generation: str, state: str) -> Row:
    release = generation.rpartition("-")[0]
    return Row(host.node, host.app, name, "", 0, release, state, state == "running")
