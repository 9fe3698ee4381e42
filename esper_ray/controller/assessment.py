"""One evaluation, from case to decision, and what is remembered of a run between two of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from esper_ray.controller.case import Case
from esper_ray.controller.commands import Reason, RiskReport
from esper_ray.controller.conservative import ConservativeConfig, ConservativeMode, ModeEvent
from esper_ray.controller.history import History
from esper_ray.controller.levels import Dashboard, LevelConfig, combined_score, level_of
from esper_ray.controller.risk import Decision, Verdict, decide, judge
from esper_ray.controller.signals import Situation
from esper_ray.controller.thresholds import Thresholds
from policies.strategic.packet_values import Message


@dataclass(frozen=True)
class RiskConfig:
    """When the controller steps in."""

    thresholds: Thresholds = field(default_factory=Thresholds)
    """Where signals begin."""
    conservative: ConservativeConfig = field(default_factory=ConservativeConfig)
    """When conservative mode begins and ends."""
    levels: LevelConfig = field(default_factory=LevelConfig)
    """What the dashboard's level is made of."""


class RunState(Message):
    """What the risk table remembers of a run. To be stored with each decision: ``model_dump_json`` writes it."""

    history: History = History()
    """Its numbers so far."""
    mode: ConservativeMode = ConservativeMode()
    """Whether it is left alone."""
    dashboard: Dashboard = Dashboard()
    """Level that is shown."""


@dataclass(frozen=True)
class Assessment:
    """What an evaluation comes to. It has changed nothing yet: the state is the run's once the decision is committed.

    Attributes:
        decision: To be commanded.
        verdict: Of the risk table.
        report: The same for the command.
        score: Combined score of the dashboard; None where nothing of it was measured.
        event: Conservative mode began or ended.
        state: Of the run from now on.
    """

    decision: Decision
    verdict: Verdict
    report: RiskReport
    score: float | None
    event: ModeEvent | None
    state: RunState


def assess(state: RunState, case: Case, config: RiskConfig, hold: Reason | None = None) -> Assessment:
    """Judge what a policy proposes for a run.

    Args:
        state: Of the run before.
        case: To be judged.
        config: When to step in.
        hold: Why the run is paused whatever the table says: OPERATOR or WORKER_STARTING.

    Raises:
        ValueError: nothing is proposed, and neither a fault nor a hold says why; or a fault that is none.
    """
    history, epoch = state.history.observe(case.packet), case.packet.epoch
    now = Situation(case, history, config.thresholds)
    verdict = judge(now)
    answered = case.operation is not None
    mode, event = state.mode.evaluate(verdict, epoch, config.conservative, answered=answered)
    began = mode.reason if event is not None else Reason.CONSERVATIVE_MODE
    score = combined_score(now, config.levels)
    dashboard = state.dashboard.show(epoch, level_of(score, verdict.severity))
    return Assessment(
        decide(verdict, case.operation, config.thresholds, began if mode.is_on else None, hold),
        verdict,
        RiskReport(
            severity=verdict.severity,
            signals=verdict.signals,
            expected=case.expected_risk,
            conservative=mode.is_on,
        ),
        score,
        event,
        RunState(history=history, mode=mode, dashboard=dashboard),
    )
