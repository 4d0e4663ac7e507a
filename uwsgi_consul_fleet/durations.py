"""Lengths of time as operators write them: 90s, 10m, 2h, 1d."""

import re

from uwsgi_consul_fleet.errors import FleetError

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str) -> int:
    """How many seconds that is.

    :raises ValueError: where it is none
    """
    if not (found := re.fullmatch(r"(\d+)([smhd])", text, re.ASCII)):
        raise ValueError("a length of time is a number and s, m, h or d, such as 90s or 10m")
    return int(found[1]) * UNITS[found[2]]


def typed(option: str, text: str) -> int:
    """How many seconds an option of a command says.

    :raises FleetError: where it says none
    """
    try:
        return seconds(text)
    except ValueError as error:
        raise FleetError(f"--{option} {text}: {error}") from None


def told(count: float) -> str:
    """So many seconds, for an operator."""
    whole = max(0, round(count))
    return f"{whole} s" if whole < 120 else f"{whole // 60} min"
