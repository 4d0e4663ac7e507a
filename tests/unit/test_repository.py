"""An app_source that is fetched: real git, from folders and from an HTTP server here."""

import base64
import fcntl
import http.server
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import pytest
from sources import git

from uwsgi_consul_fleet import repository as shared
from uwsgi_consul_fleet.inventory.model import InventoryHost, build
from uwsgi_consul_fleet.inventory.settings import DEMO
from uwsgi_consul_fleet.operations.applications import repository
from uwsgi_consul_fleet.operations.applications.release import Release, _read, read
from uwsgi_consul_fleet.operations.plan import DeployError

pytestmark = pytest.mark.takes(11)

PASSWORD = "s3same/4711"


def commit(folder: Path, **files: str) -> str:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "x")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(shared, "operators", lambda: tmp_path / "operator")
    yield tmp_path / "operator"
    _forget()


def _forget() -> None:
    """As another run would."""
    repository.fetch.cache_clear()
    _read.cache_clear()


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A repository with two commits on main, the first of them tagged, and a branch."""
    folder = tmp_path / "upstream" / "shop"
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    commit(folder, a="1\n")
    git(folder, "tag", "--annotate", "--message", "x", "v1")
    git(folder, "branch", "spring/sale")
    commit(folder, a="2\n", b="\n")
    return folder


def released(source: object, ref: object = None, **settings: Any) -> Release:
    _forget()
    data = {**DEMO, "app_source": str(source), "app_ref": ref, "app_requirements": None}
    data |= {"app_ini": None, **settings}
    host = InventoryHost("drakar", frozenset({"consul_servers", "app_servers"}), data)
    return read(build([host], (), (), lambda _: "10.0.3.11").hosts[0].settings)


def files(release: Release) -> dict[str, str]:
    return {each.path: each.place.read_text() for each in release.sources.entries}


def refused(source: object, ref: object = None, **settings: Any) -> str:
    with pytest.raises(DeployError) as caught:
        released(source, ref, **settings)
    said = str(caught.value)
    assert said.endswith("; nothing was changed") and "\n" not in said
    return said


NOW = {"shop/a.py": "2\n", "shop/b.py": "\n"}
FIRST = {"shop/a.py": "1\n"}


def test_a_url_is_fetched_again_by_each_run(shop: Path, cache: Path) -> None:
    url = f"file://{shop}"
    first = released(url)
    assert files(first) == NOW
    assert first.name == git(shop, "rev-parse", "HEAD:")[:10]
    assert first.content == released(shop).content  # as from a folder
    commit(shop, a="3\n")
    assert files(released(url))["shop/a.py"] == "3\n"
    # What an operator did there is gone again.
    (there,) = {each.place.parent for each in released(url).sources.entries}
    (there / "a.py").write_text("mine\n")
    (there / "c.py").touch()
    assert files(released(url)) == {"shop/a.py": "3\n", "shop/b.py": "\n"}
    assert (cache / ".cache/sources/.gitignore").read_text() == "*\n"


@pytest.mark.parametrize("scheme", ["file://", ""])
def test_a_branch_a_tag_or_a_commit(shop: Path, scheme: str) -> None:
    """Of a URL, and of a folder with changes that nobody has committed."""
    source = f"{scheme}{shop}"
    (shop / "a.py").write_text("not committed\n")
    first = git(shop, "rev-parse", "v1^{commit}")
    for ref in ("v1", "spring/sale", first, first[:8], "refs/tags/v1"):
        assert files(released(source, ref)) == FIRST, ref
    assert files(released(source, "main")) == NOW
    assert released(source, "v1").name == git(shop, "rev-parse", "v1^{tree}")[:10]


def test_a_folder_in_a_repository_at_a_commit(shop: Path) -> None:
    (shop / "inner").mkdir()
    commit(shop / "inner", c="3\n")
    git(shop, "rm", "-r", "--quiet", "inner")
    commit(shop, d="4\n")
    (shop / "inner").mkdir()
    before = git(shop, "rev-parse", "HEAD~1")
    assert files(released(shop / "inner", before)) == {"inner/c.py": "3\n"}


def test_what_is_not_there_is_said(shop: Path, tmp_path: Path) -> None:
    url = f"file://{shop}"
    assert refused(url, "summer").startswith(f"app_ref: {url} has no branch, tag or commit summer")
    assert f"{url} has no commit abcdef1234 on a branch" in refused(url, "abcdef1234")
    assert f"{url} has no commit {'1' * 40} on a branch" in refused(url, "1" * 40)
    git(shop, "tag", "main", "v1")
    assert "main is several" in refused(url, "main")
    assert "write refs/heads/main or refs/tags/main" in refused(url, "main")
    assert files(released(url, "refs/heads/main")) == NOW
    assert (
        refused(tmp_path, "v1")
        == f"app_ref: {tmp_path} is in no git repository; nothing was changed"
    )
    gone = f"file://{tmp_path}/gone.git"
    assert refused(gone).startswith(f"app_source: {gone} can't be fetched: fatal: ")
    git(tmp_path, "init", "--quiet", "empty")
    assert "has no commit on its default branch" in refused(f"file://{tmp_path}/empty")


def test_a_clone_has_two_heads_and_one_default_branch(shop: Path) -> None:
    git(shop.parent, "clone", "--quiet", str(shop), "clone")
    assert files(released(f"file://{shop}/../clone")) == {
        path.replace("shop", "clone"): text for path, text in NOW.items()
    }


def test_what_upstream_takes_back_is_no_obstacle(shop: Path) -> None:
    url = f"file://{shop}"
    first = git(shop, "rev-parse", "v1^{commit}")
    git(shop, "branch", "wide")
    assert files(released(url, first[:9])) == FIRST  # every branch is here now
    git(shop, "branch", "--move", "wide", "wide/er")
    git(shop, "reset", "--quiet", "--hard", "v1")
    commit(shop, c="rewritten\n")
    assert files(released(url, "main")) == {**FIRST, "shop/c.py": "rewritten\n"}
    assert files(released(url, git(shop, "rev-parse", "wide/er")[:9])) == NOW


def test_a_commit_that_is_here_needs_nobody(shop: Path) -> None:
    url, first = f"file://{shop}", git(shop, "rev-parse", "v1^{commit}")
    released(url, first)
    shop.rename(shop.with_name("away"))
    assert files(released(url, first)) == FIRST
    assert "can't be fetched" in refused(url, "v1")


def test_the_same_bytes_whatever_git_is_configured_for(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.autocrlf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "true")
    assert [each.place.read_bytes() for each in released(f"file://{shop}").sources.entries] == [
        b"2\n",
        b"\n",
    ]


def _damage(kept: Path) -> None:
    for each in kept.glob("objects/??/*"):
        each.chmod(0o644)
        each.write_bytes(b"")


def _lock(kept: Path) -> None:
    (kept / "config.lock").touch()


def _lose(kept: Path) -> None:
    (kept / "HEAD").write_text("")


@pytest.mark.parametrize("break_it", [_damage, _lock, _lose])
def test_what_a_killed_run_left_is_made_anew(
    shop: Path, cache: Path, break_it: Callable[[Path], None]
) -> None:
    url = f"file://{shop}"
    released(url)
    (kept,) = cache.glob(".cache/sources/shop-*")
    (kept / ("a" * 40)).mkdir()  # half done
    break_it(kept)
    commit(shop, a="3\n")
    assert files(released(url)) == {"shop/a.py": "3\n", "shop/b.py": "\n"}
    assert not (kept / ("a" * 40)).exists()


def test_two_runs_at_once_fetch_the_same(shop: Path) -> None:
    url = f"file://{shop}"
    with ThreadPool(4) as pool:
        found = pool.starmap(repository.fetch.__wrapped__, [(url, None), (url, "v1")] * 2)
    assert [{each.name for each in folder.glob("*.py")} for folder in found] == [
        {"a.py", "b.py"},
        {"a.py"},
    ] * 2


def test_a_run_that_waits_for_another_says_so(
    shop: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    url = f"file://{shop}"
    released(url)
    assert ": waits for" not in caplog.text
    (kept,) = cache.glob(".cache/sources/shop-*/lock")
    with kept.open() as lock, ThreadPool(1) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        other = pool.apply_async(repository.fetch.__wrapped__, (url, None))
        deadline = time.monotonic() + 20
        while ": waits for" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.05)
        assert f"{url}: waits for another run, which is fetching it" in caplog.text
        assert not other.ready()
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert (other.get(20) / "b.py").exists()


def test_what_is_in_the_way_is_named(tmp_path: Path, shop: Path) -> None:
    (shop / ".git").rename(shop / ".git.away")
    (shop / ".git").write_text("gitdir: nowhere\n")
    said = refused(shop, "v1")
    assert said.startswith(f"app_ref: git can't read the repository of {shop}; try: git -C ")
    (tmp_path / "operator").touch()
    assert f"file://{shop} can't be kept in {tmp_path}/operator/.cache" in refused(f"file://{shop}")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ext::sh -c touch% /tmp/x", "no folder"),
        ("ext://x", "a URL ext:… is not fetched"),
        ("ssh://git:hush@example.org/shop.git", "a password in a URL is for https"),
        ("https://example.org/..", "ends with no name"),
        ("https://me:hush@[1/shop", "its URL can't be read"),
    ],
)
def test_what_is_not_fetched(url: str, says: str) -> None:
    said = refused(url)
    assert says in said and "hush" not in said


def test_submodules_and_links_are_kept(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "upstream" / "library"
    library.mkdir()
    git(library, "init", "--quiet")
    commit(library, c="3\n")
    # Beside it, wherever that is.
    git(shop, "submodule", "--quiet", "add", "../library", "library")
    (shop / "link.py").symlink_to("library/c.py")
    commit(shop)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "protocol.file.allow")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "always")
    found = released(f"file://{shop}", app_root=".")
    assert {each.path: each.link for each in found.sources.entries if each.link} == {
        "source/link.py": "library/c.py"
    }
    assert files(found)["source/library/c.py"] == "3\n"
    (shop / "out.py").symlink_to("../library/c.py")
    commit(shop)
    assert "out.py is a link to ../library/c.py, which is not in" in refused(f"file://{shop}")


def test_what_an_archive_leaves_out_is_left_out(shop: Path) -> None:
    for path in ("tests/deep/t.py", "docs/x.py", "docs/keep.txt"):
        (shop / path).parent.mkdir(parents=True, exist_ok=True)
        (shop / path).touch()
    (shop / ".gitattributes").write_text(
        "tests export-ignore\n*.py text\ndocs/*.py export-ignore\n"
    )
    commit(shop)
    listed = git(shop, "archive", "--format=tar", "HEAD", "--output", str(shop.parent / "x.tar"))
    listed = subprocess.run(
        ["tar", "-tf", shop.parent / "x.tar"], check=True, capture_output=True, text=True
    ).stdout
    expected = [f"shop/{path}" for path in listed.split() if not path.endswith("/")]
    assert sorted(files(released(shop))) == sorted(expected)
    assert "shop/docs/keep.txt" in expected and "shop/tests/deep/t.py" not in expected


def test_only_some_commits_are_kept(shop: Path, cache: Path) -> None:
    for number in range(6):
        commit(shop, a=f"{number}\n")
        released(f"file://{shop}")
    assert len([*cache.glob(".cache/sources/shop-*/*/complete")]) == repository.KEPT
    assert files(released(f"file://{shop}", "v1")) == FIRST


# --- Passwords ---


class Server(http.server.ThreadingHTTPServer):
    """Repositories of a folder, for who knows the password; as git's own program serves them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.said: list[str] = []


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        given = self.headers.get("Authorization", "")
        self.server.said.append(given)
        wanted = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
        if given != f"Basic {wanted}":
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        variables = {
            **os.environ,
            "GIT_PROJECT_ROOT": str(self.server.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        done = subprocess.run(
            ["git", "http-backend"], input=body, env=variables, capture_output=True, check=True
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        self.send_response(200)
        for line in head.decode().splitlines():
            self.send_header(*line.split(": ", 1))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET  # noqa: N815 - as the server calls it

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def server(shop: Path) -> Iterator[Server]:
    found = Server(shop.parent)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


@pytest.mark.parametrize("how", ["variable", "written"])
def test_a_password_is_in_nothing_that_is_printed_or_written(
    server: Server,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv("SHOP_TOKEN", PASSWORD)
    place = f"127.0.0.1:{server.server_port}/shop"
    password = "${SHOP_TOKEN}" if how == "variable" else PASSWORD.replace("/", "%2F")
    found = released(f"http://me:{password}@{place}", "v1")
    assert files(found) == FIRST
    assert f"http://{place}: v1 is " in caplog.text
    monkeypatch.setenv("SHOP_TOKEN", "wr0ng-4711")
    wrong = "${SHOP_TOKEN}" if how == "variable" else "wr0ng-4711"
    said = refused(f"http://me:{wrong}@{place}")
    assert said.startswith(f"app_source: http://{place} can't be fetched: ")
    # An operator's own: nobody is asked for one, and the run does not hang.
    assert "can't be fetched" in refused(f"http://{place}")
    secrets = ("s3same", "wr0ng", base64.b64encode(f"me:{PASSWORD}".encode()).decode())
    written = b"".join(each.read_bytes() for each in cache.rglob("*") if each.is_file())
    for secret in secrets:
        assert secret not in caplog.text + said + repr(found)
        assert secret.encode() not in written
    assert any(server.said)


def test_a_password_may_be_gits_to_know(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = f'!f() {{ [ "$1" != get ] || printf "password={PASSWORD}\\n"; }}; f'
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "credential.helper")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", helper)
    assert files(released(f"http://me@127.0.0.1:{server.server_port}/shop")) == NOW


def test_a_variable_without_a_value_is_refused() -> None:
    said = refused("https://me:${NO_SUCH_TOKEN}@127.0.0.1:9/shop.git")
    assert said.startswith("app_source: no value for NO_SUCH_TOKEN")
