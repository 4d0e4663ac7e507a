"""The inventory as pyinfra has it: hosts, and the groups that say what they are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from uwsgi_consul_fleet.inventory.applications import Described

ROLES = frozenset({"consul_servers", "app_servers", "builders", "retired"})


@dataclass(frozen=True)
class InventoryHost:
    """A host as pyinfra sees it: its groups, the data merged from groups and host, and what was
    ``typed`` for this run, which comes before them. ``own_keys`` are the data that are not all
    hosts'."""

    name: str
    groups: frozenset[str]
    usual: Mapping[str, Any]
    typed: Mapping[str, Any] = field(default_factory=dict)
    own_keys: frozenset[str] = frozenset()

    @property
    def data(self) -> dict[str, Any]:
        """All of it."""
        return {**self.usual, **self.typed}

    @property
    def own(self) -> dict[str, Any]:
        """What a group or the host says, without what is typed."""
        return {key: value for key, value in self.usual.items() if key in self.own_keys}


@dataclass(frozen=True)
class Groups:
    """The groups of an inventory: its hosts with theirs, ``files`` in group_data/ by the names of
    their groups, those that pyinfra adds by itself, all that there are, and the applications that
    have files."""

    hosts: list[InventoryHost]
    files: set[str]
    implicit: set[str]
    all: set[str]
    applications: list[Described]

    @cached_property
    def used(self) -> set[str]:
        """Those that some host is in."""
        return {group for host in self.hosts for group in host.groups}

    @cached_property
    def of_applications(self) -> set[str]:
        """Those that list an application's hosts."""
        return {app.group for app in self.applications} & (self.used | self.all)

    def roles(self, entry: InventoryHost) -> frozenset[str]:
        """Whoever is in an application's group need not be in app_servers too."""
        serves = {"app_servers"} if entry.groups & self.of_applications else set[str]()
        return (entry.groups & ROLES) | serves

    def applications_of(self, entry: InventoryHost) -> list[Described]:
        """What is to run on a host. An application without a group of its own runs on all
        app_servers."""
        if "retired" in entry.groups:
            return []
        own = self.of_applications
        return [
            app
            for app in self.applications
            if (app.group if app.group in own else "app_servers") in entry.groups
        ]
