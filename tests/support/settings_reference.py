"""The settings for people: `python tests/support/settings_reference.py` writes them anew.

A setting's default and its explanation are in inventory/settings.py and nowhere else: from there
they go into group_data/all.py and docs/settings.md, which a test compares with what they should be.
"""

import re
from pathlib import Path

from uwsgi_consul_fleet.inventory import written
from uwsgi_consul_fleet.inventory.settings import DEMO, FLEET_WIDE, Settings, literal
from uwsgi_consul_fleet.inventory.written import SECTIONS, default, explanations

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/settings.md"
ALL = ROOT / written.ALL

INTRODUCTION = """\
# Settings

They are in `group_data/all.py`, for every host. A file named after a group
(`group_data/app_servers.py`) overrides them for it, and data beside a host in `inventory.py`
overrides both. Where there are several applications, each has
[a file](operations.md#several-applications) with the settings from "The application" on; those
above are for whole hosts. A setting that is misspelt, missing or out of its range ends every
command before anything is touched, with the host and the key.

How ssh reaches the hosts is pyinfra's to know: `ssh_user`, `ssh_port`, `ssh_key`, `_sudo` and
the like are [described there](https://docs.pyinfra.com/en/3.x/connectors/ssh.html).
"""


def page() -> str:
    """docs/settings.md."""
    lines = [INTRODUCTION]
    for key, text in explanations().items():
        if key in SECTIONS:
            lines += [f"## {SECTIONS[key]}\n", "| setting | default | what |", "|---|---|---|"]
        required = Settings.model_fields[key].is_required()
        value = "none" if required else f"`{literal(default(key))}`"
        shared = " The same for all hosts." * (key in FLEET_WIDE)
        lines.append(f"| `{key}` | {value} | {_cell(text)}{shared} |")
    return "\n".join(lines).replace("|\n##", "|\n\n##") + "\n"


def _cell(text: str) -> str:
    """In one line; the values of a choice, which are indented, each in a line of its own."""
    choices = re.sub(r"^  (\w+) +", r"<br>`\1`: ", text, flags=re.MULTILINE)
    return " ".join(choices.split())


def all_py() -> str:
    """group_data/all.py with its settings as they should be."""
    return written.all_py(ALL.read_text(), DEMO)


if __name__ == "__main__":
    for path, content in {PAGE: page(), ALL: all_py()}.items():
        path.write_text(content)
