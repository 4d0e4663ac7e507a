"""The client's decisions: addresses, reading an answer, wording. No Consul needed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from app import client
from app.client import AgentError, Instance, RefusedError

DRAKAR = Instance("drakar", "10.0.3.11", 2001, "server1", "r1", (), "passing")
DRAKAR2 = replace(DRAKAR, port=2002, id="server2")
CHEETAH = replace(DRAKAR, node="cheetah", address="10.0.3.12")
SERVICE = "consul-demo-server"


def entry(node: str = "drakar", **service: Any) -> dict[str, Any]:
    """As /v1/health/service lists an instance."""
    return {
        "Node": {"Node": node, "Address": "10.0.3.11"},
        "Service": {"ID": "server1", "Address": "", "Port": 2001, **service},
        "Checks": [{"CheckID": "serfHealth", "Status": "passing"}],
    }


class TestReadingAnAnswer:
    def test_an_instance(self) -> None:
        service: dict[str, Any] = {
            "Address": "192.0.2.7",
            "Tags": ["uwsgi", "eu"],
            "Meta": {"release": "r7"},
        }
        assert client.parse([entry("drakar", **service)]) == [
            Instance("drakar", "192.0.2.7", 2001, "server1", "r7", ("uwsgi", "eu"), "passing")
        ]

    def test_without_an_address_of_its_own_it_has_the_node_s(self) -> None:
        assert client.parse([entry()])[0].address == "10.0.3.11"

    def test_tags_and_meta_may_be_null(self) -> None:
        found = client.parse([entry(Tags=None, Meta=None)])[0]
        assert (found.tags, found.release) == ((), "")

    def test_sorted_by_node_then_port_as_a_number(self) -> None:
        answer = [
            entry("drakar", Port=10000, ID="a"),
            entry("drakar", Port=2001, ID="b"),
            entry("cheetah", Port=2002, ID="c"),
        ]
        assert [instance.id for instance in client.parse(answer)] == ["c", "b", "a"]

    @pytest.mark.parametrize(
        ("statuses", "expected"),
        [
            ([], "passing"),
            (["passing", "passing"], "passing"),
            (["passing", "warning"], "warning"),
            (["warning", "critical", "passing"], "critical"),
        ],
    )
    def test_the_worst_check_counts(self, statuses: list[str], expected: str) -> None:
        checks = [{"CheckID": str(n), "Status": status} for n, status in enumerate(statuses)]
        assert client.worst(checks) == expected

    @pytest.mark.parametrize("check", ["_node_maintenance", "_service_maintenance:server1"])
    def test_maintenance_is_said_instead_of_critical(self, check: str) -> None:
        assert client.worst([{"CheckID": check, "Status": "critical"}]) == "maintenance"


class TestAddress:
    @pytest.mark.parametrize(
        ("given", "used"),
        [
            ("http://127.0.0.1:8500", "http://127.0.0.1:8500"),
            ("http://127.0.0.1:8500/", "http://127.0.0.1:8500"),
            ("127.0.0.1:8500", "http://127.0.0.1:8500"),
            ("localhost:8500", "http://localhost:8500"),
            ("https://consul.example", "https://consul.example"),
            ("http://[::1]:8500", "http://[::1]:8500"),
            ("http://proxy.example/consul/", "http://proxy.example/consul"),
        ],
    )
    def test_usable(self, given: str, used: str) -> None:
        assert client.checked_url(given) == used

    @pytest.mark.parametrize(
        "given", ["", "http://", "ftp://host", "unix:///run/consul.sock", "host:port", "host:99999"]
    )
    def test_unusable_is_refused_with_an_example(self, given: str) -> None:
        with pytest.raises(RefusedError, match=r"expected: http://127\.0\.0\.1:8500"):
            client.checked_url(given)

    def test_a_password_in_it_is_refused_and_not_repeated(self) -> None:
        with pytest.raises(RefusedError) as refused:
            client.checked_url("http://me:secret@127.0.0.1:8500")
        assert "secret" not in str(refused.value)

    @pytest.mark.parametrize(
        ("environment", "expected"),
        [
            ({}, "http://127.0.0.1:8500"),
            ({"CONSUL_HTTP_ADDR": ""}, "http://127.0.0.1:8500"),
            ({"CONSUL_HTTP_ADDR": "10.0.3.11:8500"}, "10.0.3.11:8500"),
            ({"CONSUL_HTTP_ADDR": "h:8501", "CONSUL_HTTP_SSL": "true"}, "https://h:8501"),
            ({"CONSUL_HTTP_ADDR": "http://h:1", "CONSUL_HTTP_SSL": "true"}, "http://h:1"),
        ],
    )
    def test_from_the_environment(self, environment: dict[str, str], expected: str) -> None:
        assert client.url_from(environment) == expected


class TestText:
    def test_the_seed_s_lines(self) -> None:
        assert client.as_text(SERVICE, None, [DRAKAR, DRAKAR2]) == (
            "consul-demo-server found on node drakar (10.0.3.11) using port 2001\n"
            "consul-demo-server found on node drakar (10.0.3.11) using port 2002"
        )

    def test_none(self) -> None:
        assert client.as_text(SERVICE, None, []) == "no consul-demo-server available"

    def test_what_does_not_pass_says_so(self) -> None:
        line = client.lines(SERVICE, [replace(DRAKAR, status="critical")])[0]
        assert line.endswith("using port 2001 (critical)")

    def test_a_change_is_set_off_dated_and_complete(self) -> None:
        empty, headline, *lines = client.as_text(SERVICE, [DRAKAR], [CHEETAH, DRAKAR]).split("\n")
        assert empty == ""
        assert headline.startswith("-- 2") and headline.endswith("  new: cheetah:2001")
        assert lines == client.lines(SERVICE, [CHEETAH, DRAKAR])

    @pytest.mark.parametrize(
        ("before", "after", "expected"),
        [
            ([], [DRAKAR, DRAKAR2], "new: drakar:2001, drakar:2002"),
            ([DRAKAR, CHEETAH], [DRAKAR], "gone: cheetah:2001"),
            ([DRAKAR], [CHEETAH], "new: cheetah:2001; gone: drakar:2001"),
            ([DRAKAR], [replace(DRAKAR, status="critical")], "critical: drakar:2001"),
            ([replace(DRAKAR, status="critical")], [DRAKAR], "passing: drakar:2001"),
            ([DRAKAR], [replace(DRAKAR, release="r2")], "release r2: drakar:2001"),
            ([DRAKAR], [replace(DRAKAR, address="10.0.3.99")], "changed: drakar:2001"),
            ([DRAKAR], [replace(DRAKAR, tags=("eu",))], "changed: drakar:2001"),
        ],
    )
    def test_the_headline_names_what_happened(
        self, before: list[Instance], after: list[Instance], expected: str
    ) -> None:
        assert client.headline(before, after) == expected

    def test_the_headline_stays_a_line_in_a_large_fleet(self) -> None:
        fleet = [replace(DRAKAR, node=f"node{n:03}") for n in range(100)]
        assert client.headline([], fleet).endswith("node007:2001 and 92 more")


def test_json_is_one_line_with_everything() -> None:
    text = client.as_json(SERVICE, [DRAKAR])
    assert "\n" not in text
    document = json.loads(text)
    assert document["service"] == SERVICE
    assert document["instances"] == [
        {
            "node": "drakar",
            "address": "10.0.3.11",
            "port": 2001,
            "id": "server1",
            "release": "r1",
            "tags": [],
            "status": "passing",
        }
    ]


class TestAskingInAWatch:
    """Which index it asks with, and when for a consistent answer: no timing of a real
    agent shows that dependably."""

    def questions(
        self, monkeypatch: pytest.MonkeyPatch, answers: list[int | Exception]
    ) -> list[tuple[int, bool]]:
        asked: list[tuple[int, bool]] = []

        def ask(*arguments: Any, consistent: bool) -> tuple[int, list[Instance]]:
            asked.append((arguments[3], consistent))
            answer = answers[len(asked) - 1]
            if isinstance(answer, Exception):
                raise answer
            return answer, [replace(DRAKAR, port=len(asked))]

        monkeypatch.setattr(client._Agent, "ask", ask)
        monkeypatch.setattr(client, "_pause", lambda _: 0)
        lists = client.watch()
        for _ in [answer for answer in answers if isinstance(answer, int)]:
            next(lists)
        return asked

    def test_goes_on_from_the_last_index(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.questions(monkeypatch, [7, 9, 9]) == [(0, True), (7, False), (9, False)]

    def test_starts_again_when_the_index_goes_backwards(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert self.questions(monkeypatch, [7, 3, 3]) == [(0, True), (7, False), (0, True)]

    def test_starts_again_after_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lost = AgentError("lost")
        asked = self.questions(monkeypatch, [7, lost, RefusedError("no"), 8, 9])
        assert asked == [(0, True), (7, False), (0, True), (0, True), (8, False)]

    def test_a_consistent_question_says_so(self) -> None:
        http = client._Http()
        assert "consistent" not in http.uri("/v1", [("dc", "dc1")])
        http.consistent = True
        assert http.uri("/v1", [("dc", "dc1")]).endswith("/v1?dc=dc1&consistent=")


def test_pauses_grow_but_stay_short() -> None:
    assert client._pause(1) <= 0.2
    assert 2.5 <= client._pause(50) <= 5.0


@pytest.mark.parametrize("url", ["unix:///run/consul.sock", "http://u:p@host"])
def test_an_unusable_address_is_one_line_and_exit_2(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert client.main(["--url", url]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1


def test_unknown_options_are_refused() -> None:
    with pytest.raises(SystemExit) as refused:
        client.main(["--pass"])
    assert refused.value.code == 2
