"""`invoke TASK [NAME…]`: a positional argument of any length, which Invoke does not have."""

import sys
from itertools import dropwhile, takewhile
from typing import Any

from invoke.parser.argument import Argument
from invoke.tasks import Task


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
        arguments = super().get_arguments(ignore_unknown_help)
        for position, argument in enumerate(arguments):
            if argument.name == "names":
                arguments[position] = Names(
                    len(self._words()), names=argument.names, help=argument.help
                )
        return arguments

    def _words(self) -> list[str]:
        after = list(dropwhile(lambda word: not self._is_me(word), sys.argv))[1:]
        return list(takewhile(lambda word: not word.startswith("-"), after))

    def _is_me(self, word: str) -> bool:
        return word.rpartition(".")[2] == self.name.replace("_", "-")
