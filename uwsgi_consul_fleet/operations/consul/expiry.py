"""The timer by which a host has Consul warn of its certificates, where nobody deploys
(host/expiry.py)."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

from pyinfra.api import StringCommand

from uwsgi_consul_fleet.host.expiry import UNIT
from uwsgi_consul_fleet.host_program import PROGRAM
from uwsgi_consul_fleet.operations.files import RemoteFile, converge, render
from uwsgi_consul_fleet.operations.run import Here
from uwsgi_consul_fleet.operations.state import RUNNING

HERE = Path(__file__).parent
TIMER = UNIT.replace(".service", ".timer")


def watch(here: Here) -> Generator[Any, None, None]:
    """Have the timer run, as it should be."""
    known, wanted = here.known, _units()
    is_so = all(known.files.get(file.path) == file.state for file in wanted)
    if is_so and known.units.get(TIMER) == RUNNING:
        return
    yield from converge(here, wanted)
    yield StringCommand(
        f"systemctl --quiet --no-reload enable {TIMER} && systemctl daemon-reload && "
        f"systemctl restart {TIMER}"
    )
    here.changed()


def _units() -> list[RemoteFile]:
    service = render(HERE / "expiry.service.j2", program=PROGRAM, compiles=False, allowed=())
    timer = (HERE / "expiry.timer.j2").read_text()
    return [
        RemoteFile(f"/etc/systemd/system/{UNIT}", service),
        RemoteFile(f"/etc/systemd/system/{TIMER}", timer),
    ]
