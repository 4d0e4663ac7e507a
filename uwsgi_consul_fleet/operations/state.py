"""What a host looks like now, read in one round trip.

pyinfra does not keep facts, and most of a run that changes nothing is waiting for
them. So everything our operations compare with comes from a single fact, which
:class:`.run.Run` keeps until an operation of ours has changed something on that host.
"""

import json
import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

from pyinfra.api import FactBase

from uwsgi_consul_fleet import host_program
from uwsgi_consul_fleet.build import identity
from uwsgi_consul_fleet.build.identity import IDENTIFY, Uwsgi, parse_identity
from uwsgi_consul_fleet.consul.access import access
from uwsgi_consul_fleet.errors import UnreachableError
from uwsgi_consul_fleet.host.store import content_of
from uwsgi_consul_fleet.inventory.model import Host
from uwsgi_consul_fleet.ownership.belongings import LOOK, Belongings

# What wheels are for: the Python with its ABI, the architecture and the C library, by which pip
# tells what fits. And what a service, which sees no home folder, can't use.
KIND = """
import importlib.machinery, os, sys
abi = importlib.machinery.EXTENSION_SUFFIXES[0].split(".")[1]
print("app_python", sys.argv[1], abi + "-" + os.confstr("CS_GNU_LIBC_VERSION").split()[-1])
for place in map(os.path.realpath, (sys.executable, sys.base_prefix)):
    if place.startswith(("/home/", "/root/", "/run/user/")):
        print("app_python_closed", sys.argv[1], place)
"""
SCRIPT = host_program.SETTLED + IDENTIFY + LOOK + (Path(__file__).parent / "state.sh").read_text()


@dataclass(frozen=True)
class FileState:
    """A regular file: octal mode, owner, group and SHA-256."""

    mode: str
    user: str
    group: str
    sha256: str


@dataclass(frozen=True)
class UnitState:
    """A systemd unit; stale where its file has changed since systemd read it."""

    active: str
    enabled: str
    stale: bool = False


RUNNING = UnitState("active", "enabled")


class Member(NamedTuple):
    """Of the cluster: its addresses, whether it is alive, since it may come back where it is not,
    and its version of Consul."""

    addresses: tuple[str, ...]
    alive: bool
    version: tuple[int, ...] = ()


class Acl(NamedTuple):
    """What Consul's access control knows: tokens by their accessors, with the names of their
    policies, and which of them were made by deploys; policies by their names, with their
    descriptions; and the policies of who shows no token."""

    tokens: Mapping[str, tuple[str, ...]]
    made: frozenset[str]
    policies: Mapping[str, str]
    anonymous: tuple[str, ...]


@dataclass
class AppState:
    """What of one application is on a host.

    ``uwsgi`` is the one that is meant for it. ``python`` is the kind of its Python, '' where there
    is none, and ``python_closed`` what of that no service can get at. ``generations`` are by name,
    with the fields of their release.json; ``last_switch`` is the end of the history
    (host/store.py). ``resolutions`` are the ids and kinds of those that are here with their wheels.
    ``writable`` is what it may write to elsewhere since a version before 0.5 let it.
    """

    uwsgi: Uwsgi | None = None
    python: str = ""
    python_closed: str = ""
    generations: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    current_generation: str = ""
    current_plugin: str = ""
    last_switch: Mapping[str, Any] = field(default_factory=dict)
    resolutions: set[tuple[str, str]] = field(default_factory=set)
    writable: list[str] = field(default_factory=list)


@dataclass
class HostState:
    """What state.sh printed, taken apart.

    ``python`` is '' where there is none. Of a Consul server, ``consul_problem`` says why its agent
    could not be asked, ``consul_fleet`` whose its cluster is, as it lies there, and
    ``consul_contents`` what it knows of each service (releases/rule.py), None where it can't tell.
    Of an agent that was there before us, ``consul_problem`` says the same, ``consul_refused`` that
    it answered, and ``consul_node`` what it calls the host, where it may tell.
    ``applications`` are those that are here, with their ports, and ``ids`` what those that serve
    are called in Consul; ``apps`` is what there is of each, also of those that should be here.
    ``kept`` are applications of which only data is left. ``consul_before`` are binaries, by their
    label, and files of configuration, by their path, in the places of versions before 0.3.
    ``agent_files`` are what releases that are here show to an agent of others.
    ``consul_members`` is who is in the cluster as a server of it says, none where it can't tell.
    ``addresses`` are the host's own, with the interface of each, and ``sources`` those by which it
    is seen from far away. ``consul_round`` is that of access control and encryption in which its
    agent runs, or would start (consul/rounds.py), ``consul_acl`` what Consul's access control
    knows, None where it is off or may not be asked, ``consul_keys`` the fingerprints of the keys of
    its gossip, the one in use first, ``consul_bootstrap`` for which token it was about to begin,
    and ``certificate`` the one that its agent shows. ``admits`` are those whom its packet filter
    lets in, by name with their addresses, and ``filters`` the marks of what of it is loaded
    (firewall/rules.py).
    """

    architecture: str = ""
    python: str = ""
    consul_in_use: str = ""
    consul_running: str = ""
    files: dict[str, FileState] = field(default_factory=dict)
    units: dict[str, UnitState] = field(default_factory=dict)
    packages: set[str] = field(default_factory=set)
    uwsgi_plugins: set[str] = field(default_factory=set)
    users: set[str] = field(default_factory=set)
    consul_binaries: set[str] = field(default_factory=set)
    consul_before: set[str] = field(default_factory=set)
    applications: dict[str, set[int]] = field(default_factory=dict)
    ids: dict[str, set[str]] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    apps: dict[str, AppState] = field(default_factory=dict)
    agent_files: set[str] = field(default_factory=set)
    consul_data: str = ""
    consul_raft: str = ""
    consul_leader: str = ""
    consul_peers: tuple[str, ...] = ()
    consul_problem: str = ""
    consul_fleet: str = ""
    consul_contents: Mapping[str, str] | None = None
    consul_node: str = ""
    consul_refused: bool = False
    consul_members: Mapping[str, Member] = field(default_factory=dict)
    consul_round: int = 0
    consul_acl: Acl | None = None
    consul_keys: tuple[str, ...] = ()
    consul_bootstrap: str = ""
    certificate: str = ""
    addresses: dict[str, str] = field(default_factory=dict)
    sources: set[str] = field(default_factory=set)
    admits: dict[str, tuple[str, ...]] = field(default_factory=dict)
    filters: set[str] = field(default_factory=set)
    belongings: Belongings = field(default_factory=Belongings)

    def of(self, app: str) -> AppState:
        """What there is of one application."""
        return self.apps.get(app) or AppState()

    def active_units(self, names: re.Pattern[str]) -> set[str]:
        """Units that run or are about to, by the whole of their names."""
        return {
            name
            for name, unit in self.units.items()
            if names.fullmatch(name) and unit.active not in IDLE
        }


IDLE = {"inactive", "failed"}
NOT_ASKED = "it has no Python to ask its agent with"


class State(FactBase[HostState]):
    """The host's state as far as a deployment is concerned."""

    @staticmethod
    def default() -> HostState:
        return HostState()

    def command(self, asks: str, applications: tuple[str, ...]) -> str:
        program = (host_program.PROGRAM, host_program.digest(), host_program.RUN)
        return shlex.join(["sh", "-c", SCRIPT, "state", KIND, *program, asks, *applications])

    def process(self, output: list[str]) -> HostState:
        return parse(output)


class Said(FactBase[str]):
    """What the host program, which is brought along, answers to some words; '' for nothing."""

    @staticmethod
    def default() -> str:
        return ""

    def command(self, words: tuple[str, ...]) -> str:
        return shlex.join([*host_program.carried(), *words])

    def process(self, output: list[str]) -> str:
        return output[-1]


WORDS = frozenset(
    {
        "architecture",
        "consul_bootstrap",
        "consul_data",
        "consul_in_use",
        "consul_running",
        "python",
    }
)
SETS = {
    "user": "users",
    "consul_binary": "consul_binaries",
    "consul_before": "consul_before",
    "kept": "kept",
    "filter": "filters",
    "source": "sources",
}


def parse(output: list[str]) -> HostState:
    """Read the lines of state.sh: a word that says what, then its values. Sums of files, and paths
    that releases name, stand there as sha256sum and grep print them."""
    found = HostState()
    said: defaultdict[str, list[str]] = defaultdict(list)
    for line in output:
        kind, _, rest = line.partition(" ")
        if kind == "of":
            name, _, its = rest.partition(" ")
            said[name].append(its)
        elif not (_note_file(found, kind, rest) or _note_agent(found, kind, rest)):
            _note(found, kind, rest)
    pythons = [line for line in output if line.startswith("app_python")]
    found.apps = {name: _parse_app(lines, pythons) for name, lines in said.items()}
    return found


def _note_file(found: HostState, kind: str, rest: str) -> bool:
    """Whether it is about a file: what it is, what is in it, or that releases name it."""
    if kind == "file":
        mode, user, group, path = rest.split(" ", 3)
        found.files[path] = FileState(mode, user, group, sha256="")
    elif len(kind) == 64:
        path = rest.removeprefix(" ")
        found.files[path] = replace(found.files[path], sha256=kind)
    elif kind.startswith("/"):
        found.agent_files.add(kind)
    else:
        return False
    return True


def _note_agent(found: HostState, kind: str, rest: str) -> bool:
    """Whether it is about the Consul agent."""
    if kind == "consul":
        note_consul(found, rest)
    elif kind == "consul_raft":
        found.consul_raft, found.consul_problem = rest, NOT_ASKED
    elif kind == "consul_agent":
        found.consul_problem = NOT_ASKED
    elif kind == "consul_round":
        found.consul_round = int(rest)
    elif kind == "certificate":
        found.certificate = _pem(rest)
    else:
        return False
    return True


def _note(found: HostState, kind: str, rest: str) -> None:
    first, *others = rest.split() or [""]
    if kind in SETS:
        getattr(found, SETS[kind]).add(rest)
    elif kind in WORDS:
        setattr(found, kind, rest.strip())
    elif kind == "package":
        if others == ["installed"]:
            found.packages.add(first)
    elif kind == "uwsgi_plugin":
        found.uwsgi_plugins.add(rest.removesuffix("_plugin.so"))
    elif kind == "unit":
        name, active, stale, enabled = rest.split(" ", 3)  # of which the last may be nothing
        found.units[name] = UnitState(active, enabled, stale == "yes")
    elif kind == "id":
        found.ids.setdefault(first, set()).add(rest.partition(" ")[2])
    elif kind == "application":
        found.applications.setdefault(first, set()).update(map(int, others))
    elif kind == "address":
        found.addresses[others[0]] = first
    elif kind == "admits":
        found.admits[first] = tuple(others)
    else:
        found.belongings.note(kind, rest)


def _parse_app(lines: list[str], pythons: list[str]) -> AppState:
    """Of one application; what its Python says of itself is said once for all that have it."""
    found = AppState(uwsgi=parse_identity("\n".join(lines)))
    for line in lines:
        kind, _, rest = line.partition(" ")
        if kind in ("current_generation", "current_plugin"):
            setattr(found, kind, rest.strip())
        elif kind == "generation":
            name, _, fields = rest.partition(" ")
            found.generations[name] = _fields(fields)
        elif kind == "last_switch":
            found.last_switch = _fields(rest)
        elif kind == "writable":
            found.writable.append(rest)
        elif kind == "resolution_kept":
            name, itself, _ = rest.split("/")
            found.resolutions.add((name, itself))
        elif kind == "app_python_at":
            for each in pythons:
                what, path, value = each.split(" ", 2)
                if path == rest:
                    setattr(found, what.removeprefix("app_"), value)
    return found


def _fields(text: str) -> Mapping[str, Any]:
    """JSON; nothing where a run that was killed, or an operator, left it in pieces."""
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):
        return {}


def note_consul(found: HostState, answer: str) -> None:
    """Take apart what the program says of Consul; nothing, where it did not say it."""
    if answer:
        status = json.loads(answer)
        found.consul_leader = status.get("leader", "")
        found.consul_peers = tuple(status.get("peers", ()))
        found.consul_problem = status.get("problem", "")
        found.consul_fleet = status.get("fleet", "")
        found.consul_contents = status.get("contents")
        found.consul_node = status.get("node", "")
        found.consul_members = dict(_members(status.get("members", ())))
        found.consul_refused = status.get("refused", False)
        found.consul_keys = tuple(status.get("keys", ()))
        if acl := status.get("acl"):
            tokens = {accessor: tuple(policies) for accessor, policies in acl["tokens"].items()}
            made, anonymous = frozenset(acl["made"]), tuple(acl["anonymous"])
            found.consul_acl = Acl(tokens, made, acl["policies"], anonymous)


def _pem(line: str) -> str:
    """A certificate, of whose lines blanks made one."""
    begin, _, rest = line.partition("----- ")
    body, _, _ = rest.partition(" -----END")
    return "\n".join([f"{begin}-----", *body.split(), "-----END CERTIFICATE-----", ""])


def _members(told: Iterable[tuple[str, str, bool, str]]) -> Iterator[tuple[str, Member]]:
    """Whoever is in the cluster says what it is called, where it is, and what runs there."""
    for name, address, alive, build in told:
        with suppress(ValueError):
            version = tuple(map(int, re.findall(r"\d+", build)[:3]))
            member = Member((str(ip_address(address)),), alive, version)
            yield re.sub(r"[^\w.-]", "_", name, flags=re.ASCII), member


def about(host: Host) -> dict[str, Any]:
    """What :class:`State` is asked of a host."""
    words: list[str] = []
    for its in host.applications:
        ports = " ".join(str(instance.port) for instance in its.instances)
        words += [its.app, ports, identity.binary(its.settings), its.settings.app_python]
        words.append(" ".join(its.settings.app_packages))
    return {"asks": asks(host), "applications": tuple(words)}


def about_consul(host: Host) -> tuple[str, str]:
    """What the program is asked about Consul on a host."""
    return "consul", "status" if host.brings_consul else "agent"


def asks(host: Host) -> str:
    """What the program is asked about Consul, in words; '' where it is asked of servers alone."""
    return "" if host.brings_consul else shlex.join([*access(host).words, *about_consul(host)])


def read(target: Any, host: Host) -> HostState:
    """How one of pyinfra's hosts looks."""
    shown = access(host)
    found: HostState = target.get_fact(State, **about(host), _stdin=shown.stdin)
    if found.consul_problem == NOT_ASKED and found.python:
        words = (*shown.words, *about_consul(host))
        note_consul(found, target.get_fact(Said, words, _stdin=shown.stdin))

    def describe(*generation: str) -> Mapping[str, Any]:
        return _fields(target.get_fact(Said, ("describe", *generation)))

    return _completed(found, describe)


def _completed(found: HostState, describe: Callable[[str, str], Mapping[str, Any]]) -> HostState:
    """With the digests of what serves, where a version before 0.3 made it."""
    for app, its in found.apps.items():
        current = its.current_generation
        fields = its.generations.get(current, {})
        if "release" in fields and not content_of(fields):
            its.generations[current] = describe(app, current) or fields
    return found


def ask(host: Host) -> HostState | None:
    """How a host looks that pyinfra was told to leave out; None where it can't be asked."""
    # Only here: it takes as long to load as a host takes to tell of itself.
    from uwsgi_consul_fleet.releases import releases
    from uwsgi_consul_fleet.ssh import connection as ssh

    try:
        with ssh.connect(host) as connection:
            words, stdin = State().command(**about(host)), access(host).stdin.encode()
            result = ssh.run_script(connection, words, stdin)
    except UnreachableError:
        return None
    found = parse(result.stdout.decode(errors="replace").splitlines())
    return _completed(found, partial(releases.ask, host, "describe"))
