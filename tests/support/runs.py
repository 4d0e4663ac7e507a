"""A run of the deployment over hosts that were never reached: two of them, as some test says they
look."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from uwsgi_consul_fleet.inventory.model import Fleet, InventoryHost, build
from uwsgi_consul_fleet.inventory.settings import DEMO
from uwsgi_consul_fleet.operations.run import Here
from uwsgi_consul_fleet.operations.state import HostState, Member


def fleet(*more: InventoryHost, **settings: Any) -> Fleet:
    both, app = frozenset({"consul_servers", "app_servers"}), frozenset({"app_servers"})
    its = {**DEMO, "app_name": "shop", "instances": {"a": 2001}, **settings}
    entries = [InventoryHost("drakar", both, its), InventoryHost("cheetah", app, its), *more]
    addresses = {entry.name: f"10.9.0.{number}" for number, entry in enumerate(entries, 1)}
    return build(entries, (), (), lambda entry: addresses[entry.name])


def retired(name: str) -> InventoryHost:
    return InventoryHost(name, frozenset({"retired"}), {**DEMO, "app_name": "shop"})


def here(of: Fleet, me: str = "drakar", failed: str = "", **states: HostState) -> Here:
    """A host in a run that reached these."""
    made: dict[Any, Any] = {}

    def once(make: Any) -> Any:
        return made.setdefault(make, make(run)) if make not in made else made[make]

    pyinfra = SimpleNamespace(
        connected=frozenset(states),
        failed=frozenset(failed.split()),
        is_executing=False,
        forgiven=frozenset(),
        typed={},
    )
    pyinfra.about = pyinfra.connected | pyinfra.failed
    run: Any = SimpleNamespace(fleet=of, pyinfra=pyinfra, state_of=states.get, once=once)
    run.again = lambda make: made.pop(make, None)
    return Here(run, of.host(me))


def server(members: Mapping[str, tuple[str, bool]], **more: Any) -> HostState:
    said = {name: Member((address,), alive) for name, (address, alive) in members.items()}
    return HostState(consul_running="x", consul_members=said, **more)


RUNS = HostState(consul_running="x")
OURS = {"drakar": ("10.9.0.1", True), "cheetah": ("10.9.0.2", True)}
