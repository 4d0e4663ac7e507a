"""Other processes of an application: Celery's worker and beat."""

import ast
from pathlib import Path
from typing import Any

from uwsgi_consul_fleet.recognise.tree import Tree, assigned, called, module_name, strings

SCHEDULES = ("beat_schedule", "CELERY_BEAT_SCHEDULE", "CELERYBEAT_SCHEDULE", "add_periodic_task")
BY_DJANGO = "django_celery_beat"
WORKER = "celery -A {} worker -n $APP_WORKER@%h"


def find(
    tree: Tree, root: str, said: list[str], settings: dict[str, Any], todo: dict[str, str]
) -> None:
    """Add what follows from a Celery application, where there is one.

    :param root: the folder from which modules are imported
    """
    below = {path: each for path, each in tree.python.items() if Path(path).is_relative_to(root)}
    path = next((path for path, module in below.items() if _has_celery(module)), "")
    if not path:
        _leave(tree, todo)
        return
    module = module_name(path, root)
    said.append(f"Celery: {module} in {path}")
    settings["app_workers"] = found = {"celery": {"command": WORKER.format(module)}}
    if any(map(_has_schedule, tree.python.values())):
        by_django = any(BY_DJANGO in strings(each) for each in tree.python.values())
        # A release's folder can't be written to.
        where = "--scheduler django" if by_django else "--schedule beat/schedule"
        beat = {"command": f"celery -A {module} beat {where}", "overlap": False, "hosts": []}
        settings["app_workers"] = {**found, "beat": beat}
        settings |= {} if by_django else {"app_shared": ["beat/"]}
        todo["app_workers"] = 'beat runs on one host, and on none yet: "hosts": ["…"] names it'


def _has_celery(module: ast.Module) -> bool:
    """By a name: made there, or taken from where Flask's documentation has a factory put it."""
    values = [value for _, value in assigned(module)]
    return any(called(value) == "Celery" or _is_extension(value) for value in values)


def _is_extension(node: ast.expr) -> bool:
    """``app.extensions["celery"]``"""
    if not isinstance(node, ast.Subscript):
        return False
    key = getattr(node.slice, "value", None)
    return getattr(node.value, "attr", "") == "extensions" and key == "celery"


def _leave(tree: Tree, todo: dict[str, str]) -> None:
    """It is made somewhere, and nobody knows where it is to be had."""
    for path, module in tree.python.items():
        if any(called(node) == "Celery" for node in ast.walk(module)):
            example = f'{{"celery": "{WORKER.format("MODULE")}"}}'
            todo["app_workers"] = (
                f"Celery is made in {path}; with the module that has it: {example}"
            )
            return


def _has_schedule(module: ast.Module) -> bool:
    names = {getattr(node, key, None) for node in ast.walk(module) for key in ("attr", "id", "arg")}
    return not names.isdisjoint(SCHEDULES) or BY_DJANGO in strings(module)
