"""What `invoke secrets.rotate` and `invoke secrets.recover` have pyinfra do: replace secrets of the
cluster while everything runs. A deploy goes on with it where it did not come to its end."""

from uwsgi_consul_fleet.operations import lock, ownership, run
from uwsgi_consul_fleet.operations.consul import replacing

here = run.here()
# Before anything is read of the hosts.
lock.look(here)
# It may have waited for a run that replaced some.
replacing.intend(here)
# Refuses what is not this fleet's.
ownership.settled(here.run)
# Refuses while a member can't be told.
replacing.expect(here)

replacing.begin(name="Secrets: write down what is to be replaced", here=here)
replacing.replace(here)
lock.require(name="Lock: go on only with it", here=here, mistaken=lambda _here: "")
replacing.conclude(here)
