"""All commands, as the tasks.py of an operator has them."""

from invoke import Collection

from uwsgi_consul_fleet.commands import (
    adopt,
    audit,
    build,
    client,
    consul,
    execute,
    lab,
    lock,
    logs,
    releases,
    secrets,
    ssh,
    verify,
)

consul_commands = Collection("consul")
consul_commands.add_task(consul.run, default=True)

namespace = Collection(
    build.build_plugin,
    verify.verify,
    client.client,
    releases.releases,
    releases.rollback,
    logs.logs,
    execute.execute,
    audit.audit,
    consul.ui,
    lock.unlock,
    adopt.adopt,
    Collection("secrets", secrets.rotate, secrets.recover),
    Collection("ssh", ssh.trust),
    consul_commands,
    Collection("lab", lab.up, lab.down, lab.status, lab.rebuild, lab.ssh),
)
