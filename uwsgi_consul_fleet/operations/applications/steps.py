"""What an application's own commands need on a host; host/steps.py runs them there."""

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

from pyinfra.api import StringCommand
from pyinfra.api.command import QuoteString

from uwsgi_consul_fleet.build.builder import assignments
from uwsgi_consul_fleet.build.identity import SCRATCH
from uwsgi_consul_fleet.host.steps import UNFINISHED
from uwsgi_consul_fleet.host_program import PROGRAM, RUN
from uwsgi_consul_fleet.inventory.settings import Settings
from uwsgi_consul_fleet.operations.applications import loading
from uwsgi_consul_fleet.operations.program import command
from uwsgi_consul_fleet.operations.run import AppHere

HERE = Path(__file__).parent
BUILD = (HERE / "give_way.sh").read_text() + SCRATCH + (HERE / "build.sh").read_text()


def has_some(settings: Settings) -> bool:
    """Whether a release is not complete when it is unpacked."""
    return bool(settings.app_build or settings.app_shared)


def manifest(settings: Settings) -> str:
    """What its release.json is called when it is unpacked."""
    return UNFINISHED if has_some(settings) else "release.json"


def about(settings: Settings) -> str:
    """Where and how commands run, as the host program takes it."""
    said = {
        "root": loading.folder(settings),
        "secrets": settings.app_secrets,
        "timeout": settings.app_step_timeout,
    }
    return json.dumps(said)


def finish(here: AppHere, generation: str) -> Generator[Any, None, None]:
    """The commands that make a release complete which was unpacked on a host; none where it is."""
    settings = here.me.settings
    if not has_some(settings):
        return
    if not (settings.app_build and settings.app_build_packages):
        yield command(here, "finish", here.me.app, generation, about(settings))
        return
    variables = assignments(
        keep_toolchain="no",
        app=here.me.app,
        name=generation,
        about=about(settings),
        packages=" ".join(settings.app_build_packages),
        program=PROGRAM,
        run=RUN,
    )
    text = QuoteString(variables + BUILD)
    yield StringCommand("env", StringCommand("SCRIPT=", text, _separator=""), "sh", "-c", text)
