"""Requirements that a project's own files say: pyproject.toml and its lock."""

import subprocess
import zipfile
from pathlib import Path

import pytest
from uv import find_uv_bin

from uwsgi_consul_fleet.operations.applications import locked, requirements
from uwsgi_consul_fleet.operations.plan import DeployError

PROJECT = """
[project]
name = "shop"
version = "1"
requires-python = ">=3.9"
dependencies = ["ahoy"]
[project.optional-dependencies]
pg = ["mast; python_version < '3.12'"]
[dependency-groups]
dev = ["linter"]
"""


def wheel(folder: Path, name: str) -> None:
    info = f"{name}-1.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1-py3-none-any.whl", "w") as opened:
        opened.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        opened.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        opened.writestr(f"{info}/RECORD", "")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Its pyproject.toml."""
    path = tmp_path / "pyproject.toml"
    path.write_text(PROJECT)
    return path


def lines(file: Path, *extras: str) -> list[str]:
    """Without the hashes."""
    text = requirements.read(file, extras).files["requirements.txt"].decode()
    found = [line.strip(" \\") for line in text.splitlines()]
    return [line for line in found if not line.startswith("--")]


def refused(file: Path, *extras: str) -> str:
    with pytest.raises(DeployError) as caught:
        requirements.read(file, extras)
    said = str(caught.value)
    assert said.startswith("app_requirements: ") and "\n" not in said
    return said


def test_what_uv_has_locked(project: Path) -> None:
    """Made by uv itself, of packages that are here."""
    packages = project.parent / "packages"
    packages.mkdir()
    for name in ("ahoy", "mast", "linter"):
        wheel(packages, name)
    command = f"{find_uv_bin()} lock --quiet --offline --no-index --find-links {packages}"
    subprocess.run(command.split(), cwd=project.parent, check=True)
    for file in (project, project.with_name("uv.lock")):
        assert lines(file) == ["ahoy==1"]
    assert lines(project, "pg") == ["ahoy==1", "mast==1 ; python_full_version < '3.12'"]
    assert "uv can't export it" in refused(project, "redis")
    found = requirements.read(project)
    assert found.main == "requirements.txt"
    # What is not in the lock is not released.
    project.write_text(PROJECT.replace('"ahoy"', '"mast"'))
    assert requirements.read(project).digest == found.digest


POETRY = """
[[package]]
name = "ahoy"
version = "1.2"
optional = false
groups = ["main", "dev"]
files = [{file = "ahoy.whl", hash = "sha256:bb"}, {file = "ahoy.tar.gz", hash = "sha256:aa"}]

[[package]]
name = "linter"
version = "3"
optional = false
groups = ["dev"]
files = []

[[package]]
name = "colours"
version = "4"
optional = false
groups = ["main", "dev"]
markers = {main = "platform_system == \\"Windows\\"", dev = "python_version < \\"3.12\\""}
files = [{file = "colours.whl", hash = "sha256:cc"}]

[[package]]
name = "mast"
version = "2"
optional = true
groups = ["main"]
markers = "python_version < \\"3.12\\" and extra == \\"pg\\""
files = [{file = "mast.whl", hash = "sha256:dd"}]

[extras]
pg = ["mast"]

[metadata]
lock-version = "2.1"
"""


def test_what_poetry_has_locked(project: Path) -> None:
    lock = project.with_name("poetry.lock")
    lock.write_text(POETRY)
    text = requirements.read(project).files["requirements.txt"].decode()
    assert text == (
        "ahoy==1.2 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
        'colours==4 ; platform_system == "Windows" \\\n    --hash=sha256:cc\n'
        'mast==2 ; python_version < "3.12" and python_version < "0" \\\n    --hash=sha256:dd\n'
    )
    assert lines(lock, "pg")[-1] == ('mast==2 ; python_version < "3.12" and python_version >= "0"')
    assert f"{lock}: has no extra redis; there is: pg; nothing was changed" in refused(
        lock, "redis"
    )


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("2.1", "2.0", "is of version 2.0: write it anew by Poetry 2"),
        (
            '"3"\n',
            '"3"\nsource = {type = "git", url = "u"}\n',
            "not all is from an index: linter (git)",
        ),
    ],
)
def test_what_only_poetry_can_read(
    project: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str, says: str
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    project.with_name("poetry.lock").write_text(POETRY.replace(before, after))
    said = refused(project)
    assert says in said
    assert said.endswith("install poetry and poetry-plugin-export here; nothing was changed")


def test_a_project_that_is_not_locked_requires_what_it_says(project: Path) -> None:
    assert lines(project) == ["ahoy"]
    assert lines(project, "pg") == ["ahoy", "mast; python_version < '3.12'"]
    assert "has no extra redis; there is: pg" in refused(project, "redis")
    assert not requirements.read(project).are_pinned
    project.write_text('[tool.poetry.dependencies]\nahoy = "^1"\n')
    assert "names no dependencies in [project], and there is no uv.lock" in refused(project)
    project.write_text('[project]\nname = "a"\ndependencies = ["b @ https://me:pw@x.org/b.whl"]\n')
    assert "has a password or a token in a URL" in refused(project)


@pytest.mark.parametrize(
    ("name", "file", "extras"),
    [
        ("requirements.txt", "requirements.txt", []),
        ("odd[1].txt", "odd[1].txt", []),
        ("pyproject.toml", "pyproject.toml", []),
        ("a/pyproject.toml[pg]", "a/pyproject.toml", ["pg"]),
        ("pyproject.toml[pg, redis]", "pyproject.toml", ["pg", "redis"]),
    ],
)
def test_extras_stand_behind_the_file(name: str, file: str, extras: list[str]) -> None:
    assert locked.split(name) == (file, extras)
