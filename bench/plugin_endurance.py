"""What many reloads and many beats do to the plugin's memory.

    bench/plugin_endurance.py                500 reloads, 60 s of beats: ten minutes
    bench/plugin_endurance.py --reloads 50   fewer of them

The reloads run with AddressSanitizer and UndefinedBehaviorSanitizer, the beats without: a
hundred services with a ttl of one second are 300 beats a second, and the figure is what uWSGI's
master grew by between the first second and the last.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/support"))

import figures  # noqa: E402
from consul_processes import until  # noqa: E402
from uwsgi_processes import SANITIZERS, Agent, FakeAgent, Uwsgi, build_plugin  # noqa: E402


def private_kilobytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    assert found
    return int(found[1])


def reload_often(folder: Path, times: int) -> bool:
    plugin = build_plugin(folder / "sanitized", flags=SANITIZERS)
    (folder / "agent").mkdir()
    agent = Agent(folder / "agent")
    agent.start()
    # A worker that has just been forked can lose a signal, with any plugin and with none:
    # then uWSGI waits for its mercy to be over, a minute by default.
    options = ["worker-reload-mercy = 5"]
    line = f"url={agent.url},name=shop,ttl=2"
    uwsgi = Uwsgi(folder / "uwsgi", plugin, [line], processes=1, options=options)
    try:
        for number in range(times):
            until(lambda n=number: uwsgi.said_times("registered") > n, "it registers", 30)
            uwsgi.signal(signal.SIGHUP)
            if number % 50 == 49:
                print(f"  {number + 1} reloads", file=sys.stderr, flush=True)
        until(lambda: uwsgi.said_times("registered") > times, "it registers", 30)
        passing = len(agent.passing("shop"))
        uwsgi.signal(signal.SIGINT)
        code = uwsgi.wait()
        reports = [report.read_text() for report in uwsgi.folder.glob("sanitizer*")]
    finally:
        uwsgi.destroy()
        agent.kill()
    print(
        f"{times} reloads with sanitizers: {len(reports)} findings, {passing} of 1 passing at the "
        f"end, then exit {code}"
    )
    for report in reports:
        print(report, file=sys.stderr)
    return not reports and passing == 1 and code == 0


def beat_often(folder: Path, seconds: int) -> bool:
    plugin = build_plugin(folder / "plain")
    fake = FakeAgent()
    lines = [f"url={fake.url},name=shop,id=shop-{number},ttl=1,drain=0" for number in range(100)]
    uwsgi = Uwsgi(folder / "beats", plugin, lines, processes=1).ready()
    try:
        until(lambda: len(fake.requests("/check/pass/")) > 300, "all of them beat", 30)
        fake.seen.clear()
        before = private_kilobytes(uwsgi.pid)
        time.sleep(seconds)
        grown = private_kilobytes(uwsgi.pid) - before
        beats = len(fake.requests("/check/pass/"))
    finally:
        uwsgi.destroy()
        fake.close()
    print(f"{beats} beats of 100 services in {seconds} s: the master grew by {grown} kB")
    return grown < 64


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reloads", type=int, default=500, help="how many (500)")
    parser.add_argument("--seconds", type=int, default=60, help="of beats (60)")
    options = figures.parse(parser, "three reloads, two seconds of beats")
    if options.once:
        options.reloads, options.seconds = 3, 2
    with tempfile.TemporaryDirectory(prefix="plugin-endurance-") as folder:
        # Of two seconds the growth says nothing.
        fine = beat_often(Path(folder), options.seconds) or options.once
        return 0 if reload_often(Path(folder), options.reloads) and fine else 1


if __name__ == "__main__":
    sys.exit(main())
