"""Who can connect to Consul and the applications: a packet filter on each host."""
