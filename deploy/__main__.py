"""The whole deployment, in order. Run it with `pyinfra inventory.py deploy/`."""

from pyinfra import host

from deploy import app, consul, lock, uwsgi
from deploy.plan import fleet

me = fleet().host(host.name)
lock.guard()

if me.instances:
    # First of all: a host without its plugin is left as it is.
    uwsgi.install(name="uWSGI: install it", me=me)
    uwsgi.plugin(name="uWSGI: install the consul plugin", me=me)
else:
    app.retire(name="Application: stop it and remove its units", me=me)

if me.is_retired:
    consul.leave(name="Consul: leave the cluster", me=me)
elif me.is_member:
    source = consul.source.choose(me)
    release = app.release.prepare(me)

    consul.install(name="Consul: install the binary", me=me, source=source)
    consul.configure(name="Consul: configure the agent", me=me, source=source)
    consul.run_server(name="Consul: run the servers", me=me, source=source, _serial=True)
    consul.run_client(name="Consul: run the client agents", me=me, source=source)

    if release:
        lock.announce({me.settings.app_name: release.name})
        lock.require(name="Lock: go on only with it", me=me)
        app.install(name="Application: install the release", me=me, release=release)
        app.units(name="Application: install the units", me=me, release=release)
        app.switch(name="Application: let the release serve", me=me, release=release)
