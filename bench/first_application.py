"""A Django project with sqlite from nothing to its eleventh release, as a stranger types it.

Installs the wheel, makes a folder with `uwsgi-consul-fleet new` and deploys what
`django-admin startproject` made, with its TODOs filled in, to one lab machine. Logs in to the admin
and then releases the project again and again, each time with a migration and another static file.
After each: is whoever logged in first still in, can one log in anew, is the file there and the row
that the migration wrote? The wheel, the folder and the machine are gone afterwards.

    python bench/first_application.py [--releases 10]
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path

import requests

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/support"))

import checkout  # noqa: E402
import figures  # noqa: E402
import wheel  # noqa: E402
from applications import commit  # noqa: E402
from django_project import DjangoProject  # noqa: E402
from lab_commands import Lab  # noqa: E402

HOST = "drakar"
WHO = {"username": "anna", "password": "drakar-and-cheetah"}
SUPERUSER = (
    "DJANGO_SUPERUSER_PASSWORD={password} python manage.py createsuperuser --noinput "
    "--username {username} --email anna@example.com"
).format(**WHO)
FILLED_IN = {
    "app_shared": ["db.sqlite3"],
    "app_secrets": ["SECRET_KEY"],
    "health_path": "/admin/login/",
    "min_healthy_time": 1,
}
NOTED = 'apps.get_model("log.Entry").objects.create(text="{0}")'


class Stranger:
    """Its folder `fleet`, beside a repository with the project, and what is typed there."""

    def __init__(self, top: Path, environment: Path) -> None:
        self._environment = environment
        self.folder = top / "fleet"
        self.project = DjangoProject(top)
        self.project.write("mysite/settings.py", "DEBUG = False\n")
        self.project.write(".gitignore", "db.sqlite3\nstaticfiles/\n")
        commit(self.project.folder, "first")
        self.types("uwsgi-consul-fleet", "new", "fleet", "--app", "site", folder=top)
        self._fill_in("applications/site.py", FILLED_IN | {"app_secrets_file": "../secrets.env"})
        hosts = {"consul_servers": [HOST], "app_servers": [HOST]}
        self._fill_in("inventory.py", hosts)

    def _fill_in(self, name: str, settings: dict[str, object]) -> None:
        path = self.folder / name
        text = path.read_text()
        for key, value in settings.items():
            text, count = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value!r}", text)
            assert count == 1, f"{key} in {name}"
        path.write_text(text)

    def types(self, *words: str, folder: Path | None = None) -> str:
        """A command that has to succeed; returns what it says."""
        result = wheel.run(self._environment, folder or self.folder, *words)
        if result.returncode:
            sys.exit(f"{' '.join(words)}:\n{result.stdout}{result.stderr}")
        return result.stdout

    def deploy(self) -> None:
        """What `new` says last."""
        self.types("pyinfra", "-y", "inventory.py", "deploy/")
        self.types("invoke", "verify", "--wait", "10")

    def release(self, number: int) -> None:
        """Another static file, and a migration that writes a row."""
        before = f"{number:04}_next" if number > 1 else "0001_first"
        self.project.migration(f"{number + 1:04}_next", before, NOTED.format(number))
        self.project.write(f"static/{number}.txt", f"{number}\n")
        commit(self.project.folder, f"{number}")
        self.deploy()


class Visitor:
    """Somebody with a browser, as far as the admin asks for one."""

    def __init__(self, address: str) -> None:
        self._site = f"http://{address}"
        self._session = requests.Session()

    def log_in(self) -> bool:
        url = f"{self._site}/admin/login/"
        self._session.get(url, timeout=10).raise_for_status()
        token = self._session.cookies["csrftoken"]
        form = {**WHO, "csrfmiddlewaretoken": token, "next": "/admin/"}
        answer = self._session.post(url, form, headers={"Referer": url}, timeout=10)
        return answer.ok and self.is_in()

    def is_in(self) -> bool:
        """Whether the admin shows itself, without another log-in."""
        answer = self._session.get(f"{self._site}/admin/", timeout=10)
        return answer.ok and "Site administration" in answer.text and not answer.history

    def reads(self, path: str) -> str:
        answer = self._session.get(f"{self._site}/{path}", timeout=10)
        return answer.text.strip() if answer.ok else f"status {answer.status_code}"


def measure(stranger: Stranger, address: str, releases: int) -> bool:
    first, good = Visitor(address), 0
    if not first.log_in():
        sys.exit("the first log-in failed")
    for number in range(1, releases + 1):
        begin = time.monotonic()
        stranger.release(number)
        took = time.monotonic() - begin
        found = {
            "still in": first.is_in(),
            "a log-in": Visitor(address).log_in(),
            "its file": first.reads(f"static/{number}.txt") == f"{number}",
            "rows": first.reads("entries") == f"{number}",
        }
        good += all(found.values())
        missing = [what for what, there in found.items() if not there]
        print(f"{number}: {took:.1f} s", *(missing and ["without", *missing]), flush=True)
    print(f"{good} of {releases} releases with log-in, session, static file and migration")
    return good == releases


def try_it(top: Path, releases: int) -> bool:
    with wheel.installed(wheel.build(top), top / "environment") as environment:
        stranger = Stranger(top, environment)
        lab = Lab(stranger.folder)
        begin = time.monotonic()
        try:
            lab.up(HOST)
            stranger.types("invoke", "build-plugin")
            stranger.deploy()
            print(f"from lab.up to verified: {time.monotonic() - begin:.0f} s", flush=True)
            stranger.types("invoke", "exec", "--once", "--", "sh", "-c", SUPERUSER)
            return measure(stranger, f"{lab.address(HOST)}:2001", releases)
        finally:
            lab.down()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--releases", type=int, default=10, help="after the first (10)")
    options = figures.parse(parser, "one further release")
    checkout.enter()
    with tempfile.TemporaryDirectory(prefix="first-") as folder:
        return 0 if try_it(Path(folder), 1 if options.once else options.releases) else 1


if __name__ == "__main__":
    sys.exit(main())
