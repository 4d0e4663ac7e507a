"""Workers side by side: what is made before they start, which file starts first, the seed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import checkout
import consul_version
import pytest
import seed
from xdist.scheduler import LoadScopeScheduling

# In the process of a worker, before anything of ours is imported.
checkout.enter()

import prepared  # noqa: E402
from lab_commands import Lab  # noqa: E402

from uwsgi_consul_fleet.lab import base  # noqa: E402

LAB = Path(__file__).with_name("lab")
OF_THE_LAB = "tests/lab/"  # what the ids of its tests begin with


def is_controller(config: pytest.Config) -> bool:
    """Whether this process does nothing but hand tests to workers."""
    return bool(config.getoption("numprocesses", None)) and checkout.WORKER is None


def pytest_configure(config: pytest.Config) -> None:
    needs_lab = any(map(_is_of_the_lab, config.args))
    if is_controller(config):
        run = checkout.begin()
        consul_version.install(run / "bin")
        config.add_cleanup(lambda: checkout.end(run))
        if needs_lab:
            _make_base_trees(run)
    elif consul_version.GIVEN and needs_lab and not checkout.WORKER:
        raise pytest.UsageError("CONSUL=... for lab machines is said in a worker's copy: use -n1")


def pytest_report_header() -> list[str]:
    return [f"seed: {seed.SEED}; again: SEED={seed.SEED} script/test", consul_version.told()]


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """What a test does at random depends on the seed in the header alone."""
    return seed.generator(request.node.nodeid)


def _is_of_the_lab(argument: str) -> bool:
    path = Path(argument.partition("::")[0]).resolve()
    return path.is_relative_to(LAB) or LAB.is_relative_to(path)


def _make_base_trees(run: Path) -> None:
    """All of them, and what lies upon them: else workers would wait for each other."""
    releases = [release for release in base.RELEASES if not base.folder(release).exists()]
    if releases or not prepared.PLACE.exists():
        checkout.copy(run / "bases")
    if releases:
        lab = Lab(run / "bases")
        lab.up(*(f"base{release}:{release}" for release in releases))
        lab.down()
    prepared.ensure(run / "bases")


class FilesTogether(LoadScopeScheduling):
    """Hands out the tests of a lab file together, all others one by one, in their order; but for
    those that share an installed wheel. Of three workers and more the last one has no lab: what
    needs none mostly waits, and so takes little from those that are busy with machines."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return path if path.startswith((OF_THE_LAB, "tests/unit/test_wheel")) else nodeid

    def _reschedule(self, node: Any) -> None:
        if self._has_lab(node) or self._first_without_lab():
            super()._reschedule(node)
        else:
            node.shutdown()

    def _assign_work_unit(self, node: Any) -> None:
        if not self._has_lab(node) and (scope := self._first_without_lab()):
            self.workqueue.move_to_end(scope, last=False)
        super()._assign_work_unit(node)

    def _has_lab(self, node: Any) -> bool:
        return self.numnodes < 3 or node.gateway.id != f"gw{self.numnodes - 1}"

    def _first_without_lab(self) -> str | None:
        return next((each for each in self.workqueue if not each.startswith(OF_THE_LAB)), None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesTogether:
    config.option.loadscopereorder = False
    return FilesTogether(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lab files before others, and the longest first; within a file the order stays."""

    def seconds(item: pytest.Item) -> float:
        is_lab = item.path.parent == LAB
        mark = (item.getparent(pytest.Module) if is_lab else item).get_closest_marker("takes")
        return float(mark.args[0]) if mark else 60 * is_lab

    for item in items:
        if item.path.parent.name == "unit" and not item.get_closest_marker("takes"):
            item.add_marker("quick")
    items.sort(key=seconds, reverse=True)
