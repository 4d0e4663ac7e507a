"""The application's environment: variables that may be seen, and secrets that may not."""

import hashlib
import os
import unicodedata
from collections.abc import Mapping
from functools import cache
from io import StringIO
from pathlib import Path

from dotenv.parser import parse_stream

from uwsgi_consul_fleet.inventory.settings import Settings
from uwsgi_consul_fleet.operations.plan import DeployError


def variables(settings: Settings) -> dict[str, str]:
    """Every variable with its value.

    :raises DeployError: where a secret's value is nowhere to be found, or two are
    """
    found = {**settings.app_env, **{name: secret(name, settings) for name in settings.app_secrets}}
    for name, value in found.items():
        # systemd ignores such an assignment, and writes it into its journal.
        if any(unicodedata.category(char) in ("Cc", "Cs") and char not in "\t\n" for char in value):
            raise DeployError(
                f"{name}: a variable can't hold control characters, or bytes that are not text; "
                "nothing was changed"
            )
    return found


def secret(name: str, settings: Settings, key: str = "app_secrets") -> str:
    """The value of a variable that nobody may see.

    :param key: the setting that asks for it
    :raises DeployError: where it is nowhere to be found, or there are two
    """
    file = settings.app_secrets_file
    kept = _file(file).get(name) if file else None
    value = os.environ.get(name, kept)
    if value is None:
        where = file or "app_secrets_file, which is not set"
        raise DeployError(
            f"{key}: no value for {name}: it is neither in this machine's environment "
            f"nor in {where}; nothing was changed"
        )
    if kept not in (None, value):
        # A developer's own database, most likely: neither is taken for the other.
        raise DeployError(
            f"{key}: {name} has one value in this machine's environment and another in "
            f"{file}: unset {name}, or take it out of the file; nothing was changed"
        )
    return value


@cache
def _file(name: str) -> Mapping[str, str]:
    """A .env file. Nothing in a value stands for another variable."""
    path = Path(name).expanduser()
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DeployError(f"app_secrets_file: {path}: {error}; nothing was changed") from error
    found = {}
    for line in parse_stream(StringIO(text)):
        if line.error or (line.key and line.value is None):
            # Not the line itself: it may be a secret.
            blank = line.original.string[: -len(line.original.string.lstrip())]
            number = line.original.line + blank.count("\n")
            raise DeployError(
                f"app_secrets_file: {path}:{number}: not of the form NAME=VALUE; "
                "nothing was changed"
            )
        if line.key and line.value is not None:
            found[line.key] = line.value
    return found


def render(values: Mapping[str, str]) -> str:
    """As systemd reads it (systemd.exec, EnvironmentFile=)."""
    lines = []
    for name, value in sorted(values.items()):
        escaped = "".join("\\" + char if char in '\\"`$' else char for char in value)
        lines.append(f'{name}="{escaped}"\n')
    return "".join(lines)


@cache
def digest(text: str) -> str:
    """Changes with the environment. It becomes part of names that anybody may see, and a
    secret may be short: so it costs a moment to compute, and as much to try a guess."""
    return hashlib.scrypt(text.encode(), salt=b"environment", n=2**14, r=8, p=1, dklen=8).hex()
