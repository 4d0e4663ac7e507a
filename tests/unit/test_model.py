"""Mistakes in the inventory are found all at once, each with its host and key."""

import pytest

from uwsgi_consul_fleet.errors import InventoryError
from uwsgi_consul_fleet.inventory.model import Fleet, InventoryHost, build
from uwsgi_consul_fleet.inventory.settings import DEMO, PYINFRA_KEYS

ADDRESSES = {"drakar": "10.0.3.11", "cheetah": "10.0.3.12", "ormen": "10.0.3.13"}


def host(name: str, *groups: str, **data: object) -> InventoryHost:
    return InventoryHost(name, frozenset({*groups, "inventory"}), {**DEMO, **data})


def resolve(entry: InventoryHost) -> str:
    if entry.name not in ADDRESSES:
        raise OSError("Name or service not known")
    return ADDRESSES[entry.name]


def fleet(*hosts: InventoryHost, group_files: tuple[str, ...] = ("all",)) -> Fleet:
    return build(hosts, group_files, {"all", "inventory"}, resolve)


def problems(*hosts: InventoryHost, group_files: tuple[str, ...] = ("all",)) -> tuple[str, ...]:
    with pytest.raises(InventoryError) as caught:
        fleet(*hosts, group_files=group_files)
    return caught.value.problems


DRAKAR = host("drakar", "consul_servers", "app_servers")


def test_each_app_server_has_every_instance() -> None:
    found = fleet(DRAKAR, host("cheetah", "app_servers"))
    assert [(i.node, i.id, i.address, i.port) for i in found.instances] == [
        ("drakar", "server1", "10.0.3.11", 2001),
        ("drakar", "server2", "10.0.3.11", 2002),
        ("cheetah", "server1", "10.0.3.12", 2001),
        ("cheetah", "server2", "10.0.3.12", 2002),
    ]
    assert not found.warnings


def test_a_consul_server_without_the_application_has_no_instances() -> None:
    found = fleet(host("drakar", "consul_servers"), host("cheetah", "app_servers"))
    assert found.host("drakar").instances == ()
    assert [h.name for h in found.app_servers] == ["cheetah"]


def test_a_retired_host_expects_nothing() -> None:
    found = fleet(DRAKAR, host("cheetah", "retired"))
    assert {i.node for i in found.instances} == {"drakar"}
    assert [h.name for h in found.active] == ["drakar"]


def test_same_port_twice_names_host_and_both_instances() -> None:
    found = problems(host("drakar", "consul_servers", "app_servers", instances={"a": 1, "b": 1}))
    assert found == ("drakar: instances a and b have the same port 1",)


def test_same_id_twice() -> None:
    instances = {"a": {"port": 1, "id": "x"}, "b": {"port": 2, "id": "x"}}
    found = problems(host("drakar", "consul_servers", "app_servers", instances=instances))
    assert found == ("drakar: instances a and b have the same id 'x'",)


@pytest.mark.parametrize("port", [0, 65536, -1, "2001", "http", 20.5, None, True])
def test_a_port_is_a_number_in_range(port: object) -> None:
    (found,) = problems(
        host("drakar", "consul_servers", "app_servers", instances={"server1": port})
    )
    assert found.startswith("drakar: instances.server1.port = ")
    assert "between 1 and 65535" in found
    assert repr(port) in found


def test_unknown_setting_with_the_nearest_known_name() -> None:
    (found,) = problems(host("drakar", "consul_servers", "app_servers", app_proceses=2))
    assert found == "drakar: unknown setting 'app_proceses', did you mean 'app_processes'?"


def test_unknown_ssh_setting() -> None:
    (found,) = problems(host("drakar", "consul_servers", "app_servers", ssh_usr="root"))
    assert "did you mean 'ssh_user'?" in found


def test_unknown_key_of_an_instance() -> None:
    instances = {"server1": {"port": 2001, "idd": "x"}}
    (found,) = problems(host("drakar", "consul_servers", "app_servers", instances=instances))
    assert "instances.server1.idd" in found
    assert "did you mean 'id'?" in found


def test_unknown_group_with_the_nearest_known_name() -> None:
    (found,) = problems(DRAKAR, host("cheetah", "app_servers", "ap_servers"))
    assert found.startswith("inventory.py: unknown group 'ap_servers', did you mean 'app_servers'?")


def test_a_group_of_ones_own_has_a_file() -> None:
    entry = host("cheetah", "app_servers", "north")
    assert fleet(DRAKAR, entry, group_files=("all", "north")).host("cheetah")


def test_a_file_for_a_group_that_nobody_is_in() -> None:
    (found,) = problems(DRAKAR, group_files=("all", "app_server"))
    assert found == (
        "group_data/app_server.py: no group 'app_server' in the inventory, "
        "did you mean 'app_servers'?"
    )


def test_no_consul_server() -> None:
    (found,) = problems(host("drakar", "app_servers"))
    assert found.startswith("consul_servers: is empty")


def test_an_even_number_of_servers_is_a_warning_that_says_why() -> None:
    found = fleet(DRAKAR, host("cheetah", "consul_servers", "app_servers"))
    (warning,) = found.warnings
    assert "2 is an even number of Consul servers" in warning
    assert "tolerates no more failures" in warning


def test_in_app_servers_and_retired() -> None:
    (found,) = problems(DRAKAR, host("cheetah", "app_servers", "retired"))
    assert found.startswith("cheetah: is both in app_servers and retired")


def test_a_host_without_a_role() -> None:
    (found,) = problems(DRAKAR, host("cheetah", "north"), group_files=("all", "north"))
    assert found.startswith("cheetah: has no role")


def test_a_host_without_an_address() -> None:
    (found,) = problems(DRAKAR, host("nowhere", "app_servers"))
    assert found.startswith("nowhere: no address found (Name or service not known)")


def test_a_retired_host_needs_no_address() -> None:
    assert fleet(DRAKAR, host("nowhere", "retired")).host("nowhere").address == ""


def test_an_address_given_is_taken() -> None:
    found = fleet(DRAKAR, host("nowhere", "app_servers", address="10.0.3.99"))
    assert found.host("nowhere").address == "10.0.3.99"


def test_all_mistakes_at_once() -> None:
    found = problems(
        host("drakar", "app_servers", instances={"a": 1, "b": 1}),
        host("cheetah", "app_servers", "retired", datacentre="dc2"),
        host("ormen", "app_servers", instances={"a": "x"}),
    )
    text = "\n".join(found)
    assert len(found) == 5, text
    for expected in ("same port", "retired", "datacentre", "a.port", "consul_servers"):
        assert expected in text


@pytest.mark.parametrize("name", ["My_App", "-app", "app;x", "", "a" * 64])
def test_a_service_name_is_a_dns_label(name: str) -> None:
    (found,) = problems(host("drakar", "consul_servers", "app_servers", app_name=name))
    assert found.startswith("drakar: app_name = ")


def test_pyinfras_own_keys_are_those_of_this_pyinfra() -> None:
    from pyinfra.api.arguments import all_global_arguments
    from pyinfra.connectors.fake import FakeConnector
    from pyinfra.connectors.ssh import connector_data_meta

    theirs = {name for name, _ in all_global_arguments()}
    theirs |= {*connector_data_meta, *FakeConnector.data_meta}
    # A roll-out that stopped must not be tried again behind its back.
    assert theirs - {"_retries", "_retry_delay", "_retry_until"} == PYINFRA_KEYS


def test_settings_of_the_roll_out_are_those_of_the_hosts_that_serve() -> None:
    found = fleet(host("drakar", "consul_servers"), host("cheetah", "app_servers", batch="50%"))
    assert found.app_servers[0].settings.batch == "50%"
    with pytest.raises(InventoryError, match="batch: must be the same for all hosts; is 1 for a"):
        fleet(
            host("drakar", "consul_servers"),
            host("a", "app_servers", batch=1),
            host("b", "app_servers", batch=2),
        )


def test_what_was_the_demos_is_asked_for_with_the_lines_to_write() -> None:
    data = {key: value for key, value in DEMO.items() if key not in ("app_name", "app_source")}
    both = [
        InventoryHost(name, frozenset({"consul_servers", "app_servers"}), data)
        for name in ("drakar", "cheetah")
    ]
    (found,) = problems(*both)
    assert found.startswith("app_name, app_source: not set for drakar, cheetah, ")
    assert [line.strip() for line in found.splitlines()[1:]] == [
        'app_name = "consul-demo-server"',
        'app_source = "app"',
    ]


def test_other_mistakes_are_told_beside_a_missing_setting() -> None:
    data = {**DEMO, "check_ttl": 0}
    del data["app_name"]
    found = problems(InventoryHost("drakar", frozenset({"consul_servers"}), data))
    assert [problem.partition(":")[0] for problem in found] == ["drakar", "app_name"]
    assert "check_ttl" in found[0]


@pytest.mark.parametrize(
    "name", ["root", "consul", "uwsgi-consul-fleet", "systemd-network", "a" * 33]
)
def test_an_application_by_the_name_of_a_user_of_debians(name: str) -> None:
    (found,) = problems(host("drakar", "consul_servers", "app_servers", app_name=name))
    assert found.startswith(f"drakar: app_name = {name!r}: ")


@pytest.mark.parametrize("port", [22, 8300, 8500])
def test_a_port_that_is_taken_on_every_host(port: int) -> None:
    (found,) = problems(host("drakar", "consul_servers", "app_servers", instances={"one": port}))
    assert found.startswith(f"drakar: instances: one has port {port}, which is ")


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "224.0.0.1"])
def test_an_address_by_which_nobody_is_reached(address: str) -> None:
    (found,) = problems(host("drakar", "consul_servers", "app_servers", address=address))
    assert found == f"drakar: address = {address!r}: the other hosts can't reach it by that"


def test_an_address_is_written_as_consul_writes_it() -> None:
    found = fleet(DRAKAR, host("six", "app_servers", address="FD00:0::000B"))
    assert found.host("six").address == "fd00::b"


def test_two_hosts_with_one_address() -> None:
    twin = host("twin", "app_servers", address="10.0.3.99")
    (found,) = problems(DRAKAR, twin, host("other", "app_servers", address="10.0.3.99"))
    assert found == "other: has the same address as twin: 10.0.3.99"


def test_a_fleet_has_one_name() -> None:
    (found,) = problems(
        host("drakar", "consul_servers", fleet="a"), host("b", "retired", fleet="b")
    )
    assert found == "fleet: must be the same for all hosts; is 'a' for drakar, 'b' for b"


def guest(name: str = "drakar", *groups: str, **data: object) -> InventoryHost:
    return host(
        name, *(groups or ["app_servers"]), **{"consul_source": "none", "fleet": "shop", **data}
    )


def test_hosts_that_have_a_consul_of_others() -> None:
    found = fleet(
        guest(consul_node="drakar.example.com"), guest("cheetah"), guest("ormen", "retired")
    )
    assert not found.warnings
    assert [each.name for each in found.asked] == ["drakar", "cheetah", "ormen"]
    assert {each.node for each in found.instances} == {"drakar.example.com", "cheetah"}
    assert found.keys == "uwsgi-consul-fleet/fleets/shop/"
    assert fleet(DRAKAR).keys == "uwsgi-consul-fleet/"


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ([guest(fleet=None)], 'fleet: must be set with consul_source = "none"'),
        ([guest("drakar", "app_servers", "consul_servers")], "consul_servers: must be empty with"),
        ([guest(), host("ormen", "retired", fleet="shop")], 'consul_source: is "none" for drakar '),
        ([guest(consul_cert_file="a.pem")], "drakar: consul_cert_file and consul_key_file belong"),
        (
            [guest(consul_address="localhost")],
            "drakar: consul_address = 'localhost': String should",
        ),
        ([host("drakar", "consul_servers", consul_token="x")], "drakar: consul_token is for an "),
    ],
)
def test_mistakes_about_a_consul_of_others(hosts: list[InventoryHost], expected: str) -> None:
    (found,) = problems(*hosts)
    assert found.startswith(expected)


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (
            host("drakar", "consul_servers", secrets_load="cat it"),
            "secrets_load: secrets_load and secrets_save belong together: set both, or none",
        ),
        (
            host("drakar", "consul_servers", secrets_save="cat >it"),
            "secrets_save: secrets_load and secrets_save belong together: set both, or none",
        ),
        (
            guest(secrets_load="cat it", secrets_save="cat >it"),
            'secrets_load: there are no secrets of a fleet with consul_source = "none"; '
            "consul_token says where the token is",
        ),
    ],
)
def test_where_secrets_are_is_said_once_and_wholly(one: InventoryHost, expected: str) -> None:
    assert problems(one) == (expected,)


def test_a_fleet_has_its_secrets_in_one_place_and_one_answer_to_dns() -> None:
    for key, value in (("secrets_load", "cat it"), ("dns", True)):
        found = problems(DRAKAR, host("cheetah", "retired", **{key: value}))
        assert f"{key}: must be the same for all hosts; is " in found[0]


def test_what_an_application_discovers_is_the_same_on_all_of_its_hosts() -> None:
    (found,) = problems(DRAKAR, host("cheetah", "app_servers", app_discovers=["search"]))
    assert found == (
        "app_discovers: must be the same for all hosts; is None for drakar, ('search',) for cheetah"
    )
    (found,) = problems(host("drakar", "consul_servers", app_discovers=['a"b']))
    assert found.startswith("drakar: app_discovers.0 = 'a\"b': String should match")
