"""What two machines of the lab send to each other.

    with Captured(lab, "drakar", "cheetah") as traffic:
        ...
    traffic.ports()
    traffic.text

Run as a program it is what listens, as root: captured.py BRIDGE ADDRESS ADDRESS. It begins with a
line, ends with its standard input, and prints a line for each direction of each flow: its
protocol, both ports, and what was sent, in base64.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import threading
from base64 import b64decode, b64encode
from types import TracebackType
from typing import NamedTuple, Self

TCP, UDP = 6, 17
# Of linux/if_packet.h: all packets that the bridge has, also those that are not for this machine.
SOL_PACKET, ADD_MEMBERSHIP, PROMISCUOUS, STATISTICS = 263, 1, 1, 6
IPV4 = 0x0800
BUFFER = 64 << 20  # bytes


class Flow(NamedTuple):
    """One direction of it; ``packets`` of UDP are kept apart."""

    protocol: int
    source: int
    to: int
    packets: list[bytes]

    @property
    def sent(self) -> bytes:
        return b"".join(self.packets)


class Captured:
    """Over when the block ends."""

    def __init__(self, lab: object, one: str, other: str) -> None:
        from lab_commands import SUDO, Lab

        from uwsgi_consul_fleet.lab import network

        assert isinstance(lab, Lab)
        bridge = network.known()[network.DEFAULT].bridge
        addresses = [lab.address(one), lab.address(other)]
        self.words = [*SUDO, sys.executable, __file__, bridge, *addresses]
        self.flows: list[Flow] = []

    def __enter__(self) -> Self:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(self.words, stdin=pipe, stdout=pipe, text=True)
        assert self.process.stdout
        assert self.process.stdout.readline() == "listens\n"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        said, _ = self.process.communicate()
        if kind is None:
            assert self.process.returncode == 0, said
            self.flows = [_read(line) for line in said.splitlines()]

    def of(self, protocol: int, port: int) -> list[Flow]:
        """The flows of a port, from it and to it."""
        flows = self.flows
        return [one for one in flows if one.protocol == protocol and port in (one.source, one.to)]


def _read(line: str) -> Flow:
    protocol, source, to, *packets = line.split()
    return Flow(int(protocol), int(source), int(to), [b64decode(each) for each in packets])


def listen(bridge: str, *addresses: str) -> None:
    listener = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(IPV4))
    listener.setsockopt(socket.SOL_SOCKET, 33, BUFFER)  # SO_RCVBUFFORCE
    listener.bind((bridge, IPV4))
    member = struct.pack("iHH8s", socket.if_nametoindex(bridge), PROMISCUOUS, 0, b"")
    listener.setsockopt(SOL_PACKET, ADD_MEMBERSHIP, member)
    pair = {socket.inet_aton(each) for each in addresses}
    flows: dict[tuple[int, int, int, bytes], dict[int, bytes]] = {}
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    print("listens", flush=True)
    listener.settimeout(0.2)
    number = 0
    while True:
        if over.is_set():
            listener.settimeout(0)  # what was sent before is there
        try:
            packet = listener.recv(1 << 17)
        except TimeoutError:
            continue
        except BlockingIOError:
            break
        if {packet[12:16], packet[16:20]} == pair and packet[9] in (TCP, UDP):
            number += 1
            _keep(flows, packet, number)
    _, dropped = struct.unpack("II", listener.getsockopt(SOL_PACKET, STATISTICS, 8))
    if dropped:
        sys.exit(f"{dropped} packets were dropped")
    for (protocol, source, to, _), packets in flows.items():
        print(protocol, source, to, *(b64encode(each).decode() for each in packets.values()))


def _keep(
    flows: dict[tuple[int, int, int, bytes], dict[int, bytes]], packet: bytes, number: int
) -> None:
    """Behind what was sent there before; what is sent again counts once."""
    size, protocol = (packet[0] & 15) * 4, packet[9]
    (length,) = struct.unpack_from("!H", packet, 2)
    segment = packet[size : length or None]
    source, to = struct.unpack_from("!HH", segment)
    header = (segment[12] >> 4) * 4 if protocol == TCP else 8
    if sent := segment[header:]:
        place = struct.unpack_from("!I", segment, 4)[0] if protocol == TCP else number
        flows.setdefault((protocol, source, to, packet[12:16]), {}).setdefault(place, sent)


if __name__ == "__main__":
    listen(*sys.argv[1:])
