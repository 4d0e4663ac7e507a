"""What servers say to who speaks to them beside Consul's API: by RPC, as Raft does, and in gossip.

All of it from a host whose address they let in, so that it is not the packet filter alone which
stops it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping

from lab_commands import Lab

PEM = "/etc/uwsgi-consul-fleet/tls/node.pem"
# usage: sudo python3 -c SPEAK ADDRESS ATTEMPTS: how long an answer each of them gets, in bytes,
# and which of some words are in it. An attempt is [PEM, PROTOCOL, [MESSAGE...], [WORD...]], PEM a
# file, '' for no certificate, None for no encryption.
SPEAK = """
import json, socket, ssl, sys
from concurrent.futures import ThreadPoolExecutor
def packed(value):
    if isinstance(value, dict):
        pairs = (packed(key) + packed(value[key]) for key in value)
        return bytes([0x80 | len(value)]) + b"".join(pairs)
    if isinstance(value, str):
        return b"\\xda" + len(value).to_bytes(2, "big") + value.encode()
    return bytes([value])
def answer(pem, protocol, messages):
    plain = socket.create_connection((sys.argv[1], 8300), timeout=15)
    if pem is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if pem:
            context.load_cert_chain(pem)
        plain.sendall(bytes([3]))
        plain = context.wrap_socket(plain)
    plain.sendall(bytes([protocol]) + b"".join(map(packed, messages)))
    found = b""
    try:
        while more := plain.recv(65536):
            found += more
            plain.settimeout(1.5)
    except TimeoutError:
        pass
    return found
def said(pem, protocol, messages, words):
    try:
        found = answer(pem, protocol, messages)
    except OSError:
        found = b""
    return len(found), [word for word in words if word.encode() in found]
with ThreadPoolExecutor(16) as pool:
    print(json.dumps([*pool.map(lambda attempt: said(*attempt), json.loads(sys.argv[2]))]))
"""
RPC, RAFT = 0, 1  # the first byte of a connection
LEADER = [{"ServiceMethod": "Status.Leader", "Seq": 1}, {}]
# Of no term that there ever was: it changes nothing. The first byte says which of Raft's it is.
APPEND = [0, {"ProtocolVersion": 3, "Term": 0, "Leader": "", "PrevLogEntry": 0}]
# usage: bash -c GOSSIP gossip NAME PORT KEY ADDRESS SERVER: an agent, which says whether it got in,
# and is interrupted then, once: without --foreground timeout would do it twice, and who is
# interrupted twice does not say goodbye.
GOSSIP = r"""
cd "$(mktemp -d)"
exec {said}< <(timeout --foreground 30 consul agent -data-dir . -node "$1" -bind "$4" \
    -serf-lan-port "$2" -http-port -1 -dns-port -1 -grpc-port -1 \
    -retry-join "$5:8301" -retry-interval 1s ${3:+-encrypt "$3"} 2>&1)
agent=$!
echo "$1 $(grep --max-count 1 --only-matching "(LAN) joined\|(LAN) couldn't join" <&$said)"
kill -INT $agent
cat <&$said >/dev/null
"""


def nodes(token: str) -> list[object]:
    """A list of them by RPC, with a token, '' for none."""
    return [
        {"ServiceMethod": "Catalog.ListNodes", "Seq": 1},
        {"Datacenter": "dc1", **({"Token": token} if token else {})},
    ]


class Attempt:
    """One of them; ``words`` are what is looked for in the answer."""

    def __init__(self, pem: str | None, protocol: int, says: list[object], *words: str) -> None:
        self.words = [pem, protocol, says, words]


def speak(
    lab: Lab, host: str, to: str, attempts: Mapping[str, Attempt]
) -> tuple[set[str], set[str]]:
    """Which of them are answered at all, and in whose answers are the words that they look for."""
    given = json.dumps([each.words for each in attempts.values()])
    words = shlex.join(["sudo", "python3", "-c", SPEAK, lab.address(to), given])
    answers = json.loads(lab.ssh(host, words).stdout)
    found = dict(zip(attempts, answers, strict=True))
    answered = {what for what, (length, _) in found.items() if length}
    return answered, {what for what, (_, words) in found.items() if words}


def join(lab: Lab, host: str, to: str, keys: Mapping[str, str]) -> dict[str, bool]:
    """Which agents with these keys get into the gossip, by their names, each in it for a moment:
    beside the agent of a member, as a user who may nothing."""
    words = ["sudo", "-u", "nobody", "bash", "-c", GOSSIP, "gossip"]
    agents = [
        shlex.join([*words, name, str(port), key, lab.address(host), lab.address(to)])
        for port, (name, key) in enumerate(keys.items(), 18301)
    ]
    said = lab.ssh(host, "\n".join([*(f"{each} &" for each in agents), "wait"])).stdout
    found = dict(line.split(maxsplit=1) for line in said.splitlines())
    assert {*found.values()} <= {"(LAN) joined", "(LAN) couldn't join"}, found
    return {name: found[name] == "(LAN) joined" for name in keys}
