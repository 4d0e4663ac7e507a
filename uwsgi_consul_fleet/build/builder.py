"""One plugin for each different uWSGI, compiled where it will run."""

import shlex
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from uwsgi_consul_fleet.build import dist
from uwsgi_consul_fleet.build.identity import (
    HERE,
    IDENTIFY,
    PACKAGES,
    SCRATCH,
    Uwsgi,
    binary,
    parse_identity,
    pypi_name,
)
from uwsgi_consul_fleet.build.places import Place
from uwsgi_consul_fleet.build.source import Source
from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.inventory.settings import Settings
from uwsgi_consul_fleet.ssh.connection import Result, side_by_side

EXCERPT = 30  # lines of what a failed build printed

Report = Callable[[str, str], None]


@dataclass(frozen=True)
class Outcome:
    """What became of one machine; ``plugin`` is None where ``error`` says why."""

    host: str
    uwsgi: Uwsgi | None
    plugin: Path | None
    built: bool = False
    error: str = ""


@dataclass(frozen=True)
class Build:
    """How to build, beside what and where."""

    source: Source
    report: Report
    force: bool = False
    keep_toolchain: bool = False
    packages: tuple[str, ...] = ()


def find(places: Sequence[Place]) -> list[Uwsgi | str]:
    """The uWSGI of each machine as it is, or why there is none; nothing is installed."""
    with side_by_side(len(places)) as pool:
        return pool.map(lambda place: _ask(place, _identify_script(place)), places)


def build(places: Sequence[Place], how: Build) -> list[Outcome]:
    """Bring dist/ up to date for these machines, different uWSGIs side by side.

    :returns: an outcome for each machine that is not only a builder, also where it failed
    """
    with side_by_side(len(places)) as pool:
        found = pool.map(lambda place: _ensure_uwsgi(place, how), places)
        kinds = _kinds(places, found)
        results = pool.map(lambda kind: _ensure_built(*kind, how), kinds.values())
    built = dict(zip(kinds, results, strict=True))
    return [
        _outcome(place, identity, built, how.source)
        for place, identity in zip(places, found, strict=True)
        if not place.is_builder
    ]


def _kinds(places: Iterable[Place], found: Iterable[Uwsgi | str]) -> dict[str, tuple[Uwsgi, Place]]:
    """Each fingerprint that is needed, and the machine to compile on: a builder if there is one."""
    needed: dict[str, tuple[Uwsgi, Place]] = {}
    builders: dict[str, tuple[Uwsgi, Place]] = {}
    for place, uwsgi in zip(places, found, strict=True):
        if isinstance(uwsgi, Uwsgi):
            chosen = builders if place.is_builder else needed
            chosen.setdefault(uwsgi.fingerprint, (uwsgi, place))
    return {fingerprint: builders.get(fingerprint, kind) for fingerprint, kind in needed.items()}


def _outcome(
    place: Place, uwsgi: Uwsgi | str, built: dict[str, tuple[bool, str]], source: Source
) -> Outcome:
    if isinstance(uwsgi, str):
        return Outcome(place.name, None, None, error=uwsgi)
    compiled, error = built[uwsgi.fingerprint]
    plugin = None if error else dist.path(uwsgi, source)
    return Outcome(place.name, uwsgi, plugin, compiled, error)


# --- which uWSGI ---------------------------------------------------------------------


def assignments(**values: str) -> str:
    """Lines that set a script's variables."""
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())


def _identify_script(place: Place) -> str:
    path = binary(place.settings) if place.settings else (shutil.which("uwsgi") or "uwsgi")
    return f"{IDENTIFY}identify_uwsgi {shlex.quote(path) if path else ''}\n"


def _ensure_script(place: Place, how: Build) -> str:
    """Installs or builds the uWSGI that is meant first, where that can be done."""
    settings = place.settings
    if settings is None:
        return _identify_script(place)
    if settings.uwsgi_source == "debian":
        return IDENTIFY + PACKAGES + (HERE / "ensure.sh").read_text()
    return pypi_script(settings, how.keep_toolchain)


def pypi_script(settings: Settings, keep_toolchain: bool = False) -> str:
    """Builds PyPI's uWSGI on a host, unless it is there, and identifies it."""
    variables = assignments(
        keep_toolchain="yes" if keep_toolchain else "no",
        name=pypi_name(settings),
        uwsgi_version=settings.uwsgi_version,
        python=settings.app_python,
    )
    return variables + IDENTIFY + PACKAGES + SCRATCH + (HERE / "pypi.sh").read_text()


def _ensure_uwsgi(place: Place, how: Build) -> Uwsgi | str:
    how.report(place.name, "looking at its uWSGI")
    return _ask(place, _ensure_script(place, how), stages(place.name, how.report))


def _ask(
    place: Place, script: str, on_line: Callable[[str], None] = lambda line: None
) -> Uwsgi | str:
    try:
        result = place.run(script, on_line=on_line)
    except FleetError as error:
        return str(error)
    if result.exit_code != 0:
        return f"{place.name}: {why(result, 'uWSGI cannot be installed')}"
    return parse_identity(result.stdout.decode()) or f"{place.name}: has no uWSGI"


# --- compiling -----------------------------------------------------------------------


def _ensure_built(uwsgi: Uwsgi, place: Place, how: Build) -> tuple[bool, str]:
    """Whether it was compiled now, and an error or ''."""
    if dist.is_current(uwsgi, how.source) and not how.force:
        how.report(place.name, f"plugin for uWSGI {uwsgi.version} is up to date")
        return False, ""
    try:
        _compile(uwsgi, place, how)
    except FleetError as error:
        return False, str(error)
    return True, ""


def _compile(uwsgi: Uwsgi, place: Place, how: Build) -> None:
    variables = assignments(
        keep_toolchain="yes" if how.keep_toolchain else "no",
        uwsgi_binary=uwsgi.path,
        fingerprint=uwsgi.fingerprint,
        packages=" ".join(how.packages),
        option=how.source.option,
    )
    script = variables + SCRATCH + (HERE / "compile.sh").read_text()
    result = place.run(script, how.source.archive(), stages(place.name, how.report))
    if result.exit_code != 0 or not result.stdout.startswith(b"\x7fELF"):
        raise FleetError(f"{place.name}: {why(result, 'the plugin does not build there')}")
    dist.store(uwsgi, how.source, result.stdout, place.name, _said(result, "compiler "))


def stages(name: str, report: Report) -> Callable[[str], None]:
    """Reports what a script says of where it is."""

    def follow(line: str) -> None:
        stage = line.removeprefix("## ")
        if stage != line and not stage.startswith(("failed: ", "compiler ")):
            report(name, stage)

    return follow


def _said(result: Result, kind: str) -> str:
    """What a script said of itself in a line of this kind."""
    lines = result.stderr.splitlines()
    start = f"## {kind}"
    return next((line.removeprefix(start) for line in lines if line.startswith(start)), "")


def why(result: Result, otherwise: str) -> str:
    """What a script said of its failure, with the lines that explain it."""
    reason = _said(result, "failed: ") or otherwise
    lines = [line for line in result.stderr.splitlines() if not line.startswith("## ")]
    return f"{reason}:\n{_excerpt(lines)}" if lines else reason


def _excerpt(lines: list[str]) -> str:
    """What explains a failure: from the first error on, as later ones often follow from it."""
    first = next((n for n, line in enumerate(lines) if "error:" in line), None)
    start = max(0, len(lines) - EXCERPT if first is None else first)
    shown = lines[start : start + EXCERPT]
    left = len(lines) - start - len(shown)
    more = [f"... and {left} lines more"] if left else []
    return "\n".join(f"    {line}" for line in [*shown, *more])
