"""The page for whoever runs the controller is complete, and says what the code does."""

import dataclasses
import re
import shlex
from typing import get_args

import pytest

from esper_ray.cli import parse
from esper_ray.commands.control import Control, Word
from esper_ray.commands.reports import Reports
from esper_ray.commands.reports import Word as ReportsWord
from esper_ray.commands.updates import Updates
from esper_ray.commands.updates import Word as UpdateWord
from esper_ray.config import DEFAULT_TASK
from esper_ray.controller.advice import COMMANDS, LEVELS, REASONS, UPDATES
from esper_ray.controller.assessment import RiskConfig
from esper_ray.controller.breakers import BreakerConfig
from esper_ray.controller.commands import Kind, Reason, Refusal
from esper_ray.controller.evaluation import ControllerConfig, read_config
from esper_ray.controller.levels import Level
from esper_ray.controller.operating_page import CONFIGS, PAGE_FILE, filled, settings
from esper_ray.controller.records import DIRECTORY
from esper_ray.controller.reports.windows import WindowConfig
from esper_ray.controller.run_page import DIRECTORY as PAGES
from esper_ray.controller.signals import TABLE
from esper_ray.controller.store import Store
from esper_ray.controller.telemetry import ITEMS
from esper_ray.controller.updates.verdicts import UpdateReason
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
    assert list(UPDATES) == list(UpdateReason)
    advices = (*REASONS.values(), *LEVELS.values(), *UPDATES.values())
    assert all(advice.meaning and advice.todo for advice in advices)
    assert rows("updates") == list(UpdateReason)
    assert rows("reasons") == list(Reason)
    assert rows("levels") == [level.name for level in Level]
    assert rows("refusals") == list(Refusal)
    assert rows("upstream") == [row.reason for row in TABLE if row.needs]
    assert rows("thresholds") == [name for config in CONFIGS for name, _, _ in settings(config)]
    assert all(told for config in CONFIGS for _, _, told in settings(config))
    for kind in Kind:
        assert f"| `{kind}` |" in PAGE
    for name in ("tamiyo.command.refused",):
        assert name in ITEMS


def test_every_number_of_a_controller_can_be_looked_up():
    nested = {type(getattr(ControllerConfig().risk, field.name)) for field in dataclasses.fields(RiskConfig)}
    assert {ControllerConfig, BreakerConfig, WindowConfig} | nested == set(CONFIGS)
    for config in (ControllerConfig, *nested, BreakerConfig, WindowConfig):
        numbers = {
            field.name
            for field in dataclasses.fields(config)
            if not dataclasses.is_dataclass(getattr(config(), field.name))
        }
        assert {name for name, _, _ in settings(config)} == numbers


def test_the_file_of_settings_that_is_shown_can_be_read(tmp_path):
    (shown,) = re.findall(r"```json\n(.*?)```", PAGE, flags=re.DOTALL)
    (tmp_path / "settings.json").write_text(shown)
    assert read_config(tmp_path / "settings.json").risk.conservative.cool_down_epochs == 8


def test_every_command_that_is_shown_is_one_and_none_is_left_out():
    ours = [shlex.split(words) for words in COMMANDS if words.startswith("esper-ray ")]
    examples = {"TASK": DEFAULT_TASK, "NUMBER": "1"}
    known = {examples.get(word, word) for words in ours for word in words}
    parsed = [parse([examples.get(word, word) for word in words[1:]]) for words in ours]
    for kind, all_words in ((Control, Word), (Reports, ReportsWord), (Updates, UpdateWord)):
        assert {command.word for command in parsed if isinstance(command, kind)} == set(get_args(all_words))
    assert {type(command) for command in parsed} == {Control, Reports, Updates}
    assert {"--observe", "--explain", "--prometheus-port"} <= known
    assert f"--logdir {DIRECTORY / PAGES}" in PAGE
    assert rows("commands") == list(COMMANDS)


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
