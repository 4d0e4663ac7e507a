"""Lines that an application's units, or Consul's, can have by a setting (app_unit, consul_unit)."""

import re
from difflib import get_close_matches

from uwsgi_consul_fleet.inventory import uwsgi_options
from uwsgi_consul_fleet.inventory.uwsgi_options import Options

# What a process may do and have. How it is started, told to stop and switched is in the units.
NAMES = frozenset(
    """
    CPUQuota CPUWeight IOWeight MemoryHigh MemoryMax MemorySwapMax Nice OOMScoreAdjust TasksMax
    AmbientCapabilities BindPaths BindReadOnlyPaths CapabilityBoundingSet DeviceAllow IPAddressAllow
    IPAddressDeny InaccessiblePaths LockPersonality MemoryDenyWriteExecute PrivateDevices
    PrivateUsers ProcSubset ProtectClock ProtectControlGroups ProtectHome ProtectHostname
    ProtectKernelLogs ProtectKernelModules ProtectKernelTunables ProtectProc ProtectSystem
    ReadOnlyPaths RemoveIPC RestrictAddressFamilies RestrictNamespaces RestrictRealtime
    RestrictSUIDSGID SupplementaryGroups SystemCallArchitectures SystemCallFilter
    TemporaryFileSystem UMask
    """.split()  # noqa: SIM905 - a name a line would be a page
)
LIMIT = re.compile(r"Limit[A-Z]+")


def problem(name: str) -> str:
    """Why a unit can't have such a line by a setting, or ''."""
    if name in NAMES or LIMIT.fullmatch(name):
        return ""
    if name == "ReadWritePaths":
        return "say app_writable"
    near = get_close_matches(name, NAMES, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"{meant}a unit takes here what its process may do and have, see docs/security.md"


def lines(options: Options) -> list[str]:
    """As a unit has them."""
    return uwsgi_options.lines(options, between="=")
