"""Every setting an operator can put in group_data/ or beside a host in inventory.py."""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from ipaddress import ip_address, ip_network
from types import ModuleType, NoneType, UnionType
from typing import Annotated, Any, Generic, Literal, Self, TypeVar, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from uwsgi_consul_fleet import durations
from uwsgi_consul_fleet.host.consul import ADDRESS
from uwsgi_consul_fleet.inventory import unit_options, uwsgi_options
from uwsgi_consul_fleet.languages import LANGUAGES, PYTHON, Language

Port = Annotated[int, Field(ge=1, le=65535, strict=True)]
# A DNS label: the service is looked up as NAME.service.consul, and systemd units,
# the Unix user and the folder under /srv carry the same name.
LABEL = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"
Label = Annotated[str, StringConstraints(pattern=LABEL, max_length=63)]
# useradd takes 32 characters.
AppName = Annotated[
    str,
    StringConstraints(pattern=LABEL, max_length=32),
    AfterValidator(lambda name: _free(name)),
]
# ini values: a line break or a comma would end the value early and start another one.
Plain = Annotated[str, StringConstraints(pattern=r"^[^\s,;=%$]+$", max_length=200)]
# A path in the release, as it is told to uWSGI.
Inside = Annotated[Plain, AfterValidator(lambda path: _inside(path))]
EntryPoint = Annotated[Plain, AfterValidator(lambda text: _entry_point(text))]
# What git takes, but for what looks like an option.
GitRef = Annotated[str, StringConstraints(pattern=r"^[^-\s~^:?*\[\\][^\s~^:?*\[\\]*$")]
# Of a URL, for what uWSGI's static-map takes.
Mount = Annotated[str, StringConstraints(pattern=r"^/[^\s=%$]*$")]
Served = Annotated[Inside, AfterValidator(lambda path: _served(path))]
# Below the folder in which the application works; a folder ends with a slash.
Shared = Annotated[Plain, AfterValidator(lambda path: _shared(path))]
# A line for a shell, which messages show.
Command = Annotated[str, StringConstraints(pattern=r"^[^\s\x00-\x1f\x7f][^\x00-\x1f\x7f]*$")]
DebianPackage = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]
UwsgiOptions = Annotated[
    dict[
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")],
        uwsgi_options.Value | list[uwsgi_options.Value],
    ],
    AfterValidator(lambda options: _allowed(uwsgi_options, options)),
]
UnitOptions = Annotated[
    uwsgi_options.Options, AfterValidator(lambda options: _allowed(unit_options, options))
]
# On a host; as a unit has it, without anything that systemd replaces.
Writable = Annotated[str, StringConstraints(pattern=r"^(/[A-Za-z0-9._@+-]+)+/?$")]
# Part of a unit's name.
WorkerName = Annotated[str, StringConstraints(pattern=LABEL, max_length=32)]
# Part of folder, unit and socket names; a unix socket's path has 107 bytes in all.
ReleaseName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=40)
]
# Not those by which systemd and we talk to uWSGI.
EnvironmentName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$"),
    AfterValidator(lambda name: _not_ours(name)),
]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]+$")]
Line = Annotated[str, StringConstraints(pattern=r"^[ -~]*$")]
# Where a secret is: a file on this machine, or $NAME for a variable of its environment.
Secret = Annotated[str, StringConstraints(pattern=r"^(\$[A-Za-z_][A-Za-z0-9_]*|[^$\s][^\n]*)$")]
# A service's name, which may be another's than an application of ours.
Service = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")]
Percentage = Annotated[str, StringConstraints(pattern=r"^([1-9]\d?|100)%$")]
Duration = Annotated[str, AfterValidator(lambda text: _duration(text))]
Network = Annotated[str, AfterValidator(lambda text: str(ip_network(text)))]
# What a host can't have of its own: it is about the whole run, or about the one roll-out over all
# hosts.
OF_A_RUN = ("fleet", "wait", "hook_timeout", "secrets_load", "secrets_save", "dns")
FLEET_WIDE = (
    *OF_A_RUN, "app_discovers",
    "canary", "batch", "on_failure", "max_unavailable", "max_failed_hosts",
)  # fmt: skip
# Of agents that are there already: without effect on one that is brought.
OF_AN_AGENT = tuple(
    f"consul_{key}"
    for key in ("address", "node", "token", "app_token", "ca_file", "cert_file", "key_file")
)
# Users, units and services that Debian or we have for something else; adduser's and systemd's own
# names; and token, beside which folders of applications lie.
TAKEN = frozenset(
    """
    root daemon bin sys sync games man lp mail news uucp proxy www-data backup list irc gnats nobody
    sshd messagebus polkitd syslog adm tty disk sudo audio video users staff shadow utmp consul
    basic default emergency final graphical halt hibernate kexec multi-user network network-online
    poweroff reboot rescue shutdown sleep sockets suspend swap sysinit timers umount
    a-newer-uwsgi-consul-fleet uwsgi-consul-fleet token
    """.split()  # noqa: SIM905 - as above
)


class InstanceSettings(BaseModel):
    """One uWSGI server of the application on a host."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    port: Port
    id: Plain | None = None


def _port_alone(value: object) -> object:
    """``{"server1": 2001}`` is short for ``{"server1": {"port": 2001}}``."""
    return value if isinstance(value, dict) else {"port": value}


class WorkerSettings(BaseModel):
    """Another process of a release, or several of its kind."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: Annotated[str, StringConstraints(min_length=1), AfterValidator(lambda x: _one(x))]
    count: Annotated[int, Field(ge=1, le=100, strict=True)] = 1
    hosts: tuple[str, ...] | None = None
    overlap: bool = True
    stop_signal: Literal["SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2"] = "SIGTERM"
    stop_timeout: Annotated[int, Field(ge=1, le=86400, strict=True)] | None = None

    @model_validator(mode="after")
    def _once(self) -> Self:
        if not self.overlap and self.count > 1:
            raise ValueError("with overlap = False there is one process; leave count out")
        return self


def _command_alone(value: object) -> object:
    """``{"celery": "celery worker"}`` is short for ``{"celery": {"command": "celery worker"}}``."""
    return {"command": value} if isinstance(value, str) else value


# What of a command a shell does not take for more than one.
_ITS_OWN = re.compile(r"""\\.|'[^']*'|"(?:\\.|[^"\\])*"|`[^`]*`|\$\([^)]*\)|[<>]&""")


def _one(command: str) -> str:
    """A worker's: what follows in a shell's line would never run, as it takes the shell's place."""
    if not command.isprintable():
        raise ValueError("a command is one line of printable characters")
    plain = _ITS_OWN.sub("''", command)
    if re.match(r"\s*[A-Za-z_]\w*=", plain):
        raise ValueError("it begins with a variable: put env before that, or it into app_env")
    if found := re.search(r"&&|\|\||[;&|]", plain):
        raise ValueError(
            f"one program is run, and nothing behind {found[0]}: sh -c '… && exec …' runs several"
        )
    return command


def _free(name: str) -> str:
    if name in TAKEN or name.startswith("systemd-"):
        raise ValueError("Debian or the fleet has something of that name; take another one")
    return name


def _not_ours(name: str) -> str:
    if name in ("RELEASE_TRIAL", "RELEASE_LOCK", "NOTIFY_SOCKET") or name.startswith("LISTEN_"):
        raise ValueError("this variable has a meaning of its own; take another name")
    return name


def _inside(path: str) -> str:
    found = os.path.normpath(path)
    if found.startswith("/") or found.split("/")[0] == "..":
        raise ValueError("leads out of app_source: a relative path of a folder or file in it")
    return found


def _served(path: str) -> str:
    if path == ".":
        raise ValueError("would serve the application itself to everybody; name a folder in it")
    return path


def _shared(path: str) -> str:
    found = _inside(path)
    if found == ".":
        raise ValueError("would share the application itself; name a file or a folder in it")
    return f"{found}/" if path.endswith("/") else found


def _apart(paths: tuple[str, ...]) -> tuple[str, ...]:
    for one in paths:
        for other in paths:
            if one is not other and f"{one}/".startswith(f"{other.rstrip('/')}/"):
                raise ValueError(f"{one} is in {other}: name the outer one alone")
    return paths


def _allowed(kind: ModuleType, options: uwsgi_options.Options) -> uwsgi_options.Options:
    problems = [f"{name}: {why}" for name in options if (why := kind.problem(name))]
    lines = kind.lines(options)
    problems += [f"{line!r}: a value is one line" for line in lines if not line.isprintable()]
    if problems:
        raise ValueError("; ".join(problems))
    return options


def _entry_point(text: str) -> str:
    file, named = split_entry_point(text)
    if file:
        _inside(file)
    if named.startswith(":") and (file.endswith(".ini") or "(" in named):
        raise ValueError(
            "a .py file may have a callable (wsgi.py:app), a paste ini a section "
            "(production.ini#shop); a factory is a module's: wsgi:create_app()"
        )
    return text


def split_entry_point(text: str) -> tuple[str, str]:
    """The file that an entry point is, and what is named in it (``:CALLABLE``, ``#SECTION``);
    no file where it is a module."""
    found = re.fullmatch(r"([^:#]+\.(?:py|ini))([:#].+)?", text)
    return (found[1], found[2] or "") if found else ("", "")


def _duration(text: str) -> str:
    durations.seconds(text)
    return text


def _text(value: object) -> object:
    return str(value) if isinstance(value, int) else value


def _address(value: str) -> str:
    return str(ip_address(value))  # as Consul writes it


class HostSettings(BaseModel):
    """What holds for a host, whatever runs on it: pyinfra has merged groups and host data.

    Under each is its explanation, of which group_data/all.py and docs/settings.md are made
    (by tests/support/settings_reference.py).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    fleet: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    """What the fleet is called, such as shop-production; a run stops where the hosts carry another
    name. None takes what they carry, and at the first deploy the application's name; a fleet keeps
    the name that it got then."""

    wait: Annotated[Duration, BeforeValidator(_text)] | None = None
    """How long a deploy waits for another one to end, such as 10m; None stops at once, with status
    75. Mostly typed: --data wait=10m."""

    hook_timeout: int = Field(default=300, ge=1, le=86400)
    """Seconds for each of the hooks in the operator's folder hooks/: see docs/operations.md."""

    secrets_load: Command | None = None
    """Prints the fleet's secrets, where a team keeps them in a place of its own, such as
    "[ ! -e $FLEET.json ] || sops decrypt $FLEET.json": a line for a shell on this machine, in the
    inventory's folder, with the fleet's name in $FLEET. It prints nothing where there are none yet,
    and fails where it can't know. None: a file below .fleet/ beside the inventory, which a second
    operator needs, too. See docs/security.md."""

    secrets_save: Command | None = None
    """Keeps there what comes on its standard input, in place of what was there, as "sops encrypt
    --filename-override $FLEET.json --output $FLEET.json /dev/stdin"; both are set, or none."""

    purge: bool = True
    """Whether a retired host also loses its releases and Consul's data."""

    datacenter: Label = "dc1"
    """What Consul calls the place where the hosts are."""

    consul_source: Literal["auto", "release", "file", "debian", "none"] = "auto"
    """Where the consul binary comes from:
      release  the release archive, checked against its published checksums
      file     consul_file
      debian   Debian's own package
      auto     release where its site answers when Consul is first installed, else debian
      none     nowhere: the agent that each host has already is used and never touched. Then there
               are no consul_servers, and `fleet` must be set"""

    consul_version: Annotated[str, StringConstraints(pattern=r"^\d+\.\d+\.\d+[\w.+-]*$")] = "1.21.4"
    """The version of the release archive."""

    consul_release_url: str = "https://releases.hashicorp.com/consul"
    """The release site, or a mirror of it."""

    consul_sha256: dict[str, Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]] = {}
    """Refuse any other release archive than that with this SHA-256, as in {"amd64": "…"}."""

    consul_release_key: str | None = None
    """HashiCorp's public key, a file on this machine: refuse published checksums that are not
    signed with it. gpgv is asked. None believes the site's certificate."""

    consul_file: str | None = None
    """A file on this machine: the consul binary, or a release archive."""

    consul_unit: UnitOptions = {}
    """Further lines of the agent's unit, as app_unit."""

    consul_address: Annotated[
        str, StringConstraints(pattern=r"^https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\]):\d{1,5}$")
    ] = ADDRESS
    """With consul_source "none": where a host's agent answers, as seen from the host:
    http://HOST:PORT, or https://HOST:PORT with a certificate that is good for 127.0.0.1 too."""

    consul_node: Plain | None = None
    """With "none": what the agent calls the host, where that is not its name in the inventory: to
    be set beside it, as in ("web1", {"consul_node": "web1.example.com"})."""

    consul_token: Secret | None = None
    """With "none": the token of deploys and commands: a file on this machine that nobody else may
    read, or $NAME for a variable of its environment."""

    consul_app_token: Secret | None = None
    """With "none": the token that the application registers with, named in the same way. It lies on
    each host in a file that the application's user alone may read."""

    consul_ca_file: str | None = None
    """With "none" and https: the certificate authority of the agents, a file on this machine; None
    for those that the system knows."""

    consul_cert_file: str | None = None
    """With "none" and https: a client certificate, for agents that want one; as consul_ca_file."""

    consul_key_file: str | None = None
    """Its key."""

    dns: bool = False
    """Whether Consul's DNS answers on the hosts, although a question in it carries no token: then
    anybody there may look up services and nodes by their names; and list them, where a host of the
    fleet has Consul before 1.17."""

    address: Annotated[str, AfterValidator(_address)] | None = None
    """Where other hosts reach a host, if ssh reaches it under another address: to be set beside
    it in inventory.py, as in ("web1", {"address": "10.0.0.5"})."""

    ssh_host_keys: Literal["ask", "first"] = "ask"
    """What is done about a host whose key is in no known_hosts file, where your ssh configuration
    does not say:
      ask    all of them are shown and asked about at once; with -y, or without a terminal, nothing
             is done before `invoke ssh.trust`
      first  its first key is trusted, whatever the ssh configuration says: for machines that live
             an hour"""

    firewall: bool = True
    """Whether a host lets only the hosts of the fleet reach its Consul, and only them and
    app_clients its applications: by nftables, in a table of the fleet's own. False removes that
    again. See docs/security.md."""


class Settings(HostSettings):
    """What holds for an application on a host; with all that holds for the host."""

    app_name: AppName
    """The application's name: of its service in Consul, its user, its units and its folder under
    /srv."""

    app_source: str
    """A folder on this machine, in a git repository or not, or the URL of a repository, which each
    deploy fetches: https://…, ssh://…, git@HOST:PATH. What git tracks in it is sent, or without git
    what no .gitignore in it leaves out. ${NAME} in a URL is read from this machine's environment or
    from app_secrets_file."""

    app_ref: Annotated[GitRef, BeforeValidator(_text)] | None = None
    """Its branch, tag or commit; of a folder too, where what is committed is to be sent. None: a
    folder as it is now, a repository's default branch."""

    app_root: Inside | None = None
    """The folder of app_source from which its modules are imported: "src", or "." for app_source
    itself. The paths in these settings are then app_source's own, app_requirements too. None: as
    seen from the folder that holds app_source, so that modules begin with its name."""

    app_type: Literal["wsgi", "psgi", "rack", "php", "lua", "go"] = "wsgi"
    """The language that uWSGI runs, with Debian's plugin for it: wsgi (Python), psgi (Perl), rack
    (Ruby), php or lua; all but wsgi take app_root. go is refused: Debian's plugin does not work."""

    app_entry_point: EntryPoint
    """What uWSGI loads: MODULE:CALLABLE, MODULE:FACTORY(), a file (wsgi.py, or wsgi.py:app where
    its callable is not called application), or an ini of PasteDeploy (production.ini, or
    production.ini#shop for a section other than main). Of another app_type than wsgi: a file
    (app.psgi, config.ru, app.lua, public/index.php for everything), or PHP's folder of files."""

    app_requirements: str | None
    """What is installed into a virtual environment on each host, resolved once, the same on all of
    them: a requirements file, with those that it includes (-r, -c), or the project's pyproject.toml
    (or pyproject.toml[extra]), as uv.lock or poetry.lock beside it has it. ${NAME} in it is read
    from this machine's environment or from app_secrets_file. None where the application needs
    nothing. Of another app_type than wsgi: cpanfile, Gemfile or composer.json, installed as the
    lock file beside it has it (cpanfile.snapshot may be missing)."""

    app_ini: str | None = None
    """The Jinja2 template of each instance's uWSGI configuration; None for the one that is shipped,
    app/uwsgi.ini.j2."""

    app_python: Annotated[str, StringConstraints(pattern=r"^/[\w./+-]+$")] = "/usr/bin/python3"
    """The Python of the virtual environment, as it is on the hosts; not in a home folder, which no
    service sees."""

    app_processes: int = Field(default=2, ge=1, le=1024)
    """uWSGI worker processes of each instance."""

    app_lazy: bool = False
    """Whether each worker loads the application by itself (uWSGI's lazy-apps). It must where
    loading starts threads or an event loop, which a fork loses: see docs/frameworks.md."""

    app_uwsgi: UwsgiOptions = {}
    """Further options of uWSGI, such as {"threads": 4, "buffer-size": 32768, "harakiri": 60,
    "mule": "worker.py"}: a text, a number, True or False, or a list of them where an option stands
    several times. Those that a release is switched by are refused."""

    app_static: dict[Mount, Served] = {}
    """Folders that uWSGI serves by itself, by the beginning of the URL, such as
    {"/static": "staticfiles"}; what is not in them is the application's to answer."""

    app_packages: tuple[DebianPackage, ...] = ()
    """Debian packages that it runs with, such as ["libpq5", "gettext"]; installed on its hosts,
    where they stay."""

    app_build_packages: tuple[DebianPackage, ...] = ()
    """Debian packages that its dependencies are compiled with and app_build runs with, such as
    ["libpq-dev", "nodejs"]; they come into a scratch layer, and do not stay."""

    app_build: tuple[Command, ...] = ()
    """Commands that make a release ready on each host before it is tried, such as
    ["python manage.py collectstatic --noinput"]: in the folder where the application works, as its
    user, with its environment, and its virtual environment first on the PATH."""

    app_release: tuple[Command, ...] = ()
    """Commands that run once for each release, on one host, before the first one is switched, such
    as ["python manage.py migrate --noinput"]; as app_build."""

    app_step_timeout: int = Field(default=900, ge=1, le=86400)
    """Seconds that each command of app_build and app_release may take."""

    app_shared: Annotated[tuple[Shared, ...], AfterValidator(_apart)] = ()
    """Files and folders (with a slash at the end) that releases share, such as ["media/",
    "db.sqlite3"]: each lies in /srv/NAME/shared, and a link in its place. Nothing removes them."""

    app_writable: tuple[Writable, ...] | None = None
    """Folders and files elsewhere on a host that it writes to, such as ["/var/lib/shop"]; a folder
    that is missing is made. What is not listed it can only read, but for app_shared, its /tmp and
    /dev/shm. None: where versions before 0.5 served it, what it could write to then too."""

    app_unit: UnitOptions = {}
    """Further lines of its units, in systemd's words, such as {"MemoryMax": "512M", "TasksMax":
    200}, or {"SystemCallFilter": "@mount"} for more than docs/security.md says; a text, a number,
    True or False, or a list of them."""

    app_workers: dict[WorkerName, Annotated[WorkerSettings, BeforeValidator(_command_alone)]] = {}
    """Other processes of a release, each by a name of its own, such as
    {"celery": {"command": "celery -A shop worker", "count": 2},
    "beat": {"command": "celery -A shop beat", "overlap": False, "hosts": ["web1"]}}:
      command       as a shell would run it in the release's folder: one program
      count         how many of it run on each host: 1
      hosts         those that it runs on; all of the application's where it is left out
      overlap       False for what must never run twice: the old one ends before the new one begins
      stop_signal   what asks it to finish: "SIGTERM"
      stop_timeout  seconds that it then has, before it is killed: the setting of that name"""

    instances: dict[Plain, Annotated[InstanceSettings, BeforeValidator(_port_alone)]] = {}
    """The uWSGI servers on each host: a name (the id in Consul) and a port."""

    app_listen: Literal["address", "all"] = "address"
    """Where a new port listens: on the host's `address` alone, or on "all" of its addresses, its
    loopback too, as for an nginx on the same host. A port that is open stays as it is."""

    app_clients: tuple[Network, ...] | None = None
    """Networks from which the instances can be reached, such as ["10.1.0.0/24", "fd00:1::/64"],
    beside the fleet's own hosts, which always can: so [] is these alone. None: from everywhere."""

    app_discovers: tuple[Service, ...] | None = None
    """Services in Consul that it looks up, such as ["payments", "search"]; itself it always finds.
    [] for none. None: all of them where versions before 0.5 served the fleet, until each
    application has this set; else none."""

    check_ttl: int = Field(default=10, ge=1, le=86400)
    """Seconds without a sign of life after which Consul calls an instance critical."""

    app_env: dict[EnvironmentName, str] = {}
    """Environment variables of the application."""

    app_secrets: tuple[EnvironmentName, ...] = ()
    """Names of variables that nobody may see: each value is read from this machine's environment,
    or from app_secrets_file; where both have one, it must be the same."""

    app_secrets_file: str | None = None
    """A .env file outside the repository."""

    # A number in group_data/ is taken too.
    release: Annotated[ReleaseName, BeforeValidator(_text)] | None = None
    """What a release is called; None for what git calls the content of app_source. A label: a name
    releases the same content again only as --data release=NAME. "current" keeps what the fleet was
    put to."""

    # The one that serves, and at least the one to be put back to.
    keep_releases: int = Field(default=5, ge=2, le=1000)
    """Releases that stay on each host, the one that serves among them; two or more."""

    health_path: Annotated[str, StringConstraints(pattern=r"^/[!-~]*$")] = "/healthz"
    """What a new release must answer, with one of health_statuses, before it receives a request."""

    health_headers: dict[HeaderName, Line] = {}
    """Sent with it, such as {"Host": "shop.example.com", "X-Forwarded-Proto": "https"} for an
    application that answers to its own names alone, or redirects what is not https."""

    health_statuses: Annotated[
        str, StringConstraints(pattern=r"^\d{3}(-\d{3})?(,\d{3}(-\d{3})?)*$")
    ] = "200-299"
    """The statuses of a healthy answer: numbers and ranges, such as 200-299,401."""

    health_timeout: int = Field(default=30, ge=1, le=3600)
    """Seconds within which a new release must be loaded, and then as many to answer."""

    boot_timeout: int = Field(default=300, ge=1, le=86400)
    """Seconds within which the release that serves must be loaded when its host boots, or when it
    is started again: a host that has just booted may be slow."""

    min_healthy_time: int = Field(default=3, ge=0, le=3600)
    """Seconds for which a new release must go on answering before it receives a request."""

    drain: int = Field(default=1, ge=0, le=3600)
    """Seconds for which an instance goes on serving when it has left the catalog."""

    stop_timeout: int = Field(default=30, ge=1, le=86400)
    """Seconds that requests in flight have to finish when an instance stops."""

    canary: int = Field(default=1, ge=0)
    """How many hosts get a new release first, before the batches."""

    batch: Annotated[int, Field(ge=1, strict=True)] | Percentage = "25%"
    """How many hosts are in a batch of the roll-out: a number, or "25%" of them."""

    on_failure: Literal["rollback", "stop"] = "rollback"
    """Where a batch fails: put the hosts done before it back as well ("rollback"), or "stop"
    there."""

    max_unavailable: int = Field(default=0, ge=0)
    """How many instances done before may have failed since for the next batch to begin all the
    same."""

    max_failed_hosts: int = Field(default=0, ge=0)
    """How many of an application's hosts may fail before their switch, as by a full disk, for the
    others to be switched all the same; they are left as they are, and named."""

    uwsgi_source: Literal["debian", "pypi"] = "debian"
    """Where uWSGI comes from:
      debian  Debian's packages
      pypi    PyPI, built on the host for app_python and installed into the application's virtual
              environment"""

    uwsgi_version: Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)+$")] = "2.0.31"
    """The version that is taken from PyPI."""

    @property
    def language(self) -> Language:
        """That of app_type."""
        return LANGUAGES[self.app_type]

    @property
    def entry(self) -> tuple[str, str]:
        """The file that app_entry_point is, and what is named in it; see split_entry_point."""
        is_python = self.app_type == PYTHON
        return split_entry_point(self.app_entry_point) if is_python else (self.app_entry_point, "")


# Of the demo. Until 0.2 these were the defaults of the settings that have none now.
DEMO: dict[str, Any] = {
    "app_name": "consul-demo-server",
    "app_source": "app",
    "app_entry_point": "app.server:application",
    "app_requirements": "app/requirements.txt",
    "app_ini": "app/uwsgi.ini.j2",
    "instances": {"server1": 2001, "server2": 2002},
}


# pyinfra reads these from the same place; a unit test holds them against pyinfra's own lists.
PYINFRA_KEYS = frozenset(
    """
    _chdir _continue_on_error _doas _doas_user _dzdo _dzdo_user _env _get_pty _if
    _ignore_errors _parallel _preserve_su_env _preserve_sudo_env _run_once _serial
    _shell_executable _stdin _su_password _su_shell _su_user _success_exit_codes _sudo
    _sudo_password _sudo_user _temp_dir _timeout _use_su_login _use_sudo_login
    fake_delay fake_delay_jitter fake_responses name
    ssh_allow_agent ssh_config_file ssh_connect_retries ssh_connect_retry_max_delay
    ssh_connect_retry_min_delay ssh_file_transfer_protocol ssh_forward_agent ssh_hostname
    ssh_key ssh_key_password ssh_known_hosts_file ssh_look_for_keys
    ssh_paramiko_connect_kwargs ssh_password ssh_port ssh_strict_host_key_checking ssh_user
    """.split()  # noqa: SIM905 - a name a line would be two pages
)
KNOWN_KEYS = frozenset(Settings.model_fields) | PYINFRA_KEYS
# What is typed as --data and is no setting: the one application that a deploy is about, and, by
# `invoke secrets.rotate`, which secrets are replaced.
TYPED = frozenset({"app", "rotate"})


def is_text(key: str) -> bool:
    """Whether a setting holds a text (or nothing) and never anything else."""
    if key in TYPED:
        return True
    if key in PYINFRA_KEYS:
        return key.endswith(("_user", "_password", "_hostname", "ssh_key"))
    kinds = _kinds(Settings.model_fields[key].annotation) if key in Settings.model_fields else set()
    return str in kinds <= {str, NoneType}


def _kinds(annotation: Any) -> set[Any]:
    """What a type is made of."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return {kind for each in get_args(annotation) for kind in _kinds(each)}
    return {annotation}


def nearest(word: str, known: frozenset[str] | set[str]) -> str:
    """``, did you mean 'X'?`` for the closest known word, or nothing."""
    matches = get_close_matches(word, sorted(known), n=1)
    return f", did you mean {matches[0]!r}?" if matches else ""


S = TypeVar("S", bound=HostSettings)


@dataclass(frozen=True)
class Parsed(Generic[S]):
    """Settings, or None with a line for each problem, and those that are missing."""

    settings: S | None
    problems: list[str]
    missing: frozenset[str] = frozenset()


def unknown(where: str, data: Iterable[str], known: frozenset[str]) -> list[str]:
    """A line for each key that is none of these."""
    return [
        f"{where}: unknown setting {key!r}{nearest(key, known)}" for key in data if key not in known
    ]


def parse(data: Mapping[str, Any], kind: type[S], where: Callable[[str], str]) -> Parsed[S]:
    """Check the settings among data.

    :param where: what a problem with a setting names first: a host, or a file
    """
    ours = {key: value for key, value in data.items() if key in kind.model_fields}
    try:
        return Parsed(kind.model_validate(ours), [])
    except ValidationError as error:
        lacks = frozenset(str(d["loc"][0]) for d in error.errors() if d["type"] == "missing")
        problems = [
            f"{where(str(detail['loc'][0]))}: {_describe(detail)}"
            for detail in error.errors()
            if detail["loc"][0] not in lacks
        ]
        return Parsed(None, problems, lacks)


def told_missing(hosts: Mapping[str, frozenset[str]]) -> list[str]:
    """One problem for all settings without a default that hosts lack, with lines to write.

    :param hosts: by name, with what each of them lacks
    """
    lacking = {name: keys for name, keys in hosts.items() if keys}
    if not lacking:
        return []
    keys = [key for key in Settings.model_fields if key in frozenset().union(*lacking.values())]
    lines = "".join(f"\n        {key} = {literal(DEMO[key])}" for key in keys)
    return [
        f"{', '.join(keys)}: not set for {', '.join(lacking)}, and without a default since 0.2 "
        f"(it was the demo's); to go on with that, write into group_data/all.py:{lines}"
    ]


def literal(value: Any) -> str:
    """As Python source, with the quotes of the shipped files."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        pairs = (f"{literal(key)}: {literal(its)}" for key, its in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    return repr(value)


def _describe(detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"] if part != "[key]")
    message = detail["msg"].removeprefix("Value error, ")
    if detail["loc"][-1] == "port":
        message = "a port is a number between 1 and 65535"
    if detail["type"] == "extra_forbidden":
        kind = WorkerSettings if detail["loc"][0] == "app_workers" else InstanceSettings
        message = f"unknown key{nearest(str(detail['loc'][-1]), set(kind.model_fields))}"
    return f"{key} = {detail['input']!r}: {message}"
