# Run by `uwsgi --build-plugin`, which may be a Python 2.
import subprocess


def ask(*command):
    try:
        return subprocess.check_output(command).decode().split()
    except (OSError, subprocess.CalledProcessError):
        return []


NAME = "consul"
CFLAGS = ask("curl-config", "--cflags") or ask("pkg-config", "--cflags", "libcurl")
LDFLAGS = []
LIBS = ask("curl-config", "--libs") or ask("pkg-config", "--libs", "libcurl") or ["-lcurl"]
LIBS += ["-lpthread", "-lrt"]  # both part of libc itself since glibc 2.34
GCC_LIST = [
    "src/" + name
    for name in (
        "plugin",
        "stop",
        "worker",
        "agent",
        "conversation",
        "registration",
        "http",
        "answer",
        "health",
        "settings",
        "options",
        "text",
    )
]
