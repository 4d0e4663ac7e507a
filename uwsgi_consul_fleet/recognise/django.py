"""A Django project: its manage.py leads to its settings, and these to the rest."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uwsgi_consul_fleet.recognise.candidate import Candidate
from uwsgi_consul_fleet.recognise.tree import Tree, assigned, called, module_path, strings

UNKNOWN = object()  # a value that only running it would tell


def projects(tree: Tree) -> Iterator[Candidate]:
    """Each manage.py whose settings are there."""
    for path, module in tree.python.items():
        name = _settings_module(module) if Path(path).name == "manage.py" else ""
        root = Path(path).parent.as_posix()
        if name and module_path(tree, name, root):
            yield _project(tree, path, root, name)


def _settings_module(module: ast.Module) -> str:
    """The one in ``os.environ.setdefault("DJANGO_SETTINGS_MODULE", …)``."""
    for node in ast.walk(module):
        if called(node) == "setdefault" and isinstance(node, ast.Call):
            words = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            if words[:1] == ["DJANGO_SETTINGS_MODULE"] and len(words) == 2:
                return str(words[1])
    return ""


def _constants(tree: Tree, file: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """What settings assign, those included that they take with ``from .base import *``.

    :param seen: the files from which they are taken
    """
    found: dict[str, Any] = {}
    module = tree.python.get(file)
    for node in module.body if module else ():
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.names[0].name == "*":
            below = module_path(tree, node.module or "", Path(file).parent.as_posix())
            found |= _constants(tree, below, (*seen, file)) if below not in (*seen, file) else {}
        one = ast.Module([node], [])
        found |= {name: _value(value) for name, value in assigned(one) if name.isupper()}
    return found


def _value(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError):
        # BASE_DIR / "static", or os.path.join(BASE_DIR, "static").
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            words = [node.right]
            while isinstance(node := node.left, ast.BinOp):
                words.insert(0, node.right)
        elif called(node) == "join" and isinstance(node, ast.Call):
            node, *words = node.args
        else:
            return UNKNOWN
        texts = [word.value for word in words if isinstance(word, ast.Constant)]
        is_below = isinstance(node, ast.Name) and node.id in (
            "BASE_DIR",
            "ROOT_DIR",
            "PROJECT_ROOT",
        )
        is_known = is_below and len(texts) == len(words)
        return "/".join(map(str, texts)) if is_known else UNKNOWN


def _project(tree: Tree, manage: str, root: str, name: str) -> Candidate:
    wsgi = _constants(tree, module_path(tree, name, root)).get("WSGI_APPLICATION")
    entry = ":".join(wsgi.rsplit(".", 1)) if isinstance(wsgi, str) and "." in wsgi else ""
    entry = entry or f"{name.partition('.')[0]}.wsgi:application"
    file = module_path(tree, entry.partition(":")[0], root)
    taken = _settings_module(tree.python[file]) if file in tree.python else ""
    used, *others = _settings_modules(tree, root, taken or name)
    settings: dict[str, Any] = {}
    todo: dict[str, str] = {}
    if not file:
        entry = "django.core.wsgi:get_wsgi_application()"
    if used != taken:
        settings["app_env"] = {"DJANGO_SETTINGS_MODULE": used}
    has = _constants(tree, module_path(tree, used, root))
    if not any("whitenoise" in text for text in _texts(tree, root, used)):
        _static(has, root, manage, settings, todo)
    _hosts(has, settings, todo)
    if has.get("DEBUG") is True:
        todo["app_env"] = f"{used} has DEBUG = True, which shows its inside to visitors"
    said = f"Django: {manage}, {entry}, settings {used}"
    said += f" (also there: {', '.join(others)})" * bool(others)
    routes = module_path(tree, str(has.get("ROOT_URLCONF")), root)
    order = (0, root.count("/"), root != ".", manage)
    return Candidate(said, entry, root, order, settings, todo, routes)


def _settings_modules(tree: Tree, root: str, name: str) -> list[str]:
    """The settings to run with, and others beside them: those for production come first."""
    package, _, _last = name.rpartition(".")
    folder = Path(root) / package.replace(".", "/")
    is_package = tree.has(f"{folder}/__init__.py") and package.endswith("settings")
    beside = [path for path in tree.python if is_package and Path(path).parent == folder]
    names = [f"{package}.{Path(path).stem}" for path in beside if not path.endswith("__init__.py")]
    production = [each for each in names if each.rpartition(".")[2] in ("production", "prod")]
    return list(dict.fromkeys([*production, name, *names]))


def _texts(tree: Tree, root: str, name: str) -> Iterator[str]:
    """What stands in these settings, and in those beside them."""
    for each in _settings_modules(tree, root, name):
        path = module_path(tree, each, root)
        yield from strings(tree.python[path]) if path in tree.python else ()


def _static(
    has: dict[str, Any], root: str, manage: str, settings: dict[str, Any], todo: dict[str, str]
) -> None:
    """Files that uWSGI can send instead of the application."""
    url, folder = has.get("STATIC_URL"), has.get("STATIC_ROOT")
    if not isinstance(url, str) or "//" in url:
        return
    if isinstance(folder, str) and folder and not folder.startswith(("/", "..")):
        settings["app_static"] = {f"/{url.strip('/')}": (Path(root) / folder).as_posix()}
        settings["app_build"] = [f"python {manage} collectstatic --noinput"]
    elif folder is UNKNOWN:
        todo["app_static"] = (
            f'STATIC_ROOT is not known before it runs: {{"/{url.strip("/")}": "…"}}'
        )
    else:
        todo["app_static"] = (
            f'nobody sends what is below {url}: with STATIC_ROOT = BASE_DIR / "staticfiles" in the '
            f'settings it would be {{"/{url.strip("/")}": "staticfiles"}}'
        )


def _hosts(has: dict[str, Any], settings: dict[str, Any], todo: dict[str, str]) -> None:
    """What a health check has to look like."""
    allowed = has.get("ALLOWED_HOSTS", [])
    headers = {}
    if isinstance(allowed, list | tuple) and allowed:
        first = str(allowed[0]).lstrip(".")
        headers = {"Host": first} if first != "*" else {}
    elif allowed is UNKNOWN or has.get("DEBUG") is not True:
        known = "is not known before it runs" if allowed is UNKNOWN else "is empty"
        todo["health_headers"] = (
            f'ALLOWED_HOSTS {known}: {{"Host": "…"}} with one that it will have'
        )
    if has.get("SECURE_SSL_REDIRECT") is True:
        headers["X-Forwarded-Proto"] = "https"
    if headers:
        settings["health_headers"] = headers
