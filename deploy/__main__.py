"""The whole deployment, in order. Run it with `pyinfra inventory.py deploy/`."""

from pyinfra import host

from uwsgi_consul_fleet.operations import lock
from uwsgi_consul_fleet.operations.applications import application as app
from uwsgi_consul_fleet.operations.consul import agent as consul
from uwsgi_consul_fleet.operations.plan import fleet
from uwsgi_consul_fleet.operations.uwsgi import uwsgi
from uwsgi_consul_fleet.releases.batches import batches

me = fleet().host(host.name)
package = app.prepare(me)
app.refuse_taken_ports(me)
lock.guard()

if me.instances:
    # First of all: a host without its plugin is left as it is.
    uwsgi.install(name="uWSGI: install it", me=me)
    uwsgi.plugin(name="uWSGI: install the consul plugin", me=me)

# Refuses a change of Consul's servers that would lose the catalog.
consul.cluster.change()

if me.is_member:
    source = consul.source.choose(me)

    consul.install(name="Consul: install the binary", me=me, source=source)
    consul.configure(name="Consul: configure the agent", me=me, source=source)
    consul.run_server(name="Consul: run the servers", me=me, source=source, _serial=True)
    consul.let_vote(name="Consul: let new servers vote", me=me)
    consul.expel(name="Consul: remove retired hosts that are gone", me=me)
    consul.demote(name="Consul: make clients of former servers", me=me, source=source, _serial=True)
    consul.run_client(
        name="Consul: run the client agents", me=me, source=source, _parallel=consul.at_a_time()
    )

    if package:
        lock.announce(me.settings.app_name, package.release.name)
        lock.require(name="Lock: go on only with it", me=me)
        app.install(name="Application: install the release", me=me, package=package)
        for batch in host.loop(batches(fleet())):  # type: ignore[no-untyped-call]
            if me in batch.hosts:
                app.switch(
                    name=f"Application: switch the {batch.label}: {batch.names}",
                    me=me,
                    package=package,
                )

app.settle(name="Application: the roll-out is over", me=me, package=package)

# Last of all: what takes over from them serves by now. pyinfra runs what no host's list
# puts in order as soon as it can, so these are on every host's list.
if fleet().idle or len(fleet().services) > 1:
    app.retire(name="Application: stop it and remove it", me=me)
if fleet().retired:
    consul.leave(name="Consul: leave the servers", me=me, servers=True, _serial=True)
    consul.leave(name="Consul: leave the cluster", me=me, servers=False)
    consul.remove(name="Consul: remove it", me=me)
