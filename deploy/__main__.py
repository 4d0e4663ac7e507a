"""The whole deployment, in order. Run it with `pyinfra inventory.py deploy/`."""

from pyinfra import host

from deploy import app, consul, uwsgi
from deploy.plan import fleet

me = fleet().host(host.name)

if me.is_retired:
    app.retire(me)
    consul.leave(me)
else:
    source = consul.source.choose(me)
    release = app.release.prepare(me)

    consul.install(me, source)
    consul.configure(me, source)
    consul.run_server(me, source, _serial=True)
    consul.run_client(me, source)

    if me.instances:
        uwsgi.install(me)
        uwsgi.plugin(me)
        app.install(me, release)
        app.units(me, release)
        app.switch(me, release)
