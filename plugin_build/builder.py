"""One consul_plugin.so for each different uWSGI on the fleet, compiled where it will run."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fleet import ssh
from fleet.errors import FleetError
from fleet.model import Host
from fleet.ssh import side_by_side
from plugin_build.identity import DIST, HERE, IDENTIFY, PACKAGES, PLUGIN, Uwsgi, parse_identity

EXCERPT = 30  # lines of what a failed build printed

Report = Callable[[str, str], None]


class BuildError(FleetError):
    """The plugin could not be built on a host."""


@dataclass(frozen=True)
class Outcome:
    """What became of one host; ``plugin`` is None where ``error`` says why."""

    host: str
    uwsgi: Uwsgi | None
    plugin: Path | None
    built: bool = False
    error: str = ""


def source_files() -> list[Path]:
    """The plugin's sources, in a fixed order."""
    return sorted(
        path
        for path in HERE.rglob("*")
        if path.name == "uwsgiplugin.py" or path.suffix in {".c", ".h"}
    )


def source_digest() -> str:
    """Changes with any of the plugin's sources and with how they are compiled."""
    digest = hashlib.sha256((HERE / "compile.sh").read_bytes())
    for path in source_files():
        digest.update(f"{path.relative_to(HERE)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def build(hosts: Iterable[Host], report: Report, force: bool = False) -> list[Outcome]:
    """Bring dist/ up to date for these hosts, all of them side by side.

    :param report: called with a host's name and what happens there
    :param force: compile also where nothing changed
    :returns: an outcome for each host, also for those that failed
    """
    listed = list(hosts)
    with side_by_side(len(listed)) as pool:
        found = pool.map(lambda host: _identify(host, report), listed)
        kinds = _one_for_each_kind(listed, found)
        results = pool.starmap(
            lambda uwsgi, host: _ensure_built(host, uwsgi, report, force), kinds.items()
        )
    built = dict(zip(kinds, results, strict=True))
    return [_outcome(host, identity, built) for host, identity in zip(listed, found, strict=True)]


def _one_for_each_kind(hosts: list[Host], found: list[Uwsgi | str]) -> dict[Uwsgi, Host]:
    kinds: dict[str, tuple[Uwsgi, Host]] = {}
    for host, identity in zip(hosts, found, strict=True):
        if isinstance(identity, Uwsgi):
            kinds.setdefault(identity.fingerprint, (identity, host))
    return dict(kinds.values())


def _outcome(host: Host, identity: Uwsgi | str, built: Mapping[Uwsgi, tuple[bool, str]]) -> Outcome:
    if isinstance(identity, str):
        return Outcome(host.name, None, None, error=identity)
    compiled, error = next(
        result for kind, result in built.items() if kind.fingerprint == identity.fingerprint
    )
    plugin = None if error else DIST / identity.fingerprint / PLUGIN
    return Outcome(host.name, identity, plugin, compiled, error)


def _identify(host: Host, report: Report) -> Uwsgi | str:
    """The host's uWSGI, installed first if need be, or why there is none."""
    report(host.name, "looking at its uWSGI")
    script = IDENTIFY + PACKAGES + (HERE / "ensure.sh").read_text()
    try:
        with ssh.connect(host) as connection:
            result = ssh.run_script(connection, script)
    except FleetError as error:
        return str(error)
    identity = parse_identity(result.stdout.decode()) if result.exit_code == 0 else None
    if identity is None:
        return f"{host.name}: can't install uWSGI:\n{_excerpt(result.stderr.splitlines())}"
    return identity


def _ensure_built(host: Host, uwsgi: Uwsgi, report: Report, force: bool) -> tuple[bool, str]:
    """Whether it was compiled now, and an error or ''."""
    if _is_current(uwsgi) and not force:
        report(host.name, f"plugin for uWSGI {uwsgi.version} is up to date")
        return False, ""
    try:
        _store(uwsgi, host, _compile(host, report))
    except FleetError as error:
        return False, str(error)
    return True, ""


def _is_current(uwsgi: Uwsgi) -> bool:
    folder = DIST / uwsgi.fingerprint
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        content = (folder / PLUGIN).read_bytes()
    except (OSError, ValueError):
        return False
    return bool(
        manifest.get("sources") == source_digest()
        and manifest.get("sha256") == hashlib.sha256(content).hexdigest()
    )


def _compile(host: Host, report: Report) -> bytes:
    def follow(line: str) -> None:
        if line.startswith("## "):
            report(host.name, line.removeprefix("## "))

    with ssh.connect(host) as connection:
        script = (HERE / "compile.sh").read_text()
        result = ssh.run_script(connection, script, _sources_archive(), follow)
    if result.exit_code != 0 or not result.stdout.startswith(b"\x7fELF"):
        lines = [line for line in result.stderr.splitlines() if not line.startswith("## ")]
        raise BuildError(f"{host.name}: the plugin does not build there:\n{_excerpt(lines)}")
    return result.stdout


def _excerpt(lines: list[str]) -> str:
    """What explains a failure: from the first error on, as later ones often follow from it."""
    first = next((n for n, line in enumerate(lines) if "error:" in line), None)
    start = max(0, len(lines) - EXCERPT if first is None else first)
    shown = lines[start : start + EXCERPT]
    left = len(lines) - start - len(shown)
    more = [f"... and {left} lines more"] if left else []
    return "\n".join(f"    {line}" for line in [*shown, *more])


def _sources_archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path in source_files():
            archive.add(path, arcname=str(path.relative_to(HERE)))
    return buffer.getvalue()


def _store(uwsgi: Uwsgi, host: Host, plugin: bytes) -> None:
    """Put the plugin into dist/; the manifest comes last, so that a half-written one is rebuilt."""
    folder = DIST / uwsgi.fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {
        "uwsgi": uwsgi.version,
        "fingerprint": uwsgi.fingerprint,
        "sources": source_digest(),
        "sha256": hashlib.sha256(plugin).hexdigest(),
        "built_on": host.name,
        "built_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    for name, content in (
        (PLUGIN, plugin),
        ("manifest.json", json.dumps(manifest, indent=2).encode() + b"\n"),
    ):
        part = folder / f".{name}.part"
        part.write_bytes(content)
        part.replace(folder / name)
