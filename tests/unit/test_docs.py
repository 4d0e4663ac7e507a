"""The pages lead somewhere, and name what there is."""

import ast
import re
import runpy
from pathlib import Path

import pytest
import settings_reference as reference

from uwsgi_consul_fleet.inventory.settings import DEMO, Settings
from uwsgi_consul_fleet.inventory.uwsgi_options import problem
from uwsgi_consul_fleet.inventory.written import explanations
from uwsgi_consul_fleet.recognise.tree import assigned

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, section in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text()):
        if "://" not in target:
            there = page.parent / target if target else page
            assert there.exists(), f"{page.name}: {target}"
            assert not section or section in sections(there), f"{page.name}: {target}#{section}"


def sections(page: Path) -> set[str]:
    """By which a link finds them."""
    titles = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_key_of_the_plugin_has_its_line() -> None:
    keys = re.findall(
        r"^    (?:TEXT|LIST|NUMBER|SWITCH)_KEY\((\w+)",
        (ROOT / "plugin_build/src/options.c").read_text(),
        re.MULTILINE,
    )
    page = (ROOT / "docs/plugin.md").read_text()
    assert len(keys) > 10
    assert [key for key in keys if f"\n| `{key}` | " not in page] == []


def test_what_a_uwsgi_ini_becomes_is_so() -> None:
    """Which option has a setting, which one stays in app_uwsgi, and which is refused there."""
    page = (ROOT / "docs/uwsgi-ini.md").read_text()
    _, becomes, stays, goes = (part.partition("\n## ")[0] for part in page.split("\n## What "))
    kept = re.findall(r"`([\w-]+)`", stays.partition("An option that")[0])
    assert len(kept) > 15
    assert {name: why for name in kept if (why := problem(name)) and name != "app_uwsgi"} == {}
    for option, setting in rows(becomes):
        named = set(re.findall(r"`(\w+)`", setting))
        assert named & Settings.model_fields.keys(), option
        if why := re.fullmatch(r"say (\w+)", problem(option)):
            assert why[1] in named, option
    needless = {"vacuum", "enable-threads", "disable-logging", "logto", "logger", "listen"}
    assert {option for option, _ in rows(goes) if not problem(option)} == needless


def rows(text: str) -> list[tuple[str, str]]:
    """A table's, one for each option that stands in the first cell."""
    cells = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| `")]
    return [(name, other) for first, other in cells for name in re.findall(r"`([\w-]+)`", first)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_on_a_page_are_valid(page: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S):
        found = dict(assigned(ast.parse(block)))
        if found.keys() & Settings.model_fields.keys():
            values = {key: ast.literal_eval(value) for key, value in found.items()}
            Settings.model_validate({**DEMO, "app_ini": None, **values})


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
