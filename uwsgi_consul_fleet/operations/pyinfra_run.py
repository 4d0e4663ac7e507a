"""The run of pyinfra in which our operations are: what of its inside we read and touch.

Nothing else touches a run. A new version of pyinfra is held against this, and against
ssh/connector.py and pyinfra_cli.py.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import cache, partial
from threading import Lock
from traceback import walk_stack
from types import FrameType, SimpleNamespace
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from pyinfra.api import StringCommand, arguments, util
from pyinfra.api.arguments import CONNECTOR_ARGUMENT_KEYS, pop_global_arguments
from pyinfra.api.state import BaseStateCallback, State, StateStage
from pyinfra.context import ctx_state

T = TypeVar("T")
_made: WeakKeyDictionary[State, Any] = WeakKeyDictionary()
_one_at_a_time = Lock()


def stack() -> list[tuple[FrameType]]:
    """As `inspect.stack`: the frames, from the caller's outwards, and nothing else of them."""
    return [(frame,) for frame, _ in walk_stack(sys._getframe(1))]


def frame_info(frame: FrameType) -> SimpleNamespace:
    """As `inspect.getframeinfo`: the file and the line, and nothing else."""
    return SimpleNamespace(filename=frame.f_code.co_filename, lineno=frame.f_lineno)


# For each operation on each host pyinfra walks the call stack, which says where the operation
# belongs in their order, and resolves the types of its arguments. It takes `inspect` and `typing`
# half of a run over many hosts to look for sources and resolve the same types again.
util.stack, util.getframeinfo = stack, frame_info  # type: ignore[assignment]
arguments.all_global_arguments = cache(arguments.all_global_arguments)


class PyinfraRun:
    """One run of pyinfra."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._turns: defaultdict[str, Lock] = defaultdict(Lock)
        self.forgiven: set[str] = set()

    def __iter__(self) -> Iterator[Any]:
        """pyinfra's hosts, reached or not."""
        return iter(self._state.inventory)

    def host(self, name: str) -> Any:
        """pyinfra's host of that name."""
        return self._state.inventory.get_host(name)

    @property
    def typed(self) -> Mapping[str, Any]:
        """What was typed as --data, which comes before the data of hosts and groups."""
        found: Mapping[str, Any] = self._state.inventory.override_data
        return found

    def untyped(self, name: str) -> Mapping[str, Any]:
        """A host's data without what was typed."""
        its = self.host(name)
        return {**self._state.inventory.data, **its.group_data, **its.host_data}

    @property
    def is_executing(self) -> bool:
        """Whether operations are carried out; before that they are only prepared."""
        return bool(self._state.is_executing)

    @property
    def asks_first(self) -> bool:
        """Whether the operator looks at the proposed changes (or wants no more), without -y."""
        return bool(self._state.check_for_changes)

    @property
    def is_dry(self) -> bool:
        """Whether nothing will be carried out."""
        return "--dry" in sys.argv

    @property
    def is_over(self) -> bool:
        """Whether it came to its last stage."""
        return self._state.current_stage >= StateStage.Disconnect

    @property
    def connected(self) -> frozenset[str]:
        """Hosts that were reached, and have not failed since."""
        return frozenset(host.name for host in self._state.active_hosts)

    @property
    def failed(self) -> frozenset[str]:
        """Hosts that failed or could not be reached."""
        return frozenset(host.name for host in self._state.failed_hosts)

    @property
    def about(self) -> frozenset[str]:
        """Hosts that the run reaches for; --limit leaves out the others."""
        return self.connected | self.failed

    @property
    def failed_since(self) -> frozenset[str]:
        """Hosts that were reached and failed then."""
        found = self._state.failed_hosts & self._state.activated_hosts
        return frozenset(host.name for host in found)

    @property
    def changed(self) -> frozenset[str]:
        """Hosts on which an operation did something, whether or not it went well."""
        return frozenset(
            host.name
            for host, operations in self._state.ops.items()
            if any(data.operation_meta._commands for data in operations.values())
        )

    @staticmethod
    def has_failed(operation: Any) -> bool:
        """Whether an operation was carried out and failed; of what it returned when it was
        prepared."""
        return bool(operation.is_complete() and operation.did_error())

    def forgive(self, name: str) -> None:
        """A host's failure is not one of this run."""
        self._state.failed_hosts.discard(self.host(name))
        self.forgiven.add(name)

    def before_each_operation(self, function: Callable[[], None]) -> None:
        """Call this before each operation on each host."""

        class Callbacks(BaseStateCallback):
            @staticmethod
            def operation_host_start(state: Any, host: Any, op_hash: str) -> None:
                function()

        self._state.add_callback_handler(Callbacks())  # type: ignore[no-untyped-call]

    def before_each_change(self, function: Callable[[], None]) -> None:
        """Call this before each command of an operation."""

        def announced(commands: Callable[[], Iterator[Any]]) -> Iterator[Any]:
            for command in commands():
                function()
                yield command

        class Callbacks(BaseStateCallback):
            @staticmethod
            def operation_host_start(state: Any, host: Any, op_hash: str) -> None:
                if data := state.ops[host].get(op_hash):
                    data.command_generator = partial(announced, data.command_generator)

        self._state.add_callback_handler(Callbacks())  # type: ignore[no-untyped-call]

    def executor(self, name: str) -> Callable[[StringCommand, bool], tuple[bool, Any]]:
        """Runs commands on a host as an operation of its own would (sudo and the like), also
        from another host's operation: one at a time, since sshd allows few sessions on one
        connection. The second argument is whether output is always shown."""
        target = self.host(name)
        arguments, _ = pop_global_arguments(self._state, target, {})
        known = {key: value for key, value in arguments.items() if key in CONNECTOR_ARGUMENT_KEYS}

        def execute(command: StringCommand, show: bool) -> tuple[bool, Any]:
            with self._turns[name]:
                fine, output = target.run_shell_command(
                    command,
                    print_output=show or self._state.print_output,
                    print_input=self._state.print_input,
                    **{**known, **command.connector_arguments},
                )
            return bool(fine), output

        return execute


def of_this_run(make: Callable[[PyinfraRun], T]) -> T:
    """What was made at the first call in the run of pyinfra that goes on."""
    state = ctx_state.get()  # type: ignore[no-untyped-call]
    with _one_at_a_time:
        if state not in _made:
            _made[state] = make(PyinfraRun(state))
        made: T = _made[state]
        return made


def embed(operation: Any, **arguments: Any) -> Generator[Any, None, None]:
    """The commands of another operation, as part of one of ours."""
    yield from operation._inner(**arguments)
