"""The lab of the checkout under test, and other checkouts with labs of their own."""

import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import evidence
import prepared
import pytest
import warm
from checkout import ROOT
from lab_commands import Lab
from load import Load, instances
from releasing import Releases
from shared_fleet import SharedFleet


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    evidence.begin()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Before a machine is gone or put back: what happened on it."""
    report = yield
    if report.failed:
        title = "Journals, Consul's state, commands, load"
        try:
            folder = evidence.collect(f"{item.path.stem}-{item.name}")
            report.sections.append((title, f"are in {folder}"))
        except Exception as error:  # it must not hide why the test failed
            report.sections.append((title, f"could not be collected: {error!r}"))
    return report


@pytest.fixture(scope="session", autouse=True)
def warm_commands() -> Iterator[None]:
    with warm.commands():
        yield


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The lab of the checkout under test."""
    found = Lab(ROOT, **prepared.environment())
    yield found
    found.down()


@pytest.fixture(scope="session")
def shared_fleet(tmp_path_factory: pytest.TempPathFactory, lab: Lab) -> SharedFleet:
    """As the test before left it; `reset` brings it into a known state."""
    return SharedFleet(tmp_path_factory.mktemp("shared") / "fleet.py", lab)


@pytest.fixture(scope="module")
def fleet(shared_fleet: SharedFleet) -> SharedFleet:
    """For a file without a fleet of its own: two hosts with the application, see SharedFleet."""
    shared_fleet.reset()
    return shared_fleet


@pytest.fixture(scope="module")
def releases(fleet: SharedFleet, lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Releases:
    return Releases(fleet, lab, tmp_path_factory.mktemp("releases"))


@pytest.fixture(scope="module")
def clients(releases: Releases, lab: Lab) -> Iterator[Load]:
    with Load(lab, instances(lab, *releases.hosts)) as found:
        yield found


@pytest.fixture
def load(releases: Releases, clients: Load) -> Load:
    """The load on a fleet that is on a good release."""
    releases.ensure()
    return clients


@pytest.fixture(scope="session")
def copy_checkout(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes checkouts of the code under test, each of which has a lab of its own."""

    def make() -> Path:
        checkout = tmp_path_factory.mktemp("checkout")
        shutil.copy(ROOT / "tasks.py", checkout)
        shutil.copytree(ROOT / "uwsgi_consul_fleet", checkout / "uwsgi_consul_fleet")
        return checkout

    return make
