"""Where secrets are, by their values: in texts, and in files of this machine and of the lab's."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lab_commands import SUDO, Lab

from uwsgi_consul_fleet.secrets import tokens
from uwsgi_consul_fleet.secrets.document import Secrets

# usage: python3 -c FIND FOLDER... <PATTERNS: prints the files in which one of the patterns is, with
# their names, and a word for those that others may read. PATTERNS are names and texts, as JSON.
FIND = """
import json, os, subprocess, sys
patterns = json.load(sys.stdin)
lines = "\\n".join(text for texts in patterns.values() for text in texts)
words = ["grep", "-rlasF", "--null", "-D", "skip", "-f", "-", *sys.argv[1:]]
said = subprocess.run(words, input=lines.encode("latin-1"), stdout=subprocess.PIPE).stdout
found = {}
for name in filter(None, said.decode().split("\\0")):
    try:
        text = open(name, "rb").read().decode("latin-1")
    except OSError:
        continue
    its = [what for what, texts in patterns.items() if any(each in text for each in texts)]
    others = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    if not subprocess.run([*others, "test", "-r", name]).returncode:
        its.append("EVERYBODY")
    found[name] = its
print(json.dumps(found))
"""
EVERYBODY = "EVERYBODY"  # among the names of what is in a file that others may read


class Secret:
    """Values that nobody may find, by their names."""

    def __init__(self, values: Mapping[str, Iterable[str]]) -> None:
        self.patterns = {
            name: [each for value in texts for each in spellings(value)]
            for name, texts in values.items()
        }

    def within(self, text: str | bytes) -> set[str]:
        """The names of those that are in it."""
        if isinstance(text, bytes):
            text = text.decode("latin-1")
        return {
            name for name, texts in self.patterns.items() if any(each in text for each in texts)
        }

    def in_files(self, lab: Lab, host: str, *folders: str) -> dict[str, set[str]]:
        """The files of a machine that have some of them; nothing of it stands in a command."""
        words = shlex.join(["sudo", "python3", "-c", FIND, *folders])
        return self._found(["ssh", "-F", str(lab.config), host, words])

    def in_files_here(self, folders: Sequence[Path], newer: Path) -> dict[str, set[str]]:
        """The files of this machine that have some of them, of those that are newer than one."""
        listing = ["find", *map(str, folders), "-type", "f", "-newer", str(newer), "-print0"]
        ran = subprocess.run(
            listing, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False
        )
        files = [name for name in ran.stdout.split("\0") if name]
        found: dict[str, set[str]] = {}
        for begin in range(0, len(files), 2000):
            words = [*SUDO, sys.executable, "-c", FIND, *files[begin : begin + 2000]]
            found |= self._found(words)
        return found

    def _found(self, words: list[str]) -> dict[str, set[str]]:
        given = json.dumps(self.patterns)
        ran = subprocess.run(words, input=given, stdout=subprocess.PIPE, text=True, check=True)
        return {name: {*its} for name, its in json.loads(ran.stdout).items()}


def spellings(value: str) -> list[str]:
    """A text as it is, and as it is within something in base64, wherever it begins there."""
    found = [value]
    for before in range(3):
        text = b64encode(b"\0" * before + value.encode()).decode().rstrip("=")
        first = (before * 8 + 5) // 6
        last = (before + len(value.encode())) * 8 // 6
        found.append(text[first:last])
    return found


def of(secrets: Secrets, hosts: Iterable[str], app: str) -> dict[str, list[str]]:
    """All that there is to know of a fleet's secrets."""
    named = [tokens.MANAGEMENT, tokens.DEPLOY, tokens.READ]
    for host in hosts:
        named += [tokens.node(host), tokens.app(host, app)]
    return {
        "gossip": [secrets.gossip],
        "seed": [secrets.seed],
        "ca": of_key(secrets.ca_key),
        **{what: [tokens.secret(secrets.seed, what)] for what in named},
    }


def of_key(pem: str) -> list[str]:
    """The line of a private key (P-256, PKCS 8) that nothing else has: the first is the same in
    many, and what comes last is its public part, which certificates have as well."""
    _, _, rest = pem.partition("PRIVATE KEY-----\n")
    first, second, third = rest.partition("-----END")[0].split()
    assert len(first) == len(second) == 64 > len(third)
    return [second]
