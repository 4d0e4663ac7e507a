"""The pages lead somewhere, and name what there is."""

import re
import runpy
from pathlib import Path

import pytest
import settings_reference as reference

from uwsgi_consul_fleet.inventory.settings import DEMO, Settings
from uwsgi_consul_fleet.inventory.written import explanations

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_key_of_the_plugin_has_its_line() -> None:
    keys = re.findall(
        r"^    (?:TEXT|LIST|NUMBER|SWITCH)_KEY\((\w+)",
        (ROOT / "plugin_build/src/options.c").read_text(),
        re.MULTILINE,
    )
    page = (ROOT / "docs/plugin.md").read_text()
    assert len(keys) > 10
    assert [key for key in keys if f"\n| `{key}` | " not in page] == []


def test_every_setting_is_explained() -> None:
    assert list(explanations()) == list(Settings.model_fields)


def test_the_settings_are_written_as_they_are() -> None:
    how = "write it anew with: python tests/support/settings_reference.py"
    assert reference.PAGE.read_text() == reference.page(), how
    assert reference.ALL.read_text() == reference.all_py(), how
    # What is written there is what these names come to in Python.
    values = runpy.run_path(str(reference.ALL))
    for key, field in Settings.model_fields.items():
        expected = DEMO.get(key, field.default)
        assert values[key] == (list(expected) if isinstance(expected, tuple) else expected), key


def test_only_what_is_the_demos_has_no_default() -> None:
    required = {key for key, field in Settings.model_fields.items() if field.is_required()}
    assert required == {*DEMO} - {"app_ini", "instances"}
