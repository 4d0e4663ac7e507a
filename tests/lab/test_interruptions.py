"""Roll-outs that are interrupted, each in one way, at a moment that the seed chooses.

Sixteen clients use every instance meanwhile. Many moments are in bench/interruptions.py.
"""

import random
from collections.abc import Iterator

import pytest
from fleet_commands import Fleet
from interrupting import KINDS, REBOOTS, STAGES, interrupted, rebooted
from lab_commands import Lab
from load import Load, instances
from releasing import Releases

pytestmark = pytest.mark.takes(200)


@pytest.fixture(scope="module")
def releases(fleet: Fleet, lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Releases:
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


@pytest.mark.parametrize("how", KINDS)
def test_an_interrupted_roll_out_loses_no_request(
    releases: Releases, load: Load, rng: random.Random, how: str
) -> None:
    interrupted(releases, load, how, rng)


@pytest.mark.parametrize(("how", "stage"), list(zip(REBOOTS, STAGES, strict=True)))
def test_a_reboot_in_the_middle_of_a_switch(
    releases: Releases, load: Load, rng: random.Random, how: str, stage: str
) -> None:
    rebooted(releases, load, how, stage, rng)
