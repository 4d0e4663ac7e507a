"""Keys for what Consul's registrations and checks take, with a real agent."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from consul_processes import until
from uwsgi_processes import Agent, FakeAgent, Uwsgi

Start = Callable[..., Uwsgi]


def registered(agent: Agent, service_id: str) -> dict[str, Any]:
    found: dict[str, Any] = until(
        lambda: agent.get("/v1/agent/services").get(service_id), f"{service_id} is registered"
    )
    return found


class Checked:
    """What the agent's checks ask of an application: it is well where all is as it should be."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str | None, bytes]] = []
        self.is_well = True
        checked = self

        class Handler(BaseHTTPRequestHandler):
            def do_PURGE(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                checked.seen.append((self.path, self.headers["Host"], self.headers["X-Why"], body))
                self.send_response(200 if checked.is_well else 503)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.2", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def checked() -> Iterator[Checked]:
    found = Checked()
    yield found
    found.server.shutdown()
    found.server.server_close()


# As in the ini file, where each backslash is written twice for what is inside a list.
LISTS = (
    "tags=plain urlprefix-/shop\\\\ strip=/shop a\\,b c\\\\\\\\ d back\\\\slash,"
    "meta=motto:two\\\\ words other:x"
)
TAGGED = "tagged_addresses=lan:10.1.2.3 wan:203.0.113.5:8443 wan_ipv6:[2001:db8::5]:80 x:fd00::1"


def test_words_with_blanks_and_addresses_for_others(start: Start, agent: Agent, name: str) -> None:
    start(f"url={agent.url},name={name},port=2001,{LISTS},{TAGGED}")
    service = registered(agent, name)
    assert service["Tags"] == [
        "plain", "urlprefix-/shop strip=/shop", "a,b", "c\\", "d", "back\\slash",
    ]  # fmt: skip
    service["Meta"].pop("uwsgi_owner")
    assert service["Meta"] == {"motto": "two words", "other": "x"}
    addresses = {
        tag: (found["Address"], found["Port"]) for tag, found in service["TaggedAddresses"].items()
    }
    assert addresses == {
        "lan": ("10.1.2.3", 2001),
        "wan": ("203.0.113.5", 8443),
        "wan_ipv6": ("2001:db8::5", 80),
        "x": ("fd00::1", 2001),
    }


def test_the_agents_check_asks_as_it_is_told(
    start: Start, agent: Agent, secure_agent: Agent, name: str, checked: Checked
) -> None:
    """Another address and port than clients use, a Host, a method, a body; and over TLS."""
    https = (secure_agent.log.parent / "https_port").read_text()
    common = f"url={agent.url},name={name},address=10.9.9.9,port=1,interval=1,timeout=5"
    start(
        [
            f"{common},id={name}-http,check=http:/well?deep=1,check_address=127.0.0.2,"
            f'check_port={checked.port},check_method=PURGE,check_body={{\\"a\\"\\, 1}},'
            "check_header=Host:shop.example X-Why:two\\\\ words,success_before_passing=2,"
            "failures_before_critical=3",
            f"{common},id={name}-https,check=https:/v1/status/leader,check_address=127.0.0.1,"
            f"check_port={https},check_ssl_no_verify=1",
        ]
    )
    http = f"{name}-http"
    registered(agent, http)
    until(lambda: agent.status(http) == "passing", "it is well")
    for is_well, status, count in ((False, "critical", 3), (True, "passing", 2)):
        checked.is_well = is_well
        before = len(checked.seen)
        until(lambda s=status: agent.status(http) == s, f"it is {status}")
        assert len(checked.seen) - before >= count
    assert set(checked.seen) == {("/well?deep=1", "shop.example", "two words", b'{"a", 1}')}
    # The other agent wants a client certificate, which a check has not: but it was asked by TLS.
    output = f"{name}-https"
    until(lambda: "tls" in agent.check(output)["Output"].lower(), "it was asked over TLS", 20)


def test_what_older_agents_do_not_know_is_sent_only_if_asked_for(
    start: Start, fake: FakeAgent
) -> None:
    line = f"url={fake.url},name=a,port=1,check=https:/"
    start([f"{line},id=a1", f"{line},id=a2,check_tls_server_name=shop.example"])
    until(lambda: len(fake.services) == 2, "both are registered")
    first = fake.services["a1"]["Check"]
    assert first.keys() == {
        "Status", "HTTP", "Interval", "Timeout", "DeregisterCriticalServiceAfter",
    }  # fmt: skip
    assert first["HTTP"] == "https://127.0.0.1:1/"
    assert fake.services["a2"]["Check"]["TLSServerName"] == "shop.example"
