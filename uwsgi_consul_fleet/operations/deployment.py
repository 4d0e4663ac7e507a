"""The whole deployment, for a deploy of the operator's own to include."""

from pyinfra_cli.util import exec_file  # type: ignore[import-untyped]

from uwsgi_consul_fleet.shipped import shipped


def include() -> None:
    """Its operations, in their order. pyinfra's local.include would put the path of our file, as
    long as it is, before the name of each."""
    exec_file(str(shipped("deploy/__main__.py")))
