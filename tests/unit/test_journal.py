"""Which of a release's last words the operator is shown."""

from uwsgi_consul_fleet.host.systemd import SHOWN_LINES, telling

TRACEBACK = """\
Traceback (most recent call last):
  File "app/server.py", line 3, in <module>
    raise RuntimeError('no wind')
RuntimeError: no wind
unable to load app 0 (mountpoint='') (callable not found or import error)
""".splitlines()


def test_what_failed_comes_before_what_chatters() -> None:
    chatter = [f"tick {number}: {word}" for number in range(500) for word in ("sea", "wave")]
    shown = telling(["*** Starting uWSGI ***", *TRACEBACK, *chatter])
    assert shown == [*TRACEBACK, "*** Starting uWSGI ***", "tick 499: sea", "tick 499: wave"]


def test_a_crash_that_repeats_is_shown_once_and_last() -> None:
    other = ["bind(): Address already in use [core/socket.c line 769]"]
    assert telling([*TRACEBACK, *other, *TRACEBACK]) == [*other, *TRACEBACK]


def test_a_deep_traceback_keeps_its_end_and_leaves_no_room_for_others() -> None:
    calls = [f"    call_{'i' * number}()" for number in range(60)]
    shown = telling([TRACEBACK[0], *calls, "RecursionError: too deep", "calm"])
    assert len(shown) == SHOWN_LINES
    assert shown[-1] == "RecursionError: too deep"


def test_without_a_failure_the_last_lines_are_shown() -> None:
    lines = [f"line {'i' * number}" for number in range(60)]
    assert telling(lines) == lines[-SHOWN_LINES:]
