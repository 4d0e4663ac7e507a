"""Who may look services up without a token."""

from pathlib import Path
from typing import Any

import pytest
from runs import OURS, fleet, here, server

from uwsgi_consul_fleet.inventory.vault import Vault
from uwsgi_consul_fleet.operations.consul import acl
from uwsgi_consul_fleet.operations.consul.cluster import UNIT
from uwsgi_consul_fleet.operations.state import Acl, FileState, Member
from uwsgi_consul_fleet.secrets import tokens

OLD, NEW = (1, 8, 7), (1, 17, 0)
OPEN, NAMES = (tokens.LOOKUPS,), (tokens.NAMES,)


def anonymous(folder: Path, number: int, now: tuple[str, ...], *versions: Any, **its: Any) -> Any:
    """The policies that it should have.

    :param number: the round in which the members are
    :param now: those that it has
    :param versions: of Consul on each of them; none where no server tells
    """
    members = {
        name: Member((address,), alive, version)
        for (name, (address, alive)), version in zip(OURS.items(), versions, strict=False)
    }
    known = server({}, files={UNIT: FileState("644", "root", "root", "x")}, consul_round=number)
    known.consul_members, known.consul_acl = members, Acl({}, frozenset(), {}, now)
    it = here(fleet(**its).kept_in(Vault(folder, "shop")), drakar=known, cheetah=known)
    return acl.wanted(it.run, 3).anonymous


@pytest.mark.parametrize("now", [(), NAMES, OPEN])
@pytest.mark.parametrize(
    ("versions", "wanted"), [((OLD, OLD), NAMES), ((OLD, NEW), NAMES), ((NEW, (2, 0, 1)), ())]
)
def test_dns_needs_it_where_consul_has_no_token_for_it(
    tmp_path: Path, now: tuple[str, ...], versions: Any, wanted: tuple[str, ...]
) -> None:
    assert anonymous(tmp_path, 3, now, *versions, dns=True, app_discovers=[]) == wanted


def test_it_stays_as_it_is_where_no_server_tells(tmp_path: Path) -> None:
    for now in ((), NAMES):
        assert anonymous(tmp_path, 3, now, dns=True, app_discovers=[]) == now


def test_without_dns_it_ends(tmp_path: Path) -> None:
    """Whether or not applications say what they look up."""
    for its in ({}, {"app_discovers": []}):
        assert anonymous(tmp_path, 3, NAMES, OLD, OLD, **its) == ()
    assert anonymous(tmp_path, 3, (*OPEN, *NAMES), OLD, OLD) == OPEN


def test_programs_go_on_until_each_application_says_what_it_looks_up(tmp_path: Path) -> None:
    for its in ({}, {"dns": True}):
        assert anonymous(tmp_path, 3, OPEN, NEW, NEW, **its) == OPEN
        assert anonymous(tmp_path, 2, (), NEW, NEW, **its) == OPEN
        assert anonymous(tmp_path, 3, (), NEW, NEW, **its) == ()
    assert anonymous(tmp_path, 3, OPEN, NEW, NEW, app_discovers=[]) == ()
    assert anonymous(tmp_path, 2, (), NEW, NEW, app_discovers=[]) == ()
