"""Every setting an operator can put in group_data/ or beside a host in inventory.py."""

from difflib import get_close_matches
from ipaddress import ip_address
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

Port = Annotated[int, Field(ge=1, le=65535, strict=True)]
# A DNS label: the service is looked up as NAME.service.consul, and systemd units,
# the Unix user and the folder under /srv carry the same name.
Label = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=63)]
# ini values: a line break or a comma would end the value early and start another one.
Plain = Annotated[str, StringConstraints(pattern=r"^[^\s,;=%$]+$", max_length=200)]
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
Percentage = Annotated[str, StringConstraints(pattern=r"^([1-9]\d?|100)%$")]
# What a host can't have of its own: there is one roll-out over all hosts.
FLEET_WIDE = ("canary", "batch", "on_failure", "max_unavailable")


class InstanceSettings(BaseModel):
    """One uWSGI server of the application on a host."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    port: Port
    id: Plain | None = None


def _port_alone(value: object) -> object:
    """``{"server1": 2001}`` is short for ``{"server1": {"port": 2001}}``."""
    return value if isinstance(value, dict) else {"port": value}


def _not_ours(name: str) -> str:
    if name in ("RELEASE_TRIAL", "NOTIFY_SOCKET") or name.startswith("LISTEN_"):
        raise ValueError("this variable has a meaning of its own; take another name")
    return name


def _text(value: object) -> object:
    return str(value) if isinstance(value, int) else value


def _address(value: str) -> str:
    ip_address(value)
    return value


class Settings(BaseModel):
    """The settings of one host, after groups and host data were merged by pyinfra."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    app_name: Label = "consul-demo-server"
    app_source: str = "app"
    app_entry_point: Plain = "app.server:application"
    app_requirements: str | None = "app/requirements.txt"
    app_ini: str = "app/uwsgi.ini.j2"
    app_processes: int = Field(default=2, ge=1, le=1024)
    app_python: Annotated[str, StringConstraints(pattern=r"^/[\w./+-]+$")] = "/usr/bin/python3"
    check_ttl: int = Field(default=10, ge=1, le=86400)
    instances: dict[Plain, Annotated[InstanceSettings, BeforeValidator(_port_alone)]] = {}

    app_env: dict[EnvironmentName, str] = {}
    app_secrets: tuple[EnvironmentName, ...] = ()
    app_secrets_file: str | None = None

    # pyinfra makes a number of `--data release=20` before it comes here.
    release: Annotated[ReleaseName, BeforeValidator(_text)] | None = None
    # The one that serves, and at least the one to be put back to.
    keep_releases: int = Field(default=5, ge=2, le=1000)
    health_path: Annotated[str, StringConstraints(pattern=r"^/[!-~]*$")] = "/healthz"
    health_timeout: int = Field(default=30, ge=1, le=3600)
    min_healthy_time: int = Field(default=3, ge=0, le=3600)
    drain: int = Field(default=1, ge=0, le=3600)
    stop_timeout: int = Field(default=30, ge=1, le=86400)
    canary: int = Field(default=1, ge=0)
    batch: Annotated[int, Field(ge=1, strict=True)] | Percentage = "25%"
    on_failure: Literal["rollback", "stop"] = "rollback"
    max_unavailable: int = Field(default=0, ge=0)
    purge: bool = True

    address: Annotated[str, AfterValidator(_address)] | None = None
    datacenter: Label = "dc1"

    uwsgi_source: Literal["debian", "pypi"] = "debian"
    uwsgi_version: Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)+$")] = "2.0.31"

    consul_source: Literal["auto", "release", "file", "debian"] = "auto"
    consul_version: Annotated[str, StringConstraints(pattern=r"^\d+\.\d+\.\d+[\w.+-]*$")] = "1.21.4"
    consul_release_url: str = "https://releases.hashicorp.com/consul"
    consul_sha256: dict[str, Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]] = {}
    consul_file: str | None = None


# pyinfra reads these from the same place; a unit test holds them against pyinfra's own lists.
PYINFRA_KEYS = frozenset(
    [
        "_chdir",
        "_continue_on_error",
        "_doas",
        "_doas_user",
        "_dzdo",
        "_dzdo_user",
        "_env",
        "_get_pty",
        "_if",
        "_ignore_errors",
        "_parallel",
        "_preserve_su_env",
        "_preserve_sudo_env",
        "_run_once",
        "_serial",
        "_shell_executable",
        "_stdin",
        "_su_password",
        "_su_shell",
        "_su_user",
        "_success_exit_codes",
        "_sudo",
        "_sudo_password",
        "_sudo_user",
        "_temp_dir",
        "_timeout",
        "_use_su_login",
        "_use_sudo_login",
        "name",
        "ssh_allow_agent",
        "ssh_config_file",
        "ssh_connect_retries",
        "ssh_connect_retry_max_delay",
        "ssh_connect_retry_min_delay",
        "ssh_file_transfer_protocol",
        "ssh_forward_agent",
        "ssh_hostname",
        "ssh_key",
        "ssh_key_password",
        "ssh_known_hosts_file",
        "ssh_look_for_keys",
        "ssh_paramiko_connect_kwargs",
        "ssh_password",
        "ssh_port",
        "ssh_strict_host_key_checking",
        "ssh_user",
    ]
)
KNOWN_KEYS = frozenset(Settings.model_fields) | PYINFRA_KEYS


def nearest(word: str, known: frozenset[str] | set[str]) -> str:
    """``, did you mean 'X'?`` for the closest known word, or nothing."""
    matches = get_close_matches(word, sorted(known), n=1)
    return f", did you mean {matches[0]!r}?" if matches else ""


def parse(host: str, data: dict[str, Any]) -> tuple[Settings | None, list[str]]:
    """Check one host's data.

    Returns the settings, or None with one line for each problem, naming the host and the key.
    """
    problems = [
        f"{host}: unknown setting {key!r}{nearest(key, KNOWN_KEYS)}"
        for key in data
        if key not in KNOWN_KEYS
    ]
    ours = {key: value for key, value in data.items() if key in Settings.model_fields}
    try:
        return Settings.model_validate(ours), problems
    except ValidationError as error:
        problems += [f"{host}: {_describe(detail)}" for detail in error.errors()]
        return None, problems


def _describe(detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"] if part != "[key]")
    message = detail["msg"].removeprefix("Value error, ")
    if detail["loc"][-1] == "port":
        message = "a port is a number between 1 and 65535"
    if detail["type"] == "extra_forbidden":
        message = (
            f"unknown key{nearest(str(detail['loc'][-1]), set(InstanceSettings.model_fields))}"
        )
    return f"{key} = {detail['input']!r}: {message}"
