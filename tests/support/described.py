"""A folder of an operator's own, where each application has a file."""

import subprocess
from pathlib import Path
from typing import Any

import acl_tokens
import consul_version
from checkout import ROOT
from fleet_commands import changed, run, start
from shared_fleet import SharedFleet

DEMO = "consul-demo-server"
HOSTS = ("drakar", "cheetah")
ALL = f"""\
ssh_config_file = "{ROOT}/.lab/ssh_config"
_sudo = True
app_requirements = None
min_healthy_time = 1
app_ini = "app/uwsgi.ini.j2"
{consul_version.settings()}
"""


class Described:
    """The shared fleet with its application in a file: nothing changes by that; and others."""

    def __init__(self, folder: Path, fleet: SharedFleet) -> None:
        self.folder = folder
        acl_tokens.the_same(folder / "inventory.py", fleet.path, HOSTS[0])
        self.groups: dict[str, list[Any]] = {
            "consul_servers": [HOSTS[0]],
            DEMO.replace("-", "_"): [*HOSTS],
        }
        for name in ("applications", "group_data"):
            (folder / name).mkdir()
        (folder / "group_data/all.py").write_text(ALL)
        for name in ("app", "plugin_build", "tasks.py"):
            (folder / name).symlink_to(ROOT / name)
        demo = {f"server{n}": {"port": 2000 + n, "id": f"server{n}"} for n in (1, 2)}
        self.describe(DEMO, "app", app_entry_point="app.server:application", instances=demo)

    def describe(self, name: str, source: Path | str, **settings: Any) -> None:
        lines = {"app_source": str(source), **settings}
        text = "".join(f"{key} = {value!r}\n" for key, value in lines.items())
        (self.folder / f"applications/{name}.py").write_text(text)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """One of the commands, over the groups as they are now; :func:`finish` waits for it."""
        self._write_groups()
        return start(*words, cwd=self.folder, own_group=True)

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        self._write_groups()
        return run(*words, cwd=self.folder, check=check)

    def _write_groups(self) -> None:
        lines = (f"{name} = {hosts!r}\n" for name, hosts in self.groups.items())
        (self.folder / "inventory.py").write_text("".join(lines))

    def start_deploy(self, *options: str) -> subprocess.Popen[str]:
        return self.start(*self._deploy(*options))

    def deploy(self, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(*self._deploy(*options), check=check)

    def _deploy(self, *options: str) -> list[str]:
        return ["pyinfra", "-y", *options, "inventory.py", f"{ROOT}/deploy/"]

    def changes(self, *options: str) -> dict[str, list[str]]:
        return changed(self.deploy("--json", *options))
