"""Our files that are not Python of this package: beside it in a checkout, else inside it."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_IS_CHECKOUT = (_PACKAGE.parent / "pyproject.toml").is_file()


def shipped(name: str) -> Path:
    """Where a folder or file such as ``plugin_build`` lies, in a checkout or installed."""
    return _PACKAGE.parent / name if _IS_CHECKOUT else _PACKAGE / "_shipped" / name


def made(name: str) -> Path:
    """Where the operator keeps what is made, such as plugins: in the checkout, else in the
    current folder."""
    return shipped(name) if _IS_CHECKOUT else Path(name).resolve()
