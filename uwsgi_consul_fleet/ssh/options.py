"""How a host is reached, worked out from its data and the ssh configuration; opens nothing.

The data are pyinfra's own keys (``ssh_user``, ``_sudo``, …), and what is said there wins over
the ssh configuration, as on ssh's command line.
"""

import os
import re
import shlex
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.ssh import config as ssh_config
from uwsgi_consul_fleet.ssh.config import Found

TIMEOUT = 10  # seconds for a connection
DEFAULT_KEYS = ("~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa")
USERS_KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
SYSTEMS_KNOWN_HOSTS = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
MODES = {"yes": "yes", "no": "no", "off": "no", "accept-new": "accept-new", "ask": "ask"}
FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}
# pyinfra's keys about how commands run, and about becoming root for them.
SHELL = ("_shell_executable", "_env")
ROOT = (
    *("_sudo", "_sudo_user", "_sudo_password", "_use_sudo_login", "_preserve_sudo_env"),
    *("_su_user", "_su_password", "_su_shell", "_use_su_login", "_preserve_su_env"),
    *("_doas", "_doas_user", "_dzdo", "_dzdo_user"),
)
# What says the same as a word of the ssh configuration, and wins over it.
SAID = {
    "ssh_user": "user",
    "ssh_port": "port",
    "ssh_strict_host_key_checking": "stricthostkeychecking",
    "ssh_known_hosts_file": "userknownhostsfile",
}
# Of pyinfra's `ssh_paramiko_connect_kwargs`: those that say what something here says too.
OURS = {
    "password": "ssh_password",
    "key_filename": "ssh_key",
    "passphrase": "ssh_key_password",
    "allow_agent": "ssh_allow_agent",
    "look_for_keys": "ssh_look_for_keys",
    "timeout": "timeout",
}
# And those that the connection here decides itself.
DECIDED = ("transport_factory", "sock", "auth_strategy", "pkey", "hostname", "port", "username")

# Those that hold for the hosts on the way too.
FOR_ALL = (
    "ssh_config_file",
    "ssh_known_hosts_file",
    "ssh_strict_host_key_checking",
    "ssh_host_keys",
)

Stop = tuple[str, str, int]  # where a host on the way is: address, user and port


@dataclass(frozen=True)
class Options:
    """All there is to know for a connection to a host.

    ``name`` is the inventory's, ``host`` and ``port`` are where it is, ``key_name`` is what
    known_hosts files call it, ``key`` the one private key to use where the inventory names it,
    and ``jump`` the host that leads there, which may have one of its own. ``root`` are pyinfra's
    keys about becoming root, and ``more`` what paramiko is told beside all this.
    """

    name: str
    host: str
    port: int
    user: str
    config_file: str = ""
    password: str = field(default="", repr=False)
    key: str = ""
    key_password: str = field(default="", repr=False)
    identities: tuple[str, ...] = ()
    certificates: tuple[str, ...] = ()
    agent: str = ""
    only_identities: bool = False
    forward_agent: bool = False
    timeout: float = TIMEOUT
    retries: int = 0
    retry_delay: tuple[float, float] = (0.1, 0.5)
    known_hosts: tuple[str, ...] = ()
    systems_known_hosts: tuple[str, ...] = ()
    key_name: str = ""
    mode: str = "ask"
    hash_names: bool = False
    family: int = socket.AF_UNSPEC
    alive_interval: int = 0
    alive_count: int = 3
    proxy_command: str = ""
    jump: "Options | None" = None
    root: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    more: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def command_line(self) -> str:
        """The ssh command that reaches it as well, to find out why it does not."""
        words = ["ssh", *(["-F", self.config_file] if self.config_file else [])]
        return shlex.join([*words, self.name])


def of(name: str, data: Mapping[str, Any], timeout: float = TIMEOUT) -> Options:
    """
    :param name: the host's, in the inventory
    :param data: its data, with those of its groups
    :param timeout: seconds for a connection where the ssh configuration says nothing
    :raises FleetError: naming the host and the setting that can't be
    """
    more = dict(data.get("ssh_paramiko_connect_kwargs") or {})
    said = {ours: more.pop(theirs) for theirs, ours in OURS.items() if theirs in more}
    more = {key: value for key, value in more.items() if key not in DECIDED}
    data = {**data, **said, "ssh_paramiko_connect_kwargs": more}
    try:
        found = _look_up(str(data.get("ssh_hostname") or name), data)
        return _build(name, data, found, timeout, ())
    except (ValueError, RuntimeError) as error:  # the latter where a ~user has no home
        raise FleetError(f"{name}: {error}") from error


def plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """What of a host's data says how it is reached, for another process: no functions."""
    found = {key: value for key, value in data.items() if key.startswith(("ssh_", "_"))}
    if more := found.get("ssh_paramiko_connect_kwargs"):
        found["ssh_paramiko_connect_kwargs"] = {k: v for k, v in more.items() if not callable(v)}
    return {key: value for key, value in found.items() if not callable(value)}


def _look_up(name: str, data: Mapping[str, Any], **said: str) -> Found:
    """What the files hold for a host: its own first, then the user's, then the system's."""
    said |= {word: str(data[key]) for key, word in SAID.items() if data.get(key)}
    own = data.get("ssh_config_file")
    files = [Path(own).expanduser()] if own else []
    users = Path("~/.ssh/config").expanduser()
    config = ssh_config.read(tuple(dict.fromkeys([*files, users, ssh_config.SYSTEM])))
    return config.lookup(name, **said)


def address(name: str, data: Mapping[str, Any]) -> str:
    """The address under which a host is reached; of several, an IPv4 one.

    :raises OSError: where neither the ssh configuration nor DNS knows the name
    """
    found = _look_up(str(data.get("ssh_hostname") or name), data)
    entries = socket.getaddrinfo(found.host_name, None, _family(found), socket.SOCK_STREAM)
    best = min(entries, key=lambda entry: entry[0] != socket.AF_INET)
    return str(best[4][0])


def _family(found: Found) -> int:
    return FAMILIES.get(found.first("addressfamily").lower(), socket.AF_UNSPEC)


def _build(
    name: str, data: Mapping[str, Any], found: Found, timeout: float, behind: tuple[Stop, ...]
) -> Options:
    """:param behind: those hosts that this one leads to, to notice a circle"""
    user, port = found.user, _port(found.port)
    alias = found.first("hostkeyalias")
    key_host = found.host_name.lower()
    proxy, jump = _way(data, found, timeout, (*behind, (found.host_name, user, port)))
    own_config = str(data.get("ssh_config_file") or "")
    return Options(
        name=name,
        host=found.host_name,
        port=port,
        user=user,
        config_file=own_config if own_config and Path(own_config).expanduser().is_file() else "",
        password=str(data.get("ssh_password") or ""),
        key=str(data.get("ssh_key") or ""),
        key_password=str(data.get("ssh_key_password") or ""),
        identities=_identities(data, found),
        certificates=_files(found, "certificatefile", ()),
        agent=_agent(data, found),
        only_identities=found.yes("identitiesonly"),
        forward_agent=bool(data.get("ssh_forward_agent", found.yes("forwardagent"))),
        timeout=float(data.get("timeout") or found.number("connecttimeout", 0) or timeout),
        retries=int(data.get("ssh_connect_retries") or 0),
        retry_delay=(
            float(data.get("ssh_connect_retry_min_delay", 0.1)),
            float(data.get("ssh_connect_retry_max_delay", 0.5)),
        ),
        known_hosts=_files(found, "userknownhostsfile", USERS_KNOWN_HOSTS),
        systems_known_hosts=_files(found, "globalknownhostsfile", SYSTEMS_KNOWN_HOSTS),
        key_name=alias or (key_host if port == 22 else f"[{key_host}]:{port}"),
        mode=_mode(data, found),
        hash_names=found.yes("hashknownhosts"),
        family=_family(found),
        alive_interval=found.number("serveraliveinterval", 0),
        alive_count=found.number("serveralivecountmax", 3),
        proxy_command=proxy,
        jump=jump,
        root={key: data[key] for key in (*SHELL, *(ROOT if user != "root" else ())) if key in data},
        more=data.get("ssh_paramiko_connect_kwargs") or {},
    )


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise ValueError(f"{text!r} is not a port for ssh")
    return int(text)


def _mode(data: Mapping[str, Any], found: Found) -> str:
    """Without a word about it a new host is asked about, as by ssh."""
    is_said = data.get("ssh_strict_host_key_checking")
    if data.get("ssh_host_keys") == "first" and not is_said:
        return "accept-new"
    asked = found.first("stricthostkeychecking", "ask")
    mode = MODES.get(asked.lower())
    if mode is None:
        raise ValueError(f"StrictHostKeyChecking {asked!r} is none of {', '.join(MODES)}")
    return mode


def _path(found: Found, word: str) -> str:
    named = re.sub(r"\$\{(\w+)\}", lambda match: os.environ.get(match[1], ""), word)
    return str(Path(found.expand(named)).expanduser())


def _files(found: Found, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
    words = found.words(key) or default
    return () if words == ("none",) else tuple(_path(found, word) for word in words)


def _identities(data: Mapping[str, Any], found: Found) -> tuple[str, ...]:
    """Private keys that may or may not be there; none where the inventory names one."""
    if data.get("ssh_key"):
        return ()
    words = found.words("identityfile")
    if not words and data.get("ssh_look_for_keys", True):
        words = DEFAULT_KEYS
    return tuple(_path(found, word) for word in words if word.lower() != "none")


def _agent(data: Mapping[str, Any], found: Found) -> str:
    """The socket of the agent to ask, or ''."""
    word = found.first("identityagent", "$SSH_AUTH_SOCK")
    if not data.get("ssh_allow_agent", True) or word.lower() == "none":
        return ""
    if word == "SSH_AUTH_SOCK" or word.startswith("$"):
        return os.environ.get(word.removeprefix("$"), "")
    return _path(found, word)


# --- The way there -----------------------------------------------------------------------


def _way(
    data: Mapping[str, Any], found: Found, timeout: float, behind: tuple[Stop, ...]
) -> tuple[str, Options | None]:
    """The command or the host that leads there."""
    command, hops = found.first("proxycommand", "none"), found.first("proxyjump", "none")
    if command.lower() != "none":
        return found.expand(command), None
    jump: Options | None = None
    if hops.lower() != "none":
        for hop in found.expand(hops).split(","):
            jump = _hop(hop.strip(), data, timeout, jump, behind)
            if jump is None:
                break
    return "", jump


def _hop(
    hop: str,
    data: Mapping[str, Any],
    timeout: float,
    before: Options | None,
    behind: tuple[Stop, ...],
) -> Options | None:
    """A jump host: ``[user@]host[:port]``. Of the inventory's data, those about host keys hold
    for it as well. None for a host that would lead to itself, as with ``Host *``."""
    user, host, port = _hop_words(hop)
    way = "none" if before else ""
    known = {key: data[key] for key in FOR_ALL if key in data}
    found = _look_up(host, known, user=user, port=port, proxyjump=way)
    mine = (found.host_name, found.user, _port(found.port))
    if mine == behind[-1]:
        return None
    if mine in behind:
        raise ValueError(f"ProxyJump leads in a circle, through {host}")
    built = _build(host, known, found, timeout, behind)
    return replace(built, jump=before) if before else built


def _hop_words(hop: str) -> tuple[str, str, str]:
    text = hop.removeprefix("ssh://").rstrip("/")
    user, _, place = text.rpartition("@")
    found = re.fullmatch(r"\[(.+)\](?::(\d+))?|([^:]+)(?::(\d+))?|(.+)", place)
    if not found:
        raise ValueError(f"ProxyJump {hop!r} names no host")
    host = found[1] or found[3] or found[5]
    return user, host, found[2] or found[4] or ""
