"""Applications in another language than Python, known by a file that their servers look for."""

from collections.abc import Iterator
from typing import Any

from uwsgi_consul_fleet.languages import IMPOSSIBLE, LANGUAGES
from uwsgi_consul_fleet.recognise.candidate import Candidate
from uwsgi_consul_fleet.recognise.tree import Tree

KNOWN = {
    "app.psgi": ("psgi", "a Perl application (PSGI)"),
    "config.ru": ("rack", "a Ruby application (Rack)"),
    "public/index.php": ("php", "a PHP application"),
    "index.php": ("php", "a PHP application"),
}
GO = "go.mod"


def impossible(tree: Tree) -> str:
    """What it is, and why that can't be deployed; '' where it is not known to be so."""
    return f"a Go module: {GO}: {IMPOSSIBLE['go']}" if tree.has(GO) else ""


def applications(tree: Tree) -> Iterator[Candidate]:
    """After those of Python: a project of Python's may have such a file beside it."""
    for position, (path, (kind, what)) in enumerate(KNOWN.items()):
        if tree.has(path):
            settings: dict[str, Any] = {"app_type": kind, **_requirements(tree, kind)}
            todo = _todo(tree, path, kind)
            if path.startswith("public/"):
                settings |= {"app_static": static} if (static := _static(tree)) else {}
            yield Candidate(f"{what}: {path}", path, ".", (9, position), settings, todo)


def _requirements(tree: Tree, kind: str) -> dict[str, str | None]:
    manifest = LANGUAGES[kind].manifest
    return {"app_requirements": manifest if tree.has(manifest) else None}


def _todo(tree: Tree, path: str, kind: str) -> dict[str, str]:
    language, found = LANGUAGES[kind], {}
    if tree.has(language.manifest) and language.is_locked and not tree.has(language.lock):
        found["app_requirements"] = f"{language.lock} is missing beside it, and has to be committed"
    others = sorted(each.name for each in tree.folder.glob("*.php")) if path == "index.php" else []
    if others[1:]:
        (other, *_) = (each for each in others if each != path)
        found["app_entry_point"] = (
            f"{path} answers everything; where others are asked for by themselves (as {other}), "
            "put them into a folder and name that"
        )
    return found


def _static(tree: Tree) -> dict[str, str]:
    """What lies in the folder that a web server is shown, but for PHP and what is hidden."""
    there = sorted((tree.folder / "public").iterdir())
    names = [each.name for each in there if each.suffix != ".php" and each.name[0] != "."]
    return {f"/{name}": f"public/{name}" for name in names}
