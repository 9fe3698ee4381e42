"""What a task is made of, read from the code that runs it: hosts, slots, blueprints, observation, action heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from envs.batched.parameters import ParameterLayout
from envs.blueprints import blueprints_for
from envs.limits import ParameterCosts
from envs.observation import Field, ObservationLayout
from envs.population.variants import VariantTables
from envs.tasks import Task
from envs.vocabulary import LifecycleOp
from policies.encoders import BlueprintEncoder
from policies.network_config import NetworkConfig

COLUMNS = 100
"""Widest line on the terminal."""

SLOTS_PER_TABLE = 5
SHOWN_INDICES = 4


@dataclass(frozen=True)
class Section:
    """One table.

    Attributes:
        title: Above it.
        note: What the table says, in one or two sentences.
        columns: Headings; those that start with ``>`` are of numbers, set to the right.
        rows: Cells, one per column.
    """

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def inspect_task(task: Task) -> list[Section]:
    """Everything about a task but its data, which need not be there."""
    costs = _costs(task)
    return [
        _task(task),
        _hosts(task, costs),
        _slots(task),
        *_blueprints(task, costs),
        *_observation(task),
        _heads(task),
    ]


def _costs(task: Task) -> ParameterCosts:
    """Parameter counts with one row per host variant, from the tables that the world itself uses."""
    host = task.host
    modules = blueprints_for(host.topology, task.slots.blueprints)
    layout = ParameterLayout(host.parameters(host.widest))
    tables = VariantTables(task, modules, layout, torch.device("cpu"))
    return tables.costs(np.arange(len(task.variants)))


# ---------------------------------------------------------------------- sections
def _task(task: Task) -> Section:
    rate = f"{task.learning_rate(0.0):g} to {task.learning_rate(1.0):g}"
    if task.lr_spread > 1.0:
        rate += f", times {1.0 / task.lr_spread:.3g} to {task.lr_spread:.3g}, drawn per episode"
    settings = {
        "topology": task.host.topology,
        "classes": str(task.num_classes),
        "λ, score lost per doubling of the parameters": f"{task.parameter_rent:g}",
        "κ, score lost per living seed": f"{task.path_rent:g}",
        "samples in a mini-batch": str(task.batch_size),
        "mini-batches in an epoch": str(task.batches_per_epoch),
        "learning rate at the start and at the end": rate,
        "augmentation": "none" if task.augment is None else str(task.augment),
    }
    return Section("Task", "What a host is trained on, and how.", ("setting", "value"), tuple(settings.items()))


def _hosts(task: Task, costs: ParameterCosts) -> Section:
    return Section(
        "Hosts",
        "The variants that an episode's host is drawn from, each equally likely.",
        (">variant", "host", ">parameters"),
        tuple((str(i), str(variant), f"{costs.host[i]:,}") for i, variant in enumerate(task.variants)),
    )


def _slots(task: Task) -> Section:
    rows = [
        (name, "yes" if enabled else "no", _span([task.host.slot_width(variant, slot) for variant in task.variants]))
        for slot, (name, enabled) in enumerate(zip(task.slots.slot_ids, task.slots.enabled_mask, strict=True))
    ]
    note = "Where seeds can grow, in the order in which data pass them."
    return Section("Slots", note + _mixed(task), ("slot", "enabled", ">width"), tuple(rows))


def _blueprints(task: Task, costs: ParameterCosts) -> Iterator[Section]:
    """Parameters of each blueprint in each slot, a few slots to a table."""
    names = task.slots.slot_ids
    for start in range(0, len(names), SLOTS_PER_TABLE):
        slots = range(start, min(start + SLOTS_PER_TABLE, len(names)))
        rows = [
            (
                str(int(blueprint)),
                blueprint.name,
                *(_span(costs.blueprint[:, blueprint, slot].tolist()) for slot in slots),
            )
            for blueprint in task.slots.blueprints
            if costs.offered[blueprint]
        ]
        rows += [
            ("", f"{blueprint.name}, a further level", *(_span(costs.level[:, blueprint, s].tolist()) for s in slots))
            for blueprint in task.slots.blueprints
            if costs.level[:, blueprint].any()
        ]
        rows.append(("", "a gate (style GATED_GATE)", *(_span(costs.gate[:, slot].tolist()) for slot in slots)))
        yield Section(
            "Blueprints" if len(names) <= SLOTS_PER_TABLE else f"Blueprints in {names[slots[0]]} to {names[slots[-1]]}",
            f"Parameters of each kind of seed in each slot, and what a gate adds.{_mixed(task)}",
            (">index", "blueprint", *(f">{names[slot]}" for slot in slots)),
            tuple(rows),
        )


def _observation(task: Task) -> Iterator[Section]:
    layout, slots = ObservationLayout(task.slots), task.slots.slot_ids
    places = {field.name: i for i, field in enumerate(layout.fields)}
    prefix = f"{slots[0]}."
    of_slot = [field for field in layout.fields if field.name.startswith(prefix)]
    of_host = [field for field in layout.fields if field.name.split(".")[0] not in slots]
    embedding = NetworkConfig().embedding_dim
    read = BlueprintEncoder(layout.size, len(slots), len(task.slots.blueprints), embedding).width
    yield Section(
        "Observation of the host",
        f"`obs` has {layout.size} measured numbers: {len(of_host)} of the host, then {len(of_slot)} of each slot. The "
        "blueprint in each slot comes beside it in `blueprint_indices`, -1 for none. A policy of the default size "
        f"reads {read} numbers: {layout.size} measured + {len(slots)} × {embedding} embedded from those indices.",
        (">index", "field", ">low", ">high"),
        tuple((str(places[field.name]), field.name, *_range(field)) for field in of_host),
    )
    yield Section(
        "Observation of each slot",
        f"The indices are those in {_few(slots)}.",
        (">index", "field", ">low", ">high"),
        tuple(
            (_few([str(places[f"{slot}.{name}"]) for slot in slots]), name, *_range(field))
            for field, name in ((field, field.name.removeprefix(prefix)) for field in of_slot)
        ),
    )


def _heads(task: Task) -> Section:
    heads = task.slots.heads
    return Section(
        "Action heads",
        f"An action is {len(heads)} choices; the op decides which of the others matter.",
        ("head", ">size", "choices from 0 on", "matters for"),
        tuple(
            (
                head.name,
                str(head.size),
                ", ".join(head.choices),
                "every op"
                if len(head.needed_by) == heads[0].size
                else ", ".join(LifecycleOp(op).name for op in head.needed_by),
            )
            for head in heads
        ),
    )


# ---------------------------------------------------------------------- cells
def _span(counts: Sequence[int]) -> str:
    least, most = int(min(counts)), int(max(counts))
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _mixed(task: Task) -> str:
    return " A range spans the host variants." if len(task.variants) > 1 else ""


def _range(field: Field) -> tuple[str, str]:
    return f"{field.low:g}", f"{field.high:g}"


def _few(words: Sequence[str]) -> str:
    """All words, or the first ones and the last where there are many."""
    shown = list(words) if len(words) <= SHOWN_INDICES + 1 else [*words[: SHOWN_INDICES - 1], "…", words[-1]]
    return ", ".join(shown)


# ---------------------------------------------------------------------- output
def print_sections(name: str, sections: list[Section], console: Console) -> None:
    """Tables on the terminal, no line wider than :data:`COLUMNS`."""
    width = min(COLUMNS, console.width)
    console.print(Text(name, "bold"), width=width)
    for section in sections:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0))
        for column in section.columns:
            table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
        for row in section.rows:
            table.add_row(*row)
        console.print(Text.assemble("\n", (section.title, "bold"), "\n", section.note), width=width, soft_wrap=False)
        console.print(table, width=width)


def markdown(name: str, sections: list[Section]) -> str:
    """The same as a page."""
    lines = [
        f"# {name}",
        "",
        f"Made by `esper-ray inspect {name} --markdown`; the same for every other task.",
    ]
    for section in sections:
        lines += ["", f"## {section.title}", section.note, "", _row([c.removeprefix(">") for c in section.columns])]
        lines.append(_row(["---:" if column.startswith(">") else "---" for column in section.columns]))
        lines += [_row(row) for row in section.rows]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
