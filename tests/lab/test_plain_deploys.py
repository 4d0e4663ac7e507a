"""What a deploy without a name does: it compares what `app_source` is with what the fleet was put
to. The rule itself is in tests/unit/test_rule.py.

The tests run in the order in which they stand here, on one fleet: each starts from what the one
before it left.
"""

import json
import shutil
from pathlib import Path

import pytest
from applications import application
from fleet_commands import output
from lab_commands import Lab
from shared_fleet import HOSTS, SharedFleet

pytestmark = pytest.mark.takes(120)

APP = "consul-demo-server"
NEW = "ormen"


class Source:
    """An `app_source` that is edited, as an operator's is: what it is called is known by its
    content alone."""

    def __init__(self, fleet: SharedFleet, folder: Path) -> None:
        self.fleet = fleet
        self.folder = folder
        self.requirements = folder.with_name("requirements.txt")
        self.requirements.write_text("-r base.txt\n")
        self.names: dict[str, str] = {}

    def edit(self, word: str, code: str = "") -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        application(self.folder.parent, f"{code}\n# {word}\n")
        self.requirements.with_name("base.txt").write_text(f"# {word}\n")

    def deploy(self, *options: str, check: bool = True) -> str:
        """Returns what is said."""
        return output(self.fleet.deploy(*self.words, *options, check=check))

    @property
    def words(self) -> list[str]:
        paths = {"app_source": self.folder, "app_requirements": self.requirements}
        return [word for key, path in paths.items() for word in ("--data", f"{key}={path}")]

    def changes(self, *options: str) -> dict[str, list[str]]:
        return self.fleet.changes(*self.words, *options)

    def release(self, word: str, *options: str) -> str:
        """Edit it and release that; returns the release's name."""
        self.edit(word)
        self.deploy(*options)
        (name,) = set(self.fleet.releases().values())
        self.names[word] = name
        return name


@pytest.fixture(scope="module")
def source(fleet: SharedFleet, tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source(fleet, tmp_path_factory.mktemp("source") / "app")


def processes(count: int) -> tuple[str, str]:
    return ("--data", f"app_processes={count}")


def settings(lab: Lab, *hosts: str) -> set[str]:
    """How many processes they have, by the inis of what serves."""
    look = f"grep -h ^processes /srv/{APP}/current/2001.ini"
    return {lab.ssh(host, look).stdout.split()[-1] for host in hosts}


def test_an_edit_is_released_and_the_first_lines_say_so(source: Source) -> None:
    before = source.fleet.releases()["drakar"]
    first = source.release("first")
    assert first != before
    source.edit("second")
    said = source.deploy(*processes(4))
    second = source.fleet.releases()["drakar"]
    assert f"{APP}: releases {second} (app_source) over {first}" in said
    assert source.changes(*processes(4)) == {}
    source.names["second"] = second


def test_what_was_rolled_back_from_stays_away_with_its_settings(source: Source, lab: Lab) -> None:
    first, second = source.names["first"], source.names["second"]
    source.fleet.rollback()
    said = source.deploy("--dry", *processes(4))
    stays = f"{APP}: stays on {first}: app_source is {second}, which was rolled back from; "
    assert f"{stays}pyinfra … --data release={second} releases it" in said
    assert "today's settings were rolled back from" in said
    assert source.changes(*processes(4)) == {}
    assert source.fleet.releases() == dict.fromkeys(HOSTS, first)
    assert settings(lab, *HOSTS) == {"2"}


def test_so_it_does_where_consul_has_lost_what_it_knew(source: Source, lab: Lab) -> None:
    lab.ssh("drakar", "consul kv delete -recurse uwsgi-consul-fleet/contents/")
    said = source.deploy("--dry", *processes(4))
    assert f"stays on {source.names['first']}: app_source is {source.names['second']}" in said


def test_a_host_that_is_added_gets_what_the_fleet_is_on(source: Source, lab: Lab) -> None:
    """Of which nothing is left in `app_source`; the others are not even in the run."""
    first, fleet = source.names["first"], source.fleet
    fleet.more(NEW)
    fleet.hosts(["drakar"], [*HOSTS, NEW])
    source.deploy("--limit", NEW, *processes(4))
    assert fleet.releases() == dict.fromkeys([*HOSTS, NEW], first)
    fleet.verify("--wait", "10", "--probe")
    digest = f"cd /srv/{APP}/releases/{first}-*/ && sha256sum app/* requirements.d/*"
    assert lab.ssh(NEW, digest).stdout == lab.ssh("cheetah", digest).stdout
    assert "# first" in lab.ssh(NEW, f"tail -n 1 /srv/{APP}/current/app/server.py").stdout
    fleet.hosts(["drakar"], list(HOSTS), [NEW])
    assert set(source.changes(*processes(4))) >= {"Application: stop it and remove it"}
    assert fleet.releases() == dict.fromkeys(HOSTS, first)
    fleet.hosts(["drakar"], list(HOSTS))


def test_settings_that_are_changed_since_are_applied_to_it(source: Source, lab: Lab) -> None:
    first = source.names["first"]
    source.deploy(*processes(3))
    assert source.fleet.releases() == dict.fromkeys(HOSTS, first)
    assert settings(lab, *HOSTS) == {"3"}
    assert "# first" in lab.ssh("cheetah", f"tail -n 1 /srv/{APP}/current/app/server.py").stdout
    source.fleet.verify("--wait", "10", "--probe")


def test_it_is_released_again_by_its_name(source: Source) -> None:
    second = source.names["second"]
    said = source.deploy("--data", f"release={second}", *processes(3))
    assert f"{APP}: releases {second} (app_source) over {source.names['first']}" in said
    assert source.fleet.releases() == dict.fromkeys(HOSTS, second)
    assert f"{APP}: stays on {second}: app_source is what it serves" in source.deploy(
        "--dry", *processes(3)
    )


def test_current_keeps_the_content_and_applies_settings(source: Source, lab: Lab) -> None:
    second = source.names["second"]
    source.edit("third")
    said = source.deploy("--data", "release=current", *processes(2))
    assert f"{APP}: stays on {second}: app_source is " in said
    assert source.fleet.releases() == dict.fromkeys(HOSTS, second)
    assert settings(lab, *HOSTS) == {"2"}
    assert "# second" in lab.ssh("drakar", f"tail -n 1 /srv/{APP}/current/app/server.py").stdout


def test_what_failed_is_tried_again(source: Source) -> None:
    """The roll-out put the hosts back, and nobody rolled back."""
    second = source.names["second"]
    source.edit("bad", "raise RuntimeError('no wind')")
    assert "RuntimeError: no wind" in source.deploy(check=False)
    assert source.fleet.releases() == dict.fromkeys(HOSTS, second)
    assert f"(app_source) over {second}" in source.deploy("--dry")


def test_a_new_name_is_a_release_with_the_same_content_too(source: Source, lab: Lab) -> None:
    second = source.names["second"]
    source.edit("second")
    label = ("--data", "release=label")
    assert f"releases label (app_source) over {second}" in source.deploy("--dry", *label)
    # In group_data it is a label, and what serves keeps its own.
    group_data = source.fleet.path.with_name("group_data") / "app_servers.py"
    group_data.write_text('release = "label"\n')
    try:
        assert f"stays on {second}: app_source is what it serves" in source.deploy("--dry")
        assert source.changes() == {}
    finally:
        group_data.unlink()
    known = lab.ssh("drakar", f"consul kv get uwsgi-consul-fleet/contents/{APP}").stdout
    assert [each["release"] for each in json.loads(known)["on"]] == [second]
