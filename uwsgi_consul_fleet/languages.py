"""The languages of uWSGI that an application can be written in (app_type)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    """What uWSGI and Debian have for it.

    :param name: for people
    :param plugin: uWSGI's
    :param packages: what an application runs with, beside the plugin
    :param modifier: the number by which requests come to the plugin, where uWSGI does not choose it
    :param loads: whether uWSGI counts the application when it is loaded, as `need-app` needs it
    :param entry: what app_entry_point is
    :param manifest: the file that says its dependencies, '' where nothing does
    :param lock: the one beside it with their versions
    :param is_locked: whether there must be one
    :param tools: packages that install the dependencies
    :param compiler: what these may take beside a C compiler
    :param compiles: whether it makes machine code as it runs
    :param writable: where it keeps what is its own, as sessions
    """

    name: str
    plugin: str
    packages: tuple[str, ...] = ()
    modifier: int = 0
    loads: bool = True
    entry: str = "a file"
    manifest: str = ""
    lock: str = ""
    is_locked: bool = True
    tools: tuple[str, ...] = ()
    compiler: tuple[str, ...] = ()
    compiles: bool = False
    writable: tuple[str, ...] = ()


PYTHON = "wsgi"
LANGUAGES = {
    PYTHON: Language("Python", "python3", ("uwsgi-plugin-python3", "python3-venv")),
    "psgi": Language(
        "Perl",
        "psgi",
        ("libplack-perl",),
        entry="a file, such as app.psgi",
        manifest="cpanfile",
        lock="cpanfile.snapshot",
        is_locked=False,
        tools=("carton", "make", "libio-socket-ssl-perl"),  # CPAN is reached by https
        compiler=("libperl-dev",),
    ),
    "rack": Language(
        "Ruby",
        "rack",
        ("ruby-rack", "bundler"),
        entry="a file, such as config.ru",
        manifest="Gemfile",
        lock="Gemfile.lock",
        tools=("bundler",),
        compiler=("ruby-dev",),
    ),
    "php": Language(
        "PHP",
        "php",
        ("php-cli",),
        modifier=14,
        loads=False,
        entry="a .php file that answers everything, or a folder of files (public)",
        manifest="composer.json",
        lock="composer.lock",
        tools=("composer", "unzip"),
        compiles=True,  # its regular expressions (pcre.jit)
        writable=("/var/lib/php/sessions",),
    ),
    "lua": Language("Lua", "lua51", modifier=6, loads=False, entry="a file, such as app.lua"),
    "go": Language("Go", "gccgo"),
}
# Why a language can't be had, whatever the application is.
IMPOSSIBLE = {
    "go": "Debian's uWSGI can't load its plugin for Go (uwsgi-plugin-gccgo: undefined symbol "
    "go.uwsgi.SignalHandler), nor does that know the Go of its libgo: such an application needs a "
    "service of its own"
}
# Options of uWSGI that are Python's, or that a language's plugin does not bear.
NOT_FOR = {
    "gevent": ("psgi", "rack", "php", "lua"),
    "asyncio": ("psgi", "rack", "php", "lua"),
    "greenlet": ("psgi", "rack", "php", "lua"),
    "ugreen": ("rack", "php", "lua"),
    "async": ("rack", "php", "lua"),
    "threads": ("rack", "php"),
}
