"""An application's token for Consul: a file on this host that its deploys write, and whatever runs
as the application is told of. Nothing in a release names it, so that old ones can use it too."""

from __future__ import annotations

from pathlib import Path

from . import store

VARIABLE = "CONSUL_HTTP_TOKEN_FILE"


def file(app: str) -> Path:
    """Empty until Consul has the token; not there where the Consul is none of the fleet's."""
    return store.POINTERS / "tokens" / app


def variables(app: str) -> dict[str, str]:
    """What the environment of all that runs as the application says of it."""
    return {VARIABLE: str(file(app))} if file(app).is_file() else {}


def drop_in(app: str) -> str:
    """The same for its units; '' where there is nothing to say."""
    lines = [f"Environment={name}={value}\n" for name, value in variables(app).items()]
    head = "# Written by uwsgi-consul-fleet: changes are overwritten.\n[Service]\n"
    return "".join([head, *lines]) if lines else ""
