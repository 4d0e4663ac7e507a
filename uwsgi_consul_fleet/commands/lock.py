"""invoke unlock"""

from uwsgi_consul_fleet.commands.command import Fleet, command, expect


@command(failure=2, help={"yes": "do not ask"})
def unlock(fleet: Fleet, yes: bool = False) -> None:
    """Remove the lock of a deploy that is gone, after showing whose it is."""
    from uwsgi_consul_fleet.lock import lock

    held = lock.holder(fleet)
    if held is None:
        print("There is no lock.")
        return
    print(lock.told(held))
    if not yes:
        question = "Remove it? If that run still goes on, it stops. [y/N]"
        expect(question, "y", "yes", otherwise="nothing removed")
    lock.unlock(fleet, held)
    print("removed")
