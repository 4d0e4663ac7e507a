"""A repository, cloned for as long as it is looked at."""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.git import environment

URL = re.compile(r"(https?|ssh|git|file)://|[\w.-]+@[\w.-]+:(?!//)")
PASSWORD = re.compile(r"[a-z]+://[^/@]*:(?!\$\{)[^/@]+@")
VARIABLE = re.compile(r"\$\{(\w+)\}")


@contextmanager
def cloned(url: str) -> Iterator[Path]:
    """The folder with its default branch.

    :param url: ``${NAME}`` in it is read from the environment
    :raises FleetError: where it can't be cloned
    """
    if PASSWORD.match(url):
        raise FleetError(
            f"--app {url.partition(':')[0]}://…: its password would be in a file: write "
            "'${NAME}' in its place, and have it in the environment"
        )
    if missing := [name for name in VARIABLE.findall(url) if name not in os.environ]:
        raise FleetError(f"--app {url}: the environment has no {missing[0]}")
    with tempfile.TemporaryDirectory(prefix="uwsgi-consul-fleet-") as temporary:
        folder = Path(temporary) / "clone"
        command = ["git", "clone", "--quiet", "--depth", "1", "--", url, str(folder)]
        try:
            result = subprocess.run(
                command, stderr=subprocess.PIPE, text=True, env=_environment(url), check=False
            )
        except FileNotFoundError:
            raise FleetError(f"--app {url}: git is missing on this machine") from None
        if result.returncode:
            why = result.stderr.strip()
            for name in VARIABLE.findall(url):
                why = why.replace(os.environ[name], f"${{{name}}}")
            raise FleetError(f"--app {url}: git can't clone it: {why}")
        yield folder


def _environment(url: str) -> Mapping[str, str]:
    """Git's, in which alone a password is: what is written stands for it everywhere else."""
    found = {**environment(), "GIT_TERMINAL_PROMPT": "0"}
    meant = VARIABLE.sub(lambda name: os.environ[name[1]], url)
    if meant == url:
        return found
    number = int(found.get("GIT_CONFIG_COUNT", "0"))
    return {
        **found,
        "GIT_CONFIG_COUNT": str(number + 1),
        f"GIT_CONFIG_KEY_{number}": f"url.{meant}.insteadOf",
        f"GIT_CONFIG_VALUE_{number}": url,
    }
