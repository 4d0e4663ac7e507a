"""Variables of the environment that an application does not do without."""

import ast
import re
from pathlib import Path
from typing import Any

from uwsgi_consul_fleet.recognise.tree import Tree, called, imported

SECRET = re.compile(
    r"SECRET|PASSW|TOKEN|CREDENTIAL|KEY$|DSN$|(DATABASE|DB|REDIS|BROKER|MONGO\w*|AMQP)_UR[IL]$",
    re.IGNORECASE,
)
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MENTIONED = re.compile("environ|decouple")  # with environs: few modules have to be looked into
# What reads them, beside os.environ: a name that modules of these give to it by custom.
READERS = {"environ": "env", "environs": "env", "decouple": "config"}
# The system's and the fleet's, and what no application can be given.
GIVEN = re.compile(r"PATH|HOME|USER|LOGNAME|SHELL|LANG|TMPDIR|APP_\w+|LISTEN_\w*|NOTIFY_SOCKET")
# Modules of a developer's machine.
ELSEWHERE = ("dev", "develop", "development", "local", "debug", "ci", "fabfile", "tasks")


def needed(tree: Tree) -> dict[str, str]:
    """Their names, each with the file that reads it first."""
    found: dict[str, str] = {}
    spared: set[str] = set()
    for path, module in tree.python.items():
        if Path(path).stem not in ELSEWHERE and MENTIONED.search(tree.text(path)):
            read = _Reading(module)
            found = {**dict.fromkeys(read.names, path), **found}
            spared |= read.spared
    return {
        name: path
        for name, path in found.items()
        if NAME.fullmatch(name) and name not in spared and not GIVEN.fullmatch(name)
    }


class _Reading(ast.NodeVisitor):
    """What a module reads, and what it sets, asks for first, or has something else for."""

    def __init__(self, module: ast.Module) -> None:
        packages = {name.partition(".")[0] for name in imported(module)}
        self.reader = next((READERS[name] for name in READERS if name in packages), "")
        self.names: dict[str, None] = {}
        self.spared: set[str] = set()
        self.is_optional = False
        self.visit(module)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if _is_environ(node.value):
            self._take(node.slice, needs=isinstance(node.ctx, ast.Load))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func
        by = function.value if isinstance(function, ast.Attribute) else function
        if _is_environ(by):  # setdefault, get, pop
            self._take(*node.args[:1], needs=False)
        elif called(node) == "Env":  # of django-environ, with defaults
            self.spared.update(word.arg for word in node.keywords if word.arg)
        elif self.reader and isinstance(by, ast.Name) and by.id == self.reader:
            has_default = any(word.arg in ("default", None) for word in node.keywords)
            self._take(*node.args[:1], needs=not has_default and len(node.args) == 1)
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        self._visit_tried(node, [node.test])

    def visit_Try(self, node: ast.Try) -> None:
        self._visit_tried(node, node.body)

    def _visit_tried(self, node: ast.AST, tried: list[Any]) -> None:
        before = self.is_optional
        self.is_optional |= any(_is_environ(each) for part in tried for each in ast.walk(part))
        self.generic_visit(node)
        self.is_optional = before

    def _take(self, *words: ast.AST, needs: bool) -> None:
        for word in words:
            if isinstance(word, ast.Constant) and isinstance(word.value, str):
                if needs and not self.is_optional:
                    self.names[word.value] = None
                else:
                    self.spared.add(word.value)


def _is_environ(node: ast.AST) -> bool:
    """``os.environ``, and no WSGI application's."""
    return isinstance(node, ast.Attribute) and ast.unparse(node) == "os.environ"
