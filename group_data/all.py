"""Settings of the whole fleet. A file named after a group (app_servers.py) overrides them for it,
and data beside a host in inventory.py overrides both."""

from uwsgi_consul_fleet.lab import ssh_config

# --- The fleet --------------------------------------------------------------

# What the fleet is called, such as shop-production; a run stops where the hosts carry another
# name. None takes what they carry, and at the first deploy the application's name; a fleet keeps
# the name that it got then.
fleet = None

# How long a deploy waits for another one to end, such as 10m; None stops at once, with status
# 75. Mostly typed: --data wait=10m.
wait = None

# Seconds for each of the hooks in the operator's folder hooks/: see docs/operations.md.
hook_timeout = 300

# Prints the fleet's secrets, where a team keeps them in a place of its own, such as
# "[ ! -e $FLEET.json ] || sops decrypt $FLEET.json": a line for a shell on this machine, in the
# inventory's folder, with the fleet's name in $FLEET. It prints nothing where there are none yet,
# and fails where it can't know. None: a file below .fleet/ beside the inventory, which a second
# operator needs, too. See docs/security.md.
secrets_load = None

# Keeps there what comes on its standard input, in place of what was there, as "sops encrypt
# --filename-override $FLEET.json --output $FLEET.json /dev/stdin"; both are set, or none.
secrets_save = None

# Whether a retired host also loses its releases and Consul's data.
purge = True

# --- Consul -----------------------------------------------------------------

# What Consul calls the place where the hosts are.
datacenter = "dc1"

# Where the consul binary comes from:
#   release  the release archive, checked against its published checksums
#   file     consul_file
#   debian   Debian's own package
#   auto     release where its site answers when Consul is first installed, else debian
#   none     nowhere: the agent that each host has already is used and never touched. Then there
#            are no consul_servers, and `fleet` must be set
consul_source = "auto"

# The version of the release archive.
consul_version = "1.21.4"

# The release site, or a mirror of it.
consul_release_url = "https://releases.hashicorp.com/consul"

# Refuse any other release archive than that with this SHA-256, as in {"amd64": "…"}.
consul_sha256 = {}

# HashiCorp's public key, a file on this machine: refuse published checksums that are not
# signed with it. gpgv is asked. None believes the site's certificate.
consul_release_key = None

# A file on this machine: the consul binary, or a release archive.
consul_file = None

# Further lines of the agent's unit, as app_unit.
consul_unit = {}

# With consul_source "none": where a host's agent answers, as seen from the host:
# http://HOST:PORT, or https://HOST:PORT with a certificate that is good for 127.0.0.1 too.
consul_address = "http://127.0.0.1:8500"

# With "none": what the agent calls the host, where that is not its name in the inventory: to
# be set beside it, as in ("web1", {"consul_node": "web1.example.com"}).
consul_node = None

# With "none": the token of deploys and commands: a file on this machine that nobody else may
# read, or $NAME for a variable of its environment.
consul_token = None

# With "none": the token that the application registers with, named in the same way. It lies on
# each host in a file that the application's user alone may read.
consul_app_token = None

# With "none" and https: the certificate authority of the agents, a file on this machine; None
# for those that the system knows.
consul_ca_file = None

# With "none" and https: a client certificate, for agents that want one; as consul_ca_file.
consul_cert_file = None

# Its key.
consul_key_file = None

# Whether Consul's DNS answers on the hosts, although a question in it carries no token: then
# anybody there may look up services and nodes by their names; and list them, where a host of the
# fleet has Consul before 1.17.
dns = False

# --- Hosts ------------------------------------------------------------------

# Where other hosts reach a host, if ssh reaches it under another address: to be set beside
# it in inventory.py, as in ("web1", {"address": "10.0.0.5"}).
address = None

# What is done about a host whose key is in no known_hosts file, where your ssh configuration
# does not say:
#   ask    all of them are shown and asked about at once; with -y, or without a terminal, nothing
#          is done before `invoke ssh.trust`
#   first  its first key is trusted, whatever the ssh configuration says: for machines that live
#          an hour
ssh_host_keys = "ask"

# Whether a host lets only the hosts of the fleet reach its Consul, and only them and
# app_clients its applications: by nftables, in a table of the fleet's own. False removes that
# again. See docs/security.md.
firewall = True

# --- The application --------------------------------------------------------

# The application's name: of its service in Consul, its user, its units and its folder under
# /srv.
app_name = "consul-demo-server"

# A folder on this machine, in a git repository or not, or the URL of a repository, which each
# deploy fetches: https://…, ssh://…, git@HOST:PATH. What git tracks in it is sent, or without git
# what no .gitignore in it leaves out. ${NAME} in a URL is read from this machine's environment or
# from app_secrets_file.
app_source = "app"

# Its branch, tag or commit; of a folder too, where what is committed is to be sent. None: a
# folder as it is now, a repository's default branch.
app_ref = None

# The folder of app_source from which its modules are imported: "src", or "." for app_source
# itself. The paths in these settings are then app_source's own, app_requirements too. None: as
# seen from the folder that holds app_source, so that modules begin with its name.
app_root = None

# The language that uWSGI runs, with Debian's plugin for it: wsgi (Python), psgi (Perl), rack
# (Ruby), php or lua; all but wsgi take app_root. go is refused: Debian's plugin does not work.
app_type = "wsgi"

# What uWSGI loads: MODULE:CALLABLE, MODULE:FACTORY(), a file (wsgi.py, or wsgi.py:app where
# its callable is not called application), or an ini of PasteDeploy (production.ini, or
# production.ini#shop for a section other than main). Of another app_type than wsgi: a file
# (app.psgi, config.ru, app.lua, public/index.php for everything), or PHP's folder of files.
app_entry_point = "app.server:application"

# What is installed into a virtual environment on each host, resolved once, the same on all of
# them: a requirements file, with those that it includes (-r, -c), or the project's pyproject.toml
# (or pyproject.toml[extra]), as uv.lock or poetry.lock beside it has it. ${NAME} in it is read
# from this machine's environment or from app_secrets_file. None where the application needs
# nothing. Of another app_type than wsgi: cpanfile, Gemfile or composer.json, installed as the
# lock file beside it has it (cpanfile.snapshot may be missing).
app_requirements = "app/requirements.txt"

# The Jinja2 template of each instance's uWSGI configuration; None for the one that is shipped,
# app/uwsgi.ini.j2.
app_ini = "app/uwsgi.ini.j2"

# The Python of the virtual environment, as it is on the hosts; not in a home folder, which no
# service sees.
app_python = "/usr/bin/python3"

# uWSGI worker processes of each instance.
app_processes = 2

# Whether each worker loads the application by itself (uWSGI's lazy-apps). It must where
# loading starts threads or an event loop, which a fork loses: see docs/frameworks.md.
app_lazy = False

# Further options of uWSGI, such as {"threads": 4, "buffer-size": 32768, "harakiri": 60,
# "mule": "worker.py"}: a text, a number, True or False, or a list of them where an option stands
# several times. Those that a release is switched by are refused.
app_uwsgi = {}

# Folders that uWSGI serves by itself, by the beginning of the URL, such as
# {"/static": "staticfiles"}; what is not in them is the application's to answer.
app_static = {}

# Debian packages that it runs with, such as ["libpq5", "gettext"]; installed on its hosts,
# where they stay.
app_packages = []

# Debian packages that its dependencies are compiled with and app_build runs with, such as
# ["libpq-dev", "nodejs"]; they come into a scratch layer, and do not stay.
app_build_packages = []

# Commands that make a release ready on each host before it is tried, such as
# ["python manage.py collectstatic --noinput"]: in the folder where the application works, as its
# user, with its environment, and its virtual environment first on the PATH.
app_build = []

# Commands that run once for each release, on one host, before the first one is switched, such
# as ["python manage.py migrate --noinput"]; as app_build.
app_release = []

# Seconds that each command of app_build and app_release may take.
app_step_timeout = 900

# Files and folders (with a slash at the end) that releases share, such as ["media/",
# "db.sqlite3"]: each lies in /srv/NAME/shared, and a link in its place. Nothing removes them.
app_shared = []

# Folders and files elsewhere on a host that it writes to, such as ["/var/lib/shop"]; a folder
# that is missing is made. What is not listed it can only read, but for app_shared, its /tmp and
# /dev/shm. None: where versions before 0.5 served it, what it could write to then too.
app_writable = None

# Further lines of its units, in systemd's words, such as {"MemoryMax": "512M", "TasksMax":
# 200}, or {"SystemCallFilter": "@mount"} for more than docs/security.md says; a text, a number,
# True or False, or a list of them.
app_unit = {}

# Other processes of a release, each by a name of its own, such as
# {"celery": {"command": "celery -A shop worker", "count": 2},
# "beat": {"command": "celery -A shop beat", "overlap": False, "hosts": ["web1"]}}:
#   command       as a shell would run it in the release's folder: one program
#   count         how many of it run on each host: 1
#   hosts         those that it runs on; all of the application's where it is left out
#   overlap       False for what must never run twice: the old one ends before the new one begins
#   stop_signal   what asks it to finish: "SIGTERM"
#   stop_timeout  seconds that it then has, before it is killed: the setting of that name
app_workers = {}

# The uWSGI servers on each host: a name (the id in Consul) and a port.
instances = {"server1": 2001, "server2": 2002}

# Where a new port listens: on the host's `address` alone, or on "all" of its addresses, its
# loopback too, as for an nginx on the same host. A port that is open stays as it is.
app_listen = "address"

# Networks from which the instances can be reached, such as ["10.1.0.0/24", "fd00:1::/64"],
# beside the fleet's own hosts, which always can: so [] is these alone. None: from everywhere.
app_clients = None

# Services in Consul that it looks up, such as ["payments", "search"]; itself it always finds.
# [] for none. None: all of them where versions before 0.5 served the fleet, until each
# application has this set; else none.
app_discovers = None

# Seconds without a sign of life after which Consul calls an instance critical.
check_ttl = 10

# Environment variables of the application.
app_env = {}

# Names of variables that nobody may see: each value is read from this machine's environment,
# or from app_secrets_file; where both have one, it must be the same.
app_secrets = []

# A .env file outside the repository.
app_secrets_file = None

# --- Releases ---------------------------------------------------------------

# What a release is called; None for what git calls the content of app_source. A label: a name
# releases the same content again only as --data release=NAME. "current" keeps what the fleet was
# put to.
release = None

# Releases that stay on each host, the one that serves among them; two or more.
keep_releases = 5

# What a new release must answer, with one of health_statuses, before it receives a request.
health_path = "/healthz"

# Sent with it, such as {"Host": "shop.example.com", "X-Forwarded-Proto": "https"} for an
# application that answers to its own names alone, or redirects what is not https.
health_headers = {}

# The statuses of a healthy answer: numbers and ranges, such as 200-299,401.
health_statuses = "200-299"

# Seconds within which a new release must be loaded, and then as many to answer.
health_timeout = 30

# Seconds within which the release that serves must be loaded when its host boots, or when it
# is started again: a host that has just booted may be slow.
boot_timeout = 300

# Seconds for which a new release must go on answering before it receives a request.
min_healthy_time = 3

# Seconds for which an instance goes on serving when it has left the catalog.
drain = 1

# Seconds that requests in flight have to finish when an instance stops.
stop_timeout = 30

# How many hosts get a new release first, before the batches.
canary = 1

# How many hosts are in a batch of the roll-out: a number, or "25%" of them.
batch = "25%"

# Where a batch fails: put the hosts done before it back as well ("rollback"), or "stop"
# there.
on_failure = "rollback"

# How many instances done before may have failed since for the next batch to begin all the
# same.
max_unavailable = 0

# How many of an application's hosts may fail before their switch, as by a full disk, for the
# others to be switched all the same; they are left as they are, and named.
max_failed_hosts = 0

# --- uWSGI ------------------------------------------------------------------

# Where uWSGI comes from:
#   debian  Debian's packages
#   pypi    PyPI, built on the host for app_python and installed into the application's virtual
#           environment
uwsgi_source = "debian"

# The version that is taken from PyPI.
uwsgi_version = "2.0.31"

# --- How the hosts are reached ----------------------------------------------

# The lab's machines while it is up, else your own ssh config. Without the demo's lab this line and
# the import above can go.
ssh_config_file = ssh_config()

# All of pyinfra's ways to reach a host and to become root on it hold for the deploy and for every
# command, such as ssh_user, ssh_key, _sudo_password or _su_user.
_sudo = True
