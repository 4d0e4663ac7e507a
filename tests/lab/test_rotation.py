"""Secrets that are replaced, lost and shared, on three Consul servers that serve all the while.

The tests run in the order in which they stand here.
"""

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import acl_tokens
import consul_version
import pytest
from consul_processes import until
from fleet_commands import Fleet, changed, output, run
from lab_commands import Lab
from load import Load, instances
from shared_fleet import SharedFleet

from uwsgi_consul_fleet.host.consul import DNS_TOKEN, UNREAD
from uwsgi_consul_fleet.inventory.vault import FOLDER
from uwsgi_consul_fleet.secrets import certificates, tokens
from uwsgi_consul_fleet.secrets.document import Secrets

pytestmark = pytest.mark.takes(400)

SERVERS = ("drakar", "cheetah", "ormen")
SERVING = ("drakar", "cheetah")
AGENT = "systemctl show --property MainPID,ActiveEnterTimestamp consul"


# Prints how many addresses DNS has for the application, and how many services are listed.
LOOK = """
import json, socket, struct, urllib.request
name = b"consul-demo-server", b"service", b"consul"
labels = b"".join(bytes([len(each)]) + each for each in name)
asked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asked.settimeout(30)
question = struct.pack("!6H", 1, 0, 1, 0, 0, 0) + labels + struct.pack("!xHH", 1, 1)
asked.sendto(question, ("127.0.0.1", 8600))
found = struct.unpack("!6H", asked.recv(512)[:12])[3]
listed = urllib.request.urlopen("http://127.0.0.1:8500/v1/catalog/services").read()
print(found, len(json.loads(listed)))
"""


@pytest.fixture(scope="module")
def three(fleet: SharedFleet, lab: Lab) -> Iterator[SharedFleet]:
    settings = fleet.path.with_name("group_data") / "all.py"
    before = settings.read_text()
    settings.write_text(f"{before}dns = True\n")
    fleet.more("ormen")
    fleet.hosts([*SERVERS], [*SERVING])
    fleet.deploy("--data", "release=first")
    let_another_lead(lab)
    yield fleet
    settings.write_text(before)


def let_another_lead(lab: Lab) -> None:
    """So that the server which is told of changes is not the one which is asked first."""

    def leader() -> str:
        peers = lab.peers("ormen", check=False)
        return next((name for name, (part, _) in peers.items() if part == "leader"), "")

    if leader() == SERVERS[0]:
        # Not restarted: it may be back before the others have missed it, and go on leading.
        lab.ssh(SERVERS[0], "sudo systemctl stop consul")
        until(lambda: leader() in SERVERS[1:], "another server than the first leads", 60)
        lab.ssh(SERVERS[0], "sudo systemctl start consul")
    until(lambda: leader() in SERVERS[1:], "another server than the first leads", 60)


@pytest.fixture(scope="module")
def load(three: SharedFleet, lab: Lab) -> Iterator[Load]:
    with Load(lab, instances(lab, *SERVING), on="ormen") as found:
        yield found


def is_known(lab: Lab, secret: str) -> bool:
    """Whether Consul knows a token."""
    words = "consul acl token read -self"
    found = lab.ssh("drakar", f"CONSUL_HTTP_TOKEN={secret} {words}", check=False)
    assert found.returncode == 0 or "ACL not found" in found.stderr, found.stderr
    return found.returncode == 0


def names(old: Secrets) -> list[str]:
    """Of the tokens of these secrets."""
    what = [*tokens.OF_FLEET, *(f"node/{host}" for host in SERVERS)]
    what += [f"app/{host}/consul-demo-server" for host in SERVING]
    return [tokens.secret(old.seed, each) for each in what]


def look_up_without_a_token(lab: Lab) -> None:
    """By DNS each host finds it; where that has a token of its own nothing can be listed."""
    for host in SERVERS:
        said = lab.ssh(host, f"cd / && sudo -u nobody python3 -c {shlex.quote(LOOK)}").stdout
        addresses, services = map(int, said.split())
        assert addresses == len(SERVING), host
        assert (services == 0) == (consul_version.version() >= DNS_TOKEN), host


def expect_nothing_lost(load: Load, begin: str, *releases: str) -> None:
    window = load.window(begin)
    print(f"\n{window}")
    window.expect(passing=4, releases=releases)


def test_every_secret_is_replaced_while_everything_serves(
    three: SharedFleet, lab: Lab, load: Load
) -> None:
    """Without a restart of an agent or an instance; the old ones hold no more."""
    old = acl_tokens.secrets(three.path)
    before = {host: lab.ssh(host, AGENT).stdout for host in SERVERS}
    look_up_without_a_token(lab)
    load.mark("replaced")
    run("invoke", "secrets.rotate", "all", "--inventory", str(three.path))
    new = acl_tokens.secrets(three.path)
    assert not {old.gossip, old.seed, old.ca} & {new.gossip, new.seed, new.ca}
    assert not (new.gossip_before or new.seed_before or new.ca_before)
    assert [secret for secret in names(old) if is_known(lab, secret)] == []
    assert all(is_known(lab, secret) for secret in names(new))
    look_up_without_a_token(lab)
    keys = lab.consul("drakar", "keyring -list").stdout
    assert new.gossip in keys and old.gossip not in keys
    for host in SERVERS:
        file = lab.ssh(host, "sudo cat /etc/uwsgi-consul-fleet/tls/node.pem").stdout
        assert certificates.is_by(file, new.ca)
        trusted = lab.ssh(host, "sudo cat /etc/uwsgi-consul-fleet/tls/ca.pem").stdout
        assert trusted == new.ca
    assert {host: lab.ssh(host, AGENT).stdout for host in SERVERS} == before
    # As a run leaves it that was cut between the two.
    lab.ssh("ormen", f"sudo touch {UNREAD}")
    first = "--json", "--data", "release=first"
    assert changed(three.deploy(*first)) == {"Consul: configure the agent": ["ormen"]}
    assert changed(three.deploy(*first)) == {}
    three.verify()
    expect_nothing_lost(load, "replaced", "first")


def test_a_release_from_before_serves_with_the_token_of_now(three: SharedFleet, load: Load) -> None:
    load.mark("went back")
    three.deploy("--data", "release=second")
    run("invoke", "secrets.rotate", "tokens", "--inventory", str(three.path))
    three.rollback()
    three.verify("--probe")
    expect_nothing_lost(load, "went back", "first", "second")


def test_nothing_is_replaced_while_a_member_is_down(three: SharedFleet, lab: Lab) -> None:
    before = acl_tokens.kept(three.path).read_text()
    lab.ssh("ormen", "sudo systemctl stop consul")
    try:
        alive = "members -status='^alive$'"  # a failed server has `left` in newer versions
        seen = lambda: "ormen" not in lab.consul("drakar", alive).stdout  # noqa: E731
        until(seen, "the others notice that ormen's agent is gone", 60)
        refused = run(
            "invoke", "secrets.rotate", "gossip", "--inventory", str(three.path), check=False
        )
    finally:
        lab.ssh("ormen", "sudo systemctl start consul")
    assert refused.returncode
    assert "the agent of ormen is down" in output(refused), output(refused)
    assert acl_tokens.kept(three.path).read_text() == before
    three.verify()


def test_another_operator_deploys_with_the_teams_command(
    three: SharedFleet, lab: Lab, tmp_path: Path
) -> None:
    """From an empty folder; without the command nothing is touched."""
    hers = Fleet(tmp_path / three.path.name)
    hers.path.write_text(three.path.read_text())
    shutil.copytree(three.path.parent / "group_data", tmp_path / "group_data")
    refused = hers.deploy("--data", "release=current", check=False)
    assert "the secrets of this fleet are not here" in output(refused)
    assert "invoke secrets.recover. Nothing was changed" in output(refused)
    with (tmp_path / "group_data/all.py").open("a") as settings:
        print(f"secrets_load = 'cat {acl_tokens.kept(three.path)}'", file=settings)
        print(f"secrets_save = 'cat >{acl_tokens.kept(three.path)}'", file=settings)
    hers.deploy("--data", "release=third")
    hers.verify()
    hers.rollback()
    assert not (tmp_path / FOLDER).exists() or not [*(tmp_path / FOLDER).glob("*/*.json")]
    run("invoke", "secrets.rotate", "tokens", "--inventory", str(hers.path))
    three.verify()


def test_a_fleet_whose_secrets_are_lost_gets_new_ones(
    three: SharedFleet, lab: Lab, load: Load
) -> None:
    old = acl_tokens.secrets(three.path)
    shutil.rmtree(acl_tokens.kept(three.path).parent)
    load.mark("lost")
    asked = run("invoke", "secrets.recover", "--inventory", str(three.path), check=False)
    assert "without a terminal to ask at, say --yes" in output(asked)
    run("invoke", "secrets.recover", "--yes", "--inventory", str(three.path))
    new = acl_tokens.secrets(three.path)
    assert (new.gossip, new.ca_before) == (old.gossip, "")
    assert [secret for secret in names(old) if is_known(lab, secret)] == []
    assert changed(three.deploy("--json", "--data", "release=current")) == {}
    three.verify()
    expect_nothing_lost(load, "lost", "first")
    listed = lab.consul("drakar", "acl token list -format=json").stdout
    made = {each["AccessorID"] for each in json.loads(listed)}
    mine = {tokens.accessor(new.seed, what) for what in ("management", "deploy", "read")}
    assert mine <= made and len(made) == 1 + len(names(new)) + (acl_tokens.LOOKUPS in made)


def test_one_host_more_has_the_token_that_its_instances_need(three: SharedFleet, lab: Lab) -> None:
    let_another_lead(lab)
    three.hosts([*SERVERS], [*SERVERS])
    three.deploy("--data", "release=current")
    three.verify()


def test_who_retires_takes_the_key_of_the_gossip_along(three: SharedFleet, lab: Lab) -> None:
    old = acl_tokens.secrets(three.path)
    three.hosts(["drakar", "cheetah"], [*SERVING], ["ormen"])
    three.deploy("--data", "release=current")
    new = acl_tokens.secrets(three.path)
    assert new.gossip != old.gossip and not new.gossip_before
    assert new.gossip in lab.consul("drakar", "keyring -list").stdout
    assert not is_known(lab, tokens.secret(new.seed, "node/ormen"))
    three.verify()
