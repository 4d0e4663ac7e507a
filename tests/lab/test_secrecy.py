"""Where the secrets of a fleet can be seen: in what hosts send to each other, in what commands
print, in what processes say of themselves, and in files. Found they are by value.

The tests run in the order in which they stand here; the last ones look at what happened in all.
"""

import os
import re
import selectors
import signal
import subprocess
import time
from base64 import b64decode
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from uuid import uuid4

import acl_tokens
import pytest
import revealed
from applications import BAD_RELEASES, application, released
from captured import TCP, UDP, Captured
from checkout import ROOT
from fleet_commands import Fleet, finish, output, run, start
from lab_commands import Lab
from revealed import EVERYBODY, Secret
from sampled import Sampled

from uwsgi_consul_fleet.inventory.vault import FOLDER
from uwsgi_consul_fleet.secrets import tokens
from uwsgi_consul_fleet.secrets.document import Secrets

pytestmark = pytest.mark.takes(250)

HOSTS = ("drakar", "cheetah")
APP = "consul-demo-server"
PASSWORD = "SHOP_PASSWORD"
SETTINGS = f"""
app_requirements = None
min_healthy_time = 1
app_secrets = [{PASSWORD!r}]
"""
PEM = "/etc/uwsgi-consul-fleet/tls/node.pem"
BEFORE = " of before"
LOUD = ("-vvv", "--diff")
# What docs say where which secrets lie, and what else of them; there may be more behind it.
RELEASE = "/srv/NAME/releases/RELEASE/environment"
PLACES = {
    "/etc/uwsgi-consul-fleet/consul.d/secrets.json": {"gossip", "node"},
    "/etc/uwsgi-consul-fleet/dns.json": {"dns"},
    PEM: {"key"},
    "/etc/uwsgi-consul-fleet/tokens/NAME": {"app"},
    "/var/lib/consul/serf/": {"gossip"},
    "/var/lib/consul/services/": {"app"},
    "/var/lib/consul/checks/": {"app"},
    # On a server everybody's, also what Consul has not yet written over.
    "/var/lib/consul/raft/": {"management", "deploy", "read", "dns", "node", "app"},
    RELEASE: {PASSWORD},
}
FOLDERS = (
    "/etc",
    "/run",
    "/var",
    "/srv",
    "/opt",
    "/tmp",
    "/root",
    "/home",
    "/usr/local",
    "/dev/shm",
)
JOURNAL = "sudo journalctl --no-pager --all --output verbose"
# On a host, with a token on standard input: ASK METHOD PATH BODY
ASK = """
import sys, urllib.request
method, path, body = sys.argv[1:]
asked = urllib.request.Request("http://127.0.0.1:8500/v1/" + path, body.encode(), method=method)
asked.add_header("X-Consul-Token", sys.stdin.read().strip())
urllib.request.urlopen(asked, timeout=10)
"""


@dataclass
class Told:
    """A fleet, what was run and printed, and which secrets there were."""

    fleet: Fleet
    lab: Lab
    processes: Sampled
    password: str
    since: float
    printed: dict[str, str] = field(default_factory=dict)
    known: list[Secrets] = field(default_factory=list)
    values: dict[str, list[str]] = field(default_factory=dict)

    def run(self, what: str, *words: str, check: bool = True) -> None:
        """A command of invoke's."""
        there = words.index("--") if "--" in words else len(words)
        inventory = ("--inventory", str(self.fleet.path))
        result = run("invoke", *words[:there], *inventory, *words[there:], check=check)
        self.printed[what] = output(result)

    def deploy(self, what: str, *options: str, check: bool = True) -> None:
        self.printed[what] = output(self.fleet.deploy(*LOUD, *options, check=check))

    def interrupt(self, what: str, words: Sequence[str], when: str) -> None:
        """By Ctrl-C, when it has said something."""
        process = start(*words, own_group=True)
        said = b""
        with selectors.DefaultSelector() as streams:
            for stream in (process.stdout, process.stderr):
                assert stream
                streams.register(stream, selectors.EVENT_READ)
            while when.encode() not in said:
                for key, _ in streams.select():
                    more = os.read(key.fd, 1 << 16)
                    assert more, said.decode()
                    said += more
        os.killpg(process.pid, signal.SIGINT)
        self.printed[what] = said.decode() + output(finish(process, check=False))

    def learn(self) -> Secrets:
        """The secrets as they are now, by names of which the second part is a host."""
        now = acl_tokens.secrets(self.fleet.path)
        self.known.append(now)
        before, self.values = self.values, {PASSWORD: [self.password]}
        self.values |= revealed.of(now, HOSTS, APP)
        for host in HOSTS:
            pem = self.lab.ssh(host, f"sudo cat {PEM}").stdout
            self.values[f"key/{host}"] = revealed.of_key(pem)
        for name, texts in before.items():
            if self.values.get(name) != texts:
                old = name if name.endswith(BEFORE) else f"{name}{BEFORE}"
                self.values[old] = [*self.values.get(old, []), *texts]
        return now


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, lab: Lab) -> Iterator[Told]:
    """A fleet of its own, of which nothing was seen before. Its first deploy is interrupted where
    tokens are about to be made."""
    since = time.time()
    lab.fresh(*HOSTS)
    folder = tmp_path_factory.mktemp("secrecy")
    fleet = Fleet(folder / "fleet.py")
    fleet.hosts(["drakar"], [*HOSTS])
    password = f"{uuid4().hex}{uuid4().hex}"
    file = folder / FOLDER / "shop.env"
    file.parent.mkdir(0o700)
    file.touch(0o600)
    file.write_text(f"{PASSWORD}={password}\n")
    (folder / "group_data").mkdir()
    settings = f"{SETTINGS}app_secrets_file = {str(file)!r}\n"
    (folder / "group_data/all.py").write_text(settings)
    fleet.build_once()
    with Sampled(lab) as processes:
        found = Told(fleet, lab, processes, password, since)
        begun = "Starting operation: Consul: make tokens"
        found.interrupt("first, interrupted", fleet.words(*LOUD), begun)
        found.deploy("first")
        found.learn()
        yield found


def given(lab: Lab, host: str, command: str, text: str) -> None:
    """Run a command on a host, with what it may not be seen with on its standard input."""
    words = ["ssh", *lab.ssh_options, host, command]
    subprocess.run(words, input=text, text=True, check=True)


def ask(told: Told, method: str, path: str, body: str) -> None:
    """cheetah's agent, as who may do everything."""
    token = tokens.secret(told.known[-1].seed, tokens.MANAGEMENT)
    words = " ".join(f"'{word}'" for word in (method, path, body))
    given(told.lab, "cheetah", f"python3 -c '{ASK}' {words}", token)


def test_traffic_between_hosts_tells_nothing(told: Told) -> None:
    mark = uuid4().hex
    name, key, value, plain = (f"{what}-{mark}" for what in ("service", "key", "value", "plain"))
    with Captured(told.lab, *HOSTS) as traffic:
        ask(told, "PUT", "agent/service/register", f'{{"Name": "{name}"}}')
        ask(told, "PUT", f"kv/{key}", value)
        told.run("rotate", "secrets.rotate", "all")
        ask(told, "PUT", f"agent/service/deregister/{name}", "")
        ask(told, "DELETE", f"kv/{key}", "")
        url = f"http://{told.lab.address('drakar')}:2001/{plain}"
        get = f"import urllib.request as u; u.urlopen('{url}')"
        told.lab.ssh("cheetah", f'python3 -c "{get}" 2>/dev/null', check=False)
    before, now = told.known[-1], told.learn()
    assert before.gossip != now.gossip and before.seed != now.seed and before.ca != now.ca
    secret = Secret(told.values)
    assert {what for flow in traffic.flows for what in secret.within(flow.sent)} == set()
    texts = [mark.encode(), APP.encode(), *(b64decode(each.gossip) for each in (before, now))]
    flows = [flow for flow in traffic.flows if 2001 not in (flow.source, flow.to)]
    assert not [flow for flow in flows for text in texts if text in flow.sent]
    # It does see what hosts say to each other, and what of it is not encrypted.
    assert any(plain.encode() in flow.sent for flow in traffic.of(TCP, 2001))
    rpc, gossip = traffic.of(TCP, 8300), traffic.of(UDP, 8301)
    assert sum(len(flow.sent) for flow in rpc) > 1000
    packets = [packet for flow in gossip for packet in flow.packets]
    # Encrypted they begin so, and say who sends them only then.
    assert packets and {packet[0] for packet in packets} <= {0, 1}
    assert not [packet for packet in packets if any(host.encode() in packet for host in HOSTS)]


def test_nothing_that_is_printed_has_one(told: Told, tmp_path: Path) -> None:
    second = released(application(tmp_path / "second", "# second\n"), "second")
    # So that Consul gets another policy.
    second += ("--data", "dns=True", "--data", "min_healthy_time=3")
    words = told.fleet.words(*LOUD, *second)
    told.interrupt("interrupted", words, "tried on a socket of its own")
    told.deploy("second", *second)
    bad = BAD_RELEASES["exits at once"]
    failing = released(application(tmp_path / "bad", bad.code), "bad")
    told.deploy("failed", *failing, check=False)
    told.interrupt("ui", ["invoke", "ui", "--inventory", str(told.fleet.path)], "until Ctrl-C")
    told.run("rollback", "rollback")
    several = {
        "verify": ["verify", "--wait", "30", "--probe", "--json"],
        "releases": ["releases", "--json"],
        "audit": ["audit", "--json"],
        "logs": ["logs"],
        "client": ["client", "--once"],
        "keys": ["consul", "--", "kv", "get", "-recurse", "uwsgi-consul-fleet/"],
        "tokens": ["consul", "--", "acl", "token", "list", "-meta"],
        "members": ["consul", "--management", "--yes", "--", "members", "-detailed"],
        "exec": ["exec", "--", "true"],
        "unlock": ["unlock", "--yes"],
        "build-plugin": ["build-plugin"],
        "trust": ["ssh.trust", "--yes"],
        "adopt": ["adopt", "cheetah"],
        "recover": ["secrets.recover"],
    }
    refused = {"adopt", "recover"}  # without a terminal to ask at
    with ThreadPoolExecutor(4) as pool:
        runs = [
            pool.submit(told.run, what, *words, check=what not in refused)
            for what, words in several.items()
        ]
        runs.append(pool.submit(told.deploy, "dry", "--dry", *second))
        inventory = run("pyinfra", "-y", str(told.fleet.path), "debug-inventory")
    for each in runs:
        each.result()
    told.printed["inventory"] = output(inventory)
    secret = Secret(told.values)
    found = {what: secret.within(text) for what, text in told.printed.items()}
    assert {what: names for what, names in found.items() if names} == {}
    # It was said what was done, and what files should have in them.
    assert "verify_incoming_rpc" in told.printed["first"] + told.printed["first, interrupted"]
    for what in ("first, interrupted", "first", "interrupted", "second"):
        assert "sudo" in told.printed[what] and "(not shown)" in told.printed[what], what
    assert bad.says in told.printed["failed"]


def test_no_process_shows_one(told: Told) -> None:
    """But for root's environment on a host, which root alone may read, and the application's, which
    its user may read."""
    argument, variable = uuid4().hex, uuid4().hex
    told.lab.ssh("cheetah", f"SEEN={variable} sh -c 'sleep 3; : {argument}'")
    seen = told.processes.stop()
    assert any(each.what == "cmdline" and argument in each.text for each in seen)
    assert any(each.what == "environ" and variable in each.text for each in seen)
    # A release's archive has the application's, and is sent in base64, which begins like this.
    assert not [each for each in seen if each.what == "cmdline" and "H4sIAA" in each.text]
    secret = Secret(told.values)
    users = {host: int(told.lab.ssh(host, f"id -u {APP}").stdout) for host in HOSTS}
    found = set()
    for each in seen:
        if each.what == "environ" and each.group and each.user == 0:
            continue
        names = secret.within(each.text)
        host = next((host for host in HOSTS if f"-{host}/" in each.group), "")
        if each.what == "environ" and each.user == users.get(host):
            names -= {PASSWORD}
        if names:
            found.add((each.what, each.user, each.group, each.text[:200], *names))
    assert found == set()


def test_files_have_them_only_where_docs_say(told: Told) -> None:
    docs = (ROOT / "docs/security.md").read_text()
    for place in PLACES:
        folder = "/var/lib/consul"
        assert f"`{place.removeprefix(folder).lstrip('/')}`" in docs or f"`{place}`" in docs, place
    secret = Secret(told.values)
    own, cache = told.fleet.path.parent, Path("~/.cache").expanduser()
    with ThreadPoolExecutor() as pool:
        journals = pool.map(lambda host: told.lab.ssh(host, JOURNAL).stdout, HOSTS)
        look = partial(secret.in_files, told.since, *FOLDERS, lab=told.lab)
        there = pool.map(lambda host: look(host=host), HOSTS)
        here = secret.in_files_here(told.since, ROOT, own, cache, Path("/tmp"), Path("/var/tmp"))
    for journal in journals:
        assert len(journal) > 10000
        assert secret.within(journal) == set()
    for host, found in zip(HOSTS, there, strict=True):
        wrong = {file: names - may_be_in(file, host) for file, names in found.items()}
        assert {file: names for file, names in wrong.items() if names} == {}, host
        assert {f"/etc/uwsgi-consul-fleet/tokens/{APP}", PEM} <= found.keys()
    kept = f"{own / FOLDER}/"
    assert {file for file in here if not file.startswith(kept)} == set()
    assert here.keys() and all(EVERYBODY not in names for names in here.values())


def may_be_in(file: str, host: str) -> set[str]:
    """The names of what may be in a file of a host."""
    kinds = next((kinds for place, kinds in PLACES.items() if is_at(file, place)), set())
    hosts = HOSTS if "/raft/" in file else (host,)
    found = kinds | {f"{kind}/{each}" for kind in kinds for each in hosts}
    found |= {f"app/{each}/{APP}" for each in hosts if "app" in kinds}
    return found | {f"{name}{BEFORE}" for name in found if "/raft/" in file}


def is_at(file: str, place: str) -> bool:
    path = re.escape(place).replace("NAME", APP).replace("RELEASE", "[^/]*")
    return bool(re.fullmatch(f"{path}.*" if place.endswith("/") else path, file))
