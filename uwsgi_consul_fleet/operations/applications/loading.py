"""What uWSGI is told of an application: lines of its ini, from the settings alone."""

from uwsgi_consul_fleet.host.content import BROUGHT
from uwsgi_consul_fleet.host.content import FOLDER as REQUIREMENTS
from uwsgi_consul_fleet.host.store import SHARED
from uwsgi_consul_fleet.inventory import uwsgi_options
from uwsgi_consul_fleet.inventory.settings import Settings
from uwsgi_consul_fleet.languages import PYTHON
from uwsgi_consul_fleet.operations.applications.source import SOURCE
from uwsgi_consul_fleet.operations.plan import DeployError

# What its own command would ask for, or write.
BUNDLER = {"FROZEN": "true", "WITHOUT": "development:test", "USER_HOME": "/nonexistent"}
# Of a path: hidden files, and PHP's source where uWSGI would not run it.
HIDDEN = r"/\.(?!well-known/)"
SOURCE_CODE = r"\.(?!php(?:/|$))(?i:ph(?:p|ar|tml)|inc$)"


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
    return "".join(
        f"{name}," for name in dict.fromkeys((settings.language.plugin, *sum(asked, ())))
    )


def loading(settings: Settings) -> list[str]:
    """What loads it. In an ini %d is the release."""
    if settings.app_type != PYTHON:
        return _other(settings)
    path = [f"pythonpath = %d{imports(settings)}"] if settings.app_root else []
    return path + _entry(settings)


def imports(settings: Settings) -> str:
    """From where its modules are imported, below the release."""
    root = "" if settings.app_root in (None, ".") else settings.app_root
    return f"{folder(settings)}{root}"


def _entry(settings: Settings) -> list[str]:
    file, named = settings.entry
    place = f"%d{folder(settings)}{file}"
    if not file:
        return [f"module = {settings.app_entry_point}"]
    if file.endswith(".ini"):
        # Not ini-paste: the file's own [uwsgi] could open sockets beside those of the release.
        section = [f"paste-name = {named[1:]}"] if named else []
        return [f"paste = config:{place}", "paste-logger = true", *section]
    return [f"wsgi-file = {place}", *([f"callable = {named[1:]}"] if named else [])]


def _other(settings: Settings) -> list[str]:
    """What loads an application that is not Python's. Its dependencies are in a folder beside it,
    and what is needed to install them is not asked for again."""
    place, brought = f"%d{SOURCE}/{settings.app_entry_point}", f"%d{BROUGHT}"
    root = f"%d{SOURCE}/{settings.app_root}" if settings.app_root != "." else ""
    wanted, kind = settings.app_requirements, settings.app_type
    modifier = settings.language.modifier
    lines = [f"http-socket-modifier1 = {modifier}"] if modifier else []
    if kind == "psgi":
        path = [root, f"{brought}/lib/perl5" if wanted else ""]
        lines += [f"env = PERL5LIB={':'.join(filter(None, path))}"] if any(path) else []
    elif kind == "rack":
        lines += [f"rb-lib = {root}"] if root else []
        if wanted:
            said = {"GEMFILE": f"%d{REQUIREMENTS}/Gemfile", "PATH": brought} | BUNDLER
            lines += [f"env = BUNDLE_{name}={value}" for name, value in said.items()]
            lines.append("rb-require = bundler/setup")
    elif kind == "php":
        return lines + _php(settings, place)
    return [*lines, f"{kind} = {place}"]


def _php(settings: Settings, place: str) -> list[str]:
    """One file that answers everything; or a folder, of which the files that are not PHP are sent
    as they are, but for hidden ones. What is PHP by another name, such as index.php.bak, is not
    sent, nor what is brought by app_static."""
    lines = ["static-skip-ext = .php", f"route = {SOURCE_CODE} break:403 Forbidden"]
    if place.endswith(".php"):
        return [f"php-docroot = {place.rpartition('/')[0]}", f"php-app = {place}", *lines]
    return [
        f"php-docroot = {place}",
        "php-index = index.php",
        "php-allowed-ext = .php",
        f"check-static = {place}",
        "static-index = index.html",
        *lines,
        f"route = {HIDDEN} break:403 Forbidden",
        *_beyond(settings),
    ]


def _beyond(settings: Settings) -> list[str]:
    """What is served although a link leads to it, out of the release."""
    return [f"static-safe = /srv/{settings.app_name}/{SHARED}"] if settings.app_shared else []


def options(settings: Settings) -> list[str]:
    """What else it is told: app_uwsgi and app_static."""
    return uwsgi_options.lines(settings.app_uwsgi) + _static(settings)


def _static(settings: Settings) -> list[str]:
    found = [
        f"static-map = {mount}=%d{folder(settings)}{path}"
        for mount, path in settings.app_static.items()
    ]
    if found:
        found += ["static-skip-ext = .env", *_beyond(settings)]
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
        path = [line for line in loading(settings) if line.startswith("pythonpath")]
        found["app_root"] = [f"chdir = %d{folder(settings)}", *path]
    if settings.app_type != PYTHON:
        found["app_type"] = _other(settings)
    elif settings.entry[0]:
        found["app_entry_point"] = _entry(settings)
    return found
