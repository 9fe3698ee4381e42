"""Every metric and event of the controller, declared once. docs/telemetry.md is written from here."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from envs.vocabulary import BLENDING_METHODS, LifecycleOp
from esper_ray.controller.breakers import BreakerState
from esper_ray.controller.commands import Kind, Severity
from esper_ray.controller.levels import Level


class Route(StrEnum):
    """Where something goes."""

    TENSORBOARD = "TensorBoard"
    """The page of a run, over its epochs."""
    PROMETHEUS = "Prometheus"
    """The latest value; of events how many there were."""
    BUS = "bus"


class Form(StrEnum):
    """What a value is."""

    NUMBER = "number"
    CHOICE = "choice"
    """One of some words; where only numbers go its place among them, from 0."""
    TEXT = "text"
    EVENT = "event"
    """Something happened; the value says what, in a line."""


ALL = frozenset(Route)
HEALTH = frozenset({Route.PROMETHEUS, Route.BUS})
PAGE = frozenset({Route.TENSORBOARD, Route.BUS})


@dataclass(frozen=True)
class Item:
    """A metric or a kind of event.

    Attributes:
        name: Of it, with dots.
        meaning: In one line.
        form: Of its values.
        unit: Of a number; empty of one that has none.
        severity: How bad it is; of an event at least so bad.
        routes: Where it goes.
        part: What its values are told apart by, such as a breaker's name; empty where there is one value.
        choices: Of a choice.
    """

    name: str
    meaning: str
    form: Form = Form.NUMBER
    unit: str = ""
    severity: Severity = Severity.INFO
    routes: frozenset[Route] = ALL
    part: str = ""
    choices: tuple[str, ...] = ()


VALIDATION_LOSS = Item("tamiyo.validation_loss", "Of the host, as the packet says.")
LOSS_DELTA = Item("tamiyo.loss_delta", "Validation loss less that of the epoch before.")
LOSS_VOLATILITY = Item("tamiyo.loss_volatility", "Standard deviation of the last 10 differences of training losses.")
INFERENCE_MS = Item(
    "tamiyo.gnn.inference.latency_ms", "Time that the policy took, from a packet's bytes to its proposal.", unit="ms"
)
COMPILE_ENABLED = Item(
    "tamiyo.gnn.compile_enabled",
    "Whether the policy's network is compiled.",
    Form.CHOICE,
    routes=HEALTH,
    choices=("no", "yes"),
)
COMPILE_WARM_MS = Item(
    "tamiyo.gnn.compile_warm_ms", "Time that the network's first passes took.", unit="ms", routes=HEALTH
)
FEATURE_COVERAGE = Item(
    "tamiyo.gnn.feature_coverage",
    "Share of what the run declares that was measured: the average, and of each type.",
    unit="share",
    part="type",
)
BLENDING_METHOD = Item(
    "tamiyo.blending.method",
    "How the latest command that says so blends its seed in.",
    Form.CHOICE,
    choices=BLENDING_METHODS,
)
EXPECTED_RISK = Item("tamiyo.risk.expected", "Risk that the policy itself expects: 0 SAFE, 1 CRITICAL.", unit="share")
RISK_SCORE = Item(
    "tamiyo.risk.score", "Combined score of gradient, memory, latency and stability, before signals.", unit="share"
)
RISK_LEVEL = Item(
    "tamiyo.risk.level", "Level of the dashboard.", Form.CHOICE, choices=tuple(level.name for level in Level)
)
RISK_SEVERITY = Item(
    "tamiyo.risk.severity",
    "Of the most severe signal; INFO where none fired.",
    Form.CHOICE,
    choices=tuple(severity.name for severity in Severity),
)
SIGNAL = Item(
    "tamiyo.signal",
    "Severity of each row of the risk table.",
    Form.CHOICE,
    part="reason",
    choices=("silent", Severity.WARNING.name, Severity.HIGH.name, Severity.CRITICAL.name),
)
BLUEPRINT_RISK = Item(
    "tamiyo.blueprint.risk", "The catalogue's, of the blueprint that was to be added or committed to.", unit="share"
)
CONSERVATIVE = Item(
    "tamiyo.conservative_mode", "Whether the run is in conservative mode.", Form.CHOICE, choices=("off", "on")
)
COMMAND_KIND = Item(
    "tamiyo.command.kind", "What was commanded.", Form.CHOICE, choices=tuple(kind.value for kind in Kind)
)
COMMAND_OP = Item(
    "tamiyo.command.op",
    "Operation of a SEED command.",
    Form.CHOICE,
    choices=tuple(op.name for op in LifecycleOp),
)
DECISION = Item("tamiyo.decision", "What was decided and why.", Form.TEXT, routes=PAGE)
POLICY_VERSION = Item("tamiyo.policy.version", "Of the policy that proposed last.", Form.TEXT, routes=HEALTH)
ARCHITECTURE_VERSION = Item("tamiyo.policy.architecture", "Of its architecture.", Form.TEXT, routes=HEALTH)
EVALUATE_MS = Item("tamiyo.evaluate.latency_ms", "Time from a packet to its command.", unit="ms", routes=PAGE)
EVALUATE_P50 = Item("tamiyo.evaluate.p50_ms", "Median of the last 256 of these times.", unit="ms", routes=HEALTH)
EVALUATE_P95 = Item("tamiyo.evaluate.p95_ms", "95th percentile of them.", unit="ms", routes=HEALTH)
APPLY_MS = Item("tamiyo.apply.latency_ms", "Time that carrying out a command took.", unit="ms")
BREAKER_STATE = Item(
    "tamiyo.breaker.state",
    "Whether calls are admitted.",
    Form.CHOICE,
    routes=HEALTH,
    part="breaker",
    choices=tuple(state.value for state in BreakerState),
)
REPORTS_PENDING = Item(
    "tamiyo.reports.pending", "Field reports that are to be sent, or sent again.", unit="reports", routes=HEALTH
)
REPORTS_PARKED = Item(
    "tamiyo.reports.parked", "Those that were sent in vain, and are not sent again.", unit="reports", routes=HEALTH
)

MODE_ENTERED = Item("tamiyo.conservative_mode.entered", "Conservative mode began.", Form.EVENT, severity=Severity.HIGH)
MODE_LEFT = Item("tamiyo.conservative_mode.left", "It ended, by its rule or by hand.", Form.EVENT)
LEVEL_CHANGED = Item("tamiyo.risk.level_changed", "The dashboard shows another level.", Form.EVENT)
DEGRADED = Item(
    "tamiyo.decision.degraded",
    "A fault of the controller itself, not of the run, stood against a decision.",
    Form.EVENT,
    severity=Severity.WARNING,
    part="reason",
)
BREAKER_CHANGED = Item(
    "tamiyo.breaker.changed", "A breaker opened or closed.", Form.EVENT, severity=Severity.WARNING, part="breaker"
)
COMMAND_REFUSED = Item(
    "tamiyo.command.refused", "A command did not fit the run, or came too late.", Form.EVENT, severity=Severity.WARNING
)
COMMAND_LOST = Item(
    "tamiyo.command.lost", "A command has no result after 3 epochs.", Form.EVENT, severity=Severity.WARNING
)
REPORT_RETRIED = Item("tamiyo.report.retried", "A field report was sent once more.", Form.EVENT, routes=HEALTH)
REPORT_PARKED = Item(
    "tamiyo.report.parked",
    "A field report was sent in vain, and is not sent again.",
    Form.EVENT,
    severity=Severity.WARNING,
    routes=HEALTH,
)
REPORT_REFUSED = Item(
    "tamiyo.report.refused",
    "A field report or an acknowledgement of one was not believed, or cannot be read.",
    Form.EVENT,
    severity=Severity.WARNING,
    routes=HEALTH,
    part="reason",
)
REPORTS_HELD_UP = Item(
    "tamiyo.reports.held_up",
    "Bus or store took no field report; they are kept.",
    Form.EVENT,
    severity=Severity.WARNING,
    routes=HEALTH,
)
WORKER_LOST = Item(
    "tamiyo.worker.lost", "The policy's process ended or was ended.", Form.EVENT, severity=Severity.WARNING
)
UPDATE_REJECTED = Item(
    "tamiyo.policy_update_rejected",
    "An update of the policy does not come to decide.",
    Form.EVENT,
    severity=Severity.WARNING,
    part="reason",
)
UPDATE_ACCEPTED = Item(
    "tamiyo.policy_update_accepted", "An update of the policy decides from now on, on probation first.", Form.EVENT
)
UPDATE_ROLLED_BACK = Item(
    "tamiyo.policy_update_rolled_back",
    "An update of the policy decides no more: the policy before it does.",
    Form.EVENT,
    severity=Severity.HIGH,
    part="reason",
)

ITEMS = {item.name: item for item in list(vars().values()) if isinstance(item, Item)}
"""All of them, by name."""


@dataclass(frozen=True)
class Reading:
    """One value of an item, or one event.

    Attributes:
        item: Which.
        value: A number of a number, which may be NaN; else a text: of a choice one of its choices.
        run_id: Of the run; empty of what is the service's own.
        epoch: Of the run.
        part: Which of the item's values it is.
        severity: How bad it is.
        time_ns: Nanoseconds since 1970.

    Raises:
        ValueError: nothing like it is declared.
    """

    item: Item
    value: float | str
    run_id: str = ""
    epoch: int = 0
    part: str = ""
    severity: Severity = Severity.INFO
    time_ns: int = 0

    def __post_init__(self) -> None:
        item = self.item
        if ITEMS.get(item.name) is not item:
            raise ValueError(f"{item.name!r} is not declared: esper_ray/controller/telemetry.py lists what is")
        if isinstance(self.value, str) is (item.form is Form.NUMBER):
            raise ValueError(f"{item.name} is a {item.form}, got {self.value!r}")
        if item.form is Form.CHOICE and self.value not in item.choices:
            raise ValueError(f"{item.name} is one of {', '.join(item.choices)}, got {self.value!r}")
        if bool(self.part) is not bool(item.part):
            raise ValueError(f"{item.name} has values by {item.part or 'nothing'}, got {self.part!r}")

    @property
    def number(self) -> float | None:
        """For what takes numbers; None where it is a text, or not finite."""
        if isinstance(self.value, str):
            return float(self.item.choices.index(self.value)) if self.item.form is Form.CHOICE else None
        return float(self.value) if math.isfinite(self.value) else None


def of_route(route: Route) -> Iterable[Item]:
    """What goes there."""
    return (item for item in ITEMS.values() if route in item.routes)
