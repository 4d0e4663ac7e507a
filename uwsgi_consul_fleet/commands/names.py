"""`invoke TASK [NAME…]`: a positional argument of any length, which Invoke does not have."""

from itertools import takewhile
from typing import Any

from invoke.parser.argument import Argument
from invoke.tasks import Task

from uwsgi_consul_fleet.commands.command import words_after


class Names(Argument):
    """Takes every word between its task and the next flag or the end of the command line.

    Invoke gives a word to a positional argument whose value is None, so it is None
    until all of them were given.
    """

    def __init__(self, expected: int, **options: Any) -> None:
        super().__init__(kind=list, positional=True, **options)
        self.expected = expected
        self.words: list[str] = []

    @property
    def value(self) -> list[str] | None:
        return self.words if len(self.words) >= self.expected else None

    @value.setter
    def value(self, word: str) -> None:
        self.set_value(word)

    def set_value(self, value: Any, cast: bool = True) -> None:
        self.raw_value = value
        self.words = [*self.words, value]


class NamesTask(Task[Any]):
    """A task whose parameter ``names`` collects all words that follow it."""

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
        return [
            Names(self._count(), names=each.names, help=each.help) if each.name == "names" else each
            for each in super().get_arguments(ignore_unknown_help)
        ]

    def _count(self) -> int:
        words = words_after(self.name)
        return len(list(takewhile(lambda word: not word.startswith("-"), words)))
