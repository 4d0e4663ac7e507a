"""A mistake in the configuration refuses the start with one line that says what is allowed."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from uwsgi_processes import Uwsgi, preloaded

MISTAKES = [
    ("port=80", "name is missing: name=SERVICE is required"),
    ("name=", "name is missing"),
    ("name=a,prot=9091", "prot=9091: no such key, did you mean port?"),
    ("name=a,tll=9", "tll=9: no such key, did you mean ttl?"),
    ("name=a,deregister-after=90", "did you mean deregister_after?"),
    ("name=a,portt", "what follows name has no '='"),
    ("name=a,ttl=0", "ttl=0: a number from 1 to 86400 is allowed"),
    ("name=a,ttl=-5", "ttl=-5: a number from 1 to 86400 is allowed"),
    ("name=a,ttl=soon", "ttl=soon: a number from 1 to 86400 is allowed"),
    ("name=a,ttl=5s", "ttl=5s: a number from 1 to 86400 is allowed"),
    ("name=a,ttl=99999999999999999999", "a number from 1 to 86400 is allowed"),
    ("name=a,ttl=", "ttl=: a number from 1 to 86400 is allowed"),
    ("name=a,ttl= 5", "ttl= 5: a number from 1 to 86400 is allowed"),
    ("name=a,port=0", "port=0: a number from 1 to 65535 is allowed"),
    ("name=a,port=65536", "port=65536: a number from 1 to 65535 is allowed"),
    ("name=a,port=http", "port=http: a number from 1 to 65535 is allowed"),
    ("name=a,drain=-1", "drain=-1: a number from 0 to 3600 is allowed"),
    ("name=a,weight=0", "weight=0: a number from 1 to 65535 is allowed"),
    ("name=a,deregister_after=59", "deregister_after=59: a number from 60 to 31536000 is allowed"),
    ("name=a,address=0.0.0.0", "address=0.0.0.0: an address that clients can connect to"),
    ("name=a,address=::", "address=::: an address that clients can connect to"),
    ("name=a,address=a b", "address=a b: an IP address or host name is allowed"),
    ("name=a,id=..", 'id=..: ".", ".." or nothing between slashes is not allowed'),
    ("name=a,id=x//y", "id=x//y:"),
    ("name=a,id=/x", "id=/x:"),
    ("name=a,check=http:/health", "check=http:/health: is allowed only with port=NUMBER"),
    ("name=a,check=tcp", "check=tcp: is allowed only with port=NUMBER"),
    ("name=a,port=1,check=grpc", "check=grpc: ttl, tcp, http:/PATH or https:/PATH is allowed"),
    ("name=a,interval=5", "interval=5: is allowed only together with check=tcp, "),
    ("name=a,timeout=5", "timeout=5: is allowed only together with check=tcp, "),
    ("name=a,host=b", "host=b: no such key, did you mean address, or check_header=Host:NAME?"),
    ("name=a,body=b", "body=b: no such key, did you mean check_body?"),
    ("name=a,check_port=5", "check_port=5: is allowed only together with check=tcp, check=http"),
    (
        "name=a,port=1,check=tcp,check_method=GET",
        "check_method=GET: is allowed only together with check=http:/PATH or check=https:/PATH",
    ),
    (
        "name=a,port=1,check=http:/,check_tls_server_name=b",
        "check_tls_server_name=b: is allowed only together with check=https:/PATH",
    ),
    ("name=a,port=1,check=http:/,check_method=get", "check_method=get: a method such as GET"),
    ("name=a,port=1,check=http:/,check_address=a b", "check_address=a b: an IP address or host"),
    ("name=a,success_before_passing=0", "a number from 1 to 1000 is allowed"),
    ("name=a,connect_timeout=0", "connect_timeout=0: a number from 1 to 60 is allowed"),
    ("name=a,stuck_after=0", "stuck_after=0: a number from 1 to 86400 is allowed"),
    ("name=a,stop_timeout=-1", "stop_timeout=-1: a number from 0 to 3600 is allowed"),
    ("name=a,tagged_addresses=wan", "tagged_addresses=wan: TAG:ADDRESS or TAG:ADDRESS:PORT words"),
    ("name=a,tagged_addresses=wan:h:0", "tagged_addresses=wan:h:0: TAG:ADDRESS"),
    ("name=a,tagged_addresses=wan:[::1]x", "tagged_addresses=wan:[::1]x: TAG:ADDRESS"),
    ("name=a,tagged_addresses=wan:a wan:b", "tagged_addresses=wan:b: TAG:ADDRESS"),
    ("name=a,meta=ok:1 release", "meta=release: up to 63 KEY:VALUE words are allowed"),
    ("name=a,meta=release", "meta=release: up to 63 KEY:VALUE words are allowed"),
    ("name=a,meta=a.b:c", "meta=a.b:c: up to 63 KEY:VALUE words are allowed"),
    ("name=a,meta=consul-x:c", "not beginning with consul-"),
    ("name=a,meta=uwsgi_owner:me", "meta=uwsgi_owner:me: up to 63"),
    ("name=a,wait_workers=perhaps", "wait_workers=perhaps: 1 or 0, true or false, is allowed"),
    ("name=a,token_file=/nowhere/token", "token_file=/nowhere/token: a readable file is required"),
    ("name=a,ca_file=/nowhere/ca", "ca_file=/nowhere/ca: a readable file is required"),
    ("name=a,cert_file=/nowhere/c", "cert_file=/nowhere/c: a readable file is required"),
    ("name=a,key_file=/nowhere/k", "key_file=/nowhere/k: a readable file is required"),
    ("name=a,token=x,token_file=/dev/null", "token_file=/dev/null: is not allowed together with"),
    (
        "name=a,url=ftp://host",
        "url=ftp://host: http://HOST:PORT, https://HOST:PORT or unix:///PATH",
    ),
    ("name=a,url=http://", "url=http://: http://HOST:PORT"),
    ("name=a,url=unix://relative", "url=unix://relative: http://HOST:PORT"),
]


@pytest.mark.parametrize(("line", "said"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_refuses_the_start(start: Callable[..., Uwsgi], line: str, said: str) -> None:
    uwsgi = start(line)
    assert uwsgi.wait() == 1
    (only,) = uwsgi.consul_lines()
    assert only.startswith("[consul] consul-register: ")
    assert said in only


def test_the_same_id_twice_is_refused(start: Callable[..., Uwsgi]) -> None:
    uwsgi = start(["name=a,id=x", "name=b,id=x"])
    assert uwsgi.wait() == 1
    assert uwsgi.said("id=x: is there twice")


def test_the_same_name_twice_without_ids_is_refused(start: Callable[..., Uwsgi]) -> None:
    uwsgi = start(["name=a", "name=a"])
    assert uwsgi.wait() == 1
    assert uwsgi.said("id=a: is there twice")


SECRETS = [
    "name=a,token=s3cr3t,ttl=no",
    "name=a,tokn=s3cr3t",
    "name=a,token =s3cr3t",
    "name=a,tocken=s3cr3t",
    "name=a,acl_token=s3cr3t",
    "name=a,password=s3cr3t",
    "name=a,token=s3,s3cr3t",
    "name=a,url=ftp://me:s3cr3t@host",
    "name=a,url=ftp://host/?token=s3cr3t",
    "name=a,urll=http://me:s3cr3t@host",
    "name=a,token=s3cr3t" + "x" * 600,
    "name=a,token=s3cr3t,token_file=/dev/null",
    "name=a,port=1,check=tcp,check_header=Authorization:s3cr3t",
    "name=a,port=1,check=http:/,check_header=s3cr3t",
]


@pytest.mark.parametrize("line", SECRETS)
def test_a_refusal_does_not_tell_a_secret(start: Callable[..., Uwsgi], line: str) -> None:
    uwsgi = start(line)
    assert uwsgi.wait() == 1
    assert uwsgi.said("consul-register: ")
    assert "s3cr3t" not in uwsgi.log


def test_text_that_is_none_is_refused(start: Callable[..., Uwsgi], tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "name").write_bytes(b"broken\xff")
    uwsgi = start("name=@(name)", folder=folder)
    assert uwsgi.wait() == 1
    assert uwsgi.said("UTF-8 text without control characters is allowed")


def test_a_token_file_of_the_environment_must_be_readable(start: Callable[..., Uwsgi]) -> None:
    uwsgi = start("name=a", env={"CONSUL_HTTP_TOKEN_FILE": "/nowhere/token"})
    assert uwsgi.wait() == 1
    assert uwsgi.said("CONSUL_HTTP_TOKEN_FILE=/nowhere/token: a readable file is required")


def test_a_configuration_can_be_tried(plugin: Path, tmp_path: Path) -> None:
    command = [*preloaded(plugin, tmp_path), "uwsgi", "--plugin", str(plugin), "--no-server"]
    fine = subprocess.run(
        [*command, "--consul-register", "name=a,ttl=9"], capture_output=True, check=False
    )
    assert fine.returncode == 0
    wrong = subprocess.run(
        [*command, "--consul-register", "name=a,tll=9"], capture_output=True, check=False
    )
    assert wrong.returncode == 1
    assert b"did you mean ttl?" in wrong.stderr


def test_the_help_lists_every_key(plugin: Path, tmp_path: Path) -> None:
    command = [*preloaded(plugin, tmp_path), "uwsgi", "--plugin", str(plugin), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    help_text = next(line for line in shown.splitlines() if "--consul-register" in line)
    source = (Path(__file__).parents[2] / "plugin_build/src/options.c").read_text()
    keys = re.findall(r"^    (?:TEXT|LIST|NUMBER|SWITCH)_KEY\((\w+)", source, re.MULTILINE)
    assert len(keys) > 38
    assert [key for key in keys if not re.search(rf"\b{key}\b", help_text)] == []
