"""What can go wrong, in words for the operator. Only commands/ and pyinfra print them."""

from collections.abc import Sequence


class FleetError(Exception):
    """One line (or one line for each problem) that names the host or file and what to do next.

    ``exit_code`` is what a command ends with; None leaves it to the command.
    """

    exit_code: int | None = None


class InventoryError(FleetError):
    """The inventory or its settings hold mistakes; ``problems`` has one line for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        listing = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(f"{count} in the inventory, nothing was touched:\n{listing}")


class UnreachableError(FleetError):
    """A host or the Consul API behind it did not answer."""


class StrangerError(FleetError):
    """Hosts were never met, and nobody said that they are the right ones."""


class RefusedError(FleetError):
    """Consul answered that it may not be asked for that: it is there and needs no repair."""


class LockedError(FleetError):
    """Somebody else holds the lock of the fleet."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


class LostLockError(FleetError):
    """The lock that this run held may be somebody else's by now."""


class RollbackError(FleetError):
    """A host did not get to the release that it should go back to."""

    exit_code = 1
