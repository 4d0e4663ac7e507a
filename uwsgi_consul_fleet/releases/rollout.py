"""A roll-out over an application's hosts: which were done, and what becomes of them when one
fails."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Condition, Lock, Thread

from uwsgi_consul_fleet.errors import UnreachableError
from uwsgi_consul_fleet.inventory.model import AppHost
from uwsgi_consul_fleet.releases.batches import batches

# Its name, the outcome, the release.
Hook = Callable[[str, str, str], str]


@dataclass(frozen=True)
class Step:
    """A host that goes from one generation to another; from '' where none served.

    ``instances`` are the service ids that the new one registers, ``options`` more words for its
    switch. ``execute`` runs the program on the host with these words, shows what it says and
    returns whether it went well, or raises UnreachableError where it could not begin; ``log`` shows
    a line about the host. ``hook`` runs one of the operator's around the switch, with its outcome
    and the release that the host is on then, and returns why it did not end well.
    ``without_consul`` is for an emergency: nothing waits for what Consul reports.
    """

    host: AppHost
    before: str
    after: str
    release: str
    instances: tuple[str, ...]
    execute: Callable[[Sequence[str]], bool] = field(repr=False)
    log: Callable[[str], None] = field(repr=False)
    options: tuple[str, ...] = ()
    hook: Hook = field(default=lambda name, outcome, release: "", repr=False)
    without_consul: bool = False

    @property
    def app(self) -> str:
        return self.host.app

    def switch(self, generation: str, *options: str) -> bool:
        keep = f"--keep={self.host.settings.keep_releases}"
        without = ("--without-consul",) if self.without_consul else ()
        return self.execute(["switch", self.app, generation, keep, *without, *options])

    def before_switch(self) -> bool:
        """Whether the operator's hook lets it happen."""
        if refused := self.hook("before-switch", "", self.release):
            self.log(f"{refused}: not switched")
        return not refused

    def after_switch(self, outcome: str) -> None:
        """:param outcome: ok, failed, or back where the host was put back later"""
        before = self.before.rpartition("-")[0]
        release = self.release if outcome == "ok" else before
        if why := self.hook("after-switch", outcome, release):
            self.log(why)

    def go_back(self) -> bool:
        self.log(f"back to {self.before}" if self.before else "out of service again")
        try:
            if self.before:
                fine = self.switch(self.before, "--undo")
            else:
                fine = self.execute(["stop", self.app, "--undo"])
        except UnreachableError as error:
            self.log(str(error))
            fine = False
        if not fine:
            self.log(f"could not be put back: look at {self.host.name}")
        return fine


class Rollout:
    """What happened so far. Hosts of one batch may run side by side, in threads.

    ``done`` are those that were switched, ``missed`` the names of those that could not be, and
    were left as they are; ``stopped`` says where it went no further.
    """

    def __init__(self, hosts: Sequence[AppHost], of: int = 0) -> None:
        """
        :param hosts: that may be switched, all of one application
        :param of: how many serve it, these among them; 0 for no others
        """
        self.batches = batches(hosts, of or len(hosts))
        self.done: list[Step] = []
        self.missed: set[str] = set()
        self.stopped = ""
        self._mutex = Lock()
        # A host's hooks come one after the other.
        self._turns: defaultdict[str, Lock] = defaultdict(Lock)
        # How many are still to go first, and how many of those are on their way.
        self._canaries = hosts[0].settings.canary if hosts else 0
        self._first = 0
        self._decided = Condition()

    def run(self, step: Step) -> bool:
        """Switch one host. Where that fails, stop the roll-out, and put back those done before."""
        is_canary = self._begin(step)
        try:
            if not self.stopped:
                return self._run(step)
            step.log(f"stays on {step.before or 'nothing'}: it stopped {self.stopped}")
            return False
        except UnreachableError as error:
            step.log(str(error))
            goes_on = self.miss(step.host)
            self._canaries += is_canary and goes_on  # another one in its place
            return goes_on
        finally:
            with self._decided:
                self._first -= is_canary
                self._decided.notify_all()

    def _begin(self, step: Step) -> bool:
        """Wait for the canaries; whether this is one. They are the first that are really
        switched, whoever was meant to be and is missing or has the release."""
        with self._decided:
            self._decided.wait_for(lambda: self._canaries or not self._first)
            is_canary = self._canaries > 0
            self._canaries -= is_canary
            self._first += is_canary
        if is_canary and step.host not in self.batches[0].hosts:
            step.log("goes first: it is the canary now")
        return is_canary

    def _run(self, step: Step) -> bool:
        if not self._others_pass(step) or not step.before_switch():
            self.stop(f"before {step.host.name} was switched", step.host)
            return False
        with self._turns[step.host.name]:
            outcome = "failed"
            try:
                if not step.switch(step.after, *step.options):
                    self.stop(f"at {step.host.name}", step.host)
                    return False
                with self._mutex:
                    # By another of its batch, meanwhile.
                    late = bool(self.stopped) and _rolls_back(step.host)
                    if not late:
                        self.done.append(step)
                outcome = "ok"
            finally:
                step.after_switch(outcome)
        if late:
            self._put_back([step])
        return not late

    def _others_pass(self, step: Step) -> bool:
        """Whether those done before are still well, as Consul sees them."""
        done = [other for other in self.done if other.release == step.release]
        names = [f"{other.host.node}/{one}" for other in done for one in other.instances]
        if not names or step.without_consul:
            return True
        allowed = f"--missing={step.host.settings.max_unavailable}"
        return step.execute(["passing", step.app, step.release, allowed, *names])

    def miss(self, host: AppHost) -> bool:
        """A host could not be switched and is as it was; returns whether that is one of those
        that may fail. With one more the roll-out stops."""
        with self._mutex:
            self.missed.add(host.name)
            fine = len(self.missed) <= host.settings.max_failed_hosts
        if not fine:
            self.stop(f"at {host.name}", host)
        return fine

    def stop(self, where: str, host: AppHost) -> None:
        """Go no further, because of this host, and put back those done before."""
        back: list[Step] = []
        with self._mutex:
            self.stopped = self.stopped or where
            if _rolls_back(host):
                back, self.done = self.done, []
        self._put_back(back)

    def _put_back(self, steps: Sequence[Step]) -> None:
        """In the batches in which they came, so that the others serve meanwhile. No hook is in the
        way of that: they are told of it afterwards."""
        ended: list[tuple[Step, str]] = []

        def go_back(step: Step) -> None:
            ended.append((step, "back" if step.go_back() else "failed"))

        for batch in self.batches:
            group = [step for step in steps if step.host in batch.hosts]
            threads = [Thread(target=go_back, args=(step,)) for step in group]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for step, outcome in ended:
            with self._turns[step.host.name]:
                step.after_switch(outcome)


def _rolls_back(host: AppHost) -> bool:
    return host.settings.on_failure == "rollback"
