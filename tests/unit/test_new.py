"""`uwsgi-consul-fleet new`: the folder of an operator's own."""

import io
import os
import runpy
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from checkout import BIN

from uwsgi_consul_fleet.inventory.settings import Settings, literal
from uwsgi_consul_fleet.new import folder as new_folder
from uwsgi_consul_fleet.new import program
from uwsgi_consul_fleet.new.applications import example

FILES = {
    ".gitignore",
    "README.md",
    "applications/shop.py",
    "deploy/__main__.py",
    "group_data/all.py",
    "inventory.py",
    "tasks.py",
}


def run(where: Path, *words: str, code: int = 0, **environment: str) -> str:
    """What it says, here in this process; test_wheel.py starts the command itself."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        patch.setattr(sys, "argv", ["uwsgi-consul-fleet", *words])
        for name, value in environment.items():
            patch.setenv(name, value)
        with redirect_stdout(said), redirect_stderr(said):
            try:
                program.main()
                ended: str | int | None = 0
            except SystemExit as error:
                ended = error.code
    assert ended == code, said.getvalue()
    return said.getvalue()


def files(place: Path) -> set[str]:
    return {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}


def settings(place: Path, name: str) -> dict[str, Any]:
    return runpy.run_path(str(place / "applications" / f"{name}.py"))


@pytest.fixture
def flask(tmp_path: Path) -> Path:
    found = tmp_path / "My Shop"
    (found / "src/shop").mkdir(parents=True)
    (found / "src/shop/__init__.py").write_text("def create_app(): ...\n")
    (found / "requirements.txt").write_text("flask\n")
    return found


def test_a_folder_has_what_an_operator_owns(tmp_path: Path) -> None:
    said = run(tmp_path, "new", "fleet")
    place = tmp_path / "fleet"
    assert files(place) == FILES
    assert place.stat().st_mode & 0o777 == 0o755
    assert "invoke build-plugin" in said
    assert "pyinfra -y inventory.py deploy/" in said
    assert len((place / "README.md").read_text().splitlines()) <= 10
    for name in ("deploy/__main__.py", "tasks.py"):
        lines = (place / name).read_text().splitlines()
        assert len([line for line in lines if line and not line.startswith('"""')]) <= 3
    # Each setting has its place, and stands there once.
    of_fleet = runpy.run_path(str(place / "group_data/all.py"))
    of_shop = settings(place, "shop")
    known = [key for key in Settings.model_fields if key in of_fleet or key in of_shop]
    assert known == [key for key in Settings.model_fields if key != "app_name"]
    assert not of_fleet.keys() & of_shop.keys() & Settings.model_fields.keys()
    assert of_fleet["fleet"] == "fleet"
    assert (
        "# TODO: what uWSGI loads\napp_entry_point" in (place / "applications/shop.py").read_text()
    )
    again = run(tmp_path, "new", "fleet", code=1)
    assert f"{place} is not empty (it has .gitignore, README.md, applications, …)" in again


def test_a_file_speaks_of_todo_only_where_some_is_left(tmp_path: Path, flask: Path) -> None:
    texts = []
    for name in ("some", "none"):
        run(tmp_path, "new", name, "--app", str(flask))
        (made,) = (tmp_path / name / "applications").iterdir()
        texts.append(made.read_text())
        (flask / "src/shop/__init__.py").write_text(
            "def create_app():\n    app.add_url_rule('/healthz', 'health', lambda: 'well')\n"
        )
    some, none = texts
    assert "Lines with TODO are left to you" in some and "\n# TODO: " in some
    assert "TODO" not in none


def test_an_application_is_recognised_and_filled_in(tmp_path: Path, flask: Path) -> None:
    said = run(tmp_path, "new", "ops/fleet", code=1)
    assert f"there is no folder {tmp_path / 'ops'}; make that first" in said
    (tmp_path / "ops").mkdir()
    said = run(tmp_path, "new", "ops/fleet", "--app", flask.name, "--app", str(flask))
    assert "a factory: shop:create_app() in src/shop/__init__.py" in said
    assert "requirements: requirements.txt" in said
    assert 'left to you: health_path = "/": ' in said
    place = tmp_path / "ops/fleet"
    first, second = settings(place, "my_shop"), settings(place, "my_shop_2")
    # As it was named: a relative path leads there from the new folder.
    assert first["app_source"] == "../../My Shop"
    assert second["app_source"] == str(flask)
    assert first["app_entry_point"] == "shop:create_app()"
    assert first["app_requirements"] == "requirements.txt"
    assert first["instances"] == {"server1": 2001, "server2": 2002}
    assert second["instances"] == {"server1": 2011, "server2": 2012}


def test_a_repository_is_cloned_to_be_looked_at(tmp_path: Path, flask: Path) -> None:
    git = ["git", "-C", str(flask), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "a"]):
        subprocess.run([*git, *words], check=True)
    bare = tmp_path / "shop.git"
    subprocess.run(["git", "clone", "--quiet", "--bare", str(flask), str(bare)], check=True)
    run(tmp_path, "new", "fleet", "--app", f"file://{bare}")
    found = settings(tmp_path / "fleet", "shop")
    assert found["app_source"] == f"file://{bare}"
    assert found["app_entry_point"] == "shop:create_app()"


def test_what_an_application_says_is_never_code(tmp_path: Path) -> None:
    """Nor a terminal's commands."""
    shop = tmp_path / "shop"
    shop.mkdir()
    hostile = """a", __import__('pathlib').Path('ran').touch(), "\\\n'"""
    (shop / "manage.py").write_text('os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")')
    (shop / "settings.py").write_text(f"ALLOWED_HOSTS = [{hostile!r}]\nDEBUG = False\n")
    (shop / "\x1b[2J\n.py").write_text("def create_app(): ...\n")
    said = run(tmp_path, "new", "fleet", "--app", "shop")
    assert "\x1b" not in said
    assert f"\n  health_headers = {literal({'Host': hostile})}\n" in said
    assert settings(tmp_path / "fleet", "shop")["health_headers"] == {"Host": hostile}
    assert not [*tmp_path.rglob("ran")]


def test_a_password_is_neither_shown_nor_written(tmp_path: Path) -> None:
    written = "https://deploy:secret@127.0.0.1:9/shop.git"
    said = run(tmp_path, "new", "fleet", "--app", written, code=1)
    assert "its password would be in a file" in said
    assert "secret" not in said
    named = "https://deploy:${TOKEN}@127.0.0.1:9/shop.git"
    assert "the environment has no TOKEN" in run(tmp_path, "new", "fleet", "--app", named, code=1)
    token = "https://ghp_0123456789abcdefghijABCDEFGHIJ456789@127.0.0.1:9/shop.git"
    assert "its password would be in a file" in run(tmp_path, "new", "f", "--app", token, code=1)
    # As the deploy would read it.
    small = named.lower()
    said = run(tmp_path, "new", "fleet", "--app", small, code=1, token="secret")
    assert f"--app {small}: a variable has capital letters" in said
    # What git and its helpers are told: others can see the words of a process.
    trace = tmp_path / "trace"
    words = {"TOKEN": "secret", "GIT_TRACE": str(trace)}
    said = run(tmp_path, "new", "fleet", "--app", named, code=1, **words)
    assert "https://127.0.0.1:9/shop.git can't be fetched: fatal: " in said
    assert "remote-https" in trace.read_text()
    assert "secret" not in said + trace.read_text()
    # It does reach the right place.
    (tmp_path / "my-secret-shop").mkdir()
    subprocess.run(["git", "init", "--quiet", str(tmp_path / "my-secret-shop")], check=True)
    place = f"file://{tmp_path}/my-${{TOKEN}}-shop"
    run(tmp_path, "new", "fleet", "--app", place, TOKEN="secret")
    assert settings(tmp_path / "fleet", "my_token_shop")["app_source"] == place


@pytest.mark.parametrize(
    ("app", "says"),
    [
        ("nowhere", "--app nowhere: there is no such folder"),
        ("ext::sh -c true", "--app ext::sh -c true: there is no such folder"),
        ("file:///nowhere/shop.git", "file:///nowhere/shop.git can't be fetched: fatal: "),
        ("go", "--app go: a Go module: go.mod: Debian's uWSGI can't load its plugin for Go"),
    ],
)
def test_what_is_no_application_leaves_nothing(tmp_path: Path, app: str, says: str) -> None:
    (tmp_path / "go").mkdir()
    (tmp_path / "go/go.mod").touch()
    said = run(tmp_path, "new", "fleet", "--app", app, code=1)
    assert says in said
    assert [path.name for path in tmp_path.iterdir()] == ["go"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    assert f"{tmp_path}/file is a file" in run(tmp_path, "new", "file", code=1)
    assert f"{tmp_path}/link is a link that leads nowhere" in run(tmp_path, "new", "link", code=1)
    assert "make that first" in run(tmp_path, "new", "file/fleet", code=1)
    assert "Usage: " in run(tmp_path, "new", code=2)
    assert "No such command 'old'" in run(tmp_path, "old", code=2)


def test_help_and_version(tmp_path: Path) -> None:
    assert "--app PATH_OR_GIT_URL" in run(tmp_path, "new", "--help")
    assert "uwsgi-consul-fleet 0." in run(tmp_path, "--version")


def test_an_empty_folder_is_filled_where_one_stands_in_it(tmp_path: Path) -> None:
    run(tmp_path, "new", ".")
    assert files(tmp_path) == FILES


@pytest.mark.parametrize("is_there", [True, False])
def test_nothing_stays_of_one_that_is_interrupted(
    tmp_path: Path, is_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "fleet"
    if is_there:
        target.mkdir()
    content = new_folder.contents("fleet", [example()])
    written = iter(range(4))
    write = Path.write_text

    def write_some(path: Path, *words: str) -> int:
        if next(written, None) is None:
            raise KeyboardInterrupt
        return write(path, *words)

    monkeypatch.setattr(Path, "write_text", write_some)
    with pytest.raises(KeyboardInterrupt):
        new_folder.make(target, content)
    assert target.exists() == is_there
    assert files(tmp_path) == set()
    assert [*tmp_path.iterdir()] == ([target] if is_there else [])


def test_ctrl_c_ends_it_without_a_trace(tmp_path: Path) -> None:
    """While git waits for a repository that does not answer."""
    fifo = tmp_path / "began"
    os.mkfifo(fifo)
    (tmp_path / "git").write_text(f"#!/bin/sh\necho > {fifo}\nexec sleep 60\n")
    (tmp_path / "git").chmod(0o755)
    process = subprocess.Popen(
        [str(BIN / "uwsgi-consul-fleet"), "new", "fleet", "--app", "https://example.com/shop.git"],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    fifo.read_text()
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=30)[1] == "\ninterrupted; nothing was made\n"
    assert process.returncode == 130
    assert {path.name for path in tmp_path.iterdir()} == {"began", "git"}
