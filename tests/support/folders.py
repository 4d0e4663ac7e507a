"""A machine of which only some folders are its own: for scripts that change what is in them."""

import subprocess
from pathlib import Path

FOLDERS = ("etc", "opt", "run", "srv", "usr/local/bin", "var/lib", "lib/systemd")


class Machine:
    """In a namespace of its own, everything but these folders is this machine's."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in FOLDERS:
            (root / folder).mkdir(parents=True)
        # Where Debian's commands lie that there are several of is said in /etc.
        (root / "etc/alternatives").mkdir()
        (root / "etc/alternatives/awk").symlink_to(Path("/etc/alternatives/awk").resolve())

    def put(self, path: str, text: str = "theirs") -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def link(self, target: str) -> None:
        (self.root / "usr/local/bin/consul").symlink_to(target)

    def files(self) -> set[str]:
        found = (each for each in self.root.rglob("*") if each.is_symlink() or each.is_file())
        names = {f"/{each.relative_to(self.root)}" for each in found}
        return names - {"/etc/alternatives/awk"}

    def run(self, command: str) -> str:
        """What a shell command says there."""
        # Nothing of it is done to this machine where a folder can't be mounted.
        mounts = [f"mount --bind {self.root}/{folder} /{folder}" for folder in FOLDERS]
        script = "\n".join(["set -e", *mounts, "set +e", command])
        words = ["unshare", "--map-root-user", "--mount", "sh", "-c", script]
        return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
