"""The commands of the operator: `invoke --list` shows them."""

from uwsgi_consul_fleet.commands.tasks import namespace

__all__ = ["namespace"]
