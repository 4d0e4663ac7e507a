"""What an instance does beside its requests: not in a trial, and not beside the release before."""

import fcntl
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from consul_processes import until
from uwsgi_processes import Agent, Uwsgi

# What each kind of job does: a line in a file of its own.
APPLICATION = """
import os
import uwsgi

HERE = os.getcwd()

def note(kind):
    with open(os.path.join(HERE, "did-" + kind), "a") as file:
        file.write("x\\n")

def spooler(task):
    note("spooler")
    return uwsgi.SPOOL_OK

uwsgi.spooler = spooler
uwsgi.spool({b"a": b"b"})
uwsgi.register_signal(17, "", lambda number: note("timer"))
uwsgi.add_timer(17, 1)
uwsgi.register_signal(18, "", lambda number: note("cron"))
uwsgi.add_cron(18, -1, -1, -1, -1, -1)
uwsgi.register_signal(19, "", lambda number: note("raised"))

def application(environ, start_response):
    if environ["PATH_INFO"] == "/raise":
        uwsgi.signal(19)
    start_response("200 OK", [])
    return [b"ok"]
"""
MULE = "import time\nopen('did-mule', 'w')\nwhile True:\n    time.sleep(9)\n"
OPTIONS = [
    "mule = job.py",
    "spooler = tasks",
    "cron2 = minute=-1,hour=-1,day=-1,month=-1,week=-1 touch did-command",
    "attach-daemon = sh -c 'touch did-daemon; exec sleep 100'",
]
KINDS = {"timer", "cron", "command", "mule", "spooler", "daemon"}


def files(folder: Path) -> None:
    (folder / "tasks").mkdir()
    (folder / "job.py").write_text(MULE)
    (folder / "jobs.py").write_text(APPLICATION)


def did(uwsgi: Uwsgi) -> set[str]:
    return {path.name.removeprefix("did-") for path in uwsgi.folder.glob("did-*")}


@pytest.mark.everywhere
def test_jobs_wait_until_it_is_their_turn(
    start: Callable[..., Uwsgi], agent: Agent, name: str, tmp_path: Path
) -> None:
    def with_jobs(**environment: str) -> Uwsgi:
        register = (
            [] if "RELEASE_TRIAL" in environment else [f"name={name},port=PORT,url={agent.url}"]
        )
        return start(register, module="jobs", options=OPTIONS, before=files, env=environment)

    lock = tmp_path / "lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        trial = with_jobs(RELEASE_TRIAL="1").ready()
        beside = with_jobs(RELEASE_LOCK=str(lock)).ready()
        alone = with_jobs(RELEASE_LOCK=str(tmp_path / "none")).ready()
        until(lambda: did(alone) == KINDS, "everything runs")
        ticks = alone.folder / "did-timer"
        until(lambda: len(ticks.read_text().split()) > 2, "and goes on")
        assert did(trial) == did(beside) == set()
        assert trial.get("/raise") == beside.get("/raise") == "ok"
        time.sleep(0.2)
        assert did(trial) == did(beside) == set()
    # This minute's cron was the other release's.
    waited = {*KINDS, "raised"} - {"cron"}
    until(lambda: did(beside) >= waited, "what has waited runs")
    assert (beside.folder / "did-raised").read_text() == "x\n"
    assert did(trial) == set()
    assert trial.said("are not run in a trial")
    for each in (trial, beside):
        each.signal(signal.SIGINT)
        assert each.wait() == 0


def test_a_lock_that_can_not_be_read_is_told(start: Callable[..., Uwsgi]) -> None:
    told = {"RELEASE_LOCK": "/dev/null/lock"}
    alone = start([], module="jobs", options=OPTIONS, before=files, env=told)
    until(lambda: "timer" in did(alone.ready()), "nothing waits")
    assert alone.said("open() of RELEASE_LOCK: Not a directory")


def test_a_configuration_may_want_its_jobs_in_a_trial(start: Callable[..., Uwsgi]) -> None:
    options = [*OPTIONS, "consul-jobs-in-trial = true"]
    trial = start([], module="jobs", options=options, before=files, env={"RELEASE_TRIAL": "1"})
    until(lambda: did(trial.ready()) == KINDS, "everything runs")
