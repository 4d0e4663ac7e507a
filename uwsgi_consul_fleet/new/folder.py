"""What is in a new folder, and how it comes to be there: whole, or not at all."""

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.inventory import written
from uwsgi_consul_fleet.inventory.applications import FOLDER, OWN
from uwsgi_consul_fleet.inventory.settings import HostSettings
from uwsgi_consul_fleet.new.applications import Application
from uwsgi_consul_fleet.shipped import shipped

# What is as it is in a checkout, which is an operator's folder too; and what is not.
AS_HERE = ("inventory.py", "tasks.py")
FILES = Path(__file__).with_name("files")


def contents(name: str, applications: Sequence[Application]) -> dict[str, str]:
    """The files by path.

    :param name: what the folder is called
    """
    files = {name: shipped(name).read_text("utf-8") for name in AS_HERE}
    for path in FILES.rglob("*.txt"):
        files[path.relative_to(FILES).as_posix().removesuffix(".txt")] = path.read_text("utf-8")
    files[".gitignore"] = files.pop("gitignore")
    files["README.md"] = files["README.md"].replace("{name}", name)
    fleet = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "fleet"
    ours = shipped(written.ALL).read_text("utf-8")
    files[written.ALL] = written.all_py(ours, {"fleet": fleet}, HostSettings.model_fields)
    for each in applications:
        files[f"{FOLDER}/{each.file}"] = _application(each)
    return files


def _application(app: Application) -> str:
    # Its name is the file's.
    keys = OWN - {"app_name"}
    left = " Lines with TODO are left to you." if app.todo else ""
    title = f'"""The application {app.name}.{left}"""\n\n'
    return title + written.python(app.settings, keys, app.todo)


def check(folder: Path) -> None:
    """:raises FleetError: where something is there already"""
    if folder.is_symlink() and not folder.exists():
        raise FleetError(f"{folder} is a link that leads nowhere; nothing was made")
    if folder.exists() and not folder.is_dir():
        raise FleetError(f"{folder} is a file; name a folder that is not there yet")
    if folder.is_dir() and (there := sorted(path.name for path in folder.iterdir())):
        some = ", ".join(there[:3]) + ", …" * (len(there) > 3)
        raise FleetError(f"{folder} is not empty (it has {some}); name a folder that is not there")
    if not folder.exists() and not folder.parent.is_dir():
        raise FleetError(f"{folder}: there is no folder {folder.parent}; make that first")


def make(folder: Path, files: Mapping[str, str]) -> None:
    """Write it: in one step where it is not there yet, else file by file, and nothing stays of it
    where that is interrupted.

    :raises FleetError: where the system refuses it
    """
    try:
        if folder.exists():
            _fill(folder, files)
            return
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.parent) as name:
            place = Path(name) / folder.name
            place.mkdir()
            _write(place, files)
            place.rename(folder)
    except OSError as error:
        raise FleetError(
            f"{error.filename or folder}: {error.strerror}; nothing was made"
        ) from error


def _fill(folder: Path, files: Mapping[str, str]) -> None:
    try:
        _write(folder, files)
    except BaseException:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise


def _write(place: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
