"""Asking git about a folder, and about that folder alone."""

import os
import subprocess
from pathlib import Path

# A hook of git has them in its environment, and they would lead to that hook's repository.
KEPT = ("GIT_CONFIG", "GIT_EXEC_PATH", "GIT_SSH", "GIT_SSL", "GIT_ASKPASS", "GIT_TRACE")


def git(folder: Path, *arguments: str, given: bytes = b"") -> bytes | None:
    """What git prints; None where there is no git, or it can't do this here.

    :param given: its standard input
    """
    command = ["git", "-C", str(folder), *arguments]
    try:
        result = subprocess.run(
            command, input=given, capture_output=True, env=environment(), check=False
        )
    except FileNotFoundError:
        return None
    return result.stdout if result.returncode == 0 else None


def environment() -> dict[str, str]:
    """Ours, without what points to another repository than the one of a folder."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name.startswith(KEPT)
    }
    # To look is not to write: the index may be somebody else's at this moment.
    return {**kept, "GIT_OPTIONAL_LOCKS": "0"}
