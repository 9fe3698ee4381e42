"""docs/telemetry.md, from what is declared: ``python -m esper_ray.controller.telemetry_page docs``."""

from __future__ import annotations

import sys
from pathlib import Path

from esper_ray.controller.commands import Severity
from esper_ray.controller.emitting import WAITING
from esper_ray.controller.prometheus import LOOPBACK, MOST_RUNS, metric_name
from esper_ray.controller.records import DIRECTORY
from esper_ray.controller.run_page import DIRECTORY as PAGES
from esper_ray.controller.run_page import LAYOUT, tag_of
from esper_ray.controller.telemetry import DEGRADED, ITEMS, MODE_ENTERED, RISK_LEVEL, Form, Item, Route

PAGE_FILE = "telemetry.md"
_CHARTS = ", ".join(dict.fromkeys(category.lower() for category, _ in LAYOUT.values()))
OPENING = f"""\
# What the controller tells

<!-- written by: python -m esper_ray.controller.telemetry_page docs -->

Every metric and event is declared once, in `esper_ray/controller/telemetry.py`, and nothing else can be emitted.

- **Severities** are {", ".join(severity.name for severity in Severity)}. Metrics are INFO;
  of an event the table has the least, and what it tells of may be worse.
- **What was not measured is not emitted**, never 0.
- **A choice** is one of some words. Where only numbers go it is its place among them, from 0.
- **Whoever takes them cannot hurt the service**: each has a queue of {WAITING:,} readings and a thread of its own. One
  that fails gets no more, one that is too slow loses what does not fit; both are logged once.
- **{Route.TENSORBOARD}**: a directory per run, by epochs. Tags are names with slashes: `{tag_of(RISK_LEVEL)}`.
  Texts and events stand under *Text*. The page *Custom Scalars* shows {_CHARTS}.
- **{Route.PROMETHEUS}**: text on a port of the loopback interface ({LOOPBACK}), for a scraper on the same machine.
  Names have underscores, with `_total` for events, which are counted: `{metric_name(MODE_ENTERED)}`.
  `run_id` is empty of what is the service's own; the {MOST_RUNS} runs that were heard of last are shown. A text is the
  label `value` of a 1.
- **{Route.BUS}**: whatever function is given.

`esper-ray control` writes the pages beside its records, in `{DIRECTORY / PAGES}`, or where `--tensorboard`
says, and serves Prometheus where `--prometheus-port` says. For a model of your own say where it goes:

```python
from pathlib import Path

from esper_ray.controller.emitting import CallingSink, Telemetry
from esper_ray.controller.prometheus import PrometheusSink
from esper_ray.controller.run_page import RunPages
from esper_ray.controller.service import Controller

sinks = [RunPages(Path("{DIRECTORY / PAGES}")), PrometheusSink(9464), CallingSink(print)]
with Telemetry(sinks) as telemetry, Controller("heuristic", telemetry=telemetry) as controller:
    ...  # grow(..., controller=controller), and the loop
```

A decision is told once its command has left and its record is committed; nobody who decides waits for it. One that
could not be judged or written is told all the same, as `{DEGRADED.name}`.
Of looks within an epoch that find nothing wrong nothing is told.
"""


def page() -> str:
    """The page: a table of the metrics, and one of the events."""
    metrics = [_row(item, _unit(item)) for item in ITEMS.values() if item.form is not Form.EVENT]
    events = [_row(item, item.severity.name) for item in ITEMS.values() if item.form is Form.EVENT]
    return "\n".join(
        [
            OPENING,
            "## Metrics\n\n| name | what it is | unit or values | by | goes to |\n|---|---|---|---|---|",
            *metrics,
            "\n## Events\n\n| name | what happened | at least | by | goes to |\n|---|---|---|---|---|",
            *events,
            "",
        ]
    )


def _unit(item: Item) -> str:
    return ", ".join(item.choices) if item.choices else item.unit or ("text" if item.form is Form.TEXT else "—")


def _row(item: Item, unit: str) -> str:
    routes = ", ".join(route for route in Route if route in item.routes)
    return f"| `{item.name}` | {item.meaning} | {unit} | {item.part or '—'} | {routes} |"


if __name__ == "__main__":
    (Path(sys.argv[1]) / PAGE_FILE).write_text(page())
