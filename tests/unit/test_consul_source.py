"""Which consul binary a host gets, and how it is sent."""

import gzip
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from uwsgi_consul_fleet.inventory.model import InventoryHost, build
from uwsgi_consul_fleet.inventory.settings import DEMO
from uwsgi_consul_fleet.operations.consul import source
from uwsgi_consul_fleet.operations.consul.source import DEBIAN, Source
from uwsgi_consul_fleet.operations.state import HostState


class Run:
    """As far as it is asked."""

    def __init__(self, **settings: str) -> None:
        groups = frozenset({"consul_servers"})
        hosts = [InventoryHost(name, groups, {**DEMO, **settings}) for name in ("a", "b", "c")]
        self.fleet = build(hosts, (), (), lambda host: f"10.0.0.{ord(host.name)}")
        self.pyinfra = SimpleNamespace(connected=frozenset({"a", "b", "c"}))
        self.made: dict[Any, Any] = {}

    def once(self, make: Callable[[Any], Any]) -> Any:
        if make not in self.made:
            self.made[make] = make(self)
        return self.made[make]

    def choose(self, name: str, **known: str) -> Source:
        here = SimpleNamespace(run=self, me=self.fleet.host(name), known=HostState(**known))
        return source.choose(here)  # type: ignore[arg-type]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the operator reads; no site is asked."""
    lines: list[str] = []
    logger = SimpleNamespace(info=lines.append, warning=lines.append)
    monkeypatch.setattr(source, "logger", logger)
    monkeypatch.delattr(requests.Session, "request")
    return lines


def test_auto_does_not_stay_with_debians_in_silence(said: list[str]) -> None:
    run = Run()
    for name in ("a", "b", "c"):
        assert run.choose(name, consul_in_use=DEBIAN).label == DEBIAN
    (line,) = said  # once, for all hosts
    assert '"auto" stays with Debian\'s 1.8.7' in line
    assert 'consul_source = "release" takes 1.21.4' in line


def test_who_said_debian_hears_nothing(said: list[str]) -> None:
    assert Run(consul_source="debian").choose("a", consul_in_use=DEBIAN).label == DEBIAN
    assert said == []


def test_it_is_sent_packed_and_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr(source, "BLOCK", 1000)
    monkeypatch.setattr(source, "TELL", 0)
    binary = tmp_path / "consul"
    content = random.Random(1).randbytes(20_000)
    binary.write_bytes(content)
    sent = Source("file-1", "a file", binary, tmp_path / "cache")
    progress: list[str] = []
    assert gzip.decompress(b"".join(sent.packed(progress.append))) == content
    assert len(progress) > 1
    assert progress[-1].startswith("Consul: ") and progress[-1].endswith(" MB sent")
    # It is packed once.
    binary.unlink()
    assert gzip.decompress(b"".join(sent.packed(progress.append))) == content
    assert len(said) == 1
