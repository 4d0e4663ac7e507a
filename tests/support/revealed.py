"""Where secrets are, by their values: in texts, and in files of this machine and of the lab's."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterable, Mapping
from pathlib import Path

from lab_commands import SUDO, Lab

from uwsgi_consul_fleet.secrets import tokens
from uwsgi_consul_fleet.secrets.document import Secrets

# usage: python3 -c FIND SECONDS FOLDER... <PATTERNS: prints the files that were changed since then
# and have one of the patterns in them, with their names, and a word for those that others may read.
# PATTERNS are names and texts, as JSON.
FIND = """
import json, subprocess, sys
_, since, *folders = sys.argv
patterns = json.load(sys.stdin)
lines = "\\n".join(text for texts in patterns.values() for text in texts).encode("latin-1")
def said(*words, given=b""):
    return subprocess.run(words, input=given, stdout=subprocess.PIPE, stderr=-3).stdout
# Of ctime, which nobody sets: a copy may be as old as what it is of.
listed = said("find", *folders, "-type", "f", "-newerct", "@" + since, "-print0")
files = listed.decode(errors="surrogateescape").split("\\0")[:-1]
have = ""
for begin in range(0, len(files), 2000):
    words = ["env", "LC_ALL=C", "grep", "-lasF", "--null", "-f", "-"]
    have += said(*words, *files[begin:begin + 2000], given=lines).decode()
found = {}
for name in have.split("\\0")[:-1]:
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

    def in_files(self, since: float, *folders: str, lab: Lab, host: str) -> dict[str, set[str]]:
        """The files of a machine that have some of them; nothing of it stands in a command.

        :param since: those that were changed since then, in seconds
        """
        words = shlex.join(["sudo", "python3", "-c", FIND, str(since), *folders])
        return self._found(["ssh", *lab.ssh_options, host, words])

    def in_files_here(self, since: float, *folders: Path) -> dict[str, set[str]]:
        """As :meth:`in_files`, of this machine."""
        return self._found([*SUDO, sys.executable, "-c", FIND, str(since), *map(str, folders)])

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
    named = [*tokens.OF_FLEET]
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
