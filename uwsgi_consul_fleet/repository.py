"""A repository at a URL, and git that is asked about it: with limits, and with a password that
nobody sees."""

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import unquote, urlsplit

from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.git import environment
from uwsgi_consul_fleet.shipped import folder as operators

URL = re.compile(r"(https?|ssh|git|file)://|[\w.-]+@[\w.-]+:(?!//)")
ANY_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*::?//")
# In a URL: it stands for a value that is in no file.
VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)\}")
TOO_LONG = 900  # seconds that one step may take
# Of its own: an answer that never comes must end.
CONFIG = {
    "http.lowSpeedLimit": "1000",
    "http.lowSpeedTime": "30",
    "advice.detachedHead": "false",
    "core.autocrlf": "false",  # the same bytes wherever it is deployed from
}
# Answers git's question for a password.
HELPER = (
    '!f() { [ "$1" != get ] || printf "username=%s\\npassword=%s\\n" "$SOURCE_USER" '
    '"$SOURCE_PASSWORD"; }; f'
)


class GitError(FleetError):
    """Git could not do what was asked of it."""


def is_url(source: str) -> bool:
    """Whether it is a repository's, and no folder here."""
    return not Path(source).expanduser().is_dir() and bool(
        URL.match(source) or ANY_URL.match(source)
    )


@dataclass(frozen=True)
class Repository:
    """``url`` holds no password; that is handed to git in its environment alone."""

    url: str
    name: str
    user: str = ""
    password: str = ""

    @classmethod
    def at(cls, source: str) -> "Repository":
        """:raises FleetError: where it is of a kind that is not fetched"""
        if not URL.match(source):
            kind = source.partition(":")[0]
            raise FleetError(f"a URL {kind}:… is not fetched: https, ssh, git or file")
        name = re.split("[/:]", source.rstrip("/"))[-1].removesuffix(".git")
        try:
            parts = urlsplit(source)
        except ValueError as error:
            raise FleetError(f"its URL can't be read: {error}") from None
        if not name.strip("."):
            raise FleetError("its URL ends with no name")
        if not parts.scheme.startswith("http"):
            if parts.password:
                raise FleetError(
                    "a password in a URL is for https; ssh has keys, and an agent for them"
                )
            return cls(source, name)
        clean = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        return cls(clean, name, unquote(parts.username or ""), unquote(parts.password or ""))

    @property
    def folder(self) -> Path:
        """Where it is kept, by the operator's other files."""
        return (
            operators()
            / ".cache/sources"
            / f"{self.name}-{sha256(self.url.encode()).hexdigest()[:8]}"
        )

    def git(self, *words: str, folder: Path | None = None) -> str:
        """What git prints.

        :param folder: another than where it is kept
        :raises GitError: with what it says is wrong
        :raises FleetError: where there is no git, or it takes too long
        """
        try:
            result = subprocess.run(
                ["git", "-C", str(folder or self.folder), *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                env=self._environment(),
                timeout=TOO_LONG,
                check=False,
            )
        except FileNotFoundError:
            raise FleetError(f"{self.url} takes git on this machine") from None
        except subprocess.TimeoutExpired:
            raise FleetError(f"{self.url}: git {words[0]} takes longer than {TOO_LONG} s") from None
        if result.returncode:
            raise GitError(f"{self.url} can't be fetched: {self._why(result.stderr)}")
        return result.stdout

    def _why(self, said: str) -> str:
        if secret := self.password or self.user:  # a token may stand in either place
            said = said.replace(secret, "…")
        lines = [line for line in said.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("fatal:", "error:", "ERROR"))]
        return " ".join((errors or lines or ["git does not say why"])[:2])

    def _environment(self) -> Mapping[str, str]:
        config = [*CONFIG.items()]
        if self.user:
            parts = urlsplit(self.url)
            where = f"credential.{parts.scheme}://{parts.netloc}"
            # A password that git's own helpers may know comes before none.
            config += [(f"{where}.helper", "")] if self.password else []
            config += [(f"{where}.username", self.user), (f"{where}.helper", HELPER)]
        found = {**environment(), "GIT_TERMINAL_PROMPT": "0"}
        first = int(found.get("GIT_CONFIG_COUNT", "0"))
        for number, (key, value) in enumerate(config, first):
            found |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
        found["GIT_CONFIG_COUNT"] = str(first + len(config))
        return {**found, "SOURCE_USER": self.user, "SOURCE_PASSWORD": self.password}
