"""What those are refused by Consul who should get nothing of it: somebody with a login on a host,
the application's own user, and a machine that was a member and is none any more. What they find
of files and sockets is in test_applications.py, which ports they get through to in
test_firewall.py.

The tests run in the order in which they stand here: in the last one who may does all of it.
"""

import json
import shlex
from base64 import b64decode
from typing import NamedTuple

import acl_tokens
import asked
import attempts
import consul_version
import pytest
import spoken
from asked import CHANGES, CHECK, MARK, OF_A_SERVER, OPEN, READS, Answer, Request
from consul_processes import until
from lab_commands import Lab
from shared_fleet import SharedFleet
from spoken import LEADER, PEM, RAFT, RPC, Attempt

from uwsgi_consul_fleet.secrets import tokens

pytestmark = pytest.mark.takes(90)

APP = "consul-demo-server"
KEPT = "/root/kept.pem"
# Lists that a token of an application may see, of nodes, their own checks, and of its service.
OF_THE_APPLICATION = {
    "list services",
    "list nodes",
    "list the services of a node",
    "list the application's instances",
    "list the checks of a node",
    "list checks",
    "list the agent's services",
    "list the agent's checks",
    "list members",
    "list services as the UI does",
    "list nodes as the UI does",
    "list coordinates",
}
OWN = {
    "find itself": Request("GET", f"health/service/{APP}?passing"),
    "register itself": Request(
        "PUT", "agent/service/register", json.dumps({"Name": APP, "ID": f"{MARK}own"})
    ),
    "deregister itself": Request("PUT", f"agent/service/deregister/{MARK}own", ""),
}


class Asked(NamedTuple):
    """``known`` stands in requests."""

    lab: Lab
    management: str
    known: dict[str, str]

    def got(self, user: str, token: str) -> dict[str, Answer]:
        """What somebody is told who asks for everything, and tries to change everything."""
        return self.ask(user, token, READS | CHANGES)

    def ask(self, user: str, token: str, requests: dict[str, Request]) -> dict[str, Answer]:
        answers = {}
        for host, its in (("drakar", requests.keys() & OF_A_SERVER), ("cheetah", requests.keys())):
            here = {
                what: requests[what] for what in requests if what in its and what not in answers
            }
            answers |= asked.ask(self.lab, host, user, token, here, **self.known) if here else {}
        return {what: answers[what] for what in requests}


class Former(NamedTuple):
    """What a member took along."""

    gossip: str
    tokens: dict[str, str]


@pytest.fixture(scope="module")
def fleet(shared_fleet: SharedFleet) -> SharedFleet:
    shared_fleet.reset("ormen")
    return shared_fleet


@pytest.fixture(scope="module")
def former(fleet: SharedFleet, lab: Lab) -> Former:
    """ormen was a member."""
    secrets = acl_tokens.secrets(fleet.path)
    its = {what: tokens.secret(secrets.seed, what) for what in ("node/ormen", f"app/ormen/{APP}")}
    for token in its.values():
        said = lab.ssh("ormen", f"CONSUL_HTTP_TOKEN={token} consul catalog nodes").stdout
        assert "ormen" in said  # an agent's sees no other node
    pem = lab.ssh("ormen", f"sudo cat {PEM}").stdout
    lab.ssh("cheetah", f"printf %s {shlex.quote(pem)} | sudo sh -c 'umask 77; cat >{KEPT}'")
    fleet.hosts(["drakar"], ["drakar", "cheetah"], ["ormen"])
    fleet.deploy()
    return Former(secrets.gossip, its)


@pytest.fixture(scope="module")
def there(fleet: SharedFleet, lab: Lab, former: Former) -> Asked:
    management = acl_tokens.management(lab, "cheetah")
    session = asked.put(lab, "cheetah", management)
    known = {
        "session": session,
        "gossip": acl_tokens.secrets(fleet.path).gossip,
        "address": lab.address("drakar"),
    }
    found = Asked(lab, management, known)
    listed = {"it": READS["list healthy instances"]}
    until(lambda: not found.ask("root", management, listed)["it"].is_empty, "it is in the catalog")
    return found


def let_in(answers: dict[str, Answer]) -> dict[str, Answer]:
    """Those that are neither a refusal nor an empty list."""
    return {
        what: answer
        for what, answer in answers.items()
        if not (answer.is_refused or (what in READS and answer.status == 200 and answer.is_empty))
    }


def test_who_shows_no_token(there: Asked) -> None:
    assert let_in(there.got("nobody", "")) == {}


def test_what_cannot_be_refused_says_nothing_of_value(there: Asked) -> None:
    newer = {"which version", "Connect's authority"}
    names = {*OPEN} - (newer if consul_version.version() < (1, 9) else set())
    answers = there.ask("nobody", "", {what: OPEN[what] for what in names})
    assert {what for what, answer in answers.items() if answer.status == 200} == names
    for word in (MARK, APP, "cheetah", *there.known.values()):
        assert word == there.known["address"] or word not in str(answers)
    assert {what for what in names if "drakar" in str(answers[what])} == {"how far servers are"}


def test_the_applications_own_user(there: Asked) -> None:
    """With its token: it finds and registers itself, and sees which nodes there are."""
    token = there.lab.ssh("cheetah", f"sudo -u {APP} cat /etc/uwsgi-consul-fleet/tokens/{APP}")
    answers = there.got(APP, token.stdout.strip())
    assert let_in(answers).keys() == OF_THE_APPLICATION, let_in(answers)
    # Nothing of what is there to be found, but for a check of the node itself; what says no has
    # the name of what was asked for.
    shown = {what: answers[what].text.replace(CHECK["Name"], "") for what in OF_THE_APPLICATION}
    assert {what for what, text in shown.items() if MARK in text} == set()
    own = there.ask(APP, token.stdout.strip(), OWN)
    assert let_in(own).keys() == OWN.keys(), own
    assert "server1" in own["find itself"].text


def test_a_former_members_tokens(there: Asked, former: Former) -> None:
    for what, token in former.tokens.items():
        assert let_in(there.got("nobody", token)) == {}, what


def test_files(lab: Lab, there: Asked) -> None:
    tried = attempts.on(lab, "cheetah", APP)
    assert attempts.done(lab, "cheetah", "root", tried) == {*tried}
    assert attempts.done(lab, "cheetah", "nobody", tried) == set()
    own = {"sources", "socket", "token", "environment of a process", "process"}
    assert attempts.done(lab, "cheetah", APP, tried) == own


def test_rpc(lab: Lab, there: Asked) -> None:
    """Without a certificate of the fleet there is no answer at all; with one only to who shows a
    token, also at the server itself."""
    own = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=cheetah"
    lab.ssh("cheetah", f"sudo sh -c '{own} -keyout /root/a -out /root/b; cat /root/[ab] >/root/ab'")
    refused = {
        "without encryption": Attempt(None, RPC, LEADER),
        "without a certificate": Attempt("", RPC, LEADER),
        "with a certificate of one's own": Attempt("/root/ab", RPC, LEADER),
        "as raft, without encryption": Attempt(None, RAFT, spoken.APPEND),
        "as raft, without a certificate": Attempt("", RAFT, spoken.APPEND),
    }
    empty = {
        "with a client's certificate": Attempt(PEM, RPC, spoken.nodes(""), "drakar"),
        "with a former member's": Attempt(KEPT, RPC, spoken.nodes(""), "drakar"),
    }
    control = {
        "who leads": Attempt(PEM, RPC, LEADER, there.known["address"]),
        "all nodes": Attempt(PEM, RPC, spoken.nodes(there.management), "drakar"),
    }
    answered, found = spoken.speak(lab, "cheetah", "drakar", refused | empty | control)
    assert (answered, found) == ({*empty, *control}, {*control})
    raft = {"as raft, with a server's": Attempt(PEM, RAFT, spoken.APPEND, "Term")}
    assert spoken.speak(lab, "drakar", "drakar", raft) == ({*raft}, {*raft})


@pytest.mark.skipif(
    consul_version.version() < (1, 8, 15),
    reason="this Consul believes a client's certificate to be a server's (CVE-2021-37219)",
)
def test_raft_with_a_clients_certificate(lab: Lab, there: Asked) -> None:
    raft = {pem: Attempt(pem, RAFT, spoken.APPEND) for pem in (PEM, KEPT)}
    assert spoken.speak(lab, "cheetah", "drakar", raft) == (set(), set())


def test_gossip(lab: Lab, there: Asked, former: Former) -> None:
    """Who has no key, or that of before somebody retired, is seen by nobody."""
    keys = {"none": "", "former": former.gossip, "now": there.known["gossip"]}
    names = {what: f"{MARK}{what}" for what in keys}
    got_in = spoken.join(lab, "cheetah", "drakar", {names[what]: keys[what] for what in keys})
    assert {name for name, is_in in got_in.items() if is_in} == {names["now"]}

    def seen() -> dict[str, str]:
        rows = map(str.split, lab.consul("drakar", "members").stdout.splitlines())
        return {name: status for name, _, status, *_ in rows if name.startswith(MARK)}

    until(lambda: seen() == {names["now"]: "left"}, "it has left", 30)


def test_who_may_is_refused_nothing(there: Asked, fleet: SharedFleet) -> None:
    """All of the requests do what they say, and nobody before had done it."""
    autopilot = "read autopilot's configuration"
    found = there.ask("root", there.management, {autopilot: READS[autopilot]})
    settings = json.loads(found[autopilot].text)
    for name in ("CreateIndex", "ModifyIndex"):
        settings.pop(name, None)
    change = "change autopilot's configuration"
    requests = READS | CHANGES
    requests[change] = CHANGES[change]._replace(body=json.dumps(settings))
    answers = there.ask("root", there.management, requests)
    wrong = {
        what: answer
        for what, answer in answers.items()
        if answer.status != 200
        or answer.text.strip() == "false"
        or (what in READS and answer.is_empty)
    }
    assert wrong == {}
    (key,) = json.loads(answers["read a key"].text)
    assert json.loads(b64decode(key["Value"])) == f"{MARK}value"
    there.ask("root", there.management, asked.REMOVE)
    fleet.verify()
