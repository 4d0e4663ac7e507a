"""How uWSGI finds the application in a release: lines of its ini, from the settings alone."""

from uwsgi_consul_fleet.inventory.settings import Settings, split_entry_point
from uwsgi_consul_fleet.operations.applications.source import SOURCE


def folder(settings: Settings) -> str:
    """Where the application works, below the release: the source, or the folder that holds it."""
    return f"{SOURCE}/" if settings.app_root else ""


def lines(settings: Settings) -> list[str]:
    """What loads it. In an ini %d is the release."""
    file, named = split_entry_point(settings.app_entry_point)
    place = f"%d{folder(settings)}{file}"
    found = []
    if settings.app_root:
        root = "" if settings.app_root == "." else settings.app_root
        found.append(f"pythonpath = %d{folder(settings)}{root}")
    if not file:
        found.append(f"module = {settings.app_entry_point}")
    elif file.endswith(".ini"):
        # Not ini-paste: the file's own [uwsgi] could open sockets beside those of the release.
        found += [f"paste = config:{place}", "paste-logger = true"]
        found += [f"paste-name = {named[1:]}"] if named else []
    else:
        found.append(f"wsgi-file = {place}")
        found += [f"callable = {named[1:]}"] if named else []
    return found


def asked(settings: Settings) -> dict[str, list[str]]:
    """By setting, lines that an ini must have: what no template of before can have."""
    found = {}
    if settings.app_root:
        found["app_root"] = [f"chdir = %d{folder(settings)}", lines(settings)[0]]
    if split_entry_point(settings.app_entry_point)[0]:
        found["app_entry_point"] = lines(settings)[bool(settings.app_root) :]
    return found
