"""The secrets of a cluster: the document that a run has, which of them are in use, and what of them
lies on each host."""

import json
from collections.abc import Generator, Iterable
from datetime import UTC, datetime
from threading import Lock
from typing import Any

from pyinfra import host, logger
from pyinfra.api import StringCommand, operation

from uwsgi_consul_fleet.host.consul import UNREAD as UNREAD
from uwsgi_consul_fleet.inventory.model import Host
from uwsgi_consul_fleet.operations import left_out
from uwsgi_consul_fleet.operations.consul import cluster, rounds
from uwsgi_consul_fleet.operations.files import RemoteFile, secretly
from uwsgi_consul_fleet.operations.plan import DeployError
from uwsgi_consul_fleet.operations.run import AppHere, Here, Run
from uwsgi_consul_fleet.operations.state import Acl, FileState, HostState
from uwsgi_consul_fleet.secrets import certificates, store, tokens
from uwsgi_consul_fleet.secrets.document import Secrets, fingerprint

FILE = "/etc/uwsgi-consul-fleet/consul.d/secrets.json"
DNS = "/etc/uwsgi-consul-fleet/dns.json"  # host/agent.py lets agents read it that can
TOKENS = "/etc/uwsgi-consul-fleet/tokens"


class Kept:
    """The document as it is in this run. Where there is none it is made; it is kept when the first
    host is about to be changed."""

    def __init__(self, run: Run) -> None:
        self._vault = run.fleet.hosts[0].vault
        self._servers = [each.name for each in run.fleet.whole.consul_servers]
        self._there = store.load(self._vault)
        self._one_at_a_time = Lock()
        self.secrets = self._there or Secrets.new(self._vault.name)
        self.intend(self.secrets)

    @property
    def is_new(self) -> bool:
        """Whether there is none yet that is kept."""
        return self._there is None

    def intend(self, secrets: Secrets) -> None:
        """It is to become so when it is kept."""
        store.propose(self._vault, secrets)
        self.secrets = secrets

    def keep(self) -> None:
        """:raises FleetError: where it can't be kept, or was changed by another run meanwhile"""
        with self._one_at_a_time:  # hosts come here side by side
            if self.secrets != self._there:
                store.save(self._vault, self.secrets, self._there)
                if self.is_new:
                    logger.info(f"--> The secrets of this fleet are in {store.place(self._vault)}")
                self._there = self.secrets
            store.note(self._vault, self._servers)

    def become(self, secrets: Secrets) -> None:
        """As :meth:`intend` and :meth:`keep`."""
        self.intend(secrets)
        self.keep()


def kept(run: Run) -> Kept:
    """The document; the same for each host of a run."""
    return run.once(Kept)


def expect(here: Here) -> None:
    """:raises DeployError: where this fleet has secrets, and they are not here"""
    here.run.once(_expect)


def _expect(run: Run) -> bool:
    there = {
        each.name: run.state_of(each.name)
        for each in run.fleet.hosts
        if each.name in run.pyinfra.connected and each.is_member
    }
    files = {name: its.files[FILE] for name, its in there.items() if FILE in its.files}
    if not files:
        return True
    ours, vault = kept(run), run.fleet.hosts[0].vault
    seeds = (ours.secrets.seed, ours.secrets.seed_before)
    known = {
        RemoteFile(FILE, text).state.sha256
        for name in files
        for text in variants(run.fleet.host(name), ours.secrets, seeds)
    }
    if ours.is_new or not known & {its.sha256 for its in files.values()}:
        what = "are not here" if ours.is_new else "are others than those that are here"
        raise DeployError(
            f"the secrets of this fleet {what} ({store.place(vault)}): its Consul on "
            f"{', '.join(sorted(files))} has some. Copy them from whoever deploys it, or let "
            "secrets_load fetch them; where they are lost: invoke secrets.recover. Nothing was "
            "changed"
        )
    return True


def variants(me: Host, its: Secrets, seeds: Iterable[str]) -> Iterable[str]:
    """What its agent's file may be while something is replaced."""
    for seed in filter(None, seeds):
        for key in filter(None, (its.gossip, its.gossip_before)):
            yield _text(me, key, tokens.secret(seed, f"node/{me.node}"))


def _text(me: Host, key: str, token: str) -> str:
    return json.dumps({"encrypt": key, "acl": {"tokens": {"agent": token}}}, indent=2) + "\n"


# --- What is in use ------------------------------------------------------------------


def servers(run: Run) -> list[tuple[str, HostState]]:
    """Those that were reached and run in a round with secrets."""
    names = [each.name for each in run.fleet.consul_servers if each.name in run.pyinfra.connected]
    states = [(name, run.state_of(name)) for name in names]
    return [(name, its) for name, its in states if its.consul_round and its.consul_running]


def ask_again(run: Run) -> None:
    """What Consul knows has changed, or may have: what any server said of it does not hold."""
    for server in run.fleet.consul_servers:
        run.forget(server.name)


def _left_out(run: Run) -> list[tuple[str, HostState]]:
    """Those that --limit leaves out, where it leaves out all of them."""
    found = run.once(left_out.servers)
    return [(name, its) for name, its in found.items() if its and its.consul_round]


def acl(run: Run) -> Acl | None:
    """What Consul's access control knows, as far as a server tells."""
    return next((its.consul_acl for _, its in servers(run) if its.consul_acl), None)


def acl_beyond(run: Run) -> Acl | None:
    """As :func:`acl`; where --limit leaves out all servers, one of those is asked."""
    return acl(run) or next((its.consul_acl for _, its in _left_out(run) if its.consul_acl), None)


def are_unknown(run: Run) -> bool:
    """Whether Consul has access control, and knows no token of ours."""
    return run.fleet.brings_consul and bool(servers(run)) and acl(run) is None


def speaker(run: Run, beyond: bool = False) -> str:
    """The server that is told of changes: the leader, where one is known; '' for none.

    :param beyond: also one that --limit leaves out
    """
    found = servers(run) or (_left_out(run) if beyond else [])
    leaders = {cluster.host_of(its.consul_leader) for _, its in found if its.consul_leader}
    leading = [name for name, _ in found if run.fleet.host(name).address in leaders]
    return next(iter([*leading, *(name for name, _ in found)]), "")


def in_use(run: Run, what: str) -> str:
    """The token of somebody, the one before where Consul does not know the new one yet; '' where it
    knows none of them."""
    its = kept(run).secrets
    known = acl_beyond(run)
    for seed in filter(None, (its.seed, its.seed_before)):
        if known and tokens.accessor(seed, what) in known.tokens:
            return tokens.secret(seed, what)
    return ""


def _key(run: Run) -> str:
    """The key of the gossip that is in use: the one before, until a server has the new one. An
    agent that begins with a key that nobody uses yet finds nobody."""
    secrets = kept(run).secrets
    if not secrets.gossip_before:
        return secrets.gossip
    used = {its.consul_keys[0] for _, its in servers(run) or _left_out(run) if its.consul_keys}
    return secrets.gossip if fingerprint(secrets.gossip) in used else secrets.gossip_before


# --- On each host --------------------------------------------------------------------


def authorities(run: Run) -> RemoteFile:
    """Whom an agent believes."""
    text = certificates.trusted(kept(run).secrets)
    return RemoteFile(rounds.CA, text, "644", "root", "consul")


def of_tls(here: Here, demoted: bool = False) -> list[RemoteFile]:
    """What an agent believes and shows, as far as it is not there; before the configuration that
    names it.

    :param demoted: it was a server, and starts next as none
    """
    run, its, now = here.run, kept(here.run).secrets, datetime.now(UTC)
    names = _names(here, demoted)
    is_due = certificates.why_renew(here.known.certificate, its, *names, now)
    if rounds.NODE in here.known.files and (not is_due or _doubting(run)):
        return [authorities(run)]
    pem = certificates.issue(its, *names, now)
    return [authorities(run), RemoteFile(rounds.NODE, pem, "640", "root", "consul")]


def _names(here: Here, demoted: bool = False) -> tuple[str, str, str, bool]:
    """Of whom a host's certificate is."""
    me = here.me
    # Whoever leads next speaks to it as to a server as long as it runs as one, and those who ask it
    # would wait in vain for a leader that it does not know.
    serves = me.is_consul_server or (bool(here.known.consul_raft) and not demoted)
    return me.node, me.address, me.settings.datacenter, serves


def _doubting(run: Run) -> list[str]:
    """Members that may not believe the authority yet that is to replace another one. Who has none
    yet begins with both."""
    if not kept(run).secrets.ca_before:
        return []
    state, reached = authorities(run).state, run.pyinfra.connected
    return [
        each.name
        for each in run.fleet.active
        if each.name not in reached or run.state_of(each.name).files.get(rounds.CA, state) != state
    ]


def refuse_server(here: Here) -> None:
    """:raises DeployError: see :func:`why_not_serve`"""
    if why_not := why_not_serve(here):
        raise DeployError(f"{here.me.name}: {why_not}; nothing was changed")


def why_not_serve(here: Here) -> str:
    """Why a client can't become a Consul server in this run, or ''. The others take nobody for one
    who shows a client's certificate, and while some doubt the new authority it gets no other."""
    run, shown = here.run, here.known.certificate
    if here.me.name not in cluster.change(run).joining or not shown:
        return ""
    if not certificates.why_renew(shown, kept(run).secrets, *_names(here), datetime.now(UTC)):
        return ""
    # Those that are reached are told before the first certificate is replaced.
    told = frozenset() if run.pyinfra.is_executing else run.pyinfra.connected
    if not (doubting := [name for name in _doubting(run) if name not in told]):
        return ""
    return (
        "can't become a Consul server yet: the certificate authority is being replaced, and "
        f"{', '.join(doubting)} may not believe the new one; finish that first: deploy to all "
        "hosts, without --limit, and move to retired who can't be reached"
    )


def of_agent(here: Here) -> list[RemoteFile]:
    """Its key of the gossip, and its token, as far as they are not there; after the configuration
    in which they do no harm."""
    me, run, its = here.me, here.run, kept(here.run).secrets

    def file(token: str) -> RemoteFile:
        return RemoteFile(FILE, _text(me, _key(run), token), "640", "root", "consul")

    name, there = f"node/{me.node}", here.known.files.get(FILE)
    wanted = file(tokens.secret(its.seed, name))
    if there is None or there == wanted.state or not _is_ours(me, its, there):
        return [wanted]
    # Where nobody can tell now whether Consul knows another one it stays.
    token = in_use(run, name)
    return [file(token)] if token else []


def of_dns(here: Here) -> list[RemoteFile]:
    """By which token its agent answers DNS, as soon as Consul knows it."""
    wanted, run = here.me.settings.dns, here.run
    token = in_use(run, tokens.DNS) if wanted else ""
    if not token and (wanted or DNS not in here.known.files):
        return []
    text = json.dumps({"acl": {"tokens": {"dns": token}}}) + "\n"
    return [RemoteFile(DNS, text, "640", "root", "consul")]


def to_read(here: Here, wanted: Iterable[RemoteFile]) -> list[StringCommand]:
    """The commands that write what an agent has to read then. A run that is cut between the two
    leaves a mark by which the next one lets it read."""
    commands = [*secretly(here, wanted)]
    mark = StringCommand("install", "-D", "-m", "644", "/dev/null", UNREAD)
    return [mark, *commands] if commands else []


def _is_ours(me: Host, its: Secrets, there: FileState) -> bool:
    """Whether an agent's file is of this fleet; else the host was another's."""
    texts = variants(me, its, (its.seed, its.seed_before))
    return there.sha256 in {RemoteFile(FILE, text).state.sha256 for text in texts}


def of_application(its: AppHere) -> RemoteFile:
    """The token that an application shows to Consul; an empty line until Consul knows it."""
    me, run = its.me, its.run
    name, path = f"app/{me.node}/{me.app}", f"{TOKENS}/{me.app}"

    def file(token: str) -> RemoteFile:
        return RemoteFile(path, f"{token}\n", "640", "root", me.app)

    mine = file(tokens.secret(kept(run).secrets.seed, name))
    return mine if its.known.files.get(path) == mine.state else file(in_use(run, name))


def has_its_own(here: Here) -> bool:
    """Whether a host and its applications have the tokens that they should have."""
    seed, files = kept(here.run).secrets.seed, here.known.files
    wanted = variants(here.me, kept(here.run).secrets, [seed])
    apps = [of_application(each) for each in here.applications]
    return (
        FILE in files
        and files[FILE].sha256 in {RemoteFile(FILE, text).state.sha256 for text in wanted}
        and all(files.get(each.path) == each.state and each.content != "\n" for each in apps)
        and all(files.get(each.path) == each.state for each in of_dns(here))
    )


@operation()
def bring_token(here: AppHere) -> Generator[Any, None, None]:
    """The token of an application, where it is not there."""
    if here.run.pyinfra.is_executing and here.me.app not in here.known.users:
        host.noop("its user is yet to be made")
        return
    its, there = of_application(here), here.known.files.get(f"{TOKENS}/{here.me.app}")
    if there and its.content == "\n" and here.known.consul_round:
        host.noop("which token it has can't be told now")  # no server was reached
        return
    yield from secretly(here, [its])
