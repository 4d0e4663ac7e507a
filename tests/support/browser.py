"""A real browser without a window: what a page says when its programs have run."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = "chromium-headless-shell"  # of Debian's package of that name
# It reads what it is to do from descriptor 3, and answers on 4.
START = 'exec "$0" "$@" 3<&0 4>&1 0</dev/null 1>/dev/null'


class Browser:
    """With one page; see https://chromedevtools.github.io/devtools-protocol/."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self._number = 0
        self._session: dict[str, str] = {}
        page = self._ask("Target.createTarget", url="about:blank")["targetId"]
        told = self._ask("Target.attachToTarget", targetId=page, flatten=True)
        self._session = {"sessionId": told["sessionId"]}

    def open(self, url: str) -> None:
        self._ask("Page.navigate", url=url)

    def text(self) -> str:
        """What is to be read on the page now."""
        return self._value("document.body.innerText")

    def click(self, what: str) -> None:
        """:param what: a CSS selector"""
        self._do(what, "click")

    def type(self, what: str, text: str) -> None:
        """:param what: a CSS selector of a field"""
        self._do(what, "focus")
        self._ask("Input.insertText", text=text)

    def until_shown(self, text: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.text():
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.1)

    def _do(self, what: str, action: str) -> None:
        found = f"document.querySelector({json.dumps(what)})"
        assert self._value(f"{found} && ({found}.{action}(), 'done')") == "done", what

    def _value(self, expression: str) -> str:
        said = self._ask("Runtime.evaluate", expression=expression)
        return str(said["result"].get("value", ""))

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        told = {"id": self._number, "method": method, "params": params, **self._session}
        assert self._process.stdin
        self._process.stdin.write(json.dumps(told).encode() + b"\0")
        self._process.stdin.flush()
        while (said := self._hear()).get("id") != self._number:
            pass  # something that happened
        assert "error" not in said, said
        found: dict[str, Any] = said["result"]
        return found

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout
        said = b""
        while not said.endswith(b"\0"):
            piece = self._process.stdout.read(1)
            assert piece, "the browser has ended"
            said += piece
        found: dict[str, Any] = json.loads(said[:-1])
        return found


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """:param folder: where it keeps what it knows"""
    # What it shows is ours; root may not have its sandbox.
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    words = [PROGRAM, "--remote-debugging-pipe", "--disable-gpu", f"--user-data-dir={folder}"]
    process = subprocess.Popen(
        ["sh", "-c", START, *words, *sandbox],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield Browser(process)
    finally:
        process.terminate()
        process.wait(30)
