"""What runs on a host, as /opt/uwsgi-consul-fleet/release: its releases, which one serves, and all
that is asked of its Consul agent.

It is sent as one file and needs nothing but the Python of the host (3.9 or later). Each
command is a transaction of its own: who started it may go away meanwhile, by Ctrl-C or with
its network, and the host ends where it would have ended.
"""
