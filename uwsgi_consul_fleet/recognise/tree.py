"""The files of an application's folder, and what stands in its Python: read, never run."""

import ast
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

# What is beside an application, or not its own.
BESIDE = frozenset(
    """
    tests test testing docs doc example examples scripts build dist migrations alembic
    node_modules site-packages venv env __pycache__
    """.split()  # noqa: SIM905 - a name a line would be half a page
)
DEPTH = 4  # folders below the application's own that are looked into
MOST = 2000  # files that are read


class Tree:
    """A folder; paths are relative to it, with a slash between folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, path: str) -> bool:
        return (self.folder / path).is_file()

    def text(self, path: str) -> str:
        """'' where there is no such file."""
        if not self.has(path):
            return ""
        return (self.folder / path).read_text("utf-8", errors="replace")

    @cached_property
    def python(self) -> dict[str, ast.Module]:
        """The modules that can be the application's, those on top first."""
        paths = sorted(self._walk(), key=lambda path: (path.count("/"), path))
        found = {path: self._parsed(path) for path in paths[:MOST]}
        return {path: module for path, module in found.items() if module}

    def _walk(self) -> Iterator[str]:
        for place, folders, files in os.walk(self.folder):
            below = Path(place).relative_to(self.folder)
            folders[:] = [name for name in folders if self._is_looked_into(below / name)]
            for name in files:
                if name.endswith(".py") and not name.startswith(("test_", "conftest", "setup.")):
                    yield (below / name).as_posix()

    def _is_looked_into(self, path: Path) -> bool:
        is_known = path.name in BESIDE or path.name.startswith(".") or path.suffix == ".egg-info"
        is_environment = (self.folder / path / "pyvenv.cfg").exists()
        return len(path.parts) <= DEPTH and not is_known and not is_environment

    def _parsed(self, path: str) -> ast.Module | None:
        if not self.has(path):  # a link to something else than a file could be read for ever
            return None
        try:
            return ast.parse((self.folder / path).read_bytes())
        except (OSError, SyntaxError, ValueError, RecursionError):  # of another Python, perhaps
            return None

    def root(self, path: str) -> str:
        """The folder from which a module is imported, '.' for the application's own: that of its
        topmost package, or of itself. A folder that the module imports by name is a package too."""
        folder = Path(path).parent
        named = {name.partition(".")[0] for name in imported(self.python.get(path))}
        while folder.name and (self.has(f"{folder}/__init__.py") or folder.name in named):
            folder = folder.parent
        return folder.as_posix()


def imported(module: ast.Module | None) -> Iterator[str]:
    """The modules that are imported by their whole names."""
    for node in ast.walk(module) if module else ():
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""


def module_name(path: str, root: str) -> str:
    """What a file is called when it is imported from a root."""
    parts = Path(path).relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_path(tree: Tree, name: str, root: str) -> str:
    """The file of a module; '' where there is none."""
    path = (Path(root) / name.replace(".", "/")).as_posix()
    return next((each for each in (f"{path}.py", f"{path}/__init__.py") if tree.has(each)), "")


def called(node: ast.AST | None) -> str:
    """The last name of what is called, such as Flask of ``flask.Flask(__name__)``; else ''."""
    if not isinstance(node, ast.Call):
        return ""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def assigned(module: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """What a module's own lines assign to single names, in their order."""
    for node in module.body:
        if isinstance(node, ast.Assign):
            yield from ((t.id, node.value) for t in node.targets if isinstance(t, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            yield node.target.id, node.value


def strings(module: ast.AST) -> Iterator[str]:
    """All texts in it."""
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
