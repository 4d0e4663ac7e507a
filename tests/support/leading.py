"""A port of this machine that leads to another one, with something in between."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread

Address = tuple[str, int]
Meet = Callable[[socket.socket], bool]


@contextmanager
def leading_to(address: Address, meet: Meet) -> Iterator[int]:
    """The port; each connection to it is led there in threads of its own.

    :param meet: called with each that comes; whether it is let through
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        Thread(target=_serve, args=(listener, address, meet), daemon=True).start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # who waits for the next one hears of it


def _serve(listener: socket.socket, address: Address, meet: Meet) -> None:
    with suppress(OSError):  # when it is closed
        while True:
            client, _ = listener.accept()
            Thread(target=_lead, args=(client, address, meet), daemon=True).start()


def _lead(client: socket.socket, address: Address, meet: Meet) -> None:
    with suppress(OSError), client:
        if meet(client):
            with socket.create_connection(address) as target:
                back = Thread(target=_pass_on, args=(target, client), daemon=True)
                back.start()
                _pass_on(client, target)
                back.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
