"""A machine whose Consul is another cluster's: it is used, and everything of it stays as it is.

The tests run in the order in which they stand here: skeid is that cluster's server, and ormen has
an owner, with a Consul that asks for tokens.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Any

import pytest
from fleet_commands import Fleet, output, run
from lab_commands import Lab
from owned_machine import BESIDE, EMPEROR, PackagedConsul, missing, state

pytestmark = pytest.mark.takes(130)

KEYS = "uwsgi-consul-fleet/fleets/guest/"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guest")


@pytest.fixture(scope="module")
def theirs(lab: Lab, folder: Path) -> Iterator[PackagedConsul]:
    lab.fresh("ormen", "skeid")
    for script in (BESIDE, EMPEROR):
        lab.ssh("ormen", f"sudo sh -ec {quote(script)}")
    yield PackagedConsul(lab, folder, "skeid", "ormen", "guest")
    lab.down("ormen", "skeid")


@pytest.fixture(scope="module")
def before(lab: Lab, theirs: PackagedConsul) -> list[str]:
    """What is there before the fleet comes."""
    return state(lab, "ormen")


@pytest.fixture(scope="module")
def fleet(theirs: PackagedConsul) -> Fleet:
    found = theirs.guest()
    found.hosts([], [theirs.host])
    found.build_once()
    return found


def refused(result: Any, *expected: str) -> None:
    assert result.returncode, output(result)
    for text in (*expected, "nothing was changed"):
        assert text in output(result)


def test_what_a_deploy_says_before_it_touches_anything(
    fleet: Fleet, before: list[str], lab: Lab, folder: Path, theirs: PackagedConsul
) -> None:
    fleet.hosts([], ["ormen"])
    refused(fleet.deploy(check=False), "consul_node = 'ormen.example.com'")
    fleet.hosts([], [theirs.host])
    wrong = folder / "wrong"
    wrong.write_text("3f8ab8ee-0000-4000-8000-000000000000")
    wrong.chmod(0o600)
    refused(
        fleet.deploy("--data", f"consul_token={wrong}", check=False),
        "(403)",
        f'the token needs key_prefix "{KEYS}"',
    )
    refused(
        fleet.deploy("--data", "consul_address=https://127.0.0.1:1", check=False),
        "Connection refused",
    )
    assert state(lab, "ormen") == before
    assert theirs.consul("kv get", "-keys", "uwsgi-consul-fleet/").strip() == ""


def test_deployed_to_and_released_on_its_consul(
    fleet: Fleet, before: list[str], lab: Lab, theirs: PackagedConsul
) -> None:
    theirs.at_member("services register", "-name=billing", "-id=server1", "-port=9999")
    said = output(fleet.deploy("--data", "release=one", check=False))
    assert "the Consul agent has server1 already, for billing on port 9999, which is not" in said
    assert "billing" in theirs.consul("catalog services").split()
    theirs.at_member("services deregister", "-id=server1")
    fleet.deploy("--data", "release=one")
    fleet.deploy("--data", "release=two")
    assert fleet.changes("--data", "release=two") == {}
    fleet.verify("--probe")
    fleet.rollback()
    assert fleet.releases() == {"ormen": "one"}
    assert missing(before, state(lab, "ormen")) == set()
    # What is written down lies below the fleet's name.
    lines = theirs.consul("kv get", "-recurse", "uwsgi-consul-fleet/").splitlines()
    keys = {line.partition(":")[0] for line in lines}
    assert {f"{KEYS}fleet", f"{KEYS}releases/consul-demo-server"} <= keys
    assert all(key.startswith(KEYS) for key in keys)


def test_the_commands_ask_the_agent_of_a_host(fleet: Fleet) -> None:
    where = ("--inventory", str(fleet.path))
    audit = json.loads(run("invoke", "audit", "--json", *where).stdout)
    assert [entry["what"] for entry in audit] == ["deploy", "deploy", "deploy", "rollback"]
    assert "There is no lock" in output(run("invoke", "unlock", *where))
    client = run("invoke", "client", "--once", *where)
    assert "consul-demo-server found on node ormen.example.com" in output(client)


def test_its_secrets_are_nobody_elses(fleet: Fleet, lab: Lab, theirs: PackagedConsul) -> None:
    agent = "/etc/uwsgi-consul-fleet/agent"
    look = f"sudo stat -c '%a %U' {agent}/token {agent}.json"
    assert lab.ssh("ormen", look).stdout.split("\n")[:2] == ["400 consul-demo-server", "600 root"]
    # Consul itself keeps the token of a registration beside it.
    places = "/etc /opt/uwsgi-consul-fleet /srv /run /tmp /var/tmp /var/log"
    for name in ("deploy", "application"):
        token = theirs.tokens[name]
        # sudo logs this very command, which must not match.
        words = f"sudo grep -rl -D skip '[{token[0]}]{token[1:]}' {places} || :"
        found = lab.ssh("ormen", words).stdout.split()
        assert found == ([f"{agent}/token"] if name == "application" else [])


def test_retired_it_is_as_it_was(
    fleet: Fleet, before: list[str], lab: Lab, theirs: PackagedConsul
) -> None:
    fleet.hosts([], [], [theirs.host])
    fleet.deploy()
    assert state(lab, "ormen") == before
    assert fleet.changes() == {}
    assert theirs.consul("catalog services").split() == ["consul"]
    assert "ormen.example.com" in theirs.consul("members", "-status=alive")
