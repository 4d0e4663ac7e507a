"""An agent that a host has already: it is used, and never configured, started or stopped."""

import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from pyinfra import host
from pyinfra.api import StringCommand, operation

from uwsgi_consul_fleet.consul.access import access, secret
from uwsgi_consul_fleet.host.consul import CONFIG
from uwsgi_consul_fleet.inventory.model import AppHost, Host
from uwsgi_consul_fleet.operations import program
from uwsgi_consul_fleet.operations.files import RemoteFile, converge, fail, secretly
from uwsgi_consul_fleet.operations.run import Here
from uwsgi_consul_fleet.operations.state import NOT_ASKED
from uwsgi_consul_fleet.operations.users import system_user

FOLDER = "/etc/uwsgi-consul-fleet/agent"
CA, CERT, KEY, TOKEN = (f"{FOLDER}/{name}" for name in ("ca.pem", "cert.pem", "key.pem", "token"))


@operation()
def expect(here: Here) -> Generator[Any, None, None]:
    """Leave a host alone whose agent does not answer: nobody here may start it."""
    why = here.known.consul_problem
    if why and why != NOT_ASKED and here.run.pyinfra.is_executing:
        yield fail(f"{here.me.name}: left as it was: {why}")
    host.noop("its agent answers")


@operation()
def use(here: Here) -> Generator[Any, None, None]:
    """What speaks to the agent, and what it is shown: by the program, and by the application."""
    me = here.me
    for each in me.applications:
        yield from system_user(here, each.app)
    wanted = list(_files(me))
    yield from converge(here, [*(f for f in wanted if f.mode != "400"), program.program()])
    yield from secretly(here, [file for file in wanted if file.mode == "400"])
    stale = {path for path in here.known.files if path.startswith(f"{FOLDER}/")}
    stale -= {file.path for file in wanted}
    # What serves until its switch goes on with the others, and so does what is rolled back to.
    if stale := stale - here.known.agent_files:
        yield StringCommand("rm", "-f", *sorted(stale))
        here.changed()


def _files(me: Host) -> Iterator[RemoteFile]:
    """As they should lie on a host; the secrets are each application's user's alone."""
    shown, apps = access(me), me.applications
    texts = {CA: shown.ca_file, CERT: shown.cert_file}
    yield from (RemoteFile(path, Path(file).read_text()) for path, file in texts.items() if file)
    token = secret(me.settings, "consul_app_token")
    secrets = {
        KEY: Path(shown.key_file).read_text() if shown.key_file else "",
        TOKEN: f"{token}\n" if token else "",
    }
    readers = [(_own(path, its), text, its.app) for path, text in secrets.items() for its in apps]
    if any(its.is_described for its in apps):  # the program reads what is nobody's
        readers += [(path, text, "root") for path, text in secrets.items()]
    yield from (RemoteFile(path, text, "400", user) for path, text, user in readers if text)
    there = {"address": shown.address, **_paths(me), "keys": shown.keys}
    yield RemoteFile(CONFIG, json.dumps(there, indent=2) + "\n", "600")


def _own(path: str, its: Host) -> str:
    """Where a secret lies for an application, which is one of several."""
    if not isinstance(its, AppHost) or not its.is_described:
        return path
    return f"{FOLDER}/{its.app}/{path.rpartition('/')[2]}"


def _paths(me: Host) -> dict[str, str]:
    """What lies on a host for whoever asks its agent, by the names that both have for it: those of
    agent.json, and the plugin's keys."""
    settings = me.settings
    found = {
        "token_file": settings.consul_app_token and _own(TOKEN, me),
        "ca_file": settings.consul_ca_file and CA,
        "cert_file": settings.consul_cert_file and CERT,
        "key_file": settings.consul_key_file and _own(KEY, me),
    }
    return {key: path for key, path in found.items() if path}


def plugins_keys(me: Host) -> str:
    """What a ``consul-register`` line says of the agent, also of one that the fleet brings."""
    said = {"url": me.settings.consul_address, **_paths(me)}
    return ",".join(f"{key}={value}" for key, value in said.items())
