"""Becoming root on a host, as pyinfra would, and saying why where that fails.

A password goes to the prompt that asks for it, on standard input: never into a command line or
an environment, which others on the host could read.
"""

import re
import shlex
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

from uwsgi_consul_fleet.ssh.options import Options

# Said on standard error when it has worked, with the user's number behind it.
READY = "uwsgi-consul-fleet: ready as "
PROMPT = "uwsgi-consul-fleet: sudo's password:"
# sudo's own words, and sudo-rs', where it must not ask.
REQUIRED = ("a password is required", "interactive authentication is required")
END = "\x04"  # no password will come


def command(said: Mapping[str, Any], script: str) -> str:
    """The command line that runs a script as root, if it becomes root; else it runs nothing.

    The script finds its own text in ``$SCRIPT``.

    :param said: pyinfra's keys
    """
    shell = said.get("_shell_executable") or "sh"
    exports = [f"export {shlex.quote(f'{k}={v}')}; " for k, v in (said.get("_env") or {}).items()]
    inner = (
        f"u=$(id -u); echo '{READY}'$u >&2; [ $u = 0 ] || exit 1; {''.join(exports)}"
        f'SCRIPT={shlex.quote(script)}; export SCRIPT; exec {shell} -c "$SCRIPT"'
    )
    if said.get("_sudo") and said.get("_use_sudo_login"):
        # sudo hands it to a shell more, in which line ends are lost and each $ means something.
        inner = f'eval "`echo {b64encode(inner.encode()).decode()} | base64 -d`"'
    run = f"{shell} -c {shlex.quote(inner)}"
    if user := said.get("_su_user"):
        run = shlex.join([user, "-c", run])
    return " ".join([*_prefix(said), run])


def _prefix(said: Mapping[str, Any]) -> list[str]:
    """Several ways go one within the other."""

    def flag(word: str, key: str) -> list[str]:
        return [word] if said.get(key) else []

    def user(key: str) -> list[str]:
        return ["-u", shlex.quote(said[key])] if said.get(key) else []

    words: list[str] = []
    if said.get("_doas"):
        words += ["doas", "-n", *user("_doas_user")]
    if said.get("_dzdo"):
        words += ["dzdo", "-H", "-n", *user("_dzdo_user")]
    if said.get("_sudo"):
        asks = ["-S", "-p", shlex.quote(PROMPT)] if said.get("_sudo_password") else ["-n"]
        words += ["sudo", "-H", *asks, *flag("-i", "_use_sudo_login")]
        words += [*flag("-E", "_preserve_sudo_env"), *user("_sudo_user")]
    if said.get("_su_user"):
        words += ["su", *flag("-l", "_use_su_login"), *flag("-m", "_preserve_su_env")]
        if shell := said.get("_su_shell"):
            words += ["-s", f"$(command -v {shlex.quote(shell)})"]
    return words


def may_ask(said: Mapping[str, Any]) -> bool:
    """Whether a password may be asked for, which what a script reads must not be taken for."""
    return bool((said.get("_sudo") and said.get("_sudo_password")) or said.get("_su_user"))


def _who_asks(said: Mapping[str, Any], line: str) -> str:
    """Who waits for a password behind a line that has not ended, if somebody does."""
    # sudo-rs knows no other prompt than its own.
    if said.get("_sudo_password") and (PROMPT in line or re.search(r"assword:\s?$", line)):
        return "sudo"
    # su asks in the host's language. It also begins its complaints like this.
    complains = line.startswith(("su:", "sudo:"))
    return "su" if said.get("_su_user") and re.search(r":\s?$", line) and not complains else ""


class Dialog:
    """What a command says on standard error until it is root, and what to answer."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._told: set[str] = set()
        self._text = ""
        self._said: list[str] = []
        self._refused = ""
        self.user = ""

    @property
    def begun(self) -> bool:
        return self.user == "0"

    def hear(self, text: str) -> tuple[str, str]:
        """Returns what to answer, and what the script said already.

        An answer of END means that nothing will be answered.
        """
        self._text += text
        if found := re.search(rf"^{READY}(\d+)\n", self._text, re.MULTILINE):
            self.user = found[1]
            return "", self._text[found.end() :]
        *lines, rest = self._text.split("\n")
        self._said += [line.replace(PROMPT, "") for line in lines if line.strip()]
        self._text = rest
        if who := _who_asks(self._options.root, rest):
            self._text = ""
            return self._answer(who), ""
        return "", ""

    def _answer(self, who: str) -> str:
        key, name = f"_{who}_password", self._options.name
        if who in self._told:
            self._refused = f"{who}: wrong password: {key} for {name} is not right"
        elif password := self._options.root.get(key):
            self._told.add(who)
            return f"{password}\n"
        else:
            self._refused = f"{who}: a password is required: set {key} for {name}"
        return END

    def reason(self) -> str:
        """Why it came to nothing."""
        name = self._options.name
        said = [*self._said, *([self._text] if self._text.strip() else [])]
        if self.user:
            return (
                f"commands run as {self._options.user} (uid {self.user}), who is not root: "
                f"set _sudo = True for {name}, or let ssh_user be root"
            )
        if not self._told and any(line.endswith(REQUIRED) for line in said):
            return f"sudo: a password is required: set _sudo_password for {name}"
        if self._refused:
            return self._refused
        last = said[-1].strip() if said else "nothing was said"
        # su asks once, and says the reason in the host's language.
        return f"{last}; is _su_password for {name} right?" if "su" in self._told else last
