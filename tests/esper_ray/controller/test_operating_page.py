"""The page for whoever runs the controller is complete, and says what the code does."""

import dataclasses

import pytest

from esper_ray.controller.advice import LEVELS, REASONS
from esper_ray.controller.commands import Kind, Reason, Refusal
from esper_ray.controller.levels import Level
from esper_ray.controller.operating_page import CONFIGS, PAGE_FILE, field_docs, filled
from esper_ray.controller.records import DIRECTORY
from esper_ray.controller.signals import TABLE
from esper_ray.controller.store import Store
from esper_ray.controller.telemetry import ITEMS
from tests.places import ROOT

PAGE = (ROOT / "docs" / PAGE_FILE).read_text()


def rows(name):
    """First cells of a table of the page."""
    _, _, rest = PAGE.partition(f"<!-- table: {name} -->")
    table, _, _ = rest.partition(f"<!-- end: {name} -->")
    return [line.split("|")[1].strip(" `") for line in table.splitlines() if line.startswith("| `")]


def test_the_tables_are_up_to_date():
    assert filled(PAGE) == PAGE, "run: python -m esper_ray.controller.operating_page docs"


def test_every_reason_level_code_and_setting_has_its_line():
    assert list(REASONS) == list(Reason)
    assert list(LEVELS) == list(Level)
    assert all(advice.meaning and advice.todo for advice in (*REASONS.values(), *LEVELS.values()))
    assert rows("reasons") == list(Reason)
    assert rows("levels") == [level.name for level in Level]
    assert rows("refusals") == list(Refusal)
    assert rows("upstream") == [row.reason for row in TABLE if row.needs]
    assert rows("thresholds") == [field.name for config in CONFIGS for field in dataclasses.fields(config)]
    for config in CONFIGS:
        assert all(field_docs(config)[field.name] for field in dataclasses.fields(config))
    for kind in Kind:
        assert f"| `{kind}` |" in PAGE
    for name in ("tamiyo.command.refused",):
        assert name in ITEMS


def test_every_file_of_a_state_directory_is_named(tmp_path):
    with Store(tmp_path):
        files = {path.name for path in tmp_path.iterdir()}
    assert len(files) > 1
    assert all(f"`{name}`" in PAGE for name in files)
    assert f"`{DIRECTORY}`" in PAGE


def test_only_tables_are_written_and_each_has_one_place():
    first = "# Somebody wrote this\n"
    assert filled(first + PAGE) == first + PAGE
    emptied = PAGE.replace("| `policy` |", "| `other` |")
    assert filled(emptied) == PAGE
    for broken in (PAGE.replace("<!-- table: levels -->", ""), PAGE + "<!-- end: levels -->"):
        with pytest.raises(ValueError, match="one place for the table 'levels'"):
            filled(broken)
