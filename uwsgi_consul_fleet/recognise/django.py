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
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            return {key.value: _value(v) for key, v in pairs if isinstance(key, ast.Constant)}
        if called(node) == "str" and isinstance(node, ast.Call) and node.args:
            return _value(node.args[0])
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
    sends = any("whitenoise" in text for text in _texts(tree, root, used))
    _static(has, root, manage, sends, settings, todo)
    _data(has, root, manage, settings, todo)
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


def _below(folder: Any, root: str) -> str:
    """A path in the source that is named in settings; '' where it is no such path."""
    is_path = isinstance(folder, str) and folder and not folder.startswith(("/", "..", ":"))
    return (Path(root) / folder).as_posix() if is_path else ""


def _mount(url: Any) -> str:
    return f"/{url.strip('/')}" if isinstance(url, str) and url and "//" not in url else ""


def _static(
    has: dict[str, Any],
    root: str,
    manage: str,
    sends: bool,
    settings: dict[str, Any],
    todo: dict[str, str],
) -> None:
    """Files that uWSGI can send instead of the application, which may do it itself."""
    mount, folder = _mount(has.get("STATIC_URL")), has.get("STATIC_ROOT")
    build = f"python {manage} collectstatic --noinput"
    if found := _below(folder, root):
        settings["app_build"] = [build]
    if sends or not mount:
        return
    if found:
        settings["app_static"] = {mount: found}
    elif folder is UNKNOWN:
        todo["app_static"] = (
            f'STATIC_ROOT is not known before it runs: {{"{mount}": "…"}}, and app_build = '
            f'["{build}"]'
        )
    else:
        todo["app_static"] = (
            f"nobody sends what is below {mount}/: it takes three lines, STATIC_ROOT = BASE_DIR / "
            f'"staticfiles" in its settings, and here app_static = {{"{mount}": "'
            f'{_below("staticfiles", root)}"}} and app_build = ["{build}"]'
        )


def _data(
    has: dict[str, Any], root: str, manage: str, settings: dict[str, Any], todo: dict[str, str]
) -> None:
    """Its database's migrations, and what has to outlive releases."""
    if databases := has.get("DATABASES"):
        settings["app_release"] = [f"python {manage} migrate --noinput"]
    shared = _sqlite(databases, root)
    if shared:
        todo["app_shared"] = (
            f"{shared[0]} is a file of one host's, and app_release runs on one: give the "
            "application one host, or a database that all its hosts reach"
        )
    if media := _below(has.get("MEDIA_ROOT"), root):
        shared.append(f"{media}/")
        if mount := _mount(has.get("MEDIA_URL")):
            settings["app_static"] = {**settings.get("app_static", {}), mount: media}
    if shared:
        settings["app_shared"] = shared


def _sqlite(databases: Any, root: str) -> list[str]:
    """The databases that are files in the source."""
    found = databases.values() if isinstance(databases, dict) else ()
    known = [each for each in found if isinstance(each, dict)]
    files = (each.get("NAME") for each in known if str(each.get("ENGINE")).endswith("sqlite3"))
    return [path for file in files if (path := _below(file, root))]


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
