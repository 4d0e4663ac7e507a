"""Our files that are no Python of this package: beside it in a checkout, else inside it."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def shipped(name: str) -> Path:
    """Where a folder or file such as ``plugin_build`` lies, in a checkout or installed."""
    beside = PACKAGE.parent / name
    return beside if (PACKAGE.parent / "pyproject.toml").is_file() else PACKAGE / "_shipped" / name
