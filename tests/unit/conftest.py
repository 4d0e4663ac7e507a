"""What all unit tests share."""

from collections.abc import Iterator

import pytest

from uwsgi_consul_fleet.operations.applications.release import _read


@pytest.fixture(autouse=True)
def _read_anew() -> Iterator[None]:
    """What is read of an application holds for a run, and each test is one."""
    yield
    _read.cache_clear()
