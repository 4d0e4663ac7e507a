"""The client that applications copy (app/client.py), as `invoke client` runs it."""

import os
import sys
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from uwsgi_consul_fleet.consul.access import Access
from uwsgi_consul_fleet.shipped import shipped


def run(arguments: Sequence[str], shown: Access) -> int:
    """Run it with these words of a command line; returns its exit status.

    :param shown: to Consul
    """
    os.environ["CONSUL_HTTP_TOKEN"] = shown.token
    os.environ.pop("CONSUL_HTTP_TOKEN_FILE", None)
    os.environ["CONSUL_CACERT"] = shown.ca_file
    os.environ["CONSUL_CLIENT_CERT"] = shown.cert_file
    os.environ["CONSUL_CLIENT_KEY"] = shown.key_file
    # By its path: the operator's folder, which comes first among the modules, may have an `app`.
    name = "uwsgi_consul_fleet.client.app_client"
    spec = spec_from_file_location(name, shipped("app/client.py"))
    assert spec and spec.loader
    client = module_from_spec(spec)
    sys.modules[name] = client
    spec.loader.exec_module(client)
    vars(client)["TOKENS"] = Path(os.devnull)  # this machine may be another fleet's host
    return int(client.main(list(arguments)))
