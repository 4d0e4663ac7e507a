"""Requirements of a project as pip reads them: what its pyproject.toml says, and its lock file."""

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from uv import find_uv_bin

from uwsgi_consul_fleet.operations.plan import DeployError

PROJECT = "pyproject.toml"
UV = (
    "--frozen --offline --no-python-downloads --quiet --no-dev --no-emit-project --no-header "
    "--no-annotate --format requirements-txt"
)
POETRY = "--no-interaction --no-ansi --only main --format requirements.txt"
GROUPS = (2, 1)  # the version of poetry.lock from which each package says who needs it
EXTRA = re.compile(r"""extra == ["']([\w.-]+)["']""")


def split(name: str) -> tuple[str, list[str]]:
    """A file, and the extras of the project in it: as in pyproject.toml[postgres,sentry]."""
    found = re.fullmatch(rf"(.*\b{re.escape(PROJECT)})\[([\w.,\s-]+)\]", name)
    return (found[1], re.split(r"[\s,]+", found[2].strip())) if found else (name, [])


def export(file: Path, extras: Sequence[str]) -> tuple[Path, bytes] | None:
    """What a project requires, and the file that says it; None where the file is no project's.

    :raises DeployError: where it can't be read, or not be written as requirements
    """
    if file.name not in (PROJECT, "uv.lock", "poetry.lock"):
        return None
    uv, poetry = file.with_name("uv.lock"), file.with_name("poetry.lock")
    if uv.is_file() and file != poetry:
        return uv, _run(uv, extras, str(find_uv_bin()), "export", *UV.split())
    if poetry.is_file():
        return poetry, _poetry(poetry, extras)
    return file, "".join(_unlocked(file, extras)).encode()


def _poetry(lock: Path, extras: Sequence[str]) -> bytes:
    """By ourselves where that can be, so that it is the same where Poetry is not installed."""
    said = _read(lock)
    _refuse_unknown(lock, extras, said.get("extras", {}))
    packages = said.get("package", [])
    reason = _unreadable(said.get("metadata", {}).get("lock-version", "0"), packages)
    if not reason:
        return "".join(_of_poetry(packages, extras)).encode()
    program = shutil.which("poetry")
    if not program or subprocess.run([program, "export", "--help"], capture_output=True).returncode:
        raise _refusal(lock, f"{reason}, or install poetry and poetry-plugin-export here")
    return _run(lock, extras, program, "export", *POETRY.split())


def _unreadable(version: str, packages: Sequence[Mapping[str, Any]]) -> str:
    """Why only Poetry can say what a lock file of it requires, or ''."""
    if tuple(map(int, version.split("."))) < GROUPS:
        return f"is of version {version}: write it anew by Poetry 2 (poetry lock)"
    sources = {each["name"]: each.get("source", {}).get("type", "legacy") for each in packages}
    strange = [f"{name} ({kind})" for name, kind in sources.items() if kind != "legacy"]
    return f"not all is from an index: {', '.join(strange)}" if strange else ""


def _run(lock: Path, extras: Sequence[str], *words: str) -> bytes:
    option = "--extra" if lock.name == "uv.lock" else "--extras"
    command = [*words, *(word for extra in extras for word in (option, extra))]
    result = subprocess.run(command, cwd=lock.parent, capture_output=True, check=False)
    if result.returncode:
        said = (result.stderr or result.stdout).decode(errors="replace").strip().splitlines()
        raise _refusal(lock, f"{words[0].rpartition('/')[2]} can't export it: {' '.join(said[:3])}")
    return result.stdout


def _unlocked(file: Path, extras: Sequence[str]) -> Iterator[str]:
    project = _read(file).get("project", {})
    optional = project.get("optional-dependencies", {})
    if "dependencies" not in project:
        raise _refusal(file, "names no dependencies in [project], and there is no uv.lock or "
                       "poetry.lock beside it: `poetry lock` makes one")  # fmt: skip
    _refuse_unknown(file, extras, optional)
    for each in (*project["dependencies"], *(one for extra in extras for one in optional[extra])):
        yield f"{each}\n"


def _of_poetry(packages: Sequence[Mapping[str, Any]], extras: Sequence[str]) -> Iterator[str]:
    needed = [each for each in packages if "main" in each["groups"]]
    for url in sorted({each["source"]["url"] for each in needed if "source" in each}):
        yield f"--extra-index-url {url}\n"
    yield from (_line(each, extras) for each in needed)


def _line(package: Mapping[str, Any], extras: Sequence[str]) -> str:
    marker = package.get("markers", "")
    marker = marker.get("main", "") if isinstance(marker, dict) else marker
    # What is asked for or not is known here, and not on a host.
    never_always = ('python_version < "0"', 'python_version >= "0"')
    marker = EXTRA.sub(lambda found: never_always[found[1] in extras], marker)
    hashes = sorted({f" \\\n    --hash={each['hash']}" for each in package.get("files", ())})
    condition = f" ; {marker}" if marker else ""
    return f"{package['name']}=={package['version']}{condition}{''.join(hashes)}\n"


def _refuse_unknown(file: Path, extras: Sequence[str], known: Mapping[str, Any]) -> None:
    if unknown := sorted({*extras} - {*known}):
        there = ", ".join(sorted(known)) or "none"
        raise _refusal(file, f"has no extra {', '.join(unknown)}; there is: {there}")


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise _refusal(file, str(error)) from error


def _refusal(file: Path, reason: str) -> DeployError:
    return DeployError(f"app_requirements: {file}: {reason}; nothing was changed")
