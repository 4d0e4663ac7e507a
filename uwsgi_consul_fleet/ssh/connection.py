"""Running things on hosts outside pyinfra, over Fabric."""

import codecs
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from socket import IPPROTO_TCP, TCP_NODELAY, create_server, socket
from threading import Event, Thread
from typing import Any, Protocol

import paramiko
from fabric import Config, Connection
from fabric.tunnels import Tunnel

from uwsgi_consul_fleet.errors import UnreachableError
from uwsgi_consul_fleet.ssh import client as ssh_client
from uwsgi_consul_fleet.ssh import options as ssh_options
from uwsgi_consul_fleet.ssh import root
from uwsgi_consul_fleet.ssh.client import LOST as LOST

CONNECT_TIMEOUT = 10  # seconds

Follow = Callable[[str], None]


class Host(Protocol):
    """What must be known of a host to reach it; the model has much more, and takes time to load."""

    @property
    def name(self) -> str: ...

    @property
    def data(self) -> Mapping[str, Any]: ...


class Writer(Protocol):
    """What takes output in pieces, as they come."""

    def writelines(self, pieces: Iterable[bytes], /) -> None: ...


@dataclass(frozen=True)
class Result:
    """What a script printed and how it ended."""

    stdout: bytes
    stderr: str
    exit_code: int


@contextmanager
def connect(host: Host) -> Iterator[Connection]:
    """An open connection to a host, made as pyinfra's are.

    :raises UnreachableError: naming the host, why, and what to look at
    """
    options = ssh_options.of(host.name, host.data)
    client = ssh_client.connect(options)
    # Fabric is told all there is to know: without a configuration it would read its own files.
    connection = Connection(
        options.host,
        user=options.user,
        port=options.port,
        config=Config(ssh_config=paramiko.SSHConfig(), lazy=True),
    )
    connection.client, connection.transport = client, client.get_transport()
    with closing(connection):
        yield connection


def side_by_side(count: int) -> ThreadPool:
    """Threads for so many hosts. Ctrl-C does not wait for what they do."""
    return ThreadPool(max(1, count))


class Running:
    """A script that runs as root on a host, without leaving a file behind.

    ``channel`` is its standard input and output; its standard error is followed.
    """

    def __init__(
        self,
        connection: Connection,
        script: str,
        on_line: Follow = lambda line: None,
        timeout: float | None = None,
    ) -> None:
        """
        :param script: its text; it finds it again in ``$SCRIPT``
        :param on_line: called with each line of its standard error as it comes
        :param timeout: seconds for the host to take it
        :raises UnreachableError: where the connection is lost
        """
        self._options = connection.client.options
        self._on_line = on_line
        self._dialog = root.Dialog(self._options)
        self._decided = Event()
        self.lines: list[str] = []
        try:
            self.channel: paramiko.Channel = connection.transport.open_session(timeout=timeout)
            self.channel.exec_command(root.command(self._options.root, script))
        except LOST as error:
            raise self._lost(error) from error
        self._reader = Thread(target=self._follow, daemon=True)
        self._reader.start()

    def begin(self, timeout: float | None = None) -> None:
        """Wait until it has become root.

        :param timeout: seconds
        :raises UnreachableError: where it can't, with the reason
        """
        if not self._decided.wait(timeout):
            raise self._failed("no answer")
        if not self._dialog.begun:
            # The reason may come behind the prompt, and the end of the connection with none.
            self._reader.join(timeout)
            if self.channel.recv_exit_status() == -1:
                raise self._lost("")
            raise self._failed(f"cannot become root: {self._dialog.reason()}")

    def finish(self, stdin: bytes | None = b"", into: Writer | None = None) -> Result:
        """Let it read this, and wait for its end.

        :param stdin: None where somebody else writes to it, and ends it
        :param into: takes its output, of which the result has nothing then
        :raises UnreachableError: where it can't become root, or the connection is lost
        :raises BrokenPipeError: where ``into`` does
        """
        try:
            if root.may_ask(self._options.root):
                self.begin()
            if stdin is not None:
                with suppress(OSError):  # it may end without reading all of it
                    self.channel.sendall(stdin)
                self.channel.shutdown_write()
            pieces = iter(lambda: self.channel.recv(65536), b"")
            stdout = b"" if into else b"".join(pieces)
            if into:
                into.writelines(pieces)
            self._reader.join()
            code = self.channel.recv_exit_status()
            if code == -1:  # the channel was closed without one
                raise self._lost("")
            self.begin()
            return Result(stdout, "".join(self.lines), code)
        except BrokenPipeError:  # of whoever reads what `into` writes
            raise
        except LOST as error:
            raise self._lost(error) from error
        finally:
            self.channel.close()

    def output(self) -> Iterator[bytes]:
        """Each line of its standard output, as it comes; it must have begun.

        :raises UnreachableError: where the connection is lost meanwhile, or the script fails
        """
        try:
            yield from self.channel.makefile("rb")
            code = self.channel.recv_exit_status()
        except LOST as error:
            raise self._lost(error) from error
        finally:
            self.channel.close()
        if code == -1:  # the channel was closed without one
            raise self._lost("")
        if code:
            raise self._failed(self.last_words() or f"exit status {code}")

    def last_words(self) -> str:
        """The last line of its standard error, when it has ended."""
        self._reader.join(CONNECT_TIMEOUT)
        return self.lines[-1].strip() if self.lines else ""

    def _follow(self) -> None:
        """The thread that reads standard error, and answers where a password is asked for."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        rest = ""
        try:
            while received := self._receive():
                text = decoder.decode(received)
                if not self._decided.is_set():
                    answer, text = self._dialog.hear(text)
                    self._reply(answer)
                    if not self._dialog.user:
                        continue
                    self._decided.set()
                *lines, rest = (rest + text).split("\n")
                for line in lines:
                    self._tell(line + "\n")
        except LOST:
            pass  # told where the output ends
        finally:
            if rest:
                self._tell(rest)
            self._decided.set()

    def _receive(self) -> bytes:
        while True:
            try:
                return self.channel.recv_stderr(65536)
            except TimeoutError:  # of whoever waits for its output
                continue

    def _reply(self, answer: str) -> None:
        if answer == root.END:
            self.channel.shutdown_write()
        elif answer:
            self.channel.sendall(answer.encode())

    def _tell(self, line: str) -> None:
        self.lines.append(line)
        self._on_line(line.rstrip("\n"))

    def _failed(self, reason: str) -> UnreachableError:
        return UnreachableError(f"{self._options.name} ({self._options.host}): {reason}")

    def _lost(self, error: object) -> UnreachableError:
        return self._failed(f"connection lost{f': {error}' if str(error) else ''}")


def run_script(
    connection: Connection,
    script: str,
    stdin: bytes = b"",
    on_line: Follow = lambda line: None,
    into: Writer | None = None,
) -> Result:
    """Run a shell script as root, without leaving a file behind.

    :param script: its text; it finds it again in ``$SCRIPT``
    :param stdin: what it reads
    :param on_line: called with each line of its standard error as it comes
    :param into: takes its output, of which the result has nothing then
    :raises UnreachableError: where it can't become root, or the connection is lost meanwhile
    """
    return Running(connection, script, on_line).finish(stdin, into)


def open_channel(connection: Connection, port: int, at: str = "127.0.0.1") -> paramiko.Channel:
    """A connection to a port on the host's loopback, to be used like a socket.

    :param at: another address, as the host sees it
    :raises UnreachableError: where nothing listens there
    """
    address = (at, port)
    name = connection.client.options.name
    try:
        channel: paramiko.Channel = connection.transport.open_channel(
            "direct-tcpip", address, ("127.0.0.1", 0), timeout=CONNECT_TIMEOUT
        )
    except paramiko.ChannelException as error:
        if error.code == 1:  # administratively prohibited
            forbidden = "its sshd forbids to forward ports (AllowTcpForwarding)"
            raise UnreachableError(f"{name}: {forbidden}") from error
        raise UnreachableError(f"{name}: nothing listens on its port {port}") from error
    except LOST as error:
        raise UnreachableError(f"{name}: connection lost: {error}") from error
    return channel


@contextmanager
def tunnel(
    connection: Connection, remote_port: int, at: str = "127.0.0.1", port: int = 0
) -> Iterator[int]:
    """A port on this machine's loopback that leads to one on the host's loopback.

    :param at: another address, as the host sees it
    :param port: this one; 0 for one that is free
    :raises UnreachableError: where nothing listens on the host's port
    :raises OSError: where the port here is not free
    """
    # Asked first: behind a tunnel nobody says why there is no answer.
    open_channel(connection, remote_port, at).close()
    finished = Event()
    with create_server(("127.0.0.1", port)) as listener:
        listener.settimeout(0.1)
        Thread(
            target=_serve, args=(listener, connection, remote_port, at, finished), daemon=True
        ).start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            finished.set()


def _serve(listener: socket, connection: Connection, port: int, at: str, finished: Event) -> None:
    """A channel for each that comes. Fabric's own way ends with the first that can't have one."""
    while not finished.is_set():
        with suppress(OSError):  # nobody came, or it is over
            near = listener.accept()[0]
            near.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            try:
                Tunnel(open_channel(connection, port, at), near, finished).start()
            except UnreachableError:
                near.close()
