"""Lengths of time as operators write them."""

import pytest

from uwsgi_consul_fleet import durations
from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.inventory.settings import DEMO, Settings, parse


@pytest.mark.parametrize(
    ("text", "seconds"), [("0s", 0), ("90s", 90), ("10m", 600), ("2h", 7200), ("1d", 86400)]
)
def test_a_number_and_a_letter(text: str, seconds: int) -> None:
    assert durations.seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "10", "m", "10 m", "-1m", "1.5h", "10min", "\uff11m", "10m\n"]
)
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="such as 90s or 10m"):
        durations.seconds(text)


def test_an_option_that_is_none_is_named() -> None:
    assert durations.typed("since", "2h") == 7200
    with pytest.raises(FleetError, match=r"--since yesterday: a length of time is a number and"):
        durations.typed("since", "yesterday")


@pytest.mark.parametrize(("count", "told"), [(0.4, "0 s"), (119, "119 s"), (600, "10 min")])
def test_it_is_told(count: float, told: str) -> None:
    assert durations.told(count) == told


def test_a_wait_that_is_none_names_the_setting() -> None:
    found = parse({**DEMO, "wait": 10}, Settings, lambda _key: "web1")
    assert found.settings is None
    [problem] = found.problems
    assert problem.startswith("web1: wait = ")
    assert "such as 90s or 10m" in problem
