"""A machine with a life of its own: what an operator may have there before a fleet comes."""

import json
import shutil
import subprocess
import uuid
from pathlib import Path
from shlex import quote

from consul_processes import until
from fleet_commands import Fleet
from lab_commands import Lab

# In nobody's way, with names that come near.
BESIDE = """
useradd --create-home --shell /bin/bash blog
mkdir -p /srv/blog/releases/1/units /srv/blog/shared
echo upload >/srv/blog/shared/upload
for unit in consul-demo-server-worker@ blog-2001 consul-template; do
    printf '[Service]\\nExecStart=/bin/sleep infinity\\n' >/etc/systemd/system/$unit.service
done
systemctl daemon-reload
systemctl start blog-2001 consul-demo-server-worker@1
apt-get -qq install -y nftables >/dev/null
nft add table inet own
nft add chain inet own input '{ type filter hook input priority 0; }'
"""
# An emperor of the operator's own, with an application that is another tool's.
EMPEROR = """
apt-get -qq install -y uwsgi-core uwsgi-plugin-python3 python3-venv libcurl4 >/dev/null
mkdir -p /etc/uwsgi-emperor/vassals /srv/blog/current
cat >/srv/blog/current/blog.py <<'END'
def application(environ, start_response):
    start_response("200 OK", [])
    return [b"blog"]
END
cat >/etc/uwsgi-emperor/vassals/blog.ini <<'END'
[uwsgi]
plugins = python3
master = true
http-socket = 127.0.0.1:9001
chdir = /srv/blog/current
module = blog
END
cat >/etc/systemd/system/uwsgi-emperor.service <<'END'
[Service]
ExecStart=/usr/bin/uwsgi --emperor /etc/uwsgi-emperor/vassals
KillSignal=SIGQUIT
END
systemctl daemon-reload
systemctl start uwsgi-emperor
"""
# As HashiCorp's package lays it out.
PACKAGED = """
useradd --system --home-dir /etc/consul.d --shell /bin/false consul
chmod 755 /usr/bin/consul
mkdir -p /etc/consul.d /opt/consul
mv /tmp/consul.d/* /etc/consul.d/
chown -R consul:consul /etc/consul.d /opt/consul
chmod 640 /etc/consul.d/consul.hcl
cat >/usr/lib/systemd/system/consul.service <<'END'
[Unit]
Description=Consul
Wants=network-online.target
After=network-online.target
[Service]
User=consul
Group=consul
ExecStart=/usr/bin/consul agent -config-dir=/etc/consul.d/
ExecReload=/bin/kill --signal HUP $MAINPID
KillMode=process
KillSignal=SIGTERM
Restart=on-failure
LimitNOFILE=65536
[Install]
WantedBy=multi-user.target
END
systemctl daemon-reload
systemctl --quiet enable --now consul
"""
# Of a fleet that uses a Consul of others.
SETTINGS = """
app_requirements = None
min_healthy_time = 0
fleet = {fleet!r}
consul_source = "none"
consul_address = "https://127.0.0.1:8501"
consul_ca_file = {ca!r}
consul_token = {deploy!r}
consul_app_token = {application!r}
"""
# But for what an agent writes when others come and go, folders that it makes when something first
# registers, and the copies of before of useradd's.
FILES = (
    "find /etc /opt /srv /usr/local /home /usr/lib/systemd /usr/bin/consul -xdev "
    r"! -path '/opt/consul/serf/*' ! -path '/opt/consul/checks' ! -path '/opt/consul/checks/state' "
    r"! -path '/opt/consul/services' ! -path '/etc/*-' \( -type f -exec sha256sum {} + "
    r"-o -type l -printf '%p -> %l\n' -o -printf '%p %M %u %g\n' \)"
)
PROCESSES = "pgrep --list-full 'consul|sleep|uwsgi'"
UNITS = "systemctl list-units --all --plain --no-legend --type service,socket,target"
ALSO = f"{PROCESSES}; getent passwd; getent group; nft list ruleset; {UNITS} | cut -d ' ' -f 1"


def state(lab: Lab, host: str) -> list[str]:
    """What is there, byte by byte and process by process."""
    look = f"{{ {FILES}; }} 2>/dev/null | sort; {ALSO} || :"
    return str(lab.ssh(host, f"sudo sh -c {quote(look)}").stdout).splitlines()


def missing(before: list[str], now: list[str]) -> set[str]:
    """What was there and is not, but for the lists of users, which may be longer."""
    accounts = ("/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow")
    return {line for line in before if line not in now and not line.endswith(accounts)}


def copy(lab: Lab, host: str, source: Path, target: str) -> None:
    """Send a file to a machine."""
    with source.open("rb") as file:
        command = ["ssh", *lab.ssh_options, host, f"sudo sh -c 'cat >{target}'"]
        subprocess.run(command, stdin=file, check=True)


class PackagedConsul:
    """Consul as HashiCorp's package brings it, on two machines: a server that refuses who has no
    token, and a member of its cluster whose agent speaks https alone.

    ``tokens`` are secrets by what they are for, ``ca`` is the authority's certificate.
    """

    def __init__(self, lab: Lab, folder: Path, server: str, member: str, fleet: str) -> None:
        """
        :param fleet: whose deploys the token ``deploy`` is for
        """
        self.lab, self.folder, self.server, self.member = lab, folder, server, member
        self.fleet = fleet
        names = ("master", "agent", "deploy", "application")
        self.tokens = {name: str(uuid.uuid4()) for name in names}
        for words in (["ca", "create"], ["cert", "create", "-server", "-dc", "dc1"]):
            subprocess.run(["consul", "tls", *words], cwd=folder, check=True, capture_output=True)
        self.ca = folder / "consul-agent-ca.pem"
        self._install(server, self._server())
        until(self._is_led, "the other cluster has a leader", 60)
        node = 'node_prefix "" { policy = "write" } service_prefix "" { policy = "read" }'
        self._allow("agent", node)
        self._allow(
            "deploy",
            f'key_prefix "uwsgi-consul-fleet/fleets/{fleet}/" {{ policy = "write" }} '
            'session_prefix "" { policy = "write" } service_prefix "" { policy = "read" } '
            'node_prefix "" { policy = "read" } agent_prefix "" { policy = "read" }',
        )
        self._allow("application", 'service "consul-demo-server" { policy = "write" }')
        self._install(member, self._member())
        until(lambda: member in self.consul("members"), f"{member} is a member", 60)

    def guest(self) -> Fleet:
        """A fleet that uses it, without hosts yet."""
        (self.folder / "group_data").mkdir()
        for name in ("deploy", "application"):
            file = self.folder / name
            file.touch(0o600)
            file.write_text(self.tokens[name])
        files = {name: str(self.folder / name) for name in self.tokens}
        text = SETTINGS.format(fleet=self.fleet, ca=str(self.ca), **files)
        (self.folder / "group_data/all.py").write_text(text)
        return Fleet(self.folder / "fleet.py")

    @property
    def host(self) -> tuple[str, dict[str, str]]:
        """The member, as it stands in an inventory."""
        return self.member, {"consul_node": f"{self.member}.example.com"}

    def consul(self, *words: str, check: bool = True) -> str:
        """What the server's own command line says, asked with all rights."""
        token = self.tokens["master"]
        said = self.lab.ssh(
            self.server, f"CONSUL_HTTP_TOKEN={token} consul {' '.join(words)}", check=check
        )
        return said.stdout

    def at_member(self, *words: str) -> str:
        """The same of the member's agent."""
        access = "CONSUL_HTTP_ADDR=https://127.0.0.1:8501 CONSUL_HTTP_SSL_VERIFY=false"
        token = self.tokens["master"]
        asked = f"{access} CONSUL_HTTP_TOKEN={token} consul {' '.join(words)}"
        return self.lab.ssh(self.member, asked).stdout

    def _is_led(self) -> bool:
        return "leader" in self.consul("operator raft list-peers", check=False)

    def _allow(self, name: str, rules: str) -> None:
        self.consul("acl policy create", "-name", name, "-rules", quote(rules))
        self.consul("acl token create", "-policy-name", name, "-secret", self.tokens[name])

    def _install(self, host: str, config: dict[str, object]) -> None:
        binary = shutil.which("consul")
        assert binary
        copy(self.lab, host, Path(binary), "/usr/bin/consul")
        self.lab.ssh(host, "mkdir /tmp/consul.d")
        file = self.folder / "consul.hcl"
        file.write_text(json.dumps(config, indent=2))
        own = sorted(self.folder.glob("dc1-server-consul-0*.pem"))
        for each in (file, self.ca, *own):
            copy(self.lab, host, each, f"/tmp/consul.d/{each.name}")
        self.lab.ssh(host, f"sudo sh -ec {quote(PACKAGED)}")

    def _common(self, host: str) -> dict[str, object]:
        return {
            "data_dir": "/opt/consul",
            "bind_addr": self.lab.address(host),
            "node_name": f"{host}.example.com",
            "disable_update_check": True,
        }

    def _server(self) -> dict[str, object]:
        tokens = {"master": self.tokens["master"], "agent": self.tokens["master"]}
        acl = {"enabled": True, "default_policy": "deny", "tokens": tokens}
        more = {"server": True, "bootstrap_expect": 1, "acl": acl}
        return {**self._common(self.server), **more}

    def _member(self) -> dict[str, object]:
        acl = {
            "enabled": True,
            "default_policy": "deny",
            "tokens": {"agent": self.tokens["agent"]},
        }
        return {
            **self._common(self.member),
            "retry_join": [self.lab.address(self.server)],
            "acl": acl,
            "ports": {"http": -1, "https": 8501},
            "ca_file": f"/etc/consul.d/{self.ca.name}",
            "cert_file": "/etc/consul.d/dc1-server-consul-0.pem",
            "key_file": "/etc/consul.d/dc1-server-consul-0-key.pem",
        }
