"""The tables of docs/operating.md, into the page: ``python -m esper_ray.controller.operating_page docs``."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from esper_ray.controller.advice import COMMANDS, LEVELS, REASONS, UPDATES
from esper_ray.controller.breakers import BreakerConfig
from esper_ray.controller.commands import Refusal, Severity
from esper_ray.controller.conservative import ConservativeConfig
from esper_ray.controller.evaluation import ControllerConfig
from esper_ray.controller.levels import UPPER_BOUNDS, LevelConfig
from esper_ray.controller.reports.windows import WindowConfig
from esper_ray.controller.signals import APPLY, COVERED, HOOK, RISK, SEEDS, SHEETS, STEP, TABLE, Row
from esper_ray.controller.thresholds import Thresholds
from esper_ray.live.hardware import DECLARED_ON_CUDA, UTILISATION
from esper_ray.live.probe import DECLARED, DECLARED_OF_GROWERS

PAGE_FILE = "operating.md"
CONFIGS: dict[type[Any], str] = {
    Thresholds: "Signals",
    ConservativeConfig: "Conservative mode",
    LevelConfig: "Level of the dashboard",
    BreakerConfig: "Breakers",
    WindowConfig: "Observation windows",
    ControllerConfig: "Deadlines, and what else there is",
}
"""Settings with numbers, and what they are of."""
NOBODY = "nobody here: a source of your own"
GIVEN = {
    "run.validation_loss": "the grower, or what you give the probe's `end_epoch`",
    "run.training_loss": "what you give the probe's `end_epoch`",
    "metrics.samples_per_s": "the probe, if you give its `end_epoch` the `samples`",
    UTILISATION: "the probe, on a GPU, with `esper-ray[nvidia]`",
    SEEDS: "the probe beside a grower",
    RISK: "a graph policy that was taught risks; no other policy says it",
    SHEETS: "the catalogue",
    **dict.fromkeys((HOOK, STEP, APPLY, COVERED), "the controller itself"),
}
"""Who measures what is not the probe's alone."""


# ------------------------------------------------------------------ tables
def _table(header: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    head, *lines = (f"| {' | '.join(cells)} |" for cells in (header, *rows))
    return "\n".join([head, "|---" * len(header) + "|", *lines]).replace("``", "`")


def commands() -> str:
    """What can be asked and said."""
    return _table(("command", "what it does"), ((f"`{words}`", told) for words, told in COMMANDS.items()))


def reasons() -> str:
    """What each reason means."""
    return _table(
        ("reason", "what it means", "what to do"),
        ((f"`{reason}`", advice.meaning, advice.todo) for reason, advice in REASONS.items()),
    )


def levels() -> str:
    """What each level of the dashboard means."""
    bounds = (*(f"below {bound:g}" for bound in UPPER_BOUNDS), f"from {UPPER_BOUNDS[-1]:g} on")
    rows = zip(LEVELS.items(), bounds, strict=True)
    return _table(
        ("level", "combined score", "what it means", "what to do"),
        ((f"`{of.name}`", bound, advice.meaning, advice.todo) for (of, advice), bound in rows),
    )


def upstream() -> str:
    """What each protection needs, and who measures it."""
    return _table(
        ("protection", "does", "needs", "from"),
        ((f"`{row.reason}`", _does(row), _needs(row), _sources(row)) for row in TABLE if row.needs),
    )


def refusals() -> str:
    """Why a command was not carried out."""
    told = field_docs(Refusal)
    return _table(("code", "what it means"), ((f"`{code}`", told[code.name]) for code in Refusal))


def updates() -> str:
    """What each reason for which an update is rejected means."""
    return _table(
        ("reason", "what it means", "what to do"),
        ((f"`{reason}`", advice.meaning, advice.todo) for reason, advice in UPDATES.items()),
    )


def thresholds() -> str:
    """Every number that can be set."""
    return "\n\n".join(
        f"**{title}** (`{config.__name__}`)\n\n"
        + _table(
            ("setting", "value", "what it is"),
            ((f"`{name}`", _value(default), told) for name, default, told in settings(config)),
        )
        for config, title in CONFIGS.items()
    )


TABLES: dict[str, Callable[[], str]] = {
    "commands": commands,
    "reasons": reasons,
    "levels": levels,
    "refusals": refusals,
    "upstream": upstream,
    "updates": updates,
    "thresholds": thresholds,
}
"""By the name in the page's marks."""


def _does(row: Row) -> str:
    limits = {Severity.CRITICAL: row.critical, Severity.HIGH: row.high, Severity.WARNING: row.warning}
    return ", ".join(
        f"{'slows' if severity is Severity.WARNING else 'pauses'} ({severity.name})"
        for severity, limit in limits.items()
        if limit is not None
    )


def _needs(row: Row) -> str:
    return ", and ".join(" or ".join(f"`{name}`" for name in group) for group in row.needs)


def _sources(row: Row) -> str:
    """Who measures what it needs; of what one is enough of, those whom there are."""
    sources: dict[str, None] = {}
    for group in row.needs:
        found = dict.fromkeys(_source(name) for name in group)
        sources |= dict.fromkeys(source for source in found if source != NOBODY) or found
    return "; ".join(sources)


def _source(name: str) -> str:
    if name in GIVEN:
        return GIVEN[name]
    if name in DECLARED_OF_GROWERS:
        return "the probe beside a grower"
    return "the probe" if name in DECLARED else "the probe, on a GPU" if name in DECLARED_ON_CUDA else NOBODY


def settings(config: type[Any]) -> Iterator[tuple[str, Any, str]]:
    """Name, value by default and docstring of each field; those made of others have tables of their own."""
    told = field_docs(config)
    for field in dataclasses.fields(config):
        if field.default is not dataclasses.MISSING:
            yield field.name, field.default, told[field.name]


def _value(default: float | bool) -> str:
    return json.dumps(default) if isinstance(default, bool) else f"{default:g}"


def field_docs(config: type[Any]) -> dict[str, str]:
    """The string behind each field of a class, or behind each member of an enumeration."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.Assign | ast.AnnAssign) and isinstance(text, ast.Expr):
            (name,) = field.targets if isinstance(field, ast.Assign) else (field.target,)
            found[ast.unparse(name)] = " ".join(ast.literal_eval(text.value).split())
    return found


# ------------------------------------------------------------------ the page
def filled(page: str) -> str:
    """The page with its tables as they are now; all else stays.

    Raises:
        ValueError: a table has no place in it, or more than one.
    """
    for name, table in TABLES.items():
        begin, end = f"<!-- table: {name} -->", f"<!-- end: {name} -->"
        if (page.count(begin), page.count(end)) != (1, 1):
            raise ValueError(f"{PAGE_FILE} must have one place for the table {name!r}: {begin} and {end}")
        before, rest = page.split(begin)
        page = f"{before}{begin}\n\n{table()}\n\n{end}{rest.partition(end)[2]}"
    return page


if __name__ == "__main__":
    path = Path(sys.argv[1]) / PAGE_FILE
    path.write_text(filled(path.read_text()))
