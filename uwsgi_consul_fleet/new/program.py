"""The command `uwsgi-consul-fleet`."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.inventory.applications import FOLDER
from uwsgi_consul_fleet.inventory.settings import literal
from uwsgi_consul_fleet.new import applications, folder
from uwsgi_consul_fleet.new.applications import Application

# Settings that are in what an application is recognised by, and where it is.
TOLD = (
    "app_source", "app_root", "app_type", "app_entry_point", "app_requirements", "health_path",
    "instances",
)  # fmt: skip


@click.group(help="Web applications on uWSGI, on machines of your own, that find each other.")
@click.version_option(package_name="uwsgi-consul-fleet", message="%(package)s %(version)s")
def commands() -> None:
    pass


@commands.command()
@click.argument("place", metavar="FOLDER")
@click.option(
    "--app",
    "apps",
    multiple=True,
    metavar="PATH_OR_GIT_URL",
    help="An application: it is looked at, never run. May be given several times.",
)
def new(place: str, apps: tuple[str, ...]) -> None:
    """Make a folder for a fleet: what its operator owns and edits."""
    target = Path(place).expanduser().absolute()
    folder.check(target)
    found = applications.look(apps, target.resolve())
    all_of_them = found or [applications.example()]
    folder.make(target, folder.contents(target.resolve().name, all_of_them))
    for each in found:
        _tell(each)
    _tell_what_is_next(place, all_of_them)


def _tell(app: Application) -> None:
    filled = {key: f"{key} = {literal(value)}" for key, value in app.settings.items()}
    lines = [*app.said, *(text for key, text in filled.items() if key not in (*TOLD, *app.todo))]
    for key, text in app.todo.items():
        lines += f"left to you: {filled.get(key, key)}: {text}".splitlines()
    click.secho(f"{app.name}: {app.given}", bold=True)
    for line in lines:
        # Names of files are the application's: a terminal could take them for commands.
        click.echo("  " + "".join(char if char.isprintable() else "?" for char in line))


def _tell_what_is_next(place: str, made: Sequence[Application]) -> None:
    files = ", ".join(f"{FOLDER}/{each.file}" for each in made if each.todo)
    click.echo(f"made {place}; next:")
    for line in (
        f"cd {shlex.quote(place)}",
        "# put the names of your machines into inventory.py, or: invoke lab.up",
        *([f"# fill in what is marked with TODO: {files}"] if files else []),
        "invoke build-plugin",
        "pyinfra -y inventory.py deploy/",
        "invoke verify --wait 10",
    ):
        click.echo(f"  {line}")


def main() -> None:
    """An error ends it with one line and status 1, Ctrl-C with 130."""
    try:
        commands(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except FleetError as error:
        click.echo(f"uwsgi-consul-fleet: {error}", err=True)
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; nothing was made", err=True)
        sys.exit(130)
