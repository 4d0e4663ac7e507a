"""Workers that must never run twice, seen over all hosts of an application."""

from collections.abc import Mapping

from uwsgi_consul_fleet.operations import left_out, ownership
from uwsgi_consul_fleet.operations.applications import resolution
from uwsgi_consul_fleet.operations.plan import DeployError
from uwsgi_consul_fleet.operations.run import AppHere, Run
from uwsgi_consul_fleet.operations.state import AppState, HostState


def refuse_a_move(here: AppHere) -> None:
    """:raises DeployError: where one would begin on this host while another one has it still"""
    me, run = here.me, here.run
    alone = {kind for kind, worker in me.workers.items() if not worker.overlap}
    begins = alone - _kinds(here.its)
    if not begins:
        return
    there = run.pyinfra.connected & {each.name for each in run.fleet.hosts}
    states = {name: run.state_of(name) for name in sorted(there - {me.name})}
    for name, known in {**states, **_left_out(run)}.items():
        for kind in sorted(begins & _kinds(known.of(me.app))):
            once = f"hosts = [] for {kind}{'' if name in states else ' and without --limit'}"
            raise DeployError(
                f"{me.name}: app_workers: {kind} runs on {name}, and would begin here before it "
                f"has ended there: deploy once with {once}; nothing was changed"
            )


def _left_out(run: Run) -> Mapping[str, HostState]:
    """How all hosts look that --limit leaves out: one may run where its application is not to serve
    any more."""
    return {**run.once(resolution.ask_left_out), **run.once(_ask_others)}


def _ask_others(run: Run) -> Mapping[str, HostState]:
    """How those look that are no application servers now."""
    names = {*ownership.left_out(run)} - {each.name for each in run.fleet.app_servers}
    hosts = [x for x in run.fleet.hosts if x.name in names and (x.is_member or x.is_retired)]
    return {name: known for name, known in left_out.look(hosts).items() if known}


def _kinds(known: AppState) -> set[str]:
    """Of the workers of the release that a host is on."""
    fields = known.generations.get(known.current_generation, {})
    return {each["name"].partition(".")[0] for each in fields.get("workers", ())}
