"""app_release: what runs once for a release, on one host, before the first one is switched."""

import json
from threading import Lock

from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.host.lock_session import Message
from uwsgi_consul_fleet.operations.applications import decided, steps
from uwsgi_consul_fleet.operations.applications.package import Package
from uwsgi_consul_fleet.operations.lock import guard
from uwsgi_consul_fleet.operations.plan import DeployError
from uwsgi_consul_fleet.operations.program import command
from uwsgi_consul_fleet.operations.run import AppHere, Run
from uwsgi_consul_fleet.operations.uwsgi.uwsgi import plugin_file
from uwsgi_consul_fleet.releases.rule import Content
from uwsgi_consul_fleet.ssh.client import LOST


class Once:
    """For which releases it ran in this run. Hosts come here side by side."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._mutex = Lock()
        self._problems: dict[tuple[str, Content], DeployError | FleetError | None] = {}

    def went_well(self, here: AppHere, package: Package) -> bool:
        """Whether it did for this release, by now or ever; it runs on this host where it has not.
        Where it failed in this run it does not run again, which another host may be waiting for.

        :raises DeployError: where it fails, or nobody knows whether it ran
        :raises FleetError: where Consul can't say, or the lock is gone
        """
        key = (here.me.app, package.release.content)
        with self._mutex:
            if key not in self._problems:
                try:
                    self._ensure(here, package)
                    self._problems[key] = None
                except (DeployError, FleetError) as error:
                    self._problems[key] = error
        if problem := self._problems[key]:
            raise problem
        return True

    def _ensure(self, here: AppHere, package: Package) -> None:
        lock, app = guard(here).lock, here.me.app
        assert lock  # nothing is carried out with --dry
        content = package.release.content
        state = "done" if package.is_served else "begun"
        before = lock.begin(app, content.as_dict(), here.me.name, state)
        if before.get("state") == "done":
            _say(here, f"ran for {content.release} on {_when(before)}, and does not again")
            return
        if not before and package.is_served:
            # It may be one that a roll-back brought back, on a database that is ahead of it.
            _say(here, f"hosts serve {content.release} already: it does not run for that")
            return
        there = self._where_it_was_begun(here, before) if before else here
        problem, ended = _run(there, content)
        if ended:
            lock.ended(app, content.as_dict(), there.me.name, "failed" if problem else "done")
        if problem:
            raise DeployError(f"app_release: {problem}; nothing was switched")

    def _where_it_was_begun(self, here: AppHere, before: Message) -> AppHere:
        """There it is known how it ended."""
        name = before["host"]
        _say(here, f"was begun on {_when(before)} by a run that did not see its end: asking there")
        its = {each.name: each for each in self._run.fleet.serving(here.me.app)}
        if name in its and name in self._run.pyinfra.connected - self._run.pyinfra.failed:
            return AppHere(self._run, its[name])
        raise DeployError(
            f"app_release: was begun on {_when(before)}, and {name}, which knows how it ended, is "
            "not in this run: let it take part; or, where it is gone for good, give the release a "
            "new name, for which it runs again: --data release=NAME; nothing was switched"
        )


def _run(there: AppHere, content: Content) -> tuple[str, bool]:
    """Why it failed on a host, or '', and whether it ended there."""
    settings = there.me.settings
    plugin, kind = plugin_file(there.its), there.its.python
    assert plugin  # it was installed with it
    words = (
        there.me.app,
        decided.prepare(there).generation(plugin, kind),
        " ".join(content),
        json.dumps(settings.app_release),
        steps.about(settings),
    )
    name = there.me.name
    try:
        done, output = there.run.pyinfra.executor(name)(command(there, "once", *words), True)
    except LOST as error:
        return f"{name}: connection lost ({error}): it may go on there", False
    if done:
        return "", True
    # The program says why it fails.
    if output.stderr_lines:
        return f"failed on {name}, see above", True
    return f"{name}: connection lost: it may go on there", False


def _when(before: Message) -> str:
    return f"{before['host']} at {before['since'][:19]}Z"


def _say(here: AppHere, text: str) -> None:
    here.run.pyinfra.host(here.me.name).log(f"app_release: {text}")
