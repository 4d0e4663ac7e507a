"""Releases of a Django project with a migration in each, under load that reads and writes.

Starts two lab machines, one of them with PostgreSQL, builds the plugin and deploys. Then releases
the project again and again while sixteen clients ask it, half of them discovering through Consul
before each request; each second request writes a row. Each release adds a column, which its code
uses and the one before does not know, and notes in the table that it did. The last release's
migration fails. Leaves the machines up.

    python bench/migrations.py [--releases 10]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from shlex import quote

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/support"))

import checkout  # noqa: E402
import figures  # noqa: E402
from applications import commit  # noqa: E402
from django_project import DjangoProject  # noqa: E402
from fleet_commands import Fleet, output  # noqa: E402
from lab_commands import Lab  # noqa: E402
from load import Load, Window, instances  # noqa: E402

HOSTS = ("drakar", "cheetah")
PAUSE = 0.5  # seconds from one request of a client to its next
POSTGRES = """
apt-get -qq update
DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install postgresql >/dev/null
cd /etc/postgresql/*/main
grep -q shop pg_hba.conf || {
    echo 'host shop shop 0.0.0.0/0 scram-sha-256' >>pg_hba.conf
    echo "listen_addresses = '*'" >>postgresql.conf
    systemctl restart postgresql
    runuser -u postgres -- psql -qc "create role shop login password 'rum'"
}
runuser -u postgres -- psql -qc 'drop database if exists shop' -c 'create database shop owner shop'
"""
SETTINGS = """
DATABASES = {{"default": {{"ENGINE": "django.db.backends.postgresql", "HOST": "{address}",
                          "NAME": "shop", "USER": "shop", "PASSWORD": "rum",
                          "CONN_MAX_AGE": 60}}}}
DEBUG = False
"""
VIEW = """
import os, random
from log import models

def note(request):
    if random.random() < 0.5:
        Entry.objects.create(text="asked", **models.KNOWN)
    else:
        [*Entry.objects.order_by("-id")[:10]]
    return JsonResponse({"port": os.environ["APP_PORT"], "release": os.environ["APP_RELEASE"]})

urlpatterns.append(path("", note))
"""
COLUMN = 'migrations.AddField("Entry", "c{0}", models.IntegerField(null=True)), '
NOTED = 'apps.get_model("log.Entry").objects.create(text="migrated {0}")'


class Shop(DjangoProject):
    """The project on its fleet; `serving` is the release that the fleet is on."""

    def __init__(self, lab: Lab, top: Path) -> None:
        super().__init__(top)
        self.lab, self.fleet = lab, Fleet(ROOT / ".lab/bench_migrations.py")
        self.settings |= {"min_healthy_time": 1, "app_processes": 4}
        self.write("requirements.txt", "psycopg[binary]\n")
        self.write("mysite/settings.py", SETTINGS.format(address=lab.address(HOSTS[0])))
        self.write("mysite/urls.py", VIEW)
        self.write("log/models.py", "\nKNOWN = {}\n")
        self.serving, self._last = "", "0001_first"
        self.fleet.hosts([HOSTS[0]], [(host, self.settings) for host in HOSTS])

    def migrate(self, number: int, code: str) -> None:
        """A column more, and code that uses it."""
        name = f"{number + 1:04}_next"
        self.migration(name, self._last, code, COLUMN.format(number))
        self._last = name
        column = f"    c{number} = models.IntegerField(null=True)\n"
        models = (self.folder / "log/models.py").read_text()
        (self.folder / "log/models.py").write_text(
            models.replace("\n\nKNOWN", f"\n{column}\nKNOWN") + f"KNOWN['c{number}'] = {number}\n"
        )

    def release(self, name: str) -> tuple[bool, str]:
        """Whether it went well, and what was said."""
        commit(self.folder, name)
        result = self.fleet.deploy("--data", f"release={name}", check=False)
        self.serving = name if not result.returncode else self.serving
        return not result.returncode, output(result)

    def noted(self) -> dict[str, int]:
        """How many rows say that each migration ran."""
        query = "select text, count(*) from log_entry where text like 'migrated%' group by text"
        command = f"sudo -u postgres psql -AtF= shop -c {quote(query)}"
        lines = self.lab.ssh(HOSTS[0], command).stdout.splitlines()
        return {text: int(count) for text, _, count in (line.partition("=") for line in lines)}


def measure(shop: Shop, count: int) -> bool:
    went_well, said = shop.release("r0")
    if not went_well:
        sys.exit(said)
    took = []
    with Load(shop.lab, instances(shop.lab, *HOSTS), pause=PAUSE) as load:
        for number in range(1, count + 1):
            shop.migrate(number, NOTED.format(number))
            load.mark(f"r{number}")
            begin = time.monotonic()
            went_well, said = shop.release(f"r{number}")
            took.append(time.monotonic() - begin)
            if not went_well:
                sys.exit(said)
            print(f"r{number}: {took[-1]:.1f} s", flush=True)
        shop.migrate(count + 1, 'raise RuntimeError("the anchor drags")')
        load.mark("one that fails")
        went_well, said = shop.release("broken")
        load.mark("end")
        windows = load.windows()[:-1]
    *well, broken = windows
    once = {f"migrated {number}": 1 for number in range(1, count + 1)}
    fine = shop.noted() == once and not any(window.failed for window in windows)
    stayed = not went_well and "nothing was switched" in said
    stayed &= {*broken.releases} == {*shop.fleet.releases().values()} == {shop.serving}
    show(f"{count} releases with a migration each", well)
    print(f"  rows by migration: {sorted({*shop.noted().values()})}, of {len(shop.noted())}")
    print(f"  a deploy takes {statistics.median(took):.1f} s (median; slowest {max(took):.1f} s)")
    show("one with a migration that fails", [broken])
    print(f"  {'nothing was switched' if stayed else said}")
    return fine and stayed


def show(title: str, windows: list[Window]) -> None:
    requests = sum(window.count for window in windows)
    failed = sum(len(window.failed) for window in windows)
    least = min(window.least_passing for window in windows)
    print(f"{title}: {requests} requests, {failed} failed; at least {least} passing")
    for window in windows:
        if window.failed:
            print(f"  {window}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--releases", type=int, default=10, help="with a migration each (10)")
    options = figures.parse(parser, "one release and one that fails")
    checkout.enter()
    lab = Lab(ROOT)
    lab.up(*HOSTS)
    lab.ssh(HOSTS[0], f"sudo sh -ec {quote(POSTGRES)}")
    with tempfile.TemporaryDirectory(prefix="migrations-") as folder:
        shop = Shop(lab, Path(folder))
        shop.fleet.build()
        return 0 if measure(shop, 1 if options.once else options.releases) else 1


if __name__ == "__main__":
    sys.exit(main())
