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
# Parts of libc itself since glibc 2.34. Not libcurl, which the plugin loads for itself: curl.c.
LIBS = ["-lpthread", "-lrt", "-ldl"]
GCC_LIST = [
    "src/" + name
    for name in (
        "plugin",
        "stop",
        "worker",
        "jobs",
        "agent",
        "conversation",
        "registration",
        "http",
        "curl",
        "answer",
        "health",
        "settings",
        "handover",
        "options",
        "text",
    )
]
