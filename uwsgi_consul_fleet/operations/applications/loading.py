"""What uWSGI is told of an application: lines of its ini, from the settings alone."""

from uwsgi_consul_fleet.inventory import uwsgi_options
from uwsgi_consul_fleet.inventory.settings import Settings, split_entry_point
from uwsgi_consul_fleet.operations.applications.source import SOURCE
from uwsgi_consul_fleet.operations.plan import DeployError


def folder(settings: Settings) -> str:
    """Where the application works, below the release: the source, or the folder that holds it."""
    return f"{SOURCE}/" if settings.app_root else ""


def plugins(settings: Settings) -> str:
    """Those of Debian's that it needs, each with a comma.

    :raises DeployError: where its uWSGI has none for an option
    """
    if settings.uwsgi_source == "pypi":
        for name in uwsgi_options.NOT_BUILT_IN:
            if name in settings.app_uwsgi:
                raise DeployError(
                    f"app_uwsgi: {name}: PyPI's uWSGI has no plugin for it: set uwsgi_source = "
                    '"debian", or use gevent; nothing was changed'
                )
        return ""
    asked = (uwsgi_options.PLUGINS.get(name, ()) for name in settings.app_uwsgi)
    return "".join(f"{name}," for name in dict.fromkeys(("python3", *sum(asked, ()))))


def loading(settings: Settings) -> list[str]:
    """What loads it. In an ini %d is the release."""
    root = [] if settings.app_root in (None, ".") else [settings.app_root]
    path = [f"pythonpath = %d{folder(settings)}{''.join(root)}"] if settings.app_root else []
    return path + _entry(settings)


def _entry(settings: Settings) -> list[str]:
    file, named = split_entry_point(settings.app_entry_point)
    place = f"%d{folder(settings)}{file}"
    if not file:
        return [f"module = {settings.app_entry_point}"]
    if file.endswith(".ini"):
        # Not ini-paste: the file's own [uwsgi] could open sockets beside those of the release.
        section = [f"paste-name = {named[1:]}"] if named else []
        return [f"paste = config:{place}", "paste-logger = true", *section]
    return [f"wsgi-file = {place}", *([f"callable = {named[1:]}"] if named else [])]


def options(settings: Settings) -> list[str]:
    """What else it is told: app_uwsgi and app_static."""
    return uwsgi_options.lines(settings.app_uwsgi) + _static(settings)


def _static(settings: Settings) -> list[str]:
    found = [
        f"static-map = {mount}=%d{folder(settings)}{path}"
        for mount, path in settings.app_static.items()
    ]
    # A worker finds the file; for as long as a client takes it, it is not kept.
    offloads = found and "offload-threads" not in settings.app_uwsgi
    return [*found, "offload-threads = 1"] if offloads else found


def asked(settings: Settings) -> dict[str, list[str]]:
    """By setting, lines that an ini must have, and that no template of before can have."""
    found = {
        "app_uwsgi": uwsgi_options.lines(settings.app_uwsgi),
        "app_static": _static(settings),
    }
    if settings.app_root:
        found["app_root"] = [f"chdir = %d{folder(settings)}", loading(settings)[0]]
    if split_entry_point(settings.app_entry_point)[0]:
        found["app_entry_point"] = _entry(settings)
    return found
