"""Roll-outs that are interrupted, each in one way, at a moment that the seed chooses.

Sixteen clients use every instance meanwhile. Many moments are in bench/interruptions.py.
"""

import random

import pytest
from interrupting import KINDS, REBOOTS, STAGES, interrupted, rebooted
from load import Load
from releasing import Releases

pytestmark = pytest.mark.takes(310)


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
