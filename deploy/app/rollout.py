"""The roll-out over the hosts: which were done, and what becomes of them when one fails."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gevent
from paramiko import SSHException
from pyinfra.api import StringCommand

from deploy.app.program_file import PATH
from deploy.plan import fleet
from fleet.model import Host


@dataclass(frozen=True)
class Step:
    """A host that goes from one release to another; from '' where none served.

    ``host`` is pyinfra's, and ``arguments`` is how commands run on it (sudo and the like).
    """

    me: Host
    host: Any
    before: str
    after: str
    release: str
    arguments: Mapping[str, Any] = field(repr=False)

    def switch(self, generation: str) -> bool:
        settings = self.me.settings
        keep = f"--keep={settings.keep_releases}"
        return self.run("switch", settings.app_name, generation, keep)

    def run(self, *words: str) -> bool:
        """The program on the host; what it says is shown as it says it."""
        command = StringCommand(shlex.join([PATH, *words]))
        try:
            fine, output = self.host.run_shell_command(command, True, **self.arguments)
        except (OSError, SSHException) as error:
            self.host.log_styled(f"connection lost: {error}", fg="red")
            return False
        if not fine and not output.combined_lines:
            self.host.log_styled("no answer: the connection was lost", fg="red")
        return bool(fine)


@dataclass
class Rollout:
    """What happened so far in this run."""

    done: list[Step] = field(default_factory=list)
    stopped: str = ""

    def run(self, state: Any, step: Step) -> bool:
        """Switch one host. If that fails, stop the roll-out and put the others back."""
        if not self._others_pass(step):
            self._stop(f"before {step.me.name} was switched")
            return False
        if not step.switch(step.after):
            self._stop(f"at {step.me.name}")
            return False
        self.done.append(step)
        if self.stopped:  # by a host of the same batch, meanwhile
            self._put_back([step])
            return not self._rolls_back
        return True

    @property
    def _rolls_back(self) -> bool:
        return fleet().app_servers[0].settings.on_failure == "rollback"

    def _others_pass(self, step: Step) -> bool:
        """Whether those done before are still well, as Consul sees them."""
        same = [other for other in self.done if other.release == step.release]
        names = [f"{i.node}/{i.id}" for other in same for i in other.me.instances]
        if not names:
            return True
        settings = step.me.settings
        missing = f"--missing={settings.max_unavailable}"
        return step.run("passing", settings.app_name, step.release, missing, *names)

    def _stop(self, where: str) -> None:
        self.stopped = self.stopped or where
        if self._rolls_back:
            done, self.done = self.done, []
            self._put_back(done)

    def _put_back(self, steps: Iterable[Step]) -> None:
        gevent.joinall([gevent.spawn(_back, step) for step in steps])


def _back(step: Step) -> None:
    app = step.me.settings.app_name
    step.host.log(f"back to {step.before}" if step.before else "out of service again")
    fine = step.switch(step.before) if step.before else step.run("stop", app)
    if not fine:
        step.host.log_styled(f"could not be put back: look at {step.me.name}", fg="red")
