"""The application's environment: variables that may be seen, and secrets that may not."""

import hashlib
import os
import unicodedata
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from uwsgi_consul_fleet.inventory.settings import Settings
from uwsgi_consul_fleet.operations.plan import DeployError


def variables(settings: Settings) -> dict[str, str]:
    """Every variable with its value.

    :raises DeployError: where a secret's value is nowhere to be found
    """
    found = dict(settings.app_env)
    kept = _file(settings.app_secrets_file) if settings.app_secrets_file else {}
    for name in settings.app_secrets:
        value = os.environ.get(name, kept.get(name))
        if value is None:
            where = settings.app_secrets_file or "app_secrets_file, which is not set"
            raise DeployError(
                f"app_secrets: no value for {name}: it is neither in this machine's environment "
                f"nor in {where}; nothing was changed"
            )
        found[name] = value
    for name, value in found.items():
        # systemd ignores such an assignment, and writes it into its journal.
        if any(unicodedata.category(char) in ("Cc", "Cs") and char not in "\t\n" for char in value):
            raise DeployError(
                f"{name}: a variable can't hold control characters, or bytes that are not text; "
                "nothing was changed"
            )
    return found


@cache
def _file(name: str) -> Mapping[str, str]:
    """A file of ``NAME=VALUE`` lines; empty ones and comments are skipped."""
    path = Path(name).expanduser()
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DeployError(f"app_secrets_file: {path}: {error}; nothing was changed") from error
    found = {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        key, equals, value = line.partition("=")
        if not equals:
            # Not the line itself: it may be a secret.
            raise DeployError(
                f"app_secrets_file: {path}:{number}: not of the form NAME=VALUE; "
                "nothing was changed"
            )
        found[key.strip()] = value.strip()
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
