"""Workers that must never run twice, seen over all hosts of an application."""

from uwsgi_consul_fleet.operations.applications import resolution
from uwsgi_consul_fleet.operations.plan import DeployError
from uwsgi_consul_fleet.operations.run import AppHere
from uwsgi_consul_fleet.operations.state import AppState


def refuse_a_move(here: AppHere) -> None:
    """:raises DeployError: where one would begin on this host while another one has it still"""
    me, run = here.me, here.run
    alone = {kind for kind, worker in me.workers.items() if not worker.overlap}
    begins = alone - _kinds(here.its)
    if not begins:
        return
    there = run.pyinfra.connected & {each.name for each in run.fleet.hosts}
    states = {name: run.state_of(name).of(me.app) for name in sorted(there - {me.name})}
    for name, known in {**states, **resolution.left_out(run, me.app)}.items():
        for kind in sorted(begins & _kinds(known)):
            raise DeployError(
                f"{me.name}: app_workers: {kind} runs on {name}, and would begin here before it "
                f"has ended there: deploy once with hosts = [] for {kind}; nothing was changed"
            )


def _kinds(known: AppState) -> set[str]:
    """Of the workers of the release that a host is on."""
    fields = known.generations.get(known.current_generation, {})
    return {each["name"].partition(".")[0] for each in fields.get("workers", ())}
