"""The whole deployment, in order. Run it with `pyinfra inventory.py deploy/`."""

from pyinfra import host

from deploy import app, consul, uwsgi
from deploy.plan import fleet

me = fleet().host(host.name)

if me.instances:
    # First of all: a host without its plugin is left as it is.
    uwsgi.install(name="uWSGI: install it", me=me)
    uwsgi.plugin(name="uWSGI: install the consul plugin", me=me)
else:
    app.retire(name="Application: stop it and remove its units", me=me)

# Refuses a change of Consul's servers that would lose the catalog.
consul.cluster.change()

if me.is_member:
    source = consul.source.choose(me)
    release = app.release.prepare(me)

    consul.install(name="Consul: install the binary", me=me, source=source)
    consul.configure(name="Consul: configure the agent", me=me, source=source)
    consul.run_server(name="Consul: run the servers", me=me, source=source, _serial=True)
    consul.let_vote(name="Consul: let new servers vote", me=me)
    consul.expel(name="Consul: remove retired hosts that are gone", me=me)
    consul.demote(name="Consul: make clients of former servers", me=me, source=source, _serial=True)
    consul.run_client(
        name="Consul: run the client agents", me=me, source=source, _parallel=consul.at_a_time()
    )

    if release:
        app.install(name="Application: install the release", me=me, release=release)
        app.units(name="Application: install the units", me=me, release=release)
        app.switch(name="Application: let the release serve", me=me, release=release)

if fleet().retired:
    # Retired hosts go last. pyinfra runs what no host's list puts in order as soon as it can,
    # so these are on every host's list, and do nothing on the others.
    consul.leave(name="Consul: leave the servers", me=me, servers=True, _serial=True)
    consul.leave(name="Consul: leave the cluster", me=me, servers=False)
    consul.remove(name="Consul: remove it", me=me)
