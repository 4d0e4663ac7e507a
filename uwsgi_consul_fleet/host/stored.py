"""What is registered with the agent of this host, and whether that goes on under `default_policy`
deny.

An agent keeps the token that came with a registration. Where that may not write it, the catalog is
told of no change any more: it goes on saying `passing` of what is gone.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from . import hcl, rights
from .consul import ADDRESS, CONFIGURATION, DATA, UNKNOWN, Consul, UnavailableError

Message = dict[str, Any]


class Registered(NamedTuple):
    """A service, or a check of it or of the node (``service`` is '').

    ``token`` is None where nobody can tell; ``file`` is the configuration that it comes from.
    """

    kind: str
    id: str
    service: str
    service_id: str
    token: str | None
    file: Path | None = None
    unit: str = ""

    def __str__(self) -> str:
        if self.kind == "service":
            return f"the service {self.service} (id {self.id})"
        if self.service:
            return f"the check {self.id} of the service {self.service} (id {self.service_id})"
        return f"the check {self.id} of the node"


def look(
    consul: Consul,
    may: Mapping[str, list[str]],
    data: Path = DATA,
    configuration: Path = CONFIGURATION,
) -> Message:
    """Which ``problems`` are ahead, and the ``accessors`` of tokens that are in use.

    :param may: accessors that are known, and the services that each may write
    :raises UnavailableError: where there is no access control, or the token may not read it
    """
    config = consul.get("/v1/agent/self")["Config"]
    node, datacenter = config["NodeName"], config["Datacenter"]
    known: dict[str, Message | None] = {}
    problems, lapsing = [], set()
    for each in _all(consul, data, configuration):
        secret = each.token
        if secret and secret not in known:
            known[secret] = _told(consul, secret)
        token = known.get(secret or "")
        if token and each.service in may.get(token["AccessorID"], ()):
            continue
        if token and rights.may_write(
            consul,
            token,
            datacenter,
            "service" if each.service else "node",
            each.service or node,
        ):
            continue
        # What is wrong with a service is no better with its checks.
        if each.kind == "service":
            lapsing.add((each.id, secret))
        elif (each.service_id, secret) in lapsing:
            continue
        problems.append(f"{each} {_why(secret, token)}; {_mended(each)}")
    return {"problems": problems, "accessors": _accessors(known.values())}


def accessors(consul: Consul, data: Path = DATA, configuration: Path = CONFIGURATION) -> set[str]:
    """Of the tokens that are in use here, as far as Consul knows them."""
    found = [*_stored(data), *_configured(configuration)]
    secrets = {each.token for each in found if each.token}
    return set(_accessors(_told(consul, secret) for secret in secrets))


def _accessors(tokens: Any) -> list[str]:
    return sorted(each["AccessorID"] for each in tokens if each)


def _told(consul: Consul, secret: str) -> Message | None:
    """What Consul says of a token; None where it does not know it."""
    try:
        return dict(consul.showing(secret).get("/v1/acl/token/self"))
    except UnavailableError as error:
        if UNKNOWN in str(error):
            return None
        raise


def _why(secret: str | None, token: Message | None) -> str:
    if secret is None:
        return "is registered with a token that nobody can tell"
    if not secret:
        return "is registered without a token"
    if token is None:
        return "is registered with a token that Consul does not know"
    name = token["Description"] or token["AccessorID"]
    return f"is registered with a token that may not write it ({name})"


def _mended(each: Registered) -> str:
    """The command that does."""
    if each.file:
        return f"give it a `token` that may, in {each.file}, and: systemctl reload consul"
    if each.unit:
        return f"it gets its token by: systemctl restart {each.unit}"
    remove = f"consul services deregister -id={shlex.quote(each.id)}"
    if each.kind == "check":
        at = f"{ADDRESS}/v1/agent/check/deregister"
        remove = f"curl -X PUT {shlex.quote(f'{at}/{each.id}')}"
    return f"register it again with one that may, or remove it: {remove}"


# --- Where it is written -------------------------------------------------------------


def _all(consul: Consul, data: Path, configuration: Path) -> list[Registered]:
    """Services first."""
    written = [*_configured(configuration), *_stored(data)]
    found = {(each.kind, each.id): each for each in written}
    for key, told in consul.get("/v1/agent/services").items():
        found.setdefault(("service", key), Registered("service", key, told["Service"], key, None))
    for key, told in consul.get("/v1/agent/checks").items():
        # One that came with its service has that one's token.
        of = found.get(("service", told["ServiceID"]))
        token, file = (of.token, of.file) if of else (None, None)
        one = Registered("check", key, told["ServiceName"], told["ServiceID"], token, file)
        found.setdefault(("check", key), one)
    default = _default(data, configuration)
    some = (each if each.token != "" else each._replace(token=default) for each in found.values())
    return sorted(some, key=lambda each: (each.kind != "service", each.id))


def _stored(data: Path) -> Iterator[Registered]:
    """What was registered by way of the API."""
    for _, told in objects(data / "services"):
        one = told["Service"]
        yield Registered(
            "service", one["ID"], one["Service"], one["ID"], told["Token"], unit=_unit(one)
        )
    for _, told in objects(data / "checks"):
        one = told["Check"]
        yield Registered(
            "check", one["CheckID"], one["ServiceName"], one["ServiceID"], told["Token"]
        )


def _unit(service: Message) -> str:
    """Of an instance of ours that runs, and is told of its token when it starts."""
    generation = (service["Meta"] or {}).get("generation")
    if not generation:
        return ""
    from . import systemd, units

    template = f"{service['Service']}-{service.get('Port')}@"
    unit = f"{template}{generation}.service"
    is_told = (systemd.UNITS / f"{template}.service.d" / units.CONSUL).exists()
    return unit if is_told and systemd.is_active(unit) else ""


def objects(folder: Path) -> Iterator[tuple[Path, Any]]:
    """What an agent keeps in one of its folders, each in a file of JSON."""
    for file in sorted(folder.glob("*")):
        if file.is_file() and file.suffix != ".tmp":
            try:
                yield file, json.loads(file.read_text())
            except (FileNotFoundError, ValueError):
                continue  # it is just being written, or removed


def _configured(folder: Path) -> Iterator[Registered]:
    """What the agent was started with; a token that is not named there is ''."""
    for file, text in _files(folder):
        names = {}
        for told in _each(text, "service", "services"):
            name = str(told.get("name", ""))
            key = str(told.get("id") or name)
            names[key] = name
            yield Registered("service", key, name, key, str(told.get("token", "")), file)
        for told in _each(text, "check", "checks"):
            of = str(told.get("service_id", ""))
            key = str(told.get("id") or told.get("name", ""))
            yield Registered("check", key, names.get(of, of), of, str(told.get("token", "")), file)


def _files(folder: Path) -> Iterator[tuple[Path, Any]]:
    for file in sorted(folder.glob("*")):
        if file.suffix in (".json", ".hcl"):
            try:
                yield file, hcl.parse(file.read_text())
            except ValueError:
                continue  # then its services are registered with a token that nobody can tell


def _each(text: Any, one: str, several: str) -> Iterator[Message]:
    for key, value in hcl.items(text):
        if key == one:
            yield dict(hcl.items(value))
        elif key == several:
            for each in value:
                yield dict(hcl.items(each))


def _default(data: Path, folder: Path) -> str:
    """The token for what is registered without one."""
    found = ""
    for _, text in _files(folder):
        acl = [value for key, value in hcl.items(text) if key == "acl"]
        tokens = [value for key, value in hcl.items(acl) if key == "tokens"]
        found = dict(hcl.items(tokens)).get("default", found)
    for file, told in objects(data):
        found = told.get("default", found) if file.name == "acl-tokens.json" else found
    return str(found)
