"""The document with a fleet's secrets, where it is kept, and the tokens that are derived of it."""

import json
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args
from uuid import UUID

import pytest
from runs import here

from uwsgi_consul_fleet.consul import recovery
from uwsgi_consul_fleet.consul.access import Unseen, access
from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.inventory import reading
from uwsgi_consul_fleet.inventory.model import Fleet, Host
from uwsgi_consul_fleet.inventory.settings import DEMO
from uwsgi_consul_fleet.inventory.vault import NOWHERE, Vault
from uwsgi_consul_fleet.lock import lock
from uwsgi_consul_fleet.operations import left_out
from uwsgi_consul_fleet.operations import lock as guarding
from uwsgi_consul_fleet.operations.consul import acl, cluster, replacing, rounds
from uwsgi_consul_fleet.operations.consul import secrets as on_hosts
from uwsgi_consul_fleet.operations.consul.cluster import UNIT
from uwsgi_consul_fleet.operations.files import RemoteFile
from uwsgi_consul_fleet.operations.plan import DeployError
from uwsgi_consul_fleet.operations.run import Here
from uwsgi_consul_fleet.operations.state import Acl, FileState, HostState
from uwsgi_consul_fleet.secrets import certificates, store, tokens
from uwsgi_consul_fleet.secrets.document import Kind, Secrets, fingerprint

SEED = "11" * 32
ADDRESSES = {"drakar": "10.0.3.11", "cheetah": "10.0.3.12", "old": "10.0.3.13"}


@pytest.fixture(autouse=True)
def _another_process() -> Iterator[None]:
    store._known.clear()
    yield
    store._known.clear()


@pytest.fixture(scope="module")
def some() -> Secrets:
    return Secrets.new("shop")


def fleet(folder: Path, file: str = "inventory.py", **data: Any) -> Fleet:
    """As every program has it: two hosts, of which one is a Consul server, and one that retires."""
    roles = {"drakar": ["consul_servers", "app_servers"], "cheetah": ["app_servers"]}
    hosts = [
        {
            "name": name,
            "groups": roles.get(name, ["retired"]),
            "data": {**DEMO, **data},
            "own": [],
            "all_groups": [],
        }
        for name in ADDRESSES
    ]
    return reading.build(folder / file, hosts, lambda name, _: ADDRESSES[name])


def in_another_process(code: str, *arguments: str) -> subprocess.Popen[str]:
    start = (
        "import sys\nfrom pathlib import Path\n"
        "from uwsgi_consul_fleet.errors import FleetError\n"
        "from uwsgi_consul_fleet.inventory.vault import Vault\n"
        "from uwsgi_consul_fleet.secrets import store\n"
        "from uwsgi_consul_fleet.secrets.document import Secrets\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", start + code, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


# --- The document ---


def test_a_new_document_is_read_as_it_was_written(some: Secrets) -> None:
    other = Secrets.new("shop")
    assert Secrets.parse(some.to_text(), "here") == some
    for value in ("gossip", "seed", "ca", "ca_key"):
        assert getattr(some, value) != getattr(other, value)
        assert getattr(some, value) not in repr(some)
    assert len(bytes.fromhex(some.seed)) == 32
    assert fingerprint(some.gossip) != fingerprint(other.gossip)


def test_certificates_of_before_a_moment_are_replaced(some: Secrets) -> None:
    now = datetime.now(UTC)
    names = ("drakar", "10.9.0.1", "dc1", True)
    old = certificates.issue(some, *names, now - timedelta(minutes=1))
    assert not certificates.why_renew(old, some, *names, now)
    rotated = some.rotated("certificates")
    assert Secrets.parse(rotated.to_text(), "here") == rotated
    later = datetime.fromisoformat(rotated.since) + timedelta(seconds=1)
    assert certificates.why_renew(old, rotated, *names, later) == (
        "its certificate is to be replaced"
    )
    new = certificates.issue(rotated, *names, later)
    assert not certificates.why_renew(new, rotated, *names, later)


@pytest.mark.parametrize("kind", [kind for kind in get_args(Kind) if kind != "certificates"])
def test_a_rotation_is_under_way_until_it_is_settled(some: Secrets, kind: Kind) -> None:
    value, before = {
        "gossip": ("gossip", "gossip_before"),
        "tokens": ("seed", "seed_before"),
        "ca": ("ca", "ca_before"),
    }[kind]
    rotated = some.rotated(kind)
    assert getattr(rotated, before) == getattr(some, value) != getattr(rotated, value)
    assert (rotated.ca_key != some.ca_key) == (kind == "ca")
    assert Secrets.parse(rotated.to_text(), "here") == rotated
    assert rotated.rotated(kind) == rotated, "the first one is completed first"
    settled = rotated.settled(kind)
    assert settled == replace(rotated, **{before: ""})
    assert some.settled(kind) == some


def changed(path: str, value: object, text: str) -> str:
    document = json.loads(text)
    *way, last = path.split("/")
    place = document
    for each in way:
        place = place[each]
    place[last] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("gossip/value", "hush"),
        ("gossip/before", "hush"),
        ("tokens/value", "aa"),
        ("tokens", None),
        ("ca/value", "hush"),
        ("ca/key", "hush"),
        ("ca/before", "hush"),
    ],
)
def test_what_is_no_document_is_refused_without_being_shown(
    some: Secrets, path: str, value: object
) -> None:
    with pytest.raises(FleetError) as refused:
        Secrets.parse(changed(path, value, some.to_text()), "here")
    assert str(refused.value) == (
        "here: holds no secrets of a fleet, or not all of them; nothing was changed"
    )
    assert refused.value.__cause__ is None and refused.value.__suppress_context__


def test_a_document_that_says_nothing_of_a_recovery(some: Secrets) -> None:
    document = json.loads(some.to_text())
    del document["tokens"]["recovering"]
    assert Secrets.parse(json.dumps(document), "here") == some


def test_a_document_of_a_version_to_come(some: Secrets) -> None:
    with pytest.raises(FleetError, match=r"here: was written by another version .* 2, this"):
        Secrets.parse(changed("format", 2, some.to_text()), "here")
    with pytest.raises(FleetError, match="here: holds no secrets"):
        Secrets.parse("hush", "here")


# --- Where it is ---


def test_a_fleet_knows_where_its_secrets_are(tmp_path: Path) -> None:
    """Two inventories of a folder, and two names, do not meet."""
    named = fleet(tmp_path, fleet="shop").hosts[0]
    assert named.vault == Vault(tmp_path, "shop")
    assert fleet(tmp_path).hosts[1].vault == Vault(tmp_path, "inventory-drakar")
    assert fleet(tmp_path, "staging.py").hosts[2].vault.name == "staging-drakar"
    of_commands = fleet(tmp_path, secrets_load="cat x", secrets_save="cat >x")
    expected = Vault(tmp_path, "inventory-drakar", "cat x", "cat >x")
    assert {host.vault for host in of_commands.hosts} == {expected}
    assert {its.vault for its in of_commands.applications} == {expected}
    assert of_commands.only("consul-demo-server").hosts[0].vault == expected


def test_they_stay_a_fleets_whose_first_server_is_another_one(
    tmp_path: Path, some: Secrets
) -> None:
    vault = Vault(tmp_path, "inventory-gone")
    store.note(vault, ["gone", "drakar"])  # nothing is kept there yet
    assert fleet(tmp_path).hosts[0].vault.name == "inventory-drakar"
    store.save(vault, some, None)
    store.note(vault, ["gone", "drakar"])
    store.note(Vault(tmp_path, "inventory-gone", "cat x", "cat >x"), [])  # what is there stays
    store.save(Vault(tmp_path, "staging-gone"), some, None)
    store.note(Vault(tmp_path, "staging-gone"), ["gone"])
    assert {host.vault for host in fleet(tmp_path).hosts} == {vault}
    assert fleet(tmp_path, "staging.py").hosts[0].vault.name == "staging-drakar"
    store.note(vault, ["gone"])
    assert fleet(tmp_path).hosts[0].vault.name == "inventory-drakar"
    (tmp_path / ".fleet/inventory-gone/servers").write_bytes(b"\xff")
    assert fleet(tmp_path).hosts[0].vault.name == "inventory-drakar"


def test_a_consul_of_others_has_none(tmp_path: Path) -> None:
    hosts = [
        {
            "name": "drakar",
            "groups": ["app_servers"],
            "data": {**DEMO, "consul_source": "none", "fleet": "shop"},
            "own": [],
            "all_groups": [],
        }
    ]
    (host,) = reading.build(tmp_path / "inventory.py", hosts, lambda *_: "10.0.3.11").hosts
    assert host.vault == NOWHERE
    assert store.load(host) is None


def test_they_are_kept_where_nobody_else_reads_them(tmp_path: Path, some: Secrets) -> None:
    vault = Vault(tmp_path, "shop")
    assert store.load(vault) is None
    assert not (tmp_path / ".fleet").exists()
    store.save(vault, some, None)
    assert store.load(vault) == some
    modes = {
        str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode)
        for path in tmp_path.rglob("*")
        if path.name != ".gitignore"
    }
    assert modes == {".fleet": 0o700, ".fleet/shop": 0o700, ".fleet/shop/secrets.json": 0o600}
    assert (tmp_path / ".fleet/.gitignore").read_text() == "*\n"
    assert store.place(vault) == str(tmp_path / ".fleet/shop/secrets.json")
    store._known.clear()
    assert store.load(vault) == some
    assert store.load(Vault(tmp_path, "other")) is None
    rotated = some.rotated("gossip")
    (tmp_path / ".fleet/shop/.secrets.json.new").write_text("of a run that was killed")
    store.save(vault, rotated, some)
    store._known.clear()
    assert store.load(vault) == rotated
    assert {path.name for path in (tmp_path / ".fleet/shop").iterdir()} == {"secrets.json"}


def test_they_are_read_once(tmp_path: Path, some: Secrets) -> None:
    vault = Vault(tmp_path, "shop")
    store.save(vault, some, None)
    (tmp_path / ".fleet/shop/secrets.json").unlink()
    assert store.load(vault) == some


def test_a_file_that_others_may_read_is_refused(tmp_path: Path, some: Secrets) -> None:
    vault = Vault(tmp_path, "shop")
    store.save(vault, some, None)
    file = tmp_path / ".fleet/shop/secrets.json"
    file.chmod(0o640)
    store._known.clear()
    with pytest.raises(FleetError, match=f"others on this machine may read it: chmod 600 {file}"):
        store.load(vault)
    file.chmod(0o600)
    assert store.load(vault) == some


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / ".fleet/shop").mkdir(parents=True)
    file = tmp_path / ".fleet/shop/secrets.json"
    file.mkdir(0o700)
    with pytest.raises(FleetError, match=rf"{file}: .*Is a directory.*; nothing was changed"):
        store.load(Vault(tmp_path, "shop"))


def test_nothing_is_lost_where_they_can_not_be_written(tmp_path: Path, some: Secrets) -> None:
    (tmp_path / ".fleet").write_text("no folder")
    with pytest.raises(FleetError, match=r"\.fleet.*; nothing was changed"):
        store.save(Vault(tmp_path, "shop"), some, None)


def test_of_two_that_make_the_first_ones_one_wins(tmp_path: Path) -> None:
    """Both have seen that there are none, and begin at once."""
    code = (
        "vault = Vault(Path(sys.argv[1]), 'shop')\n"
        "assert store.load(vault) is None\n"
        "made = Secrets.new('shop')\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "try:\n"
        "    store.save(vault, made, None)\n"
        "    print('made', store.load(vault).seed)\n"
        "except FleetError as error:\n"
        "    print('refused', store.load(vault).seed, error)\n"
    )
    processes = [in_another_process(code, str(tmp_path)) for _ in range(4)]
    for each in processes:
        assert each.stdout and each.stdout.readline() == "ready\n"
    for each in processes:
        assert each.stdin
        each.stdin.write("go\n")
        each.stdin.flush()
    said = [each.communicate(timeout=30)[0].split(maxsplit=2) for each in processes]
    kept = store.load(Vault(tmp_path, "shop"))
    assert kept
    assert sorted(word for word, *_ in said) == ["made", "refused", "refused", "refused"]
    assert {seed.strip() for _, seed, *_ in said} == {kept.seed}
    (refused, *_) = (words[2] for words in said if words[0] == "refused")
    assert "somebody else has just changed them; run it again" in refused


def test_what_was_changed_meanwhile_is_not_overwritten(tmp_path: Path, some: Secrets) -> None:
    vault = Vault(tmp_path, "shop")
    store.save(vault, some, None)
    code = (
        "vault = Vault(Path(sys.argv[1]), 'shop')\n"
        "before = store.load(vault); store.save(vault, before.rotated('gossip'), before)\n"
    )
    assert in_another_process(code, str(tmp_path)).wait(30) == 0
    with pytest.raises(FleetError, match="somebody else has just changed them; run it again"):
        store.save(vault, some.rotated("tokens"), some)
    found = store.load(vault)
    assert found and found.gossip_before == some.gossip and not found.seed_before


# --- With commands of a team's own ---


def test_a_second_operator_has_the_same_by_the_teams_commands(
    tmp_path: Path, some: Secrets
) -> None:
    """In a folder of their own; the first deploy is anybody's."""
    place = tmp_path / "team"
    load = f"cat {place}/$FLEET 2>/dev/null || ! test -e {place}/$FLEET"
    save = f"mkdir -p {place} && cat >{place}/$FLEET"
    anna, bo = (tmp_path / "anna", tmp_path / "bo")
    anna.mkdir()
    bo.mkdir()
    hers = fleet(anna, fleet="shop", secrets_load=load, secrets_save=save).hosts[0]
    assert store.load(hers) is None
    store.save(hers.vault, some, None)
    assert (place / "shop").read_text() == some.to_text()
    his = fleet(bo, fleet="shop", secrets_load=load, secrets_save=save).hosts[0]
    assert store.load(his) == some
    assert access(his) == access(hers) != access(fleet(tmp_path).hosts[0])
    assert not any((anna / ".fleet/shop").iterdir()), "it lies nowhere else"
    # What she does next he is told of, when he would do the same.
    store.save(hers.vault, some.rotated("tokens"), some)
    with pytest.raises(FleetError, match=r"^secrets_load \(cat .*somebody else has just changed"):
        store.save(his.vault, some.rotated("tokens"), some)


def test_a_command_runs_in_the_inventorys_folder_and_knows_the_fleet(
    tmp_path: Path, some: Secrets
) -> None:
    vault = Vault(tmp_path, "shop", "cat it 2>/dev/null || true", "cat >it; echo $FLEET >name")
    store.save(vault, some, None)
    assert (tmp_path / "name").read_text() == "shop\n"
    assert (tmp_path / "it").read_text() == some.to_text()


def test_no_secret_is_on_a_command_line(tmp_path: Path, some: Secrets) -> None:
    save = "tr '\\0' ' ' </proc/$$/cmdline >line; cat /proc/$$/environ >environ; cat >it"
    store.save(Vault(tmp_path, "shop", "cat it 2>/dev/null || true", save), some, None)
    written = (tmp_path / "line").read_bytes() + (tmp_path / "environ").read_bytes()
    assert b"sh -c tr" in written
    for secret in (some.gossip, some.seed, *some.ca_key.splitlines()):
        assert secret.encode() not in written


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        ("echo no key >&2; exit 3", "secrets_load: echo no key >&2; exit 3: ended with 3: no key"),
        ("exit 1", "secrets_load: exit 1: ended with 1; nothing was changed"),
        ("echo hush", "secrets_load (echo hush) with FLEET=shop: holds no secrets"),
    ],
)
def test_a_command_that_fails_is_not_taken_for_no_secrets(
    tmp_path: Path, load: str, expected: str
) -> None:
    with pytest.raises(FleetError) as failed:
        store.load(Vault(tmp_path, "shop", load, "cat >it"))
    assert str(failed.value).startswith(expected)
    assert str(failed.value).endswith("; nothing was changed")


def test_a_command_that_keeps_nothing_is_told(tmp_path: Path, some: Secrets) -> None:
    with pytest.raises(FleetError, match="does not print what secrets_save was given"):
        store.save(Vault(tmp_path, "shop", "true", "cat >/dev/null"), some, None)
    with pytest.raises(FleetError, match="secrets_save: false: ended with 1"):
        store.save(Vault(tmp_path, "shop", "true", "false"), some, None)


# --- Tokens ---


def test_a_tokens_ids_are_uuids_that_nobody_finds_without_the_seed() -> None:
    """They hold for good: a fleet that was deployed before has these."""
    assert tokens.secret(SEED, "deploy") == "e780e893-e338-4618-8343-babae1638b0a"
    every = [
        derive(seed, what)
        for seed in (SEED, "22" * 32)
        for derive in (tokens.secret, tokens.accessor)
        for what in ("management", "deploy", "read", tokens.node("a"), tokens.app("a", "b"))
    ]
    assert len({*every}) == len(every) == 20
    for each in every:
        assert str(UUID(each)) == each and UUID(each).version == 4
        assert UUID(each).variant == "specified in RFC 4122"


def rules(acl: tokens.Acl, name: str) -> list[str]:
    return acl.policies[tokens.PREFIX + name].rules.splitlines()


def test_the_tokens_of_a_fleet_have_the_least_that_each_needs(tmp_path: Path) -> None:
    found = tokens.wanted(fleet(tmp_path), SEED, "dc1", lookups=False)
    assert {each.description: each.policies for each in found.tokens} == {
        "uwsgi-consul-fleet: makes the others": ("global-management",),
        "uwsgi-consul-fleet: a deploy in dc1": ("uwsgi-consul-fleet-deploy",),
        "uwsgi-consul-fleet: commands in dc1": ("uwsgi-consul-fleet-read",),
        **{
            f"uwsgi-consul-fleet: {told}": (f"uwsgi-consul-fleet-{policy}",)
            for name in ("drakar", "cheetah")
            for told, policy in (
                (f"the agent of {name}", f"node-{name}"),
                (f"the application consul-demo-server on {name}", "app-consul-demo-server"),
            )
        },
    }
    assert found.tokens[0].secret == tokens.secret(SEED, "management")
    assert all(each.secret not in repr(found) for each in found.tokens)
    assert found.anonymous == ()
    assert {name for each in found.tokens for name in each.policies} == {
        *found.policies,
        tokens.EVERYTHING,
    }
    assert rules(found, "node-drakar") == [
        'node "drakar" { policy = "write" }',
        'service_prefix "" { policy = "read" }',
        'service "uwsgi-consul-fleet" { policy = "write" }',
        'agent "drakar" { policy = "write" }',
    ]
    assert rules(found, "app-consul-demo-server") == [
        'service "consul-demo-server" { policy = "write" }',
        'node_prefix "" { policy = "read" }',
    ]
    assert not any("write" in rule or "acl" in rule for rule in rules(found, "read"))


def test_an_application_finds_what_it_says(tmp_path: Path) -> None:
    data = {"app_discovers": ["search", "consul-demo-server", "Payments.v2"]}
    for lookups in (True, False):
        found = tokens.wanted(fleet(tmp_path, **data), SEED, "dc1", lookups)
        assert rules(found, "app-consul-demo-server")[2:] == [
            'service "Payments.v2" { policy = "read" }',
            'service "search" { policy = "read" }',
        ]
    nothing = tokens.wanted(fleet(tmp_path, app_discovers=[]), SEED, "dc1", True)
    assert len(rules(nothing, "app-consul-demo-server")) == 2


def test_where_programs_look_up_without_a_token(tmp_path: Path) -> None:
    found = tokens.wanted(fleet(tmp_path), SEED, "dc1", lookups=True)
    assert found.anonymous == (tokens.LOOKUPS,)
    assert rules(found, "lookups") == [
        'service_prefix "" { policy = "read" }',
        'node_prefix "" { policy = "read" }',
    ]
    assert rules(found, "app-consul-demo-server")[2:] == ['service_prefix "" { policy = "read" }']


def test_dns_has_a_token_that_looks_up(tmp_path: Path) -> None:
    """Whether or not everybody may."""
    for lookups, names, anonymous in (
        (False, False, ()),
        (True, False, (tokens.LOOKUPS,)),
        (False, True, (tokens.NAMES,)),
        (True, True, (tokens.LOOKUPS, tokens.NAMES)),
    ):
        found = tokens.wanted(fleet(tmp_path, dns=True), SEED, "dc1", lookups, names)
        told = {each.description: each.policies for each in found.tokens}
        assert told["uwsgi-consul-fleet: Consul's DNS"] == (tokens.NAMES,)
        assert {tokens.NAMES, *anonymous} <= found.policies.keys()
        assert found.anonymous == anonymous
        assert len(rules(found, "app-consul-demo-server")) == 2 + (lookups or names)


def test_a_policys_description_tells_whether_its_rules_are_current(tmp_path: Path) -> None:
    one, same, other = (
        tokens.wanted(fleet(tmp_path, app_discovers=names), SEED, "dc1", False)
        for names in (["a"], ["a"], ["b"])
    )
    name = "uwsgi-consul-fleet-app-consul-demo-server"
    assert one == same
    assert one.policies[name].description != other.policies[name].description
    assert re.search(r"; rules [0-9a-f]{16}$", one.policies[name].description)


def test_a_policys_name_is_one_that_consul_takes() -> None:
    assert tokens.node_policy("web1") == "uwsgi-consul-fleet-node-web1"
    names = [tokens.node_policy(each) for each in ("a.b", "a_b", "a-b", "x" * 250, "y" * 250)]
    assert len({*names}) == 5
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,128}", each) for each in names)
    assert tokens.app_of("uwsgi-consul-fleet-app-shop") == "shop"
    assert tokens.app_of("uwsgi-consul-fleet-node-shop") == ""
    assert tokens.app_of("shop") == ""


# --- What lies on hosts ---


def lies(mine: Fleet, document: Secrets) -> Here:
    """drakar, with an agent's file from this document."""
    (text,) = on_hosts.variants(mine.host("drakar"), document, [document.seed])
    return here(mine, drakar=HostState(files={on_hosts.FILE: RemoteFile("", text).state}))


def test_a_fleet_with_other_secrets_is_left_alone(tmp_path: Path, some: Secrets) -> None:
    """Before anything is asked of its Consul, or told."""
    mine = fleet(tmp_path)
    store.save(mine.hosts[0].vault, some, None)

    on_hosts.expect(lies(mine, some))
    with pytest.raises(DeployError, match="are others than those that are here"):
        on_hosts.expect(lies(mine, Secrets.new("shop")))


@pytest.mark.parametrize("told", ["before", "new", "nothing"])
@pytest.mark.parametrize("limited", [True, False])
def test_a_host_begins_with_the_gossip_key_that_is_in_use(
    told: str, limited: bool, tmp_path: Path, some: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is replaced; also where --limit leaves out those who know it. What a host has stays
    where nobody tells."""
    mine, secrets = fleet(tmp_path), some.rotated("gossip")
    store.save(mine.hosts[0].vault, secrets, None)
    keys = {"before": (some.gossip, secrets.gossip), "new": (secrets.gossip,), "nothing": ()}[told]
    known = Acl({tokens.accessor(some.seed, "node/cheetah"): ()}, frozenset(), {}, ())
    server = HostState(
        consul_running="x",
        consul_round=3,
        consul_keys=tuple(map(fingerprint, keys)),
        consul_acl=known if keys else None,
    )
    monkeypatch.setattr(left_out, "servers", lambda _run: {"drakar": server})
    reached = {} if limited else {"drakar": server}
    texts = on_hosts.variants(mine.host("cheetah"), secrets, [some.seed])
    for there in (None, *texts):
        files = {on_hosts.FILE: RemoteFile("", there).state} if there else {}
        me = here(mine, "cheetah", cheetah=HostState(files=files), **reached)
        found = [each.content for each in on_hosts.of_agent(me)] or [there]
        first = json.loads(there)["encrypt"] if there and not keys else (keys or (some.gossip,))[0]
        assert [json.loads(str(text))["encrypt"] for text in found] == [first]


@pytest.mark.parametrize("why", ["", "all reached", "a server already", "not replaced"])
def test_who_can_not_show_a_servers_certificate_becomes_none(
    why: str, tmp_path: Path, some: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets one of the new authority as soon as everybody was told of that."""
    roles = {"drakar": "consul_servers", "cheetah": "consul_servers", "old": "app_servers"}
    first = fleet(tmp_path)
    hosts = tuple(replace(each, roles=frozenset({roles[each.name]})) for each in first.hosts)
    mine = replace(first, hosts=hosts)
    secrets = some if why == "not replaced" else some.rotated("ca")
    store.save(mine.hosts[0].vault, secrets, None)
    peers = (cluster.Peer("1", "drakar", "10.0.3.11:8300", True, True),)
    seen = cluster.Cluster(peers, dict.fromkeys(roles, True))
    monkeypatch.setattr(cluster, "seen_by", lambda *_: seen)
    serves, now = why == "a server already", datetime.now(UTC)
    by = secrets if serves else some
    shown = certificates.issue(by, "cheetah", "10.0.3.12", "dc1", serves, now)

    def run(authorities: str, certificate: str) -> Here:
        files = {
            rounds.CA: RemoteFile("", authorities, "644", "root", "consul").state,
            rounds.NODE: RemoteFile("", certificate).state,
        }
        client = HostState(files=files, certificate=certificate)
        server = replace(client, consul_peers=("10.0.3.11:8300",), consul_leader="10.0.3.11:8300")
        others = {"old": client} if why == "all reached" else {}
        return here(mine, "cheetah", drakar=server, cheetah=client, **others)

    its = run(some.ca, shown)
    assert cluster.change(its.run).joining == {"cheetah"}
    if why:
        on_hosts.refuse_server(its)
    else:
        with pytest.raises(DeployError, match=r"cheetah: can't become .* replaced, and old may"):
            on_hosts.refuse_server(its)
    # In the run itself, where somebody who was reached has not been told after all.
    pyinfra: Any = its.run.pyinfra
    pyinfra.is_executing = True
    late = why in ("", "all reached")
    assert bool(on_hosts.why_not_serve(its)) == late
    told = run(certificates.trusted(secrets), shown)
    pyinfra = told.run.pyinfra
    pyinfra.is_executing = True
    assert bool(on_hosts.why_not_serve(told)) == (not why)
    assert (len(on_hosts.of_tls(told)) == 2) == (why in ("all reached", "not replaced"))


def test_a_deploy_goes_on_with_a_recovery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of the lost secrets are deleted, though no seed tells which these are."""
    mine, lost = fleet(tmp_path), Secrets.new("shop")
    monkeypatch.setattr(recovery, "_known", lambda _: f'["{lost.gossip}"]\n{lost.ca}')
    monkeypatch.setattr(recovery, "_mark", lambda *_: None)
    recovery.begin(mine)
    document = store.load(mine.hosts[0])
    assert document and document.recovering and document.ca_before == lost.ca
    old = {tokens.accessor(lost.seed, name) for name in (*tokens.OF_FLEET, "node/drakar")}
    others = {tokens.accessor(document.seed, "app/drakar/blog")}  # of another inventory
    policies = {"uwsgi-consul-fleet-app-blog": ""}

    def deploy(made: set[str]) -> Here:
        known = HostState(files={UNIT: FileState("644", "root", "root", "x")}, consul_round=3)
        known.consul_running = "x"
        known.consul_acl = Acl(dict.fromkeys(made, ()), frozenset(made), policies, ())
        return here(replace(mine, hosts=mine.active), drakar=known, cheetah=known)

    run = deploy(set()).run
    new = {each.accessor for each in acl.wanted(run, 3).tokens}
    run = deploy(new | others | old).run
    assert replacing.is_owed(run)
    assert replacing._gone(run) == sorted(old)
    assert replacing._settled(run, document) == document
    run = deploy(new).run
    assert replacing._settled(run, document) == replace(document, recovering=False)


# --- While a run waits for another one ---


class Waited:
    """In the place of the lock's keeper: a Consul whose lock somebody has at three looks, and who
    replaces secrets meanwhile."""

    def __init__(self, vault: Vault, before: Secrets, after: Secrets) -> None:
        self._vault, self._before, self._after = vault, before, after
        self._looks = 0
        self._shown: list[str] = []

    def go_to(self, *servers: dict[str, Any]) -> None:
        said = json.loads(servers[0]["stdin"].encode())
        self._shown = [said["token"], said["other"]]

    def ask(self, message: dict[str, Any], _timeout: float) -> dict[str, Any]:
        self._looks += message["do"] == "look"
        if self._looks == 3:
            store._write(self._vault, self._after)
        known = self._before if self._looks < 3 else self._after
        if tokens.secret(known.seed, "deploy") not in self._shown:
            return {"state": "refused", "reason": "ACL not found"}
        holder = {"who": "anna"} if self._looks <= 3 else None
        if message["do"] == "look":
            return {"state": "none", "holder": holder}
        return {"state": "locked", "holder": holder} if holder else {"state": "held", "last": {}}


@pytest.mark.parametrize("kind", ["gossip", "tokens"])
def test_what_another_run_replaced_while_it_was_waited_for_counts(
    tmp_path: Path, some: Secrets, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = fleet(tmp_path, wait="5s")
    vault, after = mine.hosts[0].vault, some.rotated(kind).settled(kind)
    store.save(vault, some, None)
    waited = Waited(vault, some, after)
    monkeypatch.setattr(lock.keeper, "get", lambda: waited)
    monkeypatch.setattr(lock, "POLL", 0)
    for module, name in ((guarding.signal, "signal"), (guarding.atexit, "register")):
        monkeypatch.setattr(module, name, lambda *_: None)
    it = lies(mine, after)
    about = vars(it.run.pyinfra)
    about |= {"is_dry": False, "typed": {"rotate": "ca"}}
    about |= dict.fromkeys(("before_each_operation", "before_each_change"), lambda _: None)
    reads: list[Vault] = []
    read = store._read
    monkeypatch.setattr(store, "_read", lambda which: reads.append(which) or read(which))
    guarding.look(it)
    lock_of_run = guarding.guard(it).lock
    assert lock_of_run and lock_of_run.held
    assert on_hosts.kept(it.run).secrets == after
    on_hosts.expect(it)
    assert len(reads) <= 3, "it may be a slow command"
    # And a rotation replaces what is there now.
    replacing.intend(it)
    assert on_hosts.kept(it.run).secrets.ca_before == after.ca


# --- What is shown to Consul ---


def own(folder: Path, secrets: Secrets | None) -> Host:
    host = fleet(folder, fleet="shop").hosts[0]
    if secrets:
        store.save(host.vault, secrets, None)
    return host


def test_before_there_are_secrets_nothing_is_shown(tmp_path: Path) -> None:
    shown = access(own(tmp_path, None))
    assert (shown.token, shown.other) == ("", None)
    assert shown.stdin.encode() == b"{}\n"


def test_each_role_shows_its_own_token(tmp_path: Path, some: Secrets) -> None:
    host = own(tmp_path, some)
    assert access(host).token == tokens.secret(some.seed, "deploy")
    assert access(host, "read").token == tokens.secret(some.seed, "read")
    assert access(host, "management").token == tokens.secret(some.seed, "management")
    assert json.loads(access(host).stdin) == {"token": access(host).token, "other": ""}


def test_while_tokens_are_rotated_both_are_known(tmp_path: Path, some: Secrets) -> None:
    shown = access(own(tmp_path, some.rotated("tokens")))
    assert shown.other == tokens.secret(some.seed, "deploy") != shown.token
    assert json.loads(shown.stdin)["other"] == shown.other


def test_what_is_not_to_be_seen_is_sent_as_it_is() -> None:
    line = Unseen('{"token": "hush"}\n')
    both = line + "hush too"
    for each in (line, both, Unseen("hush")):
        for told in (str(each), repr(each), f"{each}", f"{each:>40}", "%s" % each, [each]):  # noqa: UP031
            assert "hush" not in str(told)
        assert "hush" in each.encode().decode() and "hush" in "".join([each])
        assert each.endswith("\n")
    assert json.loads(json.dumps({"stdin": line}))["stdin"] == '{"token": "hush"}\n'
    assert both.encode() == b'{"token": "hush"}\nhush too\n'
    assert Unseen("").encode() == b""


PYINFRA = """\
from pyinfra import host
from pyinfra.api import FactBase, StringCommand, operation
from uwsgi_consul_fleet.consul.access import Unseen

SECRET = Unseen("open-sesame\\n")

class Length(FactBase):
    def command(self, word="x"):
        return "wc -c"
    def process(self, output):
        return list(output)

@operation()
def tell(secret, word):
    yield StringCommand("cat", ">", "got", _stdin=secret)

assert host.get_fact(Length, _stdin=SECRET) == ["12"], host.get_fact(Length, _stdin=SECRET)
assert host.get_fact(Length, word="y", _stdin=SECRET + "more") == ["17"]
tell(SECRET, word=SECRET)
"""


def test_pyinfra_shows_nothing_of_it_however_much_it_is_to_say(tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text(PYINFRA)
    pyinfra = Path(sys.executable).with_name("pyinfra")
    command = [str(pyinfra), "-y", "-vvv", "--debug", "@local", "told.py"]
    result = subprocess.run(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert result.returncode == 0, result.stdout
    assert (tmp_path / "got").read_text() == "open-sesame\n"
    assert "Loaded fact" in result.stdout and "(not shown)" in result.stdout, result.stdout
    assert "sesame" not in result.stdout, shlex.join(command)
