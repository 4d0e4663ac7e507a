"""The shipped settings on machines of one's own, where there is no lab."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_shipped_settings_can_be_read_without_a_lab(tmp_path: Path) -> None:
    # The lab's files are looked for beside the package: a copy has none.
    checkout = tmp_path / "checkout"
    for name in ("uwsgi_consul_fleet", "group_data"):
        shutil.copytree(ROOT / name, checkout / name)
    shutil.copy(ROOT / "inventory.py", checkout)
    result = subprocess.run(
        [str(Path(sys.executable).with_name("pyinfra")), "inventory.py", "debug-inventory"],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert f"{tmp_path}/.ssh/config" in result.stdout + result.stderr
