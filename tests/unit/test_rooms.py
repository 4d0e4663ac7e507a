"""What is outside of import-linter's sight: programs that are no modules of the package, and
what hosts run, which has nothing but Python there."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOST = ROOT / "uwsgi_consul_fleet/host"


def imports(path: Path) -> set[str]:
    """What a file imports, without what lies beside it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module))
    return found


def test_the_deploy_is_made_of_operations_of_the_package() -> None:
    names = imports(ROOT / "deploy/__main__.py")
    assert {name.partition(".")[0] for name in names} == {"pyinfra", "uwsgi_consul_fleet"}


def test_the_list_of_commands_has_their_bodies_from_one_room() -> None:
    assert imports(ROOT / "tasks.py") == {"uwsgi_consul_fleet.commands.tasks"}
    listing = ROOT / "uwsgi_consul_fleet/commands/tasks.py"
    assert imports(listing) == {"invoke", "uwsgi_consul_fleet.commands"}


@pytest.mark.parametrize("path", sorted(HOST.glob("*.py")), ids=lambda path: path.name)
def test_what_runs_on_a_host_needs_python_alone(path: Path) -> None:
    assert {name.partition(".")[0] for name in imports(path)} <= sys.stdlib_module_names


def test_the_agents_address_stands_where_it_belongs() -> None:
    """Once in our Python; the plugin and the client beside the application have their own."""
    text = re.compile(r"\b8500\b")
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True)
    files = [ROOT / name for name in listed.stdout.split() if name.endswith(CODE)]
    found = [path.relative_to(ROOT) for path in files for _ in text.findall(path.read_text())]
    ours = sorted(map(str, (path for path in found if path.parts[0] not in ("tests", "bench"))))
    assert ours == [
        "app/client.py",
        "group_data/all.py",  # the settings' defaults, for people
        "plugin_build/src/plugin.c",  # in comments and help
        "plugin_build/src/plugin.c",
        "plugin_build/src/settings.c",
        "uwsgi_consul_fleet/host/consul.py",
        "uwsgi_consul_fleet/inventory/mistakes.py",  # a port that no instance can have
        "uwsgi_consul_fleet/operations/firewall/rules.py",  # a port that is nobody else's
        "uwsgi_consul_fleet/ownership/look.sh",  # a port on which nobody else may listen
    ]


CODE = (".py", ".sh", ".j2", ".c", ".h", ".ini", ".toml")
