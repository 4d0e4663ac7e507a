"""The lab of the checkout under test, and other checkouts with labs of their own."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from checkout import ROOT
from lab_commands import Lab


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The lab of the checkout under test."""
    found = Lab(ROOT)
    yield found
    found.down()


@pytest.fixture(scope="session")
def copy_checkout(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes checkouts of the code under test, each of which has a lab of its own."""

    def make() -> Path:
        checkout = tmp_path_factory.mktemp("checkout")
        shutil.copy(ROOT / "tasks.py", checkout)
        shutil.copytree(ROOT / "uwsgi_consul_fleet", checkout / "uwsgi_consul_fleet")
        return checkout

    return make
