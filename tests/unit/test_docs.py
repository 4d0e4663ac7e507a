"""The pages lead somewhere, and name what there is."""

import re
from pathlib import Path

import pytest

from uwsgi_consul_fleet.inventory.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_key_of_the_plugin_has_its_line() -> None:
    keys = re.findall(
        r"^    (?:TEXT|NUMBER|SWITCH)_KEY\((\w+)",
        (ROOT / "plugin_build/src/options.c").read_text(),
        re.MULTILINE,
    )
    page = (ROOT / "docs/plugin.md").read_text()
    assert len(keys) > 10
    assert [key for key in keys if f"\n| `{key}` | " not in page] == []


def test_every_setting_is_in_all_py() -> None:
    page = (ROOT / "group_data/all.py").read_text()
    assert [key for key in Settings.model_fields if key not in page] == []
