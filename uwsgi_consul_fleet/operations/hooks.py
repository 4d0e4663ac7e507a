"""The operator's hooks in a run of pyinfra."""

import gevent
from pyinfra import logger

from uwsgi_consul_fleet.hooks import Frame, Hooks, Show
from uwsgi_consul_fleet.lock.lock import operator
from uwsgi_consul_fleet.operations import ownership
from uwsgi_consul_fleet.operations.run import AppHere, Run
from uwsgi_consul_fleet.releases.rollout import Hook


def hooks(run: Run) -> Hooks:
    """Those of this run, once it is settled whose the fleet is."""
    return run.once(_hooks)


def _hooks(run: Run) -> Hooks:
    fleet = run.fleet
    about = {**operator(), "what": "deploy", "name": ownership.settled(run).identity.fleet}
    return Hooks(fleet.folder, fleet.hosts[0].settings.hook_timeout, about)


def frame(run: Run) -> Frame:
    """What goes around this run."""
    return Frame(hooks(run), lambda line: logger.info(f"    {line}"))


def of_switch(here: AppHere, show: Show) -> Hook:
    """Runs a hook around a switch of this host."""
    about = {"app": here.me.app, "hosts": here.me.name}

    def run(name: str, outcome: str, release: str) -> str:
        its, gone = hooks(here.run), gevent.GreenletExit()
        return its.of_switch(name, show, gone, **about, outcome=outcome, release=release)

    return run
