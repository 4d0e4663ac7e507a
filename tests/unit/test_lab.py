"""What the lab decides, without touching this host."""

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from uwsgi_consul_fleet.lab import access, base, host, machines, network, proxy
from uwsgi_consul_fleet.lab.host import LabError
from uwsgi_consul_fleet.lab.machines import Machine

NETWORK = IPv4Network("10.213.64.0/28")


@pytest.mark.parametrize(
    ("word", "name", "asked"),
    [
        ("cheetah", "cheetah", {}),
        ("cheetah-2:13", "cheetah-2", {"release": 13}),
        ("cheetah@dc2", "cheetah", {"network": "dc2"}),
        ("cheetah:11@dc2", "cheetah", {"release": 11, "network": "dc2"}),
    ],
)
def test_a_name_may_choose_a_release_and_a_network(
    word: str, name: str, asked: dict[str, object]
) -> None:
    assert machines.parse(word) == (name, asked)


@pytest.mark.parametrize("word", ["", "a", "Drakar", "1st", "end-", "a b", "x" * 33, "a/b", ":12"])
def test_other_names_are_refused(word: str) -> None:
    with pytest.raises(LabError, match="is not a name for a machine"):
        machines.parse(word)


@pytest.mark.parametrize("release", ["", "10", "trixie", "12 ", "13:13"])
def test_other_releases_are_refused(release: str) -> None:
    with pytest.raises(LabError, match="is not a Debian release of the lab: 11, 12, 13"):
        machines.parse(f"cheetah:{release}")


@pytest.mark.parametrize("network", ["", "DC2", "2dc", "a-b", "x" * 12, "a@b"])
def test_other_networks_are_refused(network: str) -> None:
    with pytest.raises(LabError, match="is not a name for a network: up to 11"):
        machines.parse(f"cheetah@{network}")


def test_the_one_address_of_a_machine_tells_the_other() -> None:
    assert Machine("drakar", 12, "10.213.64.10").address_6 == "fd75:6366:d5:40::a"


def test_addresses_are_given_from_the_tenth_until_the_network_is_full() -> None:
    given: list[str] = []
    for _machine in range(5):
        given.append(machines.free_address(NETWORK, set(given)))
    assert given == [f"10.213.64.{n}" for n in range(10, 15)]
    assert machines.free_address(NETWORK, set(given) - {given[2]}) == given[2]
    with pytest.raises(LabError, match="no free address"):
        machines.free_address(NETWORK, set(given))


def test_the_network_is_one_that_this_host_does_not_route() -> None:
    assert str(network.free_network(["default", "192.168.1.0/24"])) == "10.213.64.0/24"
    taken = ["10.213.64.7", "10.213.65.128/25", "fe80::/64", "0.0.0.0/0"]
    assert str(network.free_network(taken)) == "10.213.66.0/24"
    with pytest.raises(LabError, match="no free network"):
        network.free_network(["10.0.0.0/8"])


def test_the_mirror_is_the_one_that_apt_uses() -> None:
    listing = (
        "https://other.example/ Other\n"
        "http://mirror.example/debian/ Debian\n"
        "http://mirror.example/debian/ Debian\n"
        "http://mirror.example/security/ Debian-Security\n"
    )
    assert base.sources(13, base.parse_mirrors(listing)) == (
        "deb http://mirror.example/debian/ trixie main\n"
        "deb http://mirror.example/debian/ trixie-updates main\n"
        "deb http://mirror.example/security/ trixie-security main\n"
    )
    assert "security" not in base.sources(13, base.parse_mirrors("http://m.example/ Debian"))
    with pytest.raises(LabError, match="no Debian archive"):
        base.parse_mirrors("https://other.example/ Other")


def test_the_ssh_config_names_only_our_machines() -> None:
    text = access.config(
        [Machine("drakar", 12, "10.213.64.10"), Machine("cheetah", 12, "10.0.0.2")]
    )
    assert [line for line in text.splitlines() if line.startswith("Host ")] == [
        "Host drakar",
        "Host cheetah",
    ]
    assert text.count("StrictHostKeyChecking yes") == 2
    assert f'UserKnownHostsFile "{access.KNOWN_HOSTS}"' in text


def test_nothing_of_ours_is_in_the_base() -> None:
    for ours in ("uwsgi", "consul", "gcc", "build-essential", "git", "pip"):
        assert ours not in base.PACKAGES


def test_without_a_package_cache_machines_have_no_proxy() -> None:
    assert proxy.configuration("") == ""
    assert proxy.configuration("http://a:1") == 'Acquire::http::Proxy "http://a:1";\n'


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "below" / "file"
    host.write(path, "old")
    with path.open() as reader:
        host.write(path, "new", 0o600)
        assert reader.read() == "old"
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_program_that_fails_is_told_with_its_last_lines() -> None:
    with pytest.raises(LabError) as caught:
        host.run("sh", "-c", "seq 20; echo no wind >&2; exit 3")
    lines = str(caught.value).splitlines()
    assert lines[0] == "failed: sh -c seq 20; echo no wind >&2; exit 3"
    assert lines[-1] == "    no wind"
    assert len(lines) == 11


def test_what_is_missing_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = {*host.PACKAGES} - {"nft"}
    monkeypatch.setattr(host.shutil, "which", lambda program, path: program in there)
    with pytest.raises(LabError, match=r"install it: sudo apt-get install .* nftables$"):
        host.require_programs()
    there.remove("apt-cacher-ng")
    masked = "sudo systemctl mask apt-cacher-ng.service && sudo apt-get install"
    with pytest.raises(LabError, match=rf"install it: {masked} .* nftables apt-cacher-ng$"):
        host.require_programs()
