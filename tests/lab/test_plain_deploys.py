"""What a deploy without a name does: it compares what `app_source` is with what the fleet was put
to. The rule itself is in tests/unit/test_rule.py, and what becomes of requirements in
test_dependencies.py.

The tests run in the order in which they stand here, on one fleet: each starts from what the one
before it left.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from applications import application
from fleet_commands import changed, output
from lab_commands import Lab
from shared_fleet import HOSTS, SharedFleet

pytestmark = pytest.mark.takes(200)

APP = "consul-demo-server"
NEW = "ormen"
# Every node that Consul has ever listed with the service, passing or not.
WATCH = f"""
import json, os, urllib.request
token = {{"X-Consul-Token": os.environ["CONSUL_HTTP_TOKEN"]}}
index = "0"
while True:
    url = f"http://127.0.0.1:8500/v1/catalog/service/{APP}?index={{index}}"
    answer = urllib.request.urlopen(urllib.request.Request(url, headers=token))
    index = answer.headers["X-Consul-Index"]
    print(*{{each["Node"] for each in json.load(answer)}}, flush=True)
"""


class Source:
    """An `app_source` that is edited, as an operator's is: what it is called is known by its
    content alone."""

    def __init__(self, fleet: SharedFleet, folder: Path) -> None:
        self.fleet = fleet
        self.folder = folder
        self.names: dict[str, str] = {}

    def edit(self, word: str, code: str = "") -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        application(self.folder.parent, f"{code}\n# {word}\n")

    def deploy(self, *options: str, check: bool = True) -> str:
        """Returns what is said."""
        return output(self.fleet.deploy(*self.words, *options, check=check))

    @property
    def words(self) -> list[str]:
        return ["--data", f"app_source={self.folder}", "--data", "min_healthy_time=0"]

    def changes(self, *options: str) -> dict[str, list[str]]:
        return self.fleet.changes(*self.words, *options)

    def changes_nothing(self, *options: str) -> str:
        """Returns what such a deploy says."""
        result = self.fleet.deploy("--json", *self.words, *options)
        assert changed(result) == {}
        return result.stderr

    def release(self, word: str, *options: str) -> str:
        """Edit it and release that; returns what is said."""
        self.edit(word)
        said = self.deploy(*options)
        (self.names[word],) = {serving(self.fleet.lab, host) for host in HOSTS}
        return said


def serving(lab: Lab, host: str) -> str:
    """The name of the release that a host is on."""
    told = json.loads(lab.ssh(host, f"sudo cat /srv/{APP}/current/release.json").stdout)
    return str(told["release"])


def expect(lab: Lab, name: str, hosts: Sequence[str] = HOSTS) -> None:
    assert {host: serving(lab, host) for host in hosts} == dict.fromkeys(hosts, name)


@pytest.fixture(scope="module")
def source(fleet: SharedFleet, tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source(fleet, tmp_path_factory.mktemp("source") / "app")


def processes(count: int) -> tuple[str, str]:
    return ("--data", f"app_processes={count}")


def settings(lab: Lab, *hosts: str) -> set[str]:
    """How many processes they have, by the inis of what serves."""
    look = f"sudo grep -h ^processes /srv/{APP}/current/2001.ini"
    return {lab.ssh(host, look).stdout.split()[-1] for host in hosts}


def test_an_edit_is_released_and_the_first_lines_say_so(source: Source, lab: Lab) -> None:
    before = serving(lab, "drakar")
    source.release("first")
    said = source.release("second", *processes(4))
    assert len({before, *source.names.values()}) == 3
    first, second = source.names["first"], source.names["second"]
    assert f"{APP}: releases {second} (app_source) over {first}" in said
    stays = source.changes_nothing(*processes(4))
    assert f"{APP}: stays on {second}: app_source is what it serves" in stays


def test_what_was_rolled_back_from_stays_away_with_its_settings(source: Source, lab: Lab) -> None:
    first, second = source.names["first"], source.names["second"]
    source.fleet.rollback()
    said = source.changes_nothing(*processes(4))
    stays = f"{APP}: stays on {first}: app_source is {second}, which was rolled back from; "
    assert f"{stays}pyinfra … --data release={second} releases it" in said
    assert "today's settings were rolled back from" in said
    assert source.fleet.releases() == dict.fromkeys(HOSTS, first)
    assert settings(lab, *HOSTS) == {"2"}


def test_so_it_does_where_consul_has_lost_what_it_knew(source: Source, lab: Lab) -> None:
    lab.consul("drakar", "kv delete -recurse uwsgi-consul-fleet/contents/")
    said = source.deploy("--dry", *processes(4))
    assert f"stays on {source.names['first']}: app_source is {source.names['second']}" in said


def test_a_new_host_that_is_not_well_never_joins_the_service(source: Source, lab: Lab) -> None:
    source.fleet.more(NEW)
    source.fleet.hosts(["drakar"], [*HOSTS, NEW])
    token = lab.as_management("drakar")
    run = f"{token} nohup python3 watch.py >seen.txt 2>&1 & echo $! >watch.pid"
    lab.ssh("drakar", f"cat >watch.py <<'X'\n{WATCH}\nX\n{run}")
    ill = ("--data", "health_path=/gone", "--data", "health_timeout=15")
    try:
        said = source.deploy("--limit", NEW, *processes(4), *ill, check=False)
    finally:
        lab.ssh("drakar", "kill $(cat watch.pid)")
    assert "is not fit to serve: not healthy after 15 s: GET /gone: 404" in said, said
    assert "nothing serves, as before" in said, said
    assert set(lab.ssh("drakar", "cat seen.txt").stdout.split()) == set(HOSTS)


def test_a_host_that_is_added_gets_what_the_fleet_is_on(source: Source, lab: Lab) -> None:
    """Of which nothing is left in `app_source`; the others are not even in the run."""
    first, fleet = source.names["first"], source.fleet
    source.deploy("--limit", NEW, *processes(4))
    expect(lab, first, [*HOSTS, NEW])
    fleet.verify("--probe")
    digests = f"sudo sh -c 'cd /srv/{APP}/current/ && sha256sum app/*'"
    assert lab.ssh(NEW, digests).stdout == lab.ssh("cheetah", digests).stdout
    assert "# first" in last_line(lab, NEW)
    fleet.hosts(["drakar"], list(HOSTS), [NEW])
    assert set(source.changes(*processes(4))) >= {"Application: stop it and remove it"}
    expect(lab, first)
    fleet.hosts(["drakar"], list(HOSTS))


def last_line(lab: Lab, host: str) -> str:
    return str(lab.ssh(host, f"sudo tail -n 1 /srv/{APP}/current/app/server.py").stdout)


def test_settings_that_are_changed_since_are_applied_to_it(source: Source, lab: Lab) -> None:
    first = source.names["first"]
    source.deploy(*processes(3))
    expect(lab, first)
    assert settings(lab, *HOSTS) == {"3"}
    assert "# first" in last_line(lab, "cheetah")
    source.fleet.verify("--probe")


def test_it_is_released_again_by_its_name(source: Source, lab: Lab) -> None:
    second = source.names["second"]
    said = source.deploy("--data", f"release={second}", *processes(3))
    assert f"{APP}: releases {second} (app_source) over {source.names['first']}" in said
    expect(lab, second)


def test_current_keeps_the_content_and_applies_settings(source: Source, lab: Lab) -> None:
    second = source.names["second"]
    source.edit("third")
    said = source.deploy("--data", "release=current", *processes(2))
    assert f"{APP}: stays on {second}: app_source is " in said
    expect(lab, second)
    assert settings(lab, *HOSTS) == {"2"}
    assert "# second" in last_line(lab, "drakar")


def test_what_failed_is_tried_again(source: Source, lab: Lab) -> None:
    """The roll-out put the hosts back, and nobody rolled back."""
    second = source.names["second"]
    source.edit("bad", "raise RuntimeError('no wind')")
    assert "RuntimeError: no wind" in source.deploy(check=False)
    expect(lab, second)
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
        said = source.changes_nothing()
        assert f"stays on {second}: app_source is what it serves" in said
    finally:
        group_data.unlink()
    known = lab.consul("drakar", f"kv get uwsgi-consul-fleet/contents/{APP}").stdout
    assert [each["release"] for each in json.loads(known)["on"]] == [second]
