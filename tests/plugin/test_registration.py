"""What each key and each variable of the environment does."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from consul_processes import until
from leading import leading_to
from uwsgi_processes import Agent, FakeAgent, Uwsgi

Start = Callable[..., Uwsgi]


def registered(agent: Agent, service_id: str) -> dict[str, Any]:
    found: dict[str, Any] = until(
        lambda: agent.get("/v1/agent/services").get(service_id), f"{service_id} is registered"
    )
    return found


def sent(fake: FakeAgent, path: str = "/service/register") -> dict[str, Any]:
    """The first registration that the fake agent received."""
    until(lambda: fake.requests(path), "a registration arrives")
    body: dict[str, Any] = fake.requests(path)[0].json
    return body


@pytest.mark.quick
def test_only_a_name(start: Start, agent: Agent, name: str) -> None:
    start(f"url={agent.url},name={name}")
    service = registered(agent, name)
    assert service["Service"] == name
    assert (service["Port"], service["Address"], service["Tags"]) == (0, "", [])
    assert agent.check(name)["Status"] == "passing"


def test_the_ini_of_uwsgi_consuls_readme(start: Start, agent: Agent, name: str) -> None:
    line = f"url={agent.url},id=servicenode0002-{name},name={name},port=9091,ttl=30,wait_workers=1"
    start(line)
    assert registered(agent, f"servicenode0002-{name}")["Port"] == 9091


@pytest.mark.quick
@pytest.mark.everywhere
def test_all_that_describes_a_service(start: Start, agent: Agent, name: str) -> None:
    start(
        f"url={agent.url},name={name},id={name}-1,port=PORT,address=10.1.2.3,tags=red  blue,"
        "meta=release:abc motto:a:b,weight=7"
    )
    service = registered(agent, f"{name}-1")
    assert service["Service"] == name
    assert service["Address"] == "10.1.2.3"
    assert service["Port"] > 0
    assert service["Tags"] == ["red", "blue"]
    assert len(service["Meta"].pop("uwsgi_owner")) == 32
    assert service["Meta"] == {"release": "abc", "motto": "a:b"}
    assert service["Weights"]["Passing"] == 7


# As in the ini file, where a backslash is written twice, and a per cent sign not at all: uWSGI
# reads beyond its buffer where it is doubled.
AWKWARD = [
    'quo"te',
    "back\\\\slash",
    "ship/shape",
    "blank space",
    "50$(PERCENT)",
    "a?b#c&d",
    "höhe",
    "a;b'c",
]


@pytest.mark.parametrize("part", AWKWARD)
def test_an_id_and_tags_arrive_as_written(start: Start, agent: Agent, name: str, part: str) -> None:
    """Also through URLs: it beats by its id, and is deregistered by it."""
    plain = part.replace("\\\\", "\\").replace("$(PERCENT)", "%")
    tag = plain.replace(" ", "_")
    service_id = f"awkward {plain}"
    uwsgi = start(
        f"url={agent.url},name=awkward {part},id=awkward {part},"
        f"tags={part.replace(' ', '_')},meta=k:{part.replace(' ', '_')},ttl=1,drain=0",
        env={"PERCENT": "%"},
    )
    service = registered(agent, service_id)
    assert service["Service"] == f"awkward {plain}"
    assert service["Tags"] == [tag]
    assert service["Meta"]["k"] == tag
    until(lambda: agent.check(service_id)["Output"] == "2 workers", "a beat arrives")
    uwsgi.signal(2)
    assert uwsgi.wait() == 0
    assert service_id not in agent.get("/v1/agent/services")


CONFIGURATIONS = {
    "yaml": "uwsgi:\n  consul-register: url={url},name={name},id={name}-yaml,tags=a b\n",
    "json": '{{"uwsgi": {{"consul-register": "url={url},name={name},id={name}-json,tags=a b"}}}}',
    "xml": "<uwsgi><consul-register>url={url},name={name},id={name}-xml,tags=a b"
    "</consul-register></uwsgi>",
}


def test_the_same_line_in_other_kinds_of_configuration(
    start: Start, agent: Agent, name: str
) -> None:
    def write(folder: Path) -> None:
        for kind, text in CONFIGURATIONS.items():
            (folder / f"more.{kind}").write_text(text.format(url=agent.url, name=name))

    start([], options=[f"{kind} = more.{kind}" for kind in CONFIGURATIONS], before=write)
    for kind in CONFIGURATIONS:
        assert registered(agent, f"{name}-{kind}")["Tags"] == ["a", "b"]


def test_a_backslash_before_a_comma(start: Start, agent: Agent, name: str) -> None:
    start(f"url={agent.url},name={name},tags=a\\,b c=d")
    assert registered(agent, name)["Tags"] == ["a,b", "c=d"]


def test_ttl_and_deregister_after(start: Start, fake: FakeAgent) -> None:
    start(f"url={fake.url},name=a,ttl=7,deregister_after=120")
    assert sent(fake)["Check"] == {
        "Status": "passing",
        "TTL": "7s",
        "DeregisterCriticalServiceAfter": "120s",
    }


def test_the_defaults(start: Start, fake: FakeAgent) -> None:
    start(f"url={fake.url},name=a")
    body = sent(fake)
    assert body.pop("Meta").keys() == {"uwsgi_owner"}
    assert body == {
        "Name": "a",
        "ID": "a",
        "Check": {"Status": "passing", "TTL": "30s", "DeregisterCriticalServiceAfter": "3600s"},
    }


def test_deregister_after_can_be_switched_off(start: Start, fake: FakeAgent) -> None:
    start(f"url={fake.url},name=a,deregister_after=0")
    assert "DeregisterCriticalServiceAfter" not in sent(fake)["Check"]


@pytest.mark.parametrize(
    ("line", "target"),
    [
        ("check=http:/health?deep=1,port=80", {"HTTP": "http://127.0.0.1:80/health?deep=1"}),
        ("check=http:/,port=80,address=10.0.0.1", {"HTTP": "http://10.0.0.1:80/"}),
        ("check=http:/,port=80,address=fe80::1", {"HTTP": "http://[fe80::1]:80/"}),
        ("check=tcp,port=80,address=shop.example", {"TCP": "shop.example:80"}),
    ],
)
def test_a_check_that_the_agent_makes(
    start: Start, fake: FakeAgent, line: str, target: dict[str, str]
) -> None:
    start(f"url={fake.url},name=a,{line},interval=3,timeout=2,deregister_after=0")
    expected = {"Status": "passing", "Interval": "3s", "Timeout": "2s", **target}
    assert sent(fake)["Check"] == expected


def test_a_real_agent_makes_those_checks(start: Start, agent: Agent, name: str) -> None:
    common = f"url={agent.url},name={name},port=PORT,interval=1"
    start([f"{common},id={name}-tcp,check=tcp", f"{common},id={name}-http,check=http:/"])
    for kind in ("tcp", "http"):
        service_id = f"{name}-{kind}"
        registered(agent, service_id)
        until(lambda i=service_id: agent.check(i)["Output"], "the agent has checked")
        assert agent.status(service_id) == "passing"
        assert agent.check(service_id)["Type"] == kind


def test_given_urls_are_used_as_they_are(start: Start, fake: FakeAgent) -> None:
    fake.behave = lambda _: (200, "")
    uwsgi = start(
        f"register_url={fake.url}/my/register,deregister_url={fake.url}/my/deregister,"
        f"check_url={fake.url}/my/check,name=a,ttl=1,drain=0"
    )
    until(lambda: fake.requests("/my/check"), "it beats")
    uwsgi.signal(2)
    until(lambda: fake.requests("/my/deregister"), "it deregisters")
    assert fake.seen[0].path == "/my/register"
    assert {seen.path for seen in fake.seen} <= {"/my/register", "/my/check", "/my/deregister"}


def test_given_urls_of_the_usual_form_find_the_agent(start: Start, agent: Agent, name: str) -> None:
    uwsgi = start(
        f"register_url={agent.url}/v1/agent/service/register,"
        f"deregister_url={agent.url}/v1/agent/service/deregister/{name},"
        f"check_url={agent.url}/v1/agent/check/pass/service:{name},name={name},ttl=1,drain=0"
    )
    registered(agent, name)
    until(lambda: agent.check(name)["Output"] == "2 workers", "a beat arrives")
    uwsgi.signal(2)
    assert uwsgi.wait() == 0
    assert agent.entries(name) == []


def test_debug_logs_each_request(start: Start, agent: Agent, name: str) -> None:
    uwsgi = start(f"url={agent.url},name={name},debug=1")
    until(lambda: uwsgi.said("debug: PUT"), "a request is logged")
    assert uwsgi.said(f"debug: PUT {agent.url}/v1/agent/service/register: HTTP 200 after ")


def test_nothing_is_logged_but_changes(start: Start, agent: Agent, name: str) -> None:
    uwsgi = start(f"url={agent.url},name={name},ttl=1,drain=0")
    before = registered(agent, name)
    until(lambda: agent.check(name)["Output"] == "2 workers", "a beat arrives")
    uwsgi.signal(2)
    uwsgi.wait()
    assert before["Service"] == name
    expected = [f"[consul] registered {name} as {name}", f"[consul] deregistered {name}"]
    assert uwsgi.consul_lines() == expected


# ---- where the agent is, and who may speak to it ----


@pytest.mark.parametrize("form", ["http://{}", "{}", "http://{}/"])
def test_the_agents_address_from_the_environment(
    start: Start, agent: Agent, name: str, form: str
) -> None:
    address = form.format(agent.url.removeprefix("http://"))
    start(f"name={name}", env={"CONSUL_HTTP_ADDR": address})
    registered(agent, name)


def test_a_key_goes_before_the_environment(start: Start, agent: Agent, name: str) -> None:
    start(f"name={name},url={agent.url}/", env={"CONSUL_HTTP_ADDR": "127.0.0.1:1"})
    registered(agent, name)


def test_a_proxy_is_not_for_the_agent(start: Start, agent: Agent, name: str) -> None:
    start(f"name={name},url={agent.url}", env={"http_proxy": "http://127.0.0.1:1"})
    registered(agent, name)


def test_no_proxy_is_honoured(start: Start, agent: Agent, name: str) -> None:
    with socket.create_server(("127.0.0.2", 0)) as listener:
        fake = FakeAgent(listener)
        line = f"name={name},url=http://127.0.0.2:{fake.port}"
        start(line, env={"http_proxy": "http://127.0.0.1:1", "no_proxy": "a.example,127.0.0.2"})
        until(lambda: fake.services, "it is registered without the proxy")
        start(line + ",id=b", env={"http_proxy": agent.url, "NO_PROXY": "a.example"}).ready()
        time.sleep(1)
        assert set(fake.services) == {name}
        fake.close()


def place(secure_agent: Agent) -> Path:
    return secure_agent.log.parent


def test_a_token(start: Start, secure_agent: Agent, name: str, service_token: str) -> None:
    uwsgi = start(f"url={secure_agent.url},name={name},token={service_token},debug=1,ttl=1,drain=0")
    registered(secure_agent, name)
    until(lambda: uwsgi.said("check/pass"), "a beat is logged")
    uwsgi.signal(2)
    assert uwsgi.wait() == 0
    assert secure_agent.entries(name) == []
    assert service_token not in uwsgi.log


def test_a_token_of_the_environment(
    start: Start, secure_agent: Agent, name: str, service_token: str
) -> None:
    uwsgi = start(
        f"url={secure_agent.url},name={name},debug=1", env={"CONSUL_HTTP_TOKEN": service_token}
    )
    registered(secure_agent, name)
    assert service_token not in uwsgi.log
    assert service_token not in Path(f"/proc/{uwsgi.pid}/cmdline").read_text()


@pytest.mark.parametrize("how", ["key", "environment"])
def test_a_token_file_is_read_again_when_it_changes(
    start: Start, secure_agent: Agent, name: str, service_token: str, tmp_path: Path, how: str
) -> None:
    token = tmp_path / "token"
    token.write_text("wrong\n")
    key = f",token_file={token}" if how == "key" else ""
    env = {} if how == "key" else {"CONSUL_HTTP_TOKEN_FILE": str(token)}
    uwsgi = start(f"url={secure_agent.url},name={name}{key},debug=1", env=env)
    until(lambda: uwsgi.said("refuses its registration: HTTP 403"), "the wrong token is refused")
    replacement = tmp_path / "replacement"
    replacement.write_text(f"{service_token}\nand something else\n")
    replacement.rename(token)
    registered(secure_agent, name)
    assert service_token not in uwsgi.log
    assert "wrong" not in uwsgi.log


def test_another_token_registers_everything_anew(
    start: Start, secure_agent: Agent, name: str, tmp_path: Path
) -> None:
    """The agent holds on to the token of a registration: with a dead one it could never change."""
    first, second = (_make_token(secure_agent) for _ in range(2))
    token = tmp_path / "token"
    token.write_text(first["SecretID"])
    uwsgi = start(
        f"url={secure_agent.url},name={name},token_file={token},ttl=1,drain=0", processes=1
    ).ready()
    registered(secure_agent, name)
    token.write_text(second["SecretID"])
    until(lambda: uwsgi.said_times(f"registered {name}") == 2, "it is registered anew")
    secure_agent.call("DELETE", f"/v1/acl/token/{first['AccessorID']}")
    until(lambda: secure_agent.passing(name), "it is passing")
    holder = uwsgi.stuck_requests(2)
    until(lambda: not secure_agent.passing(name), "the catalog knows that the worker hangs")
    holder.unlink()
    uwsgi.signal(2)
    assert uwsgi.wait() == 0
    until(lambda: not secure_agent.entries(name), "it is gone from the catalog")


def _make_token(secure_agent: Agent) -> dict[str, str]:
    body = json.dumps({"Policies": [{"Name": "web"}]})
    made: dict[str, str] = secure_agent.call("PUT", "/v1/acl/token", data=body).json()
    return made


def test_a_register_url_without_a_scheme_is_the_same_place(start: Start, fake: FakeAgent) -> None:
    """Legal for curl: a reload does not take its own service for one that it has to take back."""
    place = fake.url.removeprefix("http://") + "/v1/agent"
    uwsgi = start(
        f"name=a,ttl=1,register_url={place}/service/register,"
        f"deregister_url={place}/service/deregister/a,check_url={place}/check/pass/service:a"
    ).ready()
    until(lambda: fake.services, "it is registered")
    uwsgi.signal(signal.SIGHUP)
    until(lambda: len(fake.requests("/service/register")) == 2, "it has reloaded")
    until(lambda: fake.requests("/check/")[1:], "it beats")
    assert fake.requests("/service/deregister/") == []


@pytest.mark.parametrize("how", ["vanishes", "is written anew"])
def test_a_token_file_without_a_token(
    start: Start, secure_agent: Agent, name: str, service_token: str, tmp_path: Path, how: str
) -> None:
    token = tmp_path / "token"
    token.write_text(service_token)
    uwsgi = start(f"url={secure_agent.url},name={name},token_file={token},ttl=1")
    registered(secure_agent, name)
    if how == "vanishes":
        token.unlink()
    else:
        token.write_text("\n")
    until(lambda: uwsgi.said("going on with the last token"), "it is noticed")
    until(lambda: secure_agent.check(name)["Output"] == "2 workers", "a beat arrives")
    assert sum("last token" in line for line in uwsgi.consul_lines()) == 1


def test_a_unix_socket(start: Start, secure_agent: Agent, name: str, service_token: str) -> None:
    path = place(secure_agent) / "api.sock"
    start(f"url=unix://{path},name={name},token={service_token},ttl=1")
    registered(secure_agent, name)
    until(lambda: secure_agent.check(name)["Output"] == "2 workers", "a beat arrives")


def test_a_unix_socket_of_the_environment(
    start: Start, secure_agent: Agent, name: str, service_token: str
) -> None:
    address = f"unix://{place(secure_agent)}/api.sock"
    start(f"name={name},token={service_token}", env={"CONSUL_HTTP_ADDR": address})
    registered(secure_agent, name)


def https(secure_agent: Agent) -> str:
    return f"https://localhost:{(place(secure_agent) / 'https_port').read_text()}"


def test_tls(start: Start, secure_agent: Agent, name: str, service_token: str) -> None:
    files = place(secure_agent)
    start(
        f"url={https(secure_agent)},name={name},token={service_token},ttl=1,"
        f"ca_file={files}/ca.crt,cert_file={files}/client.crt,key_file={files}/client.key"
    )
    registered(secure_agent, name)
    until(lambda: secure_agent.check(name)["Output"] == "2 workers", "a beat arrives")


def test_tls_of_the_environment(
    start: Start, secure_agent: Agent, name: str, service_token: str
) -> None:
    files = place(secure_agent)
    env = {
        "CONSUL_HTTP_ADDR": https(secure_agent),
        "CONSUL_CACERT": f"{files}/ca.crt",
        "CONSUL_CLIENT_CERT": f"{files}/client.crt",
        "CONSUL_CLIENT_KEY": f"{files}/client.key",
        "CONSUL_HTTP_TOKEN": service_token,
    }
    start(f"name={name}", env=env)
    registered(secure_agent, name)


@pytest.mark.parametrize("how", ["key", "environment"])
def test_tls_without_verification(
    start: Start, secure_agent: Agent, name: str, service_token: str, how: str
) -> None:
    files = place(secure_agent)
    start(
        f"url={https(secure_agent)},name={name},token={service_token},"
        f"cert_file={files}/client.crt,key_file={files}/client.key"
        + (",ssl_no_verify=1" if how == "key" else ""),
        env={} if how == "key" else {"CONSUL_HTTP_SSL_VERIFY": "false"},
    )
    registered(secure_agent, name)


def test_an_agent_that_nobody_vouches_for(
    start: Start, secure_agent: Agent, name: str, service_token: str
) -> None:
    files = place(secure_agent)
    uwsgi = start(
        f"url={https(secure_agent)},name={name},token={service_token},"
        f"cert_file={files}/client.crt,key_file={files}/client.key"
    )
    until(lambda: uwsgi.said("no answer from the agent"), "the certificate is refused")
    assert secure_agent.entries(name) == []


def test_only_the_given_authority_is_believed(
    start: Start, secure_agent: Agent, name: str, service_token: str, tmp_path: Path
) -> None:
    """The agent's own is among the system's here, in a namespace of this uWSGI, but not the one."""
    files = place(secure_agent)
    system = tmp_path / "system"
    system.mkdir()
    shutil.copy(files / "ca.crt", system)
    subprocess.run(["openssl", "rehash", str(system)], check=True)
    other = tmp_path / "other.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "/dev/null",
         "-out", str(other), "-subj", "/CN=other"],
        check=True, capture_output=True,
    )  # fmt: skip
    mount = f'mount --bind {system} /etc/ssl/certs && exec "$@"'
    line = (
        f"url={https(secure_agent)},name={name},token={service_token},"
        f"cert_file={files}/client.crt,key_file={files}/client.key"
    )
    uwsgi = start(
        [f"{line},id={name}-1,ca_file={other}", f"{line},id={name}-2,ca_file={files}/ca.crt"],
        wrapper=["unshare", "--mount", "sh", "-c", mount, "sh"],
    ).ready()
    registered(secure_agent, f"{name}-2")
    until(lambda: uwsgi.said("no answer from the agent"), "the certificate is refused")
    time.sleep(0.5)
    assert f"{name}-1" not in secure_agent.get("/v1/agent/services")


@pytest.fixture
def far_away(secure_agent: Agent) -> Iterator[Callable[[float], int]]:
    """Ports that lead to the agent's HTTPS, where what was first said takes so many seconds."""
    https_port = int((place(secure_agent) / "https_port").read_text())
    with contextlib.ExitStack() as stack:

        def make(delay: float) -> int:
            def wait(_client: socket.socket) -> bool:
                time.sleep(delay)
                return True

            return stack.enter_context(leading_to(("127.0.0.1", https_port), wait))

        yield make


def test_a_slow_handshake(
    start: Start,
    secure_agent: Agent,
    name: str,
    service_token: str,
    far_away: Callable[[float], int],
) -> None:
    files = place(secure_agent)
    common = (
        f"name={name},token={service_token},ca_file={files}/ca.crt,"
        f"cert_file={files}/client.crt,key_file={files}/client.key"
    )
    uwsgi = start(
        [
            f"{common},id={name}-1,url=https://localhost:{far_away(1.2)}",
            f"{common},id={name}-2,url=https://localhost:{far_away(2)},connect_timeout=1",
        ]
    ).ready()
    registered(secure_agent, f"{name}-1")
    until(lambda: uwsgi.said("no answer from the agent"), "the other one takes too long")
    time.sleep(1.5)
    assert f"{name}-2" not in secure_agent.get("/v1/agent/services")


def test_many_services_share_a_thread_and_a_connection(start: Start, fake: FakeAgent) -> None:
    uwsgi = start([f"url={fake.url},name=a,id=a{number},ttl=1" for number in range(20)])
    until(lambda: len(fake.requests("/check/pass/")) > 60, "all of them beat")
    assert len(fake.services) == 20
    assert fake.connections < 20, "one, and others where something takes its time"
    assert "Threads:\t2\n" in Path(f"/proc/{uwsgi.pid}/status").read_text()


def test_the_registration_is_json(start: Start, fake: FakeAgent) -> None:
    start(f'url={fake.url},name=a"b\\\\c,tags=d"e f\\\\g,meta=h:i"j')
    body = sent(fake)
    assert body["Name"] == 'a"b\\c'
    assert body["Tags"] == ['d"e', "f\\g"]
    assert body["Meta"]["h"] == 'i"j'
    assert json.dumps(body)
