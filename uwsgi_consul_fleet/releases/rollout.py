"""A roll-out over hosts: which were done, and what becomes of them when one fails."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from threading import Lock, Thread

from uwsgi_consul_fleet.inventory.model import Host


@dataclass(frozen=True)
class Step:
    """A host that goes from one generation to another; from '' where none served.

    ``instances`` are the service ids that the new one registers, ``options`` more words for its
    switch. ``execute`` runs the program
    on the host with these words, shows what it says and returns whether it went well; ``log``
    shows a line about the host.
    """

    host: Host
    before: str
    after: str
    release: str
    instances: tuple[str, ...]
    execute: Callable[[Sequence[str]], bool] = field(repr=False)
    log: Callable[[str], None] = field(repr=False)
    options: tuple[str, ...] = ()

    @property
    def app(self) -> str:
        return self.host.settings.app_name

    def switch(self, generation: str, *options: str) -> bool:
        keep = f"--keep={self.host.settings.keep_releases}"
        return self.execute(["switch", self.app, generation, keep, *options])

    def go_back(self) -> None:
        self.log(f"back to {self.before}" if self.before else "out of service again")
        if self.before:
            fine = self.switch(self.before, "--undo")
        else:
            fine = self.execute(["stop", self.app])
        if not fine:
            self.log(f"could not be put back: look at {self.host.name}")


@dataclass
class Rollout:
    """What happened so far. Hosts of one batch may run side by side, in threads."""

    done: list[Step] = field(default_factory=list)
    stopped: str = ""
    _mutex: Lock = field(default_factory=Lock, repr=False)

    def run(self, step: Step) -> bool:
        """Switch one host. Where that fails, stop the roll-out, and put back those done before."""
        if not self._others_pass(step):
            self.stop(f"before {step.host.name} was switched", step.host)
            return False
        if not step.switch(step.after, *step.options):
            self.stop(f"at {step.host.name}", step.host)
            return False
        with self._mutex:
            # By another of its batch, meanwhile.
            late = bool(self.stopped) and _rolls_back(step.host)
            if not late:
                self.done.append(step)
        if late:
            _put_back([step])
        return not late

    def _others_pass(self, step: Step) -> bool:
        """Whether those done before are still well, as Consul sees them."""
        ours = (step.app, step.release)
        done = [other for other in self.done if (other.app, other.release) == ours]
        names = [f"{other.host.name}/{one}" for other in done for one in other.instances]
        if not names:
            return True
        allowed = f"--missing={step.host.settings.max_unavailable}"
        return step.execute(["passing", step.app, step.release, allowed, *names])

    def stop(self, where: str, host: Host) -> None:
        """Go no further, because of this host, and put back those done before."""
        back: list[Step] = []
        with self._mutex:
            self.stopped = self.stopped or where
            if _rolls_back(host):
                back, self.done = self.done, []
        _put_back(back)


def _put_back(steps: Iterable[Step]) -> None:
    threads = [Thread(target=step.go_back) for step in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _rolls_back(host: Host) -> bool:
    return host.settings.on_failure == "rollback"
