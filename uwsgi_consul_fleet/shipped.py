"""Where files lie: ours that are not Python of this package, and those of the operator."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_IS_CHECKOUT = (_PACKAGE.parent / "pyproject.toml").is_file()


def shipped(name: str) -> Path:
    """Where a folder or file of ours such as ``plugin_build/`` lies: beside the package in a
    checkout, else inside it. Nothing is ever written there."""
    return _PACKAGE.parent / name if _IS_CHECKOUT else _PACKAGE / "_shipped" / name


def folder() -> Path:
    """The operator's folder, in which everything that is made lies: where Invoke finds tasks.py,
    which is here or above, else the current folder."""
    here = Path.cwd()
    return next((each for each in (here, *here.parents) if (each / "tasks.py").is_file()), here)


def made(name: str) -> Path:
    """Where something lies that is made, such as plugins."""
    return folder() / name
