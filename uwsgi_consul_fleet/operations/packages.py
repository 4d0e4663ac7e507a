"""Debian's packages on a host."""

from pyinfra.api import StringCommand
from pyinfra.api.command import QuoteString

from uwsgi_consul_fleet.build.identity import PACKAGES

INSTALL = 'install_packages "$@"'
# Many of uWSGI's plugins are in uwsgi-core, the others in packages of their own; of Ruby's the name
# has its version.
PLUGINS = """
set -f
set -- $(for name; do
    [ ! -e "/usr/lib/uwsgi/plugins/${name}_plugin.so" ] || continue
    case $name in
    rack) echo 'uwsgi-plugin-rack-ruby*' ;;
    lua51) echo uwsgi-plugin-lua5.1 ;;
    *) echo "uwsgi-plugin-$name" | tr _ - ;;
    esac
done)
[ $# = 0 ] || """


def install(*names: str) -> StringCommand:
    """The command that installs them, also where the host's package lists are old."""
    return _command(INSTALL, names)


def install_uwsgi_plugins(*names: str) -> StringCommand:
    """The same for plugins, by the names under which an ini file loads them."""
    return _command(PLUGINS + INSTALL, names)


def _command(script: str, names: tuple[str, ...]) -> StringCommand:
    return StringCommand("sh", "-euc", QuoteString(PACKAGES + script), "packages", *names)
