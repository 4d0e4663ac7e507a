"""Workers side by side: what is made before they start, which file starts first, the seed."""

from __future__ import annotations

from pathlib import Path

import checkout
import pytest

# In the process of a worker, before anything of ours is imported.
checkout.enter()

LAB = Path(__file__).with_name("lab")


def is_controller(config: pytest.Config) -> bool:
    """Whether this process does nothing but hand tests to workers."""
    return bool(config.getoption("numprocesses", None)) and checkout.WORKER is None


def pytest_configure(config: pytest.Config) -> None:
    if is_controller(config):
        run = checkout.begin()
        config.add_cleanup(lambda: checkout.end(run))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a lab file stay together, on one fleet; the longest file starts first."""

    def seconds(item: pytest.Item) -> float:
        whole = item.getparent(pytest.Module) if item.path.parent == LAB else item
        mark = whole.get_closest_marker("takes") if whole else None
        return float(mark.args[0]) if mark else 60 * (item.path.parent == LAB)

    for item in items:
        if item.path.parent == LAB:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=seconds, reverse=True)
