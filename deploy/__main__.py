"""The whole deployment, in order. Run it with `pyinfra inventory.py deploy/`."""

from pyinfra import host

from uwsgi_consul_fleet.operations import lock, ownership, run
from uwsgi_consul_fleet.operations.applications import application as app
from uwsgi_consul_fleet.operations.consul import agent as consul
from uwsgi_consul_fleet.operations.firewall import firewall
from uwsgi_consul_fleet.operations.uwsgi import uwsgi

here = run.here()
me, fleet = here.me, here.run.fleet
# Before anything is read of the hosts.
lock.look(here)
app.refuse_what_is_taken(here)
# Refuses what is not this fleet's.
unmarked = ownership.settled(here.run).unmarked
if fleet.brings_consul:
    consul.secrets.expect(here)
apps = app.prepare(here)

if me.is_member and not fleet.brings_consul:
    consul.existing.expect(name="Consul: ask the agent that is there", here=here)

if unmarked:
    if me.is_consul_server:
        ownership.mark(name="Fleet: mark the Consul servers", here=here, servers=True, _serial=True)
    ownership.mark(name="Fleet: mark the other hosts", here=here, servers=False)

# Before anything listens or joins.
firewall.guard(name="Firewall: let in who may connect", here=here)

if apps:
    # First of all: a host without its plugin is left as it is.
    wanted = {name for each in apps.values() for name in each.package.uwsgi_plugins}
    uwsgi.install(name="uWSGI: install it", here=here, wanted=wanted)
    uwsgi.plugin(name="uWSGI: install the consul plugin", here=here)

# Refuses a change of Consul's servers that would lose the catalog.
consul.cluster.change(here.run)
# In how many steps it gets access control and encryption.
rounds = consul.rounds.of(here.run)

if me.is_member and fleet.brings_consul:
    source = consul.source.choose(here)
    # Refuses a restart that would lose the catalog.
    consul.running.refuse_restart(here, source)
    # Refuses a new server that the others would not take for one.
    consul.secrets.refuse_server(here)

    consul.install(name="Consul: install the binary", here=here, source=source)
    if consul.replacing.is_owed(here.run):
        consul.replacing.replace(here)
    for number in host.loop(rounds.before):  # type: ignore[no-untyped-call]
        consul.run(here, source, number)
elif me.is_member and (apps or not fleet.is_part):
    consul.existing.use(name="Consul: use the agent that is there", here=here)

for each in apps.values():
    lock.announce(each.here, each.package.release.content, each.package.refused)
if apps:
    lock.require(name="Lock: go on only with it", here=here, mistaken=app.mistaken)
# The same for all hosts: it is a place in their order.
for service in host.loop(fleet.services):  # type: ignore[no-untyped-call]
    if service not in apps:
        continue
    its, package, title = apps[service].here, apps[service].package, here.run.title(service)
    app.user(name=f"{title}: make its user", here=its)
    if its.me.settings.app_packages:
        app.packages(name=f"{title}: install its Debian packages", here=its)
    if package.release.resolution:
        app.bring(name=f"{title}: bring its dependencies", here=its, release=package.release)
    if fleet.brings_consul:
        consul.secrets.bring_token(name=f"{title}: bring its token", here=its)
    app.install(name=f"{title}: install the release", here=its, package=package)
    if its.me.settings.app_release:
        app.run_once(name=f"{title}: run app_release, once", here=its, package=package)
    for batch in host.loop(here.run.rollouts[service].batches):  # type: ignore[no-untyped-call]
        if its.me in batch.hosts:
            app.switch(
                name=f"{title}: switch the {batch.label}: {batch.names}",
                here=its,
                package=package,
            )

app.settle(name="Application: the roll-out is over", here=here, apps=apps)

for number in host.loop(rounds.after):  # type: ignore[no-untyped-call]
    if me.is_member:
        consul.acl.gate(name="Consul: see that all that is registered has a token", here=here)
        consul.run(here, source, number)

# Last of all: what takes over from them serves by now. pyinfra runs what no host's list
# puts in order as soon as it can, so these are on every host's list.
if fleet.idle or len(fleet.services) > 1:
    app.retire(name="Application: stop it and remove it", here=here)
if me.is_retired and not fleet.is_part:
    consul.leaving.leave(name="Consul: leave the servers", here=here, servers=True, _serial=True)
    consul.leaving.leave(name="Consul: leave the cluster", here=here, servers=False)
    consul.leaving.remove(name="Consul: remove it", here=here)
if fleet.brings_consul and not fleet.is_part and consul.replacing.is_owed(here.run):
    consul.replacing.replace(here)
    consul.replacing.conclude(here)
if fleet.idle or len(fleet.services) > 1:
    firewall.guard(name="Firewall: let nobody in who has left", here=here, at_end=True)
if any(len(each.applications) > 1 for each in fleet.hosts):
    app.conclude(name="Applications: all of them went well", here=here)
