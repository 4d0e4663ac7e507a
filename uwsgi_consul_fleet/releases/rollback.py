"""Going back to a release that is on the hosts."""

import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fabric import Connection

from uwsgi_consul_fleet.errors import (
    FleetError,
    LostLockError,
    RefusedError,
    RollbackError,
    UnreachableError,
)
from uwsgi_consul_fleet.hooks import Frame, Hooks
from uwsgi_consul_fleet.host.lock_session import Message
from uwsgi_consul_fleet.inventory.model import Fleet, Host
from uwsgi_consul_fleet.lock.lock import PATIENCE, Lock, operator
from uwsgi_consul_fleet.ownership import hosts
from uwsgi_consul_fleet.ownership.identity import Identity
from uwsgi_consul_fleet.releases.releases import Generation, HostReleases, carried, read
from uwsgi_consul_fleet.releases.rollout import Rollout, Step
from uwsgi_consul_fleet.releases.rule import Content
from uwsgi_consul_fleet.ssh import connection as ssh

# An application, and a host of it.
Place = tuple[str, str]


@dataclass(frozen=True)
class Target:
    """What a host goes back to."""

    found: HostReleases
    generation: Generation


def targets(found: Sequence[HostReleases], name: str) -> list[Target]:
    """Which release each host goes back to. One that can't be asked is left out: in an hour
    of need the others must not wait for it. So is an application without a release of the name.

    :param name: a release, or with the hash of its settings behind it; '' for the one before
    :raises FleetError: where a host does not have it, or the hosts would go to different ones
    """
    asked = [each for each in found if not each.problem]
    if not asked:
        reasons = [each.problem for each in found] or ["no host is to serve it"]
        raise FleetError("\n".join([*reasons, "nothing was changed"]))
    by_settings = {
        (each.host.app, one.release)
        for each in asked
        for one in each.generations
        if one.since and name == f"{one.release}-{one.settings}"
    }
    chosen = [(each, _choose(each, name, by_settings)) for each in asked]
    affected = {each.host.app for each, one in chosen if one}
    missing = [
        each.host.name
        for each, one in chosen
        if one is None and (not affected or each.host.app in affected)
    ]
    # A host that joined since has none before; that is told when the others are back.
    if missing and (name or not affected):
        raise FleetError(_missing(asked, missing, name))
    result = [Target(each, one) for each, one in chosen if one is not None]
    for app in affected:
        _refuse_different([t for t in result if t.found.host.app == app])
    _refuse_two_at_once(result, asked)
    return result


def _missing(asked: Sequence[HostReleases], missing: Sequence[str], name: str) -> str:
    what = f"no release {name}" if name else "no release before the one that serves"
    there = sorted({one.release for each in asked for one in each.generations})
    deploy = "pyinfra --data release=NAME …"
    # One that was rolled back from is there, and is gone to by its name alone.
    go = f"go to one by its name: invoke rollback NAME; or deploy another: {deploy}"
    return (
        f"{', '.join(missing)}: {what}; there is: {', '.join(there) or 'none'}. Nothing was "
        f"changed; {f'deploy it instead: {deploy}' if name else go}"
    )


def _refuse_different(targets: Sequence[Target]) -> None:
    """:raises FleetError: where the hosts of an application would go to different releases"""
    if len({target.generation.release for target in targets}) > 1:
        listing = ", ".join(f"{t.generation.release} on {t.found.host.name}" for t in targets)
        raise FleetError(
            f"the hosts would go to different releases: {listing}; name one. Nothing was changed"
        )


def _refuse_two_at_once(targets: Sequence[Target], asked: Sequence[HostReleases]) -> None:
    """:raises FleetError: where a worker of which there is one begins on a host while another has
    it still"""
    for target in targets:
        me, now = target.found.host, target.found.current
        begins = target.generation.alone - (now.alone if now else set())
        for other in asked:
            is_another = other.host.app == me.app and other.host.name != me.name
            there = other.current.alone if is_another and other.current else set()
            for kind in sorted(begins & there):
                raise FleetError(
                    f"{me.name}: app_workers: {kind} runs on {other.host.name}, and would begin "
                    f"here before it has ended there: go back to a release without it first, or "
                    f"deploy once with hosts = [] for {kind}. Nothing was changed"
                )


def _choose(
    found: HostReleases, name: str, by_settings: Container[tuple[str, str]]
) -> Generation | None:
    """The latest that served under this name; without one, the latest before that was not rolled
    back from itself.

    :param by_settings: what the name means with the hash of some host's settings behind it
    """
    served = [each for each in found.generations if each.since]
    if not name:
        return next((each for each in served if each.previous), None)
    for each in served:
        if name in (each.release, f"{each.release}-{each.settings}"):
            return each
    # A host with settings of its own: there is no doubt where it has one of the name alone.
    app = found.host.app
    alike = [each for each in served if (app, each.release) in by_settings]
    return alike[0] if len(alike) == 1 else None


def rollback(fleet: Fleet, name: str = "", without_consul: bool = False, wait: int = 0) -> None:
    """Switch the hosts, batch after batch, under the fleet's lock.

    :param name: a release, or with the hash of its settings behind it; '' for the one before
    :param wait: seconds to wait for another run to end
    :param without_consul: wait for nothing that Consul reports; go on without the lock where
        Consul does not answer
    :raises FleetError: see :func:`targets`; nothing was changed
    :raises ForeignError: where the hosts or their Consul are another fleet's; nothing was changed
    :raises LockedError: where another run holds it, or changed the fleet while this one looked at
        it; nothing was changed
    :raises RollbackError: where a host failed, and all of its application are as before; or where
        one was left out because it can't be asked
    """
    if fleet.is_described and not name and len(fleet.services) > 1:
        raise FleetError(
            f"there are several applications: --app {'|'.join(fleet.services)}, or name a release; "
            "nothing was changed"
        )
    identity = hosts.identity(fleet)
    about = {**operator(), "what": "rollback", "name": identity.fleet if identity else ""}
    its = Hooks(fleet.folder, fleet.hosts[0].settings.hook_timeout, about)
    if identity:
        print(f"Fleet {identity}", flush=True)
    with Lock(fleet.asked) as lock:
        # Before the hosts are asked.
        if wait:
            lock.wait("rollback", wait, lambda line: print(line, flush=True))
        else:
            lock.look()
        try:
            found = read(fleet, settled=True)
            chosen = targets(found, name)
        except FleetError:
            lock.release()  # there is nothing to tell the audit
            raise
        _take(lock, chosen, identity, without_consul)
        with _framed(its, chosen) as frame:
            missed = _switch_all(fleet, lock, chosen, without_consul, frame)
    back = {_place(target.found) for target in chosen} - missed
    left_out = dict.fromkeys(
        each.problem or f"{each.host.name}: {_why(_place(each) in missed)}"
        for each in found
        # Without a problem and with a name: another application, which was not meant.
        if _place(each) not in back and (each.problem or _place(each) in missed or not name)
    )
    if left_out:
        raise RollbackError("\n".join([*left_out, "left out; the other hosts went back"]))


def _place(found: HostReleases) -> Place:
    return found.host.app, found.host.name


@contextmanager
def _framed(its: Hooks, chosen: Sequence[Target]) -> Iterator[Frame]:
    """The operator's hooks around what is done within; none where nothing is to be done.

    :raises FleetError: where one of them refuses it
    """
    frame = Frame(its, lambda line: print(line, flush=True))
    going = [target for target in chosen if not _is_on(target)]
    wanted = _wanted(going)
    names = " ".join(target.found.host.name for target in going)
    about = {"app": " ".join(wanted), "release": " ".join(wanted.values()), "hosts": names}
    if going and (refused := frame.begin(**about)):
        raise FleetError(f"{refused}. Nothing was changed")
    try:
        yield frame
    except BaseException as error:
        its.end()
        frame.end("failed" if isinstance(error, Exception) else "interrupted")
        raise


def _why(missed: bool) -> str:
    return "can't be reached any more" if missed else "has no release before the one that serves"


def _wanted(chosen: Sequence[Target]) -> dict[str, str]:
    """The release that each application goes back to."""
    return {t.found.host.app: t.generation.release for t in chosen}


def _take(
    lock: Lock, chosen: Sequence[Target], identity: Identity | None, without_consul: bool
) -> None:
    try:
        lock.take("rollback", _wanted(chosen), identity=identity)
    except (UnreachableError, RefusedError) as error:
        if not without_consul:
            raise type(error)(
                f"{error}\nNothing was changed. In an emergency: invoke rollback --without-consul"
            ) from error
        print(
            f"{error}\nWITHOUT CONSUL: no lock is held, so make sure that nobody else deploys; "
            "what Consul reports is not waited for",
            flush=True,
        )
    else:
        if without_consul:
            print("Consul answers, and its lock is held; what it reports is not waited for")


def _switch_all(
    fleet: Fleet, lock: Lock, chosen: Sequence[Target], without_consul: bool, frame: Frame
) -> set[Place]:
    """One roll-out for each application; returns where one may fail and did."""
    problems, back, missed = [], {}, set[Place]()
    contents: dict[str, Any] = {}
    for app, release in _wanted(chosen).items():
        rollout = Rollout(fleet.serving(app))
        its = {t.found.host.name: t for t in chosen if t.found.host.app == app}
        try:
            _roll(rollout, lock, its, without_consul, frame.hooks)
        except LostLockError as error:
            raise RollbackError(f"{error}; invoke releases shows what serves") from error
        missed |= {(app, name) for name in rollout.missed}
        if rollout.stopped:
            problems.append(f"the roll-back of {app} stopped {rollout.stopped}")
            if fleet.serving(app)[0].settings.on_failure == "rollback":
                contents[app] = {"on": [], "refused": []}  # as before, whatever a host is left on
        else:
            back[app] = release
    changed = {
        name
        for app, name in {_place(t.found) for t in chosen if not _is_on(t)} - missed
        if app in back
    }
    failed = {name for _, name in missed}
    told: dict[str, Any] = {"changed": sorted(changed), "failed": sorted(failed)}
    told["detail"] = "\n".join(problems)
    outcome = "failed" if problems else "ok"
    frame.end(outcome, changed=" ".join(told["changed"]), failed=" ".join(told["failed"]))
    known = {"releases": back, "contents": contents | _contents(chosen, back)}
    try:
        if not lock.held or not _write_down(lock, known, outcome, told, without_consul):
            _keep(fleet, known, lock.untaken(outcome, **told))
    except FleetError as error:
        problems.append(f"{', '.join(back)}: the hosts went back, but: {error}")
    if problems:
        raise RollbackError("\n".join([*problems, "invoke releases shows what serves"]))
    return missed


def _write_down(
    lock: Lock,
    known: Mapping[str, Any],
    outcome: str,
    told: Mapping[str, Any],
    without_consul: bool,
) -> bool:
    """In Consul; whether that was possible, where it need not be."""
    try:
        lock.expect(**known)
        lock.finish(outcome, **told)
    except UnreachableError:
        if not without_consul:
            raise
        return False
    return True


def _keep(fleet: Fleet, known: Mapping[str, Any], entry: Message) -> None:
    """On the Consul servers, for the next run that holds the lock."""
    words = ["unwritten", json.dumps({**known, "entry": entry})]

    def keep(server: Host) -> bool:
        try:
            with ssh.connect(server) as connection:
                return _execute(connection, server, words)
        except UnreachableError:
            return False

    with ssh.side_by_side(len(fleet.asked)) as pool:
        kept = any(pool.map(keep, fleet.asked))
    print(
        "the audit gets it with the next run that holds the lock"
        if kept
        else "no Consul server could be told: the audit will not have it"
    )


def _roll(
    rollout: Rollout, lock: Lock, targets: Mapping[str, Target], without_consul: bool, hooks: Hooks
) -> None:
    for batch in rollout.batches:
        if lock.held and not without_consul:
            lock.check(PATIENCE)
        its = [targets[host.name] for host in batch.hosts if host.name in targets]
        with ssh.side_by_side(len(its)) as pool:
            pool.map(lambda target: _switch(rollout, target, without_consul, hooks), its)
        if rollout.stopped:
            return


def _contents(
    chosen: Sequence[Target], apps: Iterable[str]
) -> dict[str, dict[str, list[dict[str, str]]]]:
    """For the next deploy: what each of these is put to, and what it was put back from."""
    found: dict[str, dict[str, list[dict[str, str]]]] = {
        app: {"on": [], "refused": []} for app in apps
    }
    for target in chosen:
        if not (told := found.get(target.found.host.app)):
            continue
        for key, each in (("on", target.generation), ("refused", target.found.current)):
            content = Content(each.release, each.content).as_dict() if each else None
            if content and content not in told[key]:
                told[key].append(content)
    return found


def _is_on(target: Target) -> bool:
    return target.found.current == target.generation


def _switch(rollout: Rollout, target: Target, without_consul: bool, hooks: Hooks) -> None:
    host, now = target.found.host, target.found.current
    if _is_on(target):
        _log(host, f"{target.generation.release} serves already")
        return

    def execute(words: Sequence[str]) -> bool:
        with ssh.connect(host) as connection:
            try:
                return _execute(connection, host, words)
            except UnreachableError as error:
                _log(host, str(error))
                return False

    def hook(name: str, outcome: str, release: str) -> str:
        its = {"app": host.app, "hosts": host.name, "release": release, "outcome": outcome}
        return hooks.of_switch(name, lambda line: _log(host, line), SystemExit(), **its)

    step = Step(
        host=host,
        before=now.name if now else "",
        after=target.generation.name,
        release=target.generation.release,
        instances=target.generation.instances,
        execute=execute,
        log=lambda line: _log(host, line),
        options=("--back",),
        hook=hook,
        without_consul=without_consul,
    )
    rollout.run(step)


def _execute(connection: Connection, host: Host, words: Sequence[str]) -> bool:
    script, stdin = carried(host, *words)
    told = f"{script} >&2"
    result = ssh.run_script(connection, told, stdin, on_line=lambda line: _log(host, line))
    return result.exit_code == 0


def _log(host: Host, line: str) -> None:
    print(f"[{host.name}] {line}", flush=True)
