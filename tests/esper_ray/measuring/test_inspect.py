"""What `esper-ray inspect` shows is what the world has."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from envs.batched.parameters import count_parameters
from envs.blueprints import blueprints_for
from envs.hosts.cnn import CnnVariant
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.observation import ObservationLayout
from envs.slots import SlotConfig
from envs.tasks import make_task, task_names
from esper_ray.cli import parse
from esper_ray.commands.inspection import Inspect
from esper_ray.measuring.inspection import COLUMNS, inspect_task, markdown
from tests.envs.helpers import task_of

PAGE = Path(__file__).parents[3] / "docs" / "inspect.md"


def output_of(*arguments, width=COLUMNS):
    out = io.StringIO()
    command = parse(["inspect", *arguments])
    assert isinstance(command, Inspect)
    command.run(Console(file=out, width=width))
    return out.getvalue()


def section(task, title):
    (found,) = [part for part in inspect_task(task) if part.title == title]
    return found


def test_the_page_is_the_commands_output():
    (command,) = re.findall(r"`esper-ray (inspect [^`]*)`", PAGE.read_text())
    assert output_of(*command.split()[1:]) == PAGE.read_text(), f"run: esper-ray {command} > docs/inspect.md"


@pytest.mark.parametrize("task", task_names())
def test_every_task_is_shown_in_100_columns_without_its_data(task):
    for width in (COLUMNS, 200):
        lines = output_of(task, width=width).splitlines()
        assert max(map(len, lines)) <= COLUMNS
    text = "\n".join(lines)
    assert "…" not in text.replace(", …, ", "")
    words = " ".join(text.split())  # a long variant fills several lines of its cell
    for variant in make_task(task).variants:
        assert all(part in words for part in str(variant).split())


def test_counts_are_those_of_the_modules_and_of_the_environments_budget():
    task = make_task("digits_impaired")
    env = MorphogenesisVectorEnv(task=task)
    env.reset(seed=0)
    assert section(task, "Hosts").rows == (("0", str(task.variants[0]), f"{env.lifecycle.costs.host[0]:,}"),)
    *blueprints, _gate = section(task, "Blueprints").rows
    modules = blueprints_for(task.host.topology, task.slots.blueprints)
    assert [name for _, name, *_ in blueprints] == [blueprint.name for blueprint in sorted(modules)]
    for row, blueprint in zip(blueprints, sorted(modules), strict=True):
        widths = [task.host.slot_width(task.variants[0], slot) for slot in range(3)]
        counts = [count_parameters(modules[blueprint].parameters(width)) for width in widths]
        assert row == (str(int(blueprint)), blueprint.name, *(f"{count:,}" for count in counts))


@pytest.mark.parametrize("task", ["digits", "cifar_scale"])
def test_the_observations_indices_are_each_shown_once_with_their_range(task):
    task = make_task(task)
    layout = ObservationLayout(task.slots)
    host, slot = (section(task, f"Observation of {part}").rows for part in ("the host", "each slot"))
    shown = [(int(index), low, high) for places, _, low, high in (*host, *slot) for index in places.split(", ")]
    wanted = [(place, f"{field.low:g}", f"{field.high:g}") for place, field in enumerate(layout.fields)]
    assert sorted(shown) == wanted


def test_mixed_variants_show_a_range_and_many_slots_several_tables():
    task = make_task("digits_mixed")
    by_slot = zip(*(variant.widths for variant in task.variants), strict=True)
    assert [row[2] for row in section(task, "Slots").rows] == [f"{min(width)} to {max(width)}" for width in by_slot]
    ten = task_of(CnnVariant(widths=(4,) * 10, kernels=(1,) * 10))
    assert ten.slots == SlotConfig.for_row(10)
    titles = [part.title for part in inspect_task(ten)]
    assert "Blueprints in r0c0 to r0c4" in titles
    assert "Blueprints in r0c5 to r0c9" in titles
    assert "0.02 to 0.001, times 0.5 to 2, drawn per episode" in dict(section(task, "Task").rows).values()
    text = markdown("ten", inspect_task(ten))
    assert "31, 61, 91, …, 301" in text


def test_heads_are_those_of_the_action_space():
    task = make_task("cifar_scale")
    heads = section(task, "Action heads").rows
    assert [(row[0], int(row[1])) for row in heads] == [(head.name, head.size) for head in task.slots.heads]
    assert heads[1][2] == "r0c0, r0c1, r0c2, r0c3, r0c4"


def test_a_data_directory_may_be_given_and_changes_nothing(tmp_path):
    assert output_of("cifar10", "--data-dir", str(tmp_path)) == output_of("cifar10")
