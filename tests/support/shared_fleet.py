"""A fleet that many test files use, one after the other."""

import subprocess
from pathlib import Path

from checkout import ROOT
from fleet_commands import Fleet, output, run
from lab_commands import Lab

from uwsgi_consul_fleet.errors import LockedError
from uwsgi_consul_fleet.host_program import PROGRAM
from uwsgi_consul_fleet.inventory.vault import FOLDER

HOSTS = ("drakar", "cheetah")
SPARE = ("ormen", "skeid")
# Beside the inventory; what --data says still comes before it. The application serves without its
# requirements: installing them takes most of a deploy to a new machine.
SETTINGS = {"app_requirements": None, "min_healthy_time": 1}
# Other applications, which serve on: no inventory but the test's own knows them.
CLEAR = f"""cd /etc/uwsgi-consul-fleet 2>/dev/null || exit 0
for name in *.conf; do
    case $name in a-newer-* | consul-demo-server.conf | '*.conf') continue ;; esac
    sudo {PROGRAM} stop "${{name%.conf}}" && sudo {PROGRAM} remove "${{name%.conf}}"
done"""


class SharedFleet(Fleet):
    """drakar with Consul's server, both hosts with the application as it is in the checkout.

    A test may do to it what it likes, and needs not tidy up: who comes next calls `reset`.
    """

    def __init__(self, path: Path, lab: Lab) -> None:
        super().__init__(path)
        self.lab = lab
        self.built = False
        path.with_name("group_data").mkdir(parents=True, exist_ok=True)
        # Whoever was here before, in whichever folder, has made these machines of the same fleet.
        (kept := ROOT / ".lab/secrets").mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (secrets := path.with_name(FOLDER)).is_symlink():
            secrets.symlink_to(kept)
        settings = path.with_name("group_data") / "all.py"
        settings.write_text("".join(f"{key} = {value!r}\n" for key, value in SETTINGS.items()))

    def more(self, *names: str) -> None:
        """Start more machines, of :data:`SPARE`; `reset` removes them."""
        self.lab.up(*names)

    def reset(self, *more: str) -> None:
        """Put the fleet into the state above, and let every other machine leave it and go.

        By a deploy; where that fails, the machines are made anew.

        :param more: machines of :data:`SPARE` that are to have the application, too
        """
        try:
            self._put_back(*HOSTS, *more)
        except AssertionError as error:
            print(f"the fleet is made anew: {error}")
            self.lab.rebuild()
            self._put_back(*HOSTS, *more)

    def _put_back(self, *members: str) -> None:
        others = [name for name in self.lab.addresses() if name not in members]
        self.lab.up(*members, *others)
        for host in members:
            self.lab.ssh(host, CLEAR, check=False)
        self.hosts(["drakar"], list(members), others)
        if not self.built:
            self.build_once()
            self.built = True
        result = self._deploy()
        if "which was rolled back from" in output(result):  # by a test, so it takes a name
            result = self._deploy("--data", "release=checkout")
        assert result.returncode == 0, output(result)
        # Else a run would be about them as well, or not, by which tests came before; and to keep
        # them for whoever starts them next takes more than to make them.
        self.hosts(["drakar"], list(members))
        if others:
            self.lab.down(*others)
        self.verify()

    def _deploy(self, *options: str) -> subprocess.CompletedProcess[str]:
        """With what tests may have left in its way taken out of it when it is met."""
        result = self.deploy(*options, check=False)
        if result.returncode == LockedError.exit_code:  # by a deploy that a test killed
            run("invoke", "unlock", "--yes", "--inventory", str(self.path))
        elif "no consul plugin for its uWSGI" in output(result):
            self.build_once()
        else:
            return result
        return self.deploy(*options)
