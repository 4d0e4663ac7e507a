"""What a token may write, by rules in both of their languages; and the quick way to a status."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest

from uwsgi_consul_fleet.host import hcl, main, rights
from uwsgi_consul_fleet.host.consul import Access, Consul

RULES = """
# a comment { with a brace
service "web" { policy = "write" intentions = "read" }  // another
service_prefix "" { policy = "read" }
service_prefix "bill" { policy = "write" }
service "billing" { policy = "deny" }
/* node "n" { policy = "write" } */
key_prefix "a\\"b" { policy = "write" }
operator = "write"
"""


class Rules(Consul):
    def __init__(self, rules: str) -> None:
        super().__init__(Access())
        self.rules = rules

    def get(self, path: str) -> Any:
        assert path == "/v1/acl/policy/one"
        return {"Rules": self.rules}


def may(rules: str, kind: str, name: str) -> bool:
    return rights.may_write(Rules(rules), {"Policies": [{"ID": "one"}]}, "dc1", kind, name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("web", True), ("webs", False), ("bill-1", True), ("billing", False), ("n", False)],
)
def test_the_closest_rule_counts(name: str, expected: bool) -> None:
    assert may(RULES, "service", name) == expected
    assert not may(RULES, "node", name)


@pytest.mark.parametrize(
    "rules",
    [
        'service "web" { policy = "write" }',
        'service "web" {\n policy = "write"\n}',
        '"service" "web" { "policy" = "write" }',
        'service = { "web" = { policy = "write" } }',
        "service web { policy = write }",
        '{"service": {"web": {"policy": "write"}}}',
        '{"service": [{"web": [{"policy": "write"}]}]}',
        'service "web" { policy = <<END\nwrite\nEND\n}',
    ],
)
def test_ways_to_write_a_rule(rules: str) -> None:
    assert may(rules, "service", "web")
    assert not may(rules, "service", "we")


@pytest.mark.parametrize("rules", ['service "web" { policy = "write"', "service ?", "}", "[1]", ""])
def test_what_is_not_understood_allows_nothing(rules: str) -> None:
    assert not may(rules, "service", "web")


def test_lists_of_a_configuration() -> None:
    text = 'services = [{ name = "a" tags = ["x", "y",] }, { name = "b" }] ports { http = -1 }'
    found = dict(hcl.items(hcl.parse(text)))
    assert [dict(hcl.items(each))["name"] for each in found["services"]] == ["a", "b"]
    assert dict(hcl.items(found["services"][0]))["tags"] == ["x", "y"]
    assert dict(hcl.items(found["ports"])) == {"http": "-1"}


@pytest.mark.parametrize("words", [["consul", "status"], ["--access-stdin", "consul", "status"]])
def test_a_status_is_asked_without_a_parser(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def run(access: Access, token: str, **options: Any) -> None:
        asked.extend([access.other, token, options])

    monkeypatch.setattr(main, "_run", run)
    monkeypatch.setattr(main.os, "umask", lambda mask: mask)
    monkeypatch.setattr(main.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["release", *words])
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps({"token": "a", "other": "b"}) + "\n"))
    monkeypatch.setattr(main, "_parsed", lambda: pytest.fail("the parser was made"))
    monkeypatch.setattr(main, "STATUS", {**main.STATUS, "agent_file": "/nowhere/agent.json"})
    assert main.main() == 0
    told = ["b", "a"] if len(words) == 3 else [None, ""]
    assert asked == [*told, {"command": "consul", "action": "status"}]
