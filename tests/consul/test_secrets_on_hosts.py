"""Access control and gossip encryption, as the host program makes and judges them: on real
clusters."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests
from consul_processes import Agent, free_ports, until
from consul_version import version
from host_programs import release

from uwsgi_consul_fleet.host import acl, agent, cluster, keyring, lapse, stored
from uwsgi_consul_fleet.host.consul import DNS_TOKEN, FAILED, Access, Consul, UnavailableError
from uwsgi_consul_fleet.host.says import ReleaseError

GLOBAL = "global-management"
READS = 'node_prefix "" { policy = "read" }'
# Who is silent for 200 ms * suspicion_mult has failed, which one that is busy must not be.
GOSSIP = """
gossip_lan { probe_interval = "200ms" probe_timeout = "100ms" gossip_interval = "50ms"
  suspicion_mult = 8 }
gossip_wan { probe_interval = "200ms" probe_timeout = "100ms" gossip_interval = "50ms"
  suspicion_mult = 8 }
"""


def quick(servers: int) -> str:
    """What lets servers find each other, and a leader, soon; one alone loses nobody."""
    return f"performance {{ raft_multiplier = {1 if servers == 1 else 2} }} {GOSSIP}"


def acl_config(policy: str) -> str:
    return (
        f'primary_datacenter = "dc1" acl {{ enabled = true default_policy = "{policy}" '
        'down_policy = "extend-cache" }'
    )


class Cluster:
    """Servers, or one, each with a folder of its own."""

    def __init__(self, folder: Path, count: int, config: str = "") -> None:
        self.marker = folder / "etc/bootstrap"
        self.agents: list[Agent] = []
        self.quick = quick(count)
        for name in ("drakar", "skeid", "cheetah")[:count]:
            home = folder / name
            (home / "conf").mkdir(parents=True)
            options = (
                "-server",
                "-data-dir",
                str(home / "data"),
                "-config-dir",
                str(home / "conf"),
            )
            options += ("-bootstrap-expect", str(count))
            self.agents.append(Agent(home, *options, config=self.quick + config, node=name))
        for one in self.agents:
            for other in self.agents:
                one.options += other.join
                one.options += ("-retry-interval", "1s")
            one.start(wait=False)
        for one in self.agents:
            until(lambda one=one: leader(one), f"{one.node} follows a leader; see {one.log}", 30)

    def data(self, agent: Agent) -> Path:
        return agent.log.parent / "data"

    def conf(self, agent: Agent) -> Path:
        return agent.log.parent / "conf"

    @property
    def leader(self) -> Agent:
        def found() -> Agent | None:
            at = {leader(one) for one in self.agents}
            return next(
                (one for one in self.agents if at == {f"127.0.0.1:{one.server_port}"}), None
            )

        found_one: Agent = until(found, "all follow the same leader", 30)
        return found_one

    def restart(self, config: str, *agents: Agent) -> None:
        """One after another, the leader last; :param agents: all by default"""
        last = self.leader
        for one in sorted(agents or self.agents, key=lambda each: each is last):
            one.signal(signal.SIGTERM)
            assert one.process
            one.process.wait(15)
            one.config = self.quick + config
            one.start(wait=False)
            until(lambda one=one: leader(one), f"{one.node} follows a leader; see {one.log}", 30)
            # It counts again before the next one goes.
            until(lambda: len({leader(each) for each in self.agents}) == 1, "all agree", 30)


def leader(agent: Agent) -> str:
    try:
        return str(agent.call("GET", "/v1/status/leader").json())
    except requests.RequestException:
        return ""


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Any]:
    made: list[Cluster] = []

    def make(count: int, config: str = "") -> Cluster:
        made.append(Cluster(tmp_path, count, config))
        return made[-1]

    yield make
    for one in made:
        for each in one.agents:
            each.kill()


def token(what: str, *policies: str) -> dict[str, Any]:
    return {
        "accessor": str(uuid4()),
        "secret": str(uuid4()),
        "description": what,
        "policies": list(policies),
    }


class Wanted:
    """A document's worth of tokens."""

    def __init__(self) -> None:
        self.management = token("management", GLOBAL)
        self.web = token("app web", "uwsgi-consul-fleet-app-web")
        self.deploy = token("deploy", "uwsgi-consul-fleet-deploy")
        self.lookups: list[str] | None = ["uwsgi-consul-fleet-lookups"]

    def told(self, **more: Any) -> dict[str, Any]:
        rules = {
            "app-web": f'service "web" {{ policy = "write" }} {READS}',
            "lookups": f'service_prefix "" {{ policy = "read" }} {READS}',
            "deploy": 'acl = "read" operator = "write" keyring = "write" '
            + " ".join(
                f'{each}_prefix "" {{ policy = "write" }}' for each in ("node", "service", "agent")
            )
            + ' key_prefix "uwsgi-consul-fleet/" { policy = "write" }',
        }
        return {
            "reset": False,
            "policies": {
                f"uwsgi-consul-fleet-{name}": {"description": f"{name} 1", "rules": text}
                for name, text in rules.items()
            },
            "tokens": [self.management, self.web, self.deploy],
            "gone": [],
            "gone_policies": [],
            "anonymous": self.lookups,
            **more,
        }


def converge(
    of: Cluster, wanted: Wanted, agent: Agent | None = None, other: str = "", **more: Any
) -> dict[str, Any]:
    agent = agent or of.leader
    asked = Consul(Access(agent.url, other=other), wanted.management["secret"])
    return acl.converge(asked, wanted.told(**more), of.data(agent), of.marker)


def seen(agent: Agent, secret: str) -> dict[str, Any]:
    found = cluster.status(Consul(Access(agent.url, other=""), secret)).get("acl")
    return dict(found) if found else {}


def put(agent: Agent, path: str, body: Any, secret: str = "") -> requests.Response:
    headers = {"X-Consul-Token": secret} if secret else {}
    return agent.session.put(agent.url + path, json=body, headers=headers, timeout=10)


# --- Tokens and policies -------------------------------------------------------------


def test_access_control_on_a_living_cluster(servers: Any, tmp_path: Path) -> None:
    of: Cluster = servers(3)
    wanted = Wanted()
    follower = next(one for one in of.agents if one is not of.leader)
    of.restart(acl_config("allow"), follower)
    # While the leader has none, 1.8 answers nobody what it knows itself, and nobody waits for that.
    alone = Consul(Access(follower.url, other=""), wanted.deploy["secret"])
    assert cluster.knows_tokens(alone)
    until(lambda: cluster.has_caught_up(alone), "the next may be restarted", 30)
    assert "problem" not in cluster.status(alone)
    of.restart(acl_config("allow"), *(one for one in of.agents if one is not follower))
    # At once: on 1.8 the servers are in legacy mode for some seconds more.
    assert seen(of.leader, wanted.management["secret"]) == {}
    made = converge(of, wanted)
    assert [each for each in made["changed"] if each.startswith("token")] == [
        "token management made",
        "token app web made",
        "token deploy made",
        "token Bootstrap Token (Global Management) deleted",
    ]
    assert made["kept"] == []
    assert not of.marker.exists()
    again = converge(of, wanted)
    assert again == {"changed": [], "kept": []}
    # From then on nothing is registered without a token, whatever the default.
    web = {"Name": "web", "ID": "web-1"}
    assert put(of.leader, "/v1/agent/service/register", web).status_code == 403
    # Each server has them, and says so to who may know.
    for one in of.agents:
        until(lambda one=one: seen(one, wanted.deploy["secret"]), "the token is known there")
        found = seen(one, wanted.deploy["secret"])
        assert found["anonymous"] == ["uwsgi-consul-fleet-lookups"]
        assert found["tokens"] == {
            each["accessor"]: each["policies"] for each in wanted.told()["tokens"]
        }
        assert found["policies"]["uwsgi-consul-fleet-app-web"] == "app-web 1"
        assert seen(one, wanted.web["secret"]) == {}
    # What was changed by hand, or is wanted otherwise, is put right.
    told = wanted.told(anonymous=[], gone=[wanted.web["accessor"]])
    told["policies"]["uwsgi-consul-fleet-deploy"]["rules"] += (
        ' session_prefix "" { policy = "read" }'
    )
    told["tokens"] = [wanted.management, {**wanted.deploy, "description": "the deploy's"}]
    told["policies"].pop("uwsgi-consul-fleet-app-web")
    told["gone_policies"] = ["uwsgi-consul-fleet-app-web", "uwsgi-consul-fleet-never-there"]
    # As the deploy starts it.
    access = {"address": of.leader.url}
    said = release(
        tmp_path,
        access,
        *("--access-stdin", "consul", "acl"),
        stdin=f"{json.dumps({'token': wanted.management['secret'], 'other': ''})}\n"
        f"{json.dumps(told)}\n",
    )
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout) == {
        "changed": [
            "policy uwsgi-consul-fleet-deploy changed",
            "token the deploy's changed",
            "the anonymous token changed",
            "token app web deleted",
            "policy uwsgi-consul-fleet-app-web deleted",
        ],
        "kept": [],
    }
    for secret in (each["secret"] for each in (wanted.management, wanted.deploy, wanted.web)):
        assert secret not in said.stdout + said.stderr
    # Then anonymous requests end, and tokens go on.
    of.restart(acl_config("deny"))
    asked = Consul(Access(of.leader.url, other=""), wanted.deploy["secret"])
    until(lambda: cluster.status(asked).get("members"), "it is known after the restart", 30)
    assert put(of.leader, "/v1/kv/uwsgi-consul-fleet/fleet", {}).status_code == 403
    assert asked.put("/v1/kv/uwsgi-consul-fleet/fleet", {"a": 1})
    until(lambda: len(asked.get("/v1/agent/members")) == 3, "all members")
    for one in of.agents:
        at = Consul(Access(one.url, other=""), wanted.deploy["secret"])
        until(lambda at=at: cluster.knows_tokens(at), "it knows tokens")
        assert at.get("/v1/catalog/nodes")


def test_recovery_and_lost_answers(servers: Any) -> None:
    of: Cluster = servers(3, acl_config("deny"))
    before, wanted = Wanted(), Wanted()
    converge(of, before)
    # Nobody has these secrets any more: nothing is done unless that is said.
    with pytest.raises(ReleaseError, match="made with other secrets"):
        converge(of, wanted)
    assert not of.marker.exists()
    follower = next(one for one in of.agents if one is not of.leader)
    with pytest.raises(ReleaseError, match="does not lead the others"):
        converge(of, wanted, follower, reset=True)
    assert not (of.data(follower) / "acl-bootstrap-reset").exists()
    old = [each["accessor"] for each in before.told()["tokens"]]
    converge(of, wanted, reset=True, gone=old)
    assert not of.marker.exists()
    tokens = seen(of.leader, wanted.management["secret"])["tokens"]
    assert tokens.keys() == {each["accessor"] for each in wanted.told()["tokens"]}
    with pytest.raises(UnavailableError, match="ACL not found"):
        Consul(Access(of.leader.url), before.management["secret"]).get("/v1/acl/tokens")
    # Another seed, while the one before is known: nothing is bootstrapped.
    later = Wanted()
    told = converge(of, later, other=wanted.management["secret"])
    assert told["changed"][0] == "token management made"
    assert not of.marker.exists()


def test_a_server_that_knows_none_of_the_tokens_that_it_is_shown(servers: Any) -> None:
    """It says what it tells everybody, so that a run goes on to make them; others' stay."""
    of: Cluster = servers(1, acl_config("deny"))
    mine, theirs = Wanted(), Wanted()

    def status(secret: str) -> dict[str, Any]:
        return cluster.status(Consul(Access(of.leader.url, other=""), secret))

    unknown = {
        "leader": f"127.0.0.1:{of.leader.server_port}",
        "peers": [f"127.0.0.1:{of.leader.server_port}"],
        **{"fleet": "", "contents": None, "members": [], "acl": None, "keys": []},
    }
    # A first run was interrupted.
    until(lambda: status(mine.deploy["secret"]) == unknown, "it has no tokens yet")
    converge(of, mine)
    until(lambda: status(mine.deploy["secret"])["acl"], "it has them")
    # Somebody deploys it with the secrets of another fleet.
    assert status(theirs.deploy["secret"]) == unknown
    with pytest.raises(ReleaseError, match="made with other secrets"):
        converge(of, theirs)
    assert status(mine.deploy["secret"])["acl"]
    # Who is known, and may not.
    refused = status(mine.web["secret"])
    assert refused.keys() == {"problem", "refused"} and refused["refused"]
    assert "Permission denied" in refused["problem"]


def test_a_bootstrap_whose_answer_was_lost(servers: Any) -> None:
    of: Cluster = servers(1, acl_config("allow"))
    wanted = Wanted()
    acl.store.write(of.marker, wanted.management["accessor"] + "\n")
    # On 1.8 the secret is nobody's; later versions take the one that they are told.
    first = str(acl.uuid5(acl.UUID(wanted.management["secret"]), "bootstrap"))
    body = {"BootstrapSecret": first}
    until(lambda: put(of.leader, "/v1/acl/bootstrap", body).ok, "it was bootstrapped", 60)
    converge(of, wanted, reset=True)
    assert not of.marker.exists()
    tokens = seen(of.leader, wanted.management["secret"])["tokens"]
    assert tokens.keys() == {each["accessor"] for each in wanted.told()["tokens"]}
    assert converge(of, wanted)["changed"] == []


def test_without_access_control_there_is_nothing_to_make(shared_agent: Agent) -> None:
    wanted = Wanted()
    with pytest.raises(UnavailableError, match="401"):
        acl.converge(Consul(Access(shared_agent.url, other=""), "x"), wanted.told())
    found = cluster.status(Consul(Access(shared_agent.url)))
    assert found["acl"] is None


# --- Registrations -------------------------------------------------------------------


def test_what_would_lapse(servers: Any, tmp_path: Path) -> None:
    of: Cluster = servers(1, acl_config("allow"))
    agent, wanted = of.leader, Wanted()
    wanted.lookups = None  # while all may write, it would let nobody write without a token
    (of.conf(agent) / "open.hcl").write_text('service { name = "open" port = 1 }\n')
    with_token = {"services": [{"name": "kept", "id": "kept-1", "token": wanted.deploy["secret"]}]}
    (of.conf(agent) / "kept.json").write_text(json.dumps(with_token))
    converge(of, wanted)
    agent.kill()
    agent.start(wait=False)
    until(lambda: leader(agent), "it leads again", 30)
    management = wanted.management["secret"]
    until(lambda: seen(agent, management), "it knows tokens", 60)

    def make(body: dict[str, Any]) -> str:
        answer = put(agent, "/v1/acl/token", body, management)
        assert answer.ok, answer.text
        return str(answer.json()["SecretID"])

    def policy(name: str, rules: str, known: str = "") -> dict[str, str]:
        told = {"Name": name, "Rules": rules}
        answer = put(agent, f"/v1/acl/policy/{known}".rstrip("/"), told, management)
        assert answer.ok, answer.text
        return {"Name": name, "ID": answer.json()["ID"]}

    rules = '# the operator\'s\nservice_prefix "bill" { policy = "write" }\n'
    own = policy("own", rules)
    by_json = policy("json", json.dumps({"service": {"api": {"policy": "write"}}}))
    denied = policy("denied", "")
    role = {"Name": "a-role", "Policies": [denied]}
    assert put(agent, "/v1/acl/role", role, management).ok
    elsewhere = {"ServiceName": "far", "Datacenters": ["dc9"]}
    secrets = {
        "own": make({"Policies": [own, by_json], "Description": "the operator's"}),
        "both": make({"Policies": [own], "Roles": [{"Name": "a-role"}]}),
        "identity": make({"ServiceIdentities": [{"ServiceName": "db"}]}),
        "elsewhere": make({"ServiceIdentities": [elsewhere]}),
        "node": make({"NodeIdentities": [{"NodeName": "drakar", "Datacenter": "dc1"}]}),
        "gone": make({"Policies": [own]}),
        "web": wanted.web["secret"],
        "deploy": wanted.deploy["secret"],
        "management": management,
        "": "",
    }

    def register(service: str, by: str, number: int = 1) -> None:
        body = {"Name": service, "ID": f"{service}-{number}", "Check": {"TTL": "10m"}}
        answer = put(agent, "/v1/agent/service/register", body, secrets[by])
        assert answer.ok, answer.text

    def check(name: str, by: str, service: str = "") -> None:
        body = {"Name": name, "TTL": "10m", "ServiceID": service}
        assert put(agent, "/v1/agent/check/register", body, secrets[by]).ok

    for service, by in (
        *(("web", "web"), ("bill-1", "own"), ("api", "own"), ("db", "identity")),
        *(("db-sidecar-proxy", "identity"), ("any", "deploy"), ("all", "management")),
    ):
        register(service, by)
    check("disk", "node")
    check("load", "deploy")
    check("more", "web", "web-1")
    asked = Consul(Access(agent.url, other=""), wanted.deploy["secret"])

    def look() -> dict[str, Any]:
        may = {wanted.web["accessor"]: ["web"], wanted.deploy["accessor"]: ["any", "kept"]}
        return stored.look(asked, may, of.data(agent), of.conf(agent))

    found = look()
    assert found["problems"] == [
        "the service open (id open) is registered without a token; give it a `token` that may, "
        f"in {of.conf(agent)}/open.hcl, and: systemctl reload consul"
    ]
    in_use = {secrets[each] for each in ("own", "identity", "node", "web", "deploy", "management")}
    assert len(found["accessors"]) == len(in_use)
    assert wanted.web["accessor"] in found["accessors"]
    # A token that is in use here is not deleted.
    kept = converge(of, wanted, agent, gone=[wanted.web["accessor"]])
    assert kept == {"changed": [], "kept": [wanted.web["accessor"]]}

    (of.conf(agent) / "open.hcl").unlink()
    assert put(agent, "/v1/agent/reload", {}, management).ok
    assert look()["problems"] == []
    for service, by in (
        *(("none", ""), ("web", "own"), ("billing", "own"), ("bill-2", "both")),
        *(("bill-3", "gone"), ("far", "elsewhere")),
    ):
        register(service, by, 2)
    check("memory", "elsewhere")
    # Rules that match count while all else is allowed, too: so these come later.
    rules += 'service "billing" { policy = "read" } node_prefix "" { policy = "read" }'
    policy("own", rules, own["ID"])
    policy("denied", 'service "bill-2" { policy = "deny" }', denied["ID"])
    check("extra", "", "api-1")
    gone = asked.showing(secrets["gone"]).get("/v1/acl/token/self")["AccessorID"]
    path = f"{agent.url}/v1/acl/token/{gone}"
    headers = {"X-Consul-Token": management}
    assert agent.session.delete(path, headers=headers, timeout=5).ok
    removed = "register it again with one that may, or remove it: "
    expected = {
        "the service none (id none-2) is registered without a token",
        "the service web (id web-2) is registered with a token that may not write it "
        "(the operator's)",
        "the service billing (id billing-2) is registered with a token that may not write it "
        "(the operator's)",
        "the service bill-2 (id bill-2-2) is registered with a token that may not write it "
        "(%ACCESSOR)",
        "the service bill-3 (id bill-3-2) is registered with a token that Consul does not know",
        "the service far (id far-2) is registered with a token that may not write it (%ACCESSOR)",
        "the check memory of the node is registered with a token that may not write it (%ACCESSOR)",
        "the check extra of the service api (id api-1) is registered without a token",
    }

    def told(sentence: str) -> str:
        what, _, command = sentence.partition("; ")
        assert command.startswith(removed)
        for each in ("both", "elsewhere"):
            accessor = asked.showing(secrets[each]).get("/v1/acl/token/self")["AccessorID"]
            what = what.replace(accessor, "%ACCESSOR")
        return what

    problems = look()["problems"]
    assert {told(each) for each in problems} == expected
    assert len(problems) == len(expected)
    assert any(each.endswith("consul services deregister -id=none-2") for each in problems)
    # Consul is of the same opinion.
    agent.kill()
    agent.config = of.quick + acl_config("deny")
    agent.start(wait=False)
    until(lambda: "members" in cluster.status(asked), "it knows tokens", 60)
    for service, by, may in (
        *(("bill-9", "own", True), ("billing", "own", False), ("bill-2", "both", False)),
        *(("api", "own", True), ("far", "elsewhere", False), ("db", "identity", True)),
    ):
        body = {"Name": service, "ID": f"{service}-9"}

        def is_so(body: dict[str, str] = body, by: str = by, may: bool = may) -> bool:
            return put(agent, "/v1/agent/service/register", body, secrets[by]).ok == may

        # Of each token it asks a server first.
        until(is_so, f"{by} {'may' if may else 'may not'} register {service}", 30)


# --- The gossip key ------------------------------------------------------------------


def key() -> str:
    return base64.b64encode(os.urandom(32)).decode()


def fingerprint(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]


def change(asked: Consul, method: str, key: str) -> None:
    """A step of a rotation: again where one of the members did not answer in time."""

    def done() -> bool:
        try:
            asked.call(method, keyring.PATH, {"Key": key})
        except UnavailableError as error:
            if error.status != 500:
                raise
            return False
        return True

    until(done, f"{method} of a key on all members", 30)


def test_another_gossip_key_for_all_or_for_none(servers: Any) -> None:
    first, second, third = key(), key(), key()
    of: Cluster = servers(3, f'encrypt = "{first}"')
    asked = Consul(Access(of.leader.url))

    def all_alive() -> bool:
        members = asked.get("/v1/agent/members") + asked.get("/v1/agent/members?wan=1")
        return [each["Status"] for each in members] == [1] * 6

    until(all_alive, "all know each other, in the WAN too", 30)
    dead = next(one for one in of.agents if one is not of.leader)
    dead.kill()
    with pytest.raises(ReleaseError, match=f"{dead.node}.* does not answer") as told:
        keyring.rotate(asked, second, first)
    assert first not in str(told.value)
    others = [one for one in of.agents if one is not dead]
    dead.start(wait=False)
    until(all_alive, "it is back, with the key that it had", 30)
    keyring.rotate(asked, second, first)
    for one in of.agents:
        assert keyring.fingerprints(of.data(one)) == [fingerprint(second)]
    # Interrupted after each step, and run again.
    old = second
    for steps in (["POST"], ["POST", "PUT"], ["POST", "PUT", "DELETE"]):
        new = key()
        for method in steps:
            change(asked, method, old if method == "DELETE" else new)
        keyring.rotate(asked, new, old)
        keyring.rotate(asked, new, old)
        old = new
    keyring.rotate(asked, third)
    assert keyring.fingerprints(of.data(dead)) == [fingerprint(each) for each in (third, old)]
    assert len(others) == 2
    assert until(all_alive, "nobody was lost", 30)
    # Who is a client from now on is told of as a server that failed, for days.
    dead.kill()
    dead.options = tuple(each for each in dead.options if each != "-server")
    at = dead.options.index("-bootstrap-expect")
    dead.options = dead.options[:at] + dead.options[at + 2 :]
    dead.start(wait=False)

    def has_changed() -> bool:
        far = {each["Name"]: each["Status"] for each in asked.get("/v1/agent/members?wan=1")}
        near = {each["Name"]: each["Tags"]["role"] for each in asked.get("/v1/agent/members")}
        return (far[f"{dead.node}.dc1"], near[dead.node]) == (FAILED, "node")

    until(has_changed, "it is a client", 60)
    keyring.rotate(asked, first, third)
    assert keyring.fingerprints(of.data(dead))[0] == fingerprint(first)


def test_a_cluster_without_gossip_encryption_has_no_key(
    new_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    with pytest.raises(UnavailableError, match="500"):
        keyring.rotate(Consul(Access(new_agent().start().url)), key(), patience=60)
    assert keyring.fingerprints(tmp_path) == []


def test_a_host_that_comes_back_forgets_the_keys_of_before(servers: Any, tmp_path: Path) -> None:
    old, new = key(), key()
    of: Cluster = servers(3, f'encrypt = "{old}"')
    asked = Consul(Access(of.leader.url))
    back = next(one for one in of.agents if one is not of.leader)
    home = of.data(back)
    assert cluster.has_company(Consul(Access(back.url)))
    assert not cluster.has_company(Consul(Access("http://127.0.0.1:1")))
    back.kill()
    saved = tmp_path / "saved"
    shutil.copytree(home / "serf", saved)

    def gone() -> bool:
        members = asked.get("/v1/agent/members") + asked.get("/v1/agent/members?wan=1")
        return [each["Status"] for each in members].count(FAILED) == 2

    until(gone, "it is seen as failed, among the servers of all datacenters too", 30)
    for method, each in (("POST", new), ("PUT", new), ("DELETE", old)):
        change(asked, method, each)
    # As it is after a reboot: nobody hears it.
    back.start(wait=False)
    until(lambda: leader(back), "it follows the leader, which needs no gossip", 30)
    assert not cluster.has_company(Consul(Access(back.url)))
    back.kill()
    file = of.conf(back) / "secrets.json"
    file.write_text(json.dumps({"encrypt": old}))
    keyring.forget_others(home, of.conf(back))
    assert keyring.fingerprints(home) == [fingerprint(old)]
    file.write_text(json.dumps({"encrypt": new}))
    keyring.forget_others(home, of.conf(back))
    assert keyring.fingerprints(home) == []
    back.config = of.quick
    back.start(wait=False)
    until(lambda: cluster.has_company(Consul(Access(back.url))), "it is among them again", 30)
    assert keyring.fingerprints(home) == [fingerprint(new)]


# --- DNS -----------------------------------------------------------------------------


def test_dns_has_a_token_of_its_own_where_consul_knows_of_that(servers: Any) -> None:
    of: Cluster = servers(1, acl_config("deny"))
    (server,) = of.agents
    wanted = Wanted()
    wanted.lookups = []
    dns = token("dns", "uwsgi-consul-fleet-lookups")
    told = {"tokens": [wanted.management, wanted.web, dns]}
    until(lambda: converge(of, wanted, **told), "tokens are made")
    (port,) = free_ports(1)
    server.ports = server.ports.replace("dns=-1", f"dns={port}")
    file, link = of.conf(server).parent / "dns.json", of.conf(server) / "dns.json"
    file.write_text(json.dumps({"acl": {"tokens": {"dns": dns["secret"]}}}))
    agent._suit("consul", of.conf(server))
    assert link.exists() == (version() >= DNS_TOKEN)
    of.restart(acl_config("deny"))  # an agent that does not know of it starts
    management = wanted.management["secret"]
    token_of_agent = "/v1/agent/token/agent", {"Token": management}, management
    until(lambda: put(server, *token_of_agent).ok, "the agent may write its node")
    body = {"Name": "web", "ID": "web", "Port": 1}
    assert put(server, "/v1/agent/service/register", body, wanted.web["secret"]).ok
    asked = Consul(Access(server.url), management)
    until(lambda: asked.get("/v1/catalog/service/web"), "it is in the catalog")
    assert server.call("GET", "/v1/catalog/services").json() == {}
    if version() < DNS_TOKEN:
        assert found_by_dns(port, "web.service.consul") == 0
        return
    until(lambda: found_by_dns(port, "web.service.consul"), "DNS finds it")
    file.write_text(json.dumps({"acl": {"tokens": {"dns": ""}}}))
    server.signal(signal.SIGHUP)
    until(lambda: not found_by_dns(port, "web.service.consul"), "DNS finds nothing any more")


def test_an_agent_that_goes_back_to_an_older_version_is_not_told(tmp_path: Path) -> None:
    (folder := tmp_path / "consul.d").mkdir()
    (file := tmp_path / "dns.json").write_text("{}")
    for says, is_told in (("Consul v1.17.0", True), ("Consul v1.16.9", False), ("", False)):
        (binary := tmp_path / "consul").write_text(f"#!/bin/sh\necho '{says}'\n")
        binary.chmod(0o755)
        agent._suit(str(binary), folder)
        assert (folder / "dns.json").exists() == is_told
    file.unlink()
    binary.write_text("#!/bin/sh\necho Consul v2.0.0\n")
    agent._suit(str(binary), folder)
    assert [*folder.iterdir()] == []


def found_by_dns(port: int, name: str) -> int:
    """How many addresses there are."""
    labels = b"".join(bytes([len(each)]) + each.encode() for each in name.split("."))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.settimeout(5)
        question = struct.pack("!6H", 1, 0, 1, 0, 0, 0) + labels + struct.pack("!xHH", 1, 1)
        asked.sendto(question, ("127.0.0.1", port))
        return int(struct.unpack("!6H", asked.recv(512)[:12])[3])


# --- A token that the cluster does not know ------------------------------------------


def test_a_token_that_a_cluster_does_not_know_yet(
    shared_agent: Agent, servers: Any, tmp_path: Path
) -> None:
    unknown = str(uuid4())
    plain = Consul(Access(shared_agent.url, other=unknown), unknown)
    assert plain.get("/v1/catalog/nodes")
    of: Cluster = servers(1, acl_config("allow"))
    wanted = Wanted()
    wanted.lookups = None
    converge(of, wanted)
    at = of.leader.url
    known = wanted.deploy["secret"]

    def asked(token: str, other: str | None) -> Consul:
        return Consul(Access(at, other=other), token)

    # Where it alone counts it is refused, and where all may ask it is not.
    with pytest.raises(UnavailableError, match="ACL not found"):
        asked(unknown, None).get("/v1/catalog/nodes")
    assert asked(unknown, "").get("/v1/catalog/nodes")
    assert asked(unknown, unknown).put("/v1/kv/uwsgi-consul-fleet/fleet", {})
    assert asked(unknown, known).get("/v1/acl/tokens")
    with pytest.raises(UnavailableError, match=r"Permission denied|ACL not found"):
        asked(unknown, "").get("/v1/acl/tokens")
    # One that is known and may not is no reason to try another.
    with pytest.raises(UnavailableError, match="Permission denied"):
        asked(wanted.web["secret"], known).get("/v1/acl/tokens")

    of.leader.kill()
    agent = of.agents[0]
    agent.config = of.quick + acl_config("deny")
    agent.start(wait=False)
    until(lambda: cluster.status(asked(known, "")).get("members"), "it knows tokens", 60)
    assert asked(unknown, known).get("/v1/catalog/nodes")
    # An empty list would say that all is gone.
    assert agent.call("GET", "/v1/catalog/nodes").json() == []
    with pytest.raises(UnavailableError, match="ACL not found") as told:
        asked(unknown, "").get("/v1/catalog/nodes")
    assert told.value.status == 403
    found = cluster.status(asked(unknown, ""))
    assert (found["members"], found["acl"], len(found["peers"])) == ([], None, 1)
    # What a transaction is refused with is no conflict.
    step = {"KV": {"Verb": "set", "Key": "uwsgi-consul-fleet/x", "Value": ""}}
    with pytest.raises(UnavailableError) as told:
        asked("", None).put("/v1/txn", [step])
    assert told.value.status == 403
    assert asked(known, None).put("/v1/txn", [step])
    # As the deploy asks first of all.
    line = json.dumps({"token": unknown, "other": known})
    words = ("--access-stdin", "consul", "status")
    said = release(tmp_path, {"address": at}, *words, stdin=f"{line}\n")
    assert json.loads(said.stdout)["acl"]["tokens"].keys() >= {wanted.web["accessor"]}
    assert known not in said.stdout + said.stderr


def test_what_is_ours_is_not_given_up_while_its_agent_takes_no_sign_of_life(
    tmp_path: Path,
) -> None:
    """Until it is registered anew; what others registered stays as it is."""
    data = tmp_path / "data"
    agent = Agent(
        tmp_path, "-server", "-bootstrap", "-data-dir", str(data), config=quick(1)
    ).start()
    try:
        for name, meta in (("ours", {"generation": "r1-1"}), ("theirs", {})):
            check = {"TTL": "60s", "DeregisterCriticalServiceAfter": "90s", "Status": "passing"}
            body = {"ID": name, "Name": name, "Meta": meta, "Check": check}
            agent.call("PUT", "/v1/agent/service/register", data=json.dumps(body))
        lapse.put_off(Consul(Access(agent.url)), data)
        lapse.put_off(Consul(Access(agent.url)), data)
        kinds = [told["ChkType"] for _, told in stored.objects(data / "checks")]
        assert sorted(each["TTL"] // 10**9 for each in kinds) == [60, 24 * 3600]
        assert {each["DeregisterCriticalServiceAfter"] // 10**9 for each in kinds} == {90}

        def statuses() -> dict[str, str]:
            checks = agent.call("GET", "/v1/agent/checks").json()
            return {each["ServiceID"]: each["Status"] for each in checks.values()}

        assert statuses() == {"ours": "passing", "theirs": "passing"}
        # As in the next round, which may begin long after the last sign of life was taken.
        agent.kill()
        agent.start()
        until(lambda: statuses() == {"ours": "passing", "theirs": "critical"}, "they are known", 30)
    finally:
        agent.kill()
