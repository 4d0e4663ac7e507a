"""Options of uWSGI that app_uwsgi can't have, each with who decides it instead."""

from fnmatch import fnmatchcase

Value = bool | int | float | str
Options = dict[str, Value | list[Value]]

ALLOWED = {"log-socket"}
# With these a worker ends where requests are under way, whatever the consul plugin does.
LOSING = ("tornado", "loop", "no-threads-wait", "skip-atexit")
# Debian's plugins of uWSGI that an option is from; PyPI's uWSGI has some of them built in.
PLUGINS = {
    "gevent": ("gevent_python3",),
    "asyncio": ("asyncio_python3", "greenlet_python3"),
    "greenlet": ("greenlet_python3",),
    "ugreen": ("ugreen",),
}
NOT_BUILT_IN = ("asyncio", "greenlet")
# By why not; * stands for anything.
REFUSED = {
    "systemd opens the port's socket, which two releases share": """
        socket *-socket *-socket-modifier? protocol socket-protocol freebind udp zmq zeromq
    """,
    "a release is started, tried, stopped and replaced, never reloaded or put to sleep": """
        master need-app strict exit-on-reload die-on-term die-on-idle idle cheap no-server
        command-mode daemonize daemonize2 pidfile* safe-pidfile* stop reload pause suspend resume
        touch-reload touch-chain-reload fs-reload fs-brutal-reload *-auto-reload *-autoreload
    """,
    "its unit decides where and as whom a release runs": """
        chdir chdir2 force-cwd chroot pivot-root pivot_root uid gid immediate-?id add-gid
        no-initgroups cap master-as-root drop-after-* unshare* setns* refork* re-fork* jail* libjail
        plugin-dir plugins-dir binary-path
    """,
    "say app_entry_point": """
        module wsgi wsgi-file file callable test eval wsgi-lite web3 pump pecan paste* ini-paste*
        psgi rack rails php-app php-docroot lua lua-load go-load gccgo-load
    """,
    "say app_processes": "processes workers",
    "say app_lazy": "lazy lazy-apps",
    "say app_requirements": "virtualenv venv home pyhome perl-local-lib gemset rvm",
    "say app_env": "env",
    "say app_static": "static-map",
    "say stop_timeout": "reload-mercy worker-reload-mercy",
    "say instances, which the fleet registers": "consul-register*",
    "two releases run side by side for a moment and would both open it: that takes an ini of your "
    "own (app_ini), see docs/operations.md": """
        stats stats-server http https http-to https2 *router fastrouter-* rawrouter-* sslrouter-*
        http-* https-* emperor* vassal* legion* zerg* subscri* st snmp* master-fifo multicast*
        cache-udp-*
    """,
    "it brings options from elsewhere: name each, or have an ini of your own (app_ini)": """
        ini xml xmlconfig yaml yml json js config fallback-config inherit include inject-* if* else
        end* for for-* set set-placeholder set-ph get declare-option*
    """,
}


def problem(name: str) -> str:
    """Why app_uwsgi can't have an option, or ''."""
    if name in ALLOWED:
        return ""
    by_pattern = ((pattern, why) for why, names in REFUSED.items() for pattern in names.split())
    return next((why for pattern, why in by_pattern if fnmatchcase(name, pattern)), "")


def lines(options: Options, between: str = " = ") -> list[str]:
    """As an ini has them; an option with several values stands there several times.

    :param between: name and value
    """
    return [
        f"{name}{between}{str(value).lower() if isinstance(value, bool) else value}"
        for name, values in options.items()
        for value in (values if isinstance(values, list) else [values])
    ]
