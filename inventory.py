"""The fleet. Edit this file to scale, then run `pyinfra inventory.py deploy/`.

A host is a name, or a pair of a name and what differs on it from group_data/:

    app_servers = ["drakar", ("cheetah", {"instances": {"server3": 2003}})]
"""

# drakar and cheetah are machines of the lab (invoke lab.up).
# Consul servers hold the catalog: one for a trial, three or five for production.
consul_servers = ["drakar"]

# Each of these runs every application; one that has a group of its name here runs on that group's
# hosts instead.
app_servers = ["drakar", "cheetah"]

# Where build-plugin compiles, if a host there has the same uWSGI; else on the hosts themselves.
builders = []

# Move a name here to take its instances out of service.
retired = []
