"""How long a deploy with nothing to change takes over a hundred hosts.

Deploys to two lab machines and records what one of them answers then. A hundred hosts of
pyinfra's `@fake` connector answer the same at once, each with what is its own in it: so what is
measured is the deploy itself. The lock is held on the real Consul server, as always. Leaves the
machines up.

    python bench/hundred_hosts.py [--hosts 100] [--runs 5]
"""

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import figures

from uwsgi_consul_fleet.inventory.model import Fleet, Host
from uwsgi_consul_fleet.inventory.reading import read
from uwsgi_consul_fleet.operations import state
from uwsgi_consul_fleet.operations.applications.package import make
from uwsgi_consul_fleet.operations.applications.release import read as read_release
from uwsgi_consul_fleet.operations.consul import configuration, secrets
from uwsgi_consul_fleet.operations.consul.rounds import LAST
from uwsgi_consul_fleet.operations.files import RemoteFile
from uwsgi_consul_fleet.operations.uwsgi.uwsgi import plugin_file
from uwsgi_consul_fleet.secrets import certificates, store, tokens
from uwsgi_consul_fleet.ssh import options as ssh

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
SERVER, RECORDED = "drakar", "cheetah"
INVENTORY = ROOT / ".lab/bench_hundred.py"


def run(name: str, *words: str) -> str:
    command = [str(BIN / name), *words]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(result.stdout + result.stderr)
    return result.stdout


def deploy(*options: str) -> str:
    return run("pyinfra", "-y", *options, str(INVENTORY), "deploy/")


def write(fakes: list[tuple[str, dict[str, Any]]]) -> None:
    apps = [SERVER, RECORDED, *fakes]
    INVENTORY.write_text(f"consul_servers = ['{SERVER}']\napp_servers = {apps!r}\n")


def fakes(count: int) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"@fake/host{n:03}", {"address": f"10.99.{n // 250}.{n % 250 + 1}"}) for n in range(count)
    ]


def record(host: Host) -> str:
    """What a real host answers to the only question that such a deploy has."""
    asked = state.State().command(**state.about(host))
    command = ["ssh", "-F", str(ROOT / ".lab/ssh_config"), host.name, f"sudo {asked}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def own(host: Host, fleet: Fleet, known: state.HostState) -> list[str]:
    """What only this host has in its answer when the deploy is through with it."""
    (app_host,) = host.applications
    label, its = known.consul_in_use, known.of(app_host.app)
    plugin, made = plugin_file(its), its.generations[its.current_generation]
    release = read_release(app_host.settings)
    package = make(app_host, replace(release, name=made["release"], resolution=made["resolution"]))
    assert plugin, f"{host.name} has no plugin"
    files = [*configuration.files(host, fleet, label, LAST), *of_secrets(host)]
    sums = [file.state.sha256 for file in files]
    return [
        *sums,
        configuration.digest(host, fleet, label, LAST),
        package.generation(plugin, its.python),
    ]


def of_secrets(host: Host) -> list[RemoteFile]:
    """The files that its agent and its application have of the fleet's secrets."""
    (app_host,) = host.applications
    kept = store.load(host)
    assert kept, "the deploy has made them"
    (agents,) = secrets.variants(host, kept, [kept.seed])
    token = tokens.secret(kept.seed, tokens.app(host.node, app_host.app))
    return [RemoteFile("", text, "640", "root", "") for text in (agents, f"{token}\n")]


def certificate(host: Host) -> str:
    """What its agent may show, as its answer has it."""
    kept = store.load(host)
    assert kept
    names = (host.node, host.address, host.settings.datacenter, host.is_consul_server)
    return as_answered(certificates.issue(kept, *names, datetime.now(UTC)))


def as_answered(pem: str) -> str:
    return certificates.public_part(pem).strip().replace("\n", " ")


def answers(fleet: Fleet) -> dict[str, str]:
    """Each host's, made of the recorded one."""
    host = fleet.host(RECORDED)
    recorded = record(host)
    known = state.parse(recorded.splitlines())
    mine, made = own(host, fleet, known), {}
    if missing := [word for word in mine if word not in recorded]:
        sys.exit(f"{host.name} is not as the deploy leaves it, without {missing}:\n{recorded}")
    shown = as_answered(known.certificate)
    assert shown in recorded
    address = re.compile(rf"\b{re.escape(host.address)}\b")
    for other in fleet.app_servers:
        made[other.name] = address.sub(other.address, recorded)
        made[other.name] = made[other.name].replace(shown, certificate(other))
        for word, others in zip(mine, own(other, fleet, known), strict=True):
            made[other.name] = made[other.name].replace(word, others)
    return made


def expect_no_changes(count: int) -> None:
    """Every host takes part, and each finds everything as it should be."""
    results = json.loads(deploy("--json"))["results"]
    totals = results["totals"]
    if totals["success"] or totals["error"]:
        sys.exit(f"a run that should change nothing did: {results}")
    # The roll-out is over: the last operation, in which every host takes part.
    if len(results["operations"][-1]["no_change"]) != count:
        sys.exit(f"not all of {count} hosts took part: {results}")
    print(f"nothing to change: {totals}")


def timed() -> tuple[float, float]:
    """Seconds of one run: on the clock, and of processors."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    deploy()
    after, end = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return end - begin, spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, default=100, help="how many (default 100)")
    parser.add_argument("--runs", type=int, default=5, help="timed runs (default 5)")
    options = figures.parse(parser, "one run over ten hosts")
    if options.once:
        options.hosts, options.runs = 10, 1
    os.chdir(ROOT)
    run("invoke", "lab.up", SERVER, RECORDED)
    write([])
    run("invoke", "build-plugin", "--inventory", str(INVENTORY))
    deploy()
    hosts = fakes(options.hosts)
    write(hosts)
    # The others' addresses are let in.
    deploy("--limit", SERVER, "--limit", RECORDED)
    fleet = read(INVENTORY, ssh.address)
    answer, asked = answers(fleet), " state "
    for name, data in hosts:
        data |= {"fake_responses": {asked: answer[name]}, "fake_delay": 0, "fake_delay_jitter": 0}
    write(hosts)
    expect_no_changes(len(fleet.hosts))
    walls, spent = zip(*(timed() for _ in range(options.runs)), strict=True)
    print(
        f"{options.hosts} hosts: median {statistics.median(walls):.2f} s "
        f"(min {min(walls):.2f}, max {max(walls):.2f}; required: at most 5 s for 100), of which a "
        f"processor {statistics.median(spent):.2f} s; load average {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
