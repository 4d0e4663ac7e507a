"""Applications in Python modules: an object, a factory, a wsgi.py."""

import ast
from collections.abc import Iterator
from pathlib import Path

from uwsgi_consul_fleet.recognise.candidate import Candidate
from uwsgi_consul_fleet.recognise.tree import Tree, assigned, called, imported, module_name

WSGI = ("Flask", "Bottle", "default_app", "get_wsgi_application", "make_wsgi_app", "ASGIMiddleware")
ASGI = ("FastAPI", "Starlette", "Quart", "Litestar")
FACTORIES = ("create_app", "make_app")
# What has an application because something else needs one.
UNLIKELY = ("celery", "worker", "task", "cli", "bot", "debug", "dev")
# Likely names, of modules and of what is in them; the likeliest first.
NAMES = ("wsgi", "application", "app", "main", "server", "__init__")


def applications(tree: Tree) -> Iterator[Candidate]:
    """What modules define, or make of another module's factory."""
    for path, module in tree.python.items():
        is_wsgi = Path(path).stem == "wsgi"
        names = list(_names(module))
        # What it imports as app may be what its application is made of.
        usual = ("application",) if "application" in dict(names) else ("app",)
        for name, value in names:
            if (what := called(value)) in ASGI:
                yield _asgi(tree, path, name, what)
            elif what in WSGI or (what in FACTORIES and not _makes_asgi(tree, what)):
                yield _wsgi(tree, path, name, what, 2 if is_wsgi else 3)
            elif is_wsgi and name in usual and what not in FACTORIES:
                yield _wsgi(tree, path, name, "", 2)
        for node in module.body:
            if isinstance(node, ast.FunctionDef) and _is_wsgi(node) and not is_wsgi:
                yield _wsgi(tree, path, node.name, "", 3)
        yield from _factories(tree, path, module)


def made(tree: Tree) -> Iterator[str]:
    """The files that make one as they are imported: their routes are all of a path."""
    for path, module in tree.python.items():
        if any(called(value) in (*WSGI, *ASGI) for _, value in assigned(module)):
            yield path


def _names(module: ast.Module) -> Iterator[tuple[str, ast.expr | None]]:
    """What a module has by name, with its value where that is one."""
    yield from assigned(module)
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, None
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, None) for alias in node.names)


def _is_wsgi(node: ast.FunctionDef) -> bool:
    return [argument.arg for argument in node.args.args] == ["environ", "start_response"]


def _factories(tree: Tree, path: str, module: ast.Module) -> Iterator[Candidate]:
    for node in module.body:
        if not isinstance(node, ast.FunctionDef) or node.name not in FACTORIES:
            continue
        if what := _asgi_in(node):
            yield _asgi(tree, path, f"{node.name}()", what)
            continue
        todo = {}
        if needs := _arguments_without_default(node):
            todo["app_entry_point"] = f"{node.name} in {path} wants {', '.join(needs)}: say which"
        yield _wsgi(tree, path, f"{node.name}()", "a factory", 4, todo)


def _arguments_without_default(node: ast.FunctionDef) -> list[str]:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    needed = positional[: len(positional) - len(arguments.defaults)]
    named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return [each.arg for each in (*needed, *(each for each, value in named if value is None))]


def _makes_asgi(tree: Tree, factory: str) -> bool:
    """Whether a factory of this name makes an ASGI application."""
    bodies = (node for module in tree.python.values() for node in module.body)
    found = [b for b in bodies if isinstance(b, ast.FunctionDef) and b.name == factory]
    return any(map(_asgi_in, found))


def _asgi_in(node: ast.FunctionDef) -> str:
    return next((called(each) for each in ast.walk(node) if called(each) in ASGI), "")


def _wsgi(
    tree: Tree, path: str, name: str, what: str, rank: int, todo: dict[str, str] | None = None
) -> Candidate:
    root = tree.root(path)
    entry = f"{module_name(path, root)}:{name}"
    by_a2wsgi = "a2wsgi" in {each.partition(".")[0] for each in imported(tree.python[path])}
    # a2wsgi starts a thread, which a fork loses.
    settings = {"app_lazy": True} if by_a2wsgi else {}
    kind = "ASGI by a2wsgi" if by_a2wsgi else what or "an application"
    order = _order(rank, path, name)
    return Candidate(f"{kind}: {entry} in {path}", entry, root, order, settings, todo or {}, path)


def _asgi(tree: Tree, path: str, name: str, what: str) -> Candidate:
    root = tree.root(path)
    module = module_name(path, root)
    made, attribute = name.endswith("()"), name.removesuffix("()")
    todo = (
        f"{what} speaks ASGI and uWSGI WSGI: add a2wsgi to its requirements, and this as "
        f"{'' if root == '.' else root + '/'}wsgi.py:\n"
        f"    from a2wsgi import ASGIMiddleware\n"
        f"    from {module} import {attribute}\n"
        f"    application = ASGIMiddleware({attribute}{'()' * made})"
    )
    return Candidate(
        f"{what}: {module}:{name} in {path}",
        "wsgi:application",
        root,
        _order(5, path, attribute),
        {"app_lazy": True},
        {"app_entry_point": todo},
        path,
    )


def _order(rank: int, path: str, name: str) -> tuple[int | str, ...]:
    rank += 3 * any(word in Path(path).stem for word in UNLIKELY)
    likely = [
        NAMES.index(each) if each in NAMES else len(NAMES) for each in (Path(path).stem, name)
    ]
    # A package's own module is no deeper than the package.
    depth = path.removesuffix("/__init__.py").removeprefix("src/").count("/")
    return (rank, depth, *likely, path)
