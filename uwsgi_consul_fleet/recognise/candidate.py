"""Something in an application's folder that may be what uWSGI is to load."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Candidate:
    """What loads it, and whatever else follows from that.

    :param said: what it was recognised by, for people
    :param order: the lowest is the likeliest
    :param settings: those that follow, beside the entry point and the root
    :param todo: by setting, what is left to whoever knows the application
    :param routes: the file in which a route is all of a path
    """

    said: str
    entry: str
    root: str
    order: tuple[Any, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    todo: dict[str, str] = field(default_factory=dict)
    routes: str = ""
