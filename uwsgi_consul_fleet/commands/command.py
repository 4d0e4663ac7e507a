"""What all commands share: the inventory, JSON, and how errors end them."""

import inspect
import json as json_module
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from io import TextIOWrapper
from itertools import dropwhile, islice
from typing import TYPE_CHECKING, Any

from invoke import Exit, Task, task
from invoke.parser.argument import Argument

from uwsgi_consul_fleet.errors import FleetError

if TYPE_CHECKING:
    from uwsgi_consul_fleet.inventory.model import Fleet as Fleet
else:  # it takes a fifth of a second to load, and `invoke --list` does not need it
    Fleet = Any

INVENTORY = "inventory.py"


@dataclass(frozen=True)
class Answer:
    """What a command found: ``data`` for ``--json``, and a function that shows it to a person."""

    data: Any
    show: Callable[[], None]
    exit_code: int = 0


class Command(Task[Any]):
    """Invoke would take ``--help`` for the value of a positional argument."""

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
        found = super().get_arguments(ignore_unknown_help)
        if words_after(self.name)[:1] == ["--help"]:
            for each in found:
                each.positional = False
        return found


def words_after(task_name: str) -> list[str]:
    """What follows a task on this command line."""
    me = task_name.replace("_", "-")
    return [*islice(dropwhile(lambda word: word.rpartition(".")[2] != me, sys.argv), 1, None)]


def command(
    *,
    failure: int = 1,
    json: str = "",
    app: str = "",
    meets: bool = True,
    help: Mapping[str, str] | None = None,  # noqa: A002 - Invoke's word
    **options: Any,
) -> Callable[[Callable[..., Any]], Task[Any]]:
    """An Invoke task. A FleetError, Ctrl-C, or a reader that goes away ends it without a traceback.

    A body with a parameter ``fleet`` is handed the one that ``--inventory`` names.

    :param failure: the exit status of an error that does not have its own
    :param json: help for ``--json``; the body returns an :class:`Answer` then
    :param app: help for ``--app``; the fleet is that of the application then
    :param meets: whether hosts that were never met are asked about first
    :param help: help for the body's own options
    :param options: whatever else ``invoke.task`` takes
    """

    def decorate(body: Callable[..., Any]) -> Task[Any]:
        own = list(inspect.signature(body).parameters.values())
        wants_fleet = own[0].name == "fleet" if own else False
        texts = {**(help or {})}
        added = []
        if json:
            texts["json"] = json
            added.append(_option("json", False))
        if app:
            texts["app"] = app
            added.append(_option("app", ""))
        if wants_fleet:
            texts["inventory"] = f"another inventory file than {INVENTORY}"
            added.append(_option("inventory", INVENTORY))

        @wraps(body)
        def run(_context: Any, **given: Any) -> None:
            for each in (sys.stdout, sys.stderr):
                if isinstance(each, TextIOWrapper):  # whatever the terminal can't show
                    each.reconfigure(errors="backslashreplace")
            as_json = bool(json) and given.pop("json", False)
            try:
                if wants_fleet:
                    fleet = (read if meets else described)(given.pop("inventory", INVENTORY))
                    given["fleet"] = fleet.only(given.pop("app", "") if app else "")
                answer = body(**given)
                if isinstance(answer, Answer):
                    if as_json:
                        print(json_module.dumps(answer.data, indent=2))
                    else:
                        answer.show()
                    raise Exit(code=answer.exit_code)
            except FleetError as error:
                raise Exit(str(error), error.exit_code or failure) from error
            except KeyboardInterrupt as error:
                raise Exit("interrupted", 130) from error
            except BrokenPipeError as error:
                # Whoever read this went away. Python flushes once more at its end: let it.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise Exit(code=141) from error

        # Invoke reads a command's options here.
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [_option("context"), *own[wants_fleet:], *added]
        )
        made: Task[Any] = task(help=texts, **{"klass": Command, **options})(run)
        return made

    return decorate


def _option(name: str, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)


def read(inventory: str) -> Fleet:
    """The fleet of an inventory file, to connect to: hosts that were never met are asked about."""
    from uwsgi_consul_fleet.ssh import options, strangers

    fleet = described(inventory)
    hosts = [options.of(each.name, each.data) for each in fleet.active]
    strangers.settle(hosts, asks=True, then=of_inventory(inventory))
    return fleet


def described(inventory: str) -> Fleet:
    """The fleet of an inventory file."""
    from uwsgi_consul_fleet.inventory import reading
    from uwsgi_consul_fleet.ssh import options

    return reading.read(inventory, options.address)


def expect(question: str, *answers: str, otherwise: str, exactly: bool = False) -> None:
    """Go on where one of these is the answer.

    :param otherwise: what is so where it is another one, such as "nothing was changed"
    :param exactly: whether upper case counts
    :raises FleetError: where nobody can be asked
    :raises Exit: where the answer is another one
    """
    if not sys.stdin.isatty():
        raise FleetError(f"{otherwise}: without a terminal to ask at, say --yes")
    print(f"{question} ", end="", flush=True)
    typed = sys.stdin.readline().strip()
    if (typed if exactly else typed.lower()) not in answers:
        raise Exit(otherwise, 1)


def of_inventory(inventory: str) -> str:
    """What is typed behind a command for it to take the same inventory."""
    return "" if inventory == INVENTORY else f" --inventory {inventory}"
