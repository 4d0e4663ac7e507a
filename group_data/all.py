"""Settings of the whole fleet. A file named after a group (app_servers.py) overrides them for it,
and data beside a host in inventory.py overrides both."""

from uwsgi_consul_fleet.lab import ssh_config

# --- The application --------------------------------------------------------

# The name of its service in Consul; also of its user, its units and its folder under /srv.
app_name = "consul-demo-server"

# A folder on this machine. What git tracks in it is sent; it lands under its own name.
app_source = "app"

# MODULE:CALLABLE, as seen from the folder that holds app_source.
app_entry_point = "app.server:application"

# Installed into a virtual environment on each host; None where the application needs none.
app_requirements = "app/requirements.txt"

# The Python of that environment, as it is on the hosts.
app_python = "/usr/bin/python3"

# The Jinja2 template of each instance's uWSGI configuration.
app_ini = "app/uwsgi.ini.j2"

# uWSGI worker processes of each instance.
app_processes = 2

# The uWSGI servers on each host: a name (the id in Consul) and a port.
instances = {"server1": 2001, "server2": 2002}

# Seconds without a sign of life after which Consul calls an instance critical.
check_ttl = 10

# Environment variables of the application.
app_env: dict[str, str] = {}

# Names of variables that nobody may see. Each value is read from this machine's environment, or
# from a file outside the repository with NAME=VALUE lines.
app_secrets: list[str] = []
app_secrets_file = None

# --- Releases ---------------------------------------------------------------

# What a release is called; None for the git revision of app_source. Also: --data release=NAME
release = None

# Releases that stay on each host, the one that serves among them; two or more.
keep_releases = 5

# A new release must answer this with a status below 400, within so many seconds after it was
# loaded (which may take as long), and go on doing so for min_healthy_time, before it receives a
# request.
health_path = "/healthz"
health_timeout = 30
min_healthy_time = 3

# Seconds for which an instance goes on serving when it has left the catalog.
drain = 1

# Seconds that requests in flight have to finish when an instance stops.
stop_timeout = 30

# Roll-out: so many hosts first, then the others in batches: a number of hosts or "25%" of them.
canary = 1
batch = "25%"

# Where a batch fails: put the hosts done before it back as well ("rollback"), or "stop" there.
on_failure = "rollback"

# So many instances done before may have failed since for the next batch to begin all the same.
max_unavailable = 0

# Whether a retired host also loses its releases and Consul's data.
purge = True

# --- uWSGI ------------------------------------------------------------------

# Where uWSGI comes from:
#   debian  Debian's packages
#   pypi    uwsgi_version from PyPI, built on the host for app_python and installed into
#           the application's virtual environment
uwsgi_source = "debian"
uwsgi_version = "2.0.31"  # for pypi

# --- Consul -----------------------------------------------------------------

datacenter = "dc1"

# Where the consul binary comes from:
#   release  the release archive, checked against its published checksums
#   file     consul_file on this machine: the binary, or a release archive
#   debian   Debian's own package
#   auto     release where its site answers when Consul is first installed, else debian
consul_source = "auto"
consul_version = "1.21.4"  # for release

# consul_file = "~/consul_1.21.4_linux_amd64.zip"  # for file
# consul_release_url = "https://releases.hashicorp.com/consul"  # a mirror of the release site

# Optional: refuse any other archive, e.g. {"amd64": "<sha256 of the .zip>"}.
consul_sha256: dict[str, str] = {}

# --- How the hosts are reached ----------------------------------------------

# The address under which other hosts reach a host is the one that ssh reaches it under.
# Where these differ, set it beside the host in inventory.py: ("web1", {"address": "10.0.0.5"})

# The lab's machines while it is up, else your own ssh config. Without the demo's lab this line and
# the import above can go.
ssh_config_file = ssh_config()

# All of pyinfra's ways to reach a host and to become root on it hold for the deploy and for every
# command, such as ssh_user, ssh_key, _sudo_password or _su_user.
_sudo = True
