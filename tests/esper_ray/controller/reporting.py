"""Evaluations as observation windows see them, and stores that have reports, for the tests of these."""

from uuid import uuid4

from esper_ray.controller.commands import AdaptationCommand, Expectation, Kind, Reason, RiskReport, Severity, Signal
from esper_ray.controller.records import Records
from esper_ray.controller.reports.observing import observe_within
from esper_ray.controller.reports.outbox import Entry, entries
from esper_ray.controller.reports.windows import Observation, Seen, WindowConfig, end, observe
from policies.strategic.messages import SystemState
from tests.esper_ray.controller.evaluations import DECLARED, EMPTY, WAIT
from tests.esper_ray.controller.sealing import NOW
from tests.esper_ray.controller.test_store import CALM, decision

CONFIG = WindowConfig()
FALLING = (2.0, 1.8, 1.8, 1.6, 1.6, 1.4)
"""Differences are −0.2 and 0 by turns: their mean is −0.12, the σ of the five √0.012."""


def seen(epoch, loss=None, operation=WAIT, critical=(), seeds=(EMPTY,), max_epochs=None, run_id="run", **how):
    """An evaluation. Without an operation it is a PAUSE."""
    packet = SystemState(
        run_id=run_id,
        packet_id=str(uuid4()),
        timestamp_ns=0,
        declared=DECLARED,
        epoch=epoch,
        max_epochs=max_epochs,
        seeds=seeds,
        validation_loss=loss,
    )
    signals = tuple(Signal(reason=reason, severity=Severity.CRITICAL, value=1.0, threshold=0.5) for reason in critical)
    slot = None if operation is None else operation.slot
    seed = next((seed for seed in seeds if seed.slot == slot), None)
    expects = (
        Expectation(epoch=epoch)
        if seed is None
        else Expectation(epoch=epoch, slot=slot, seed_id=seed.seed_id, stage=seed.stage)
    )
    command = AdaptationCommand(
        run_id=run_id,
        kind=Kind.PAUSE if operation is None else Kind.SEED,
        operation=operation,
        reason=Reason.POLICY if operation is not None else Reason.OPERATOR,
        issued_at_ns=NOW,
        expects=expects,
        risk=RiskReport(severity=Severity.CRITICAL if signals else Severity.INFO, signals=signals),
    )
    return Seen(packet, command, **how)


def followed(*evaluations, config=CONFIG, ends=False):
    """Windows that these close, in their order, and what is remembered after them."""
    observation, closed = Observation(), []
    for each in evaluations:
        observation, now = observe(observation, each, config)
        closed += now
    if ends:
        observation, now = end(observation)
        closed += now
    return closed, observation


def record(store, each, config=CONFIG, now=NOW, **more):
    """A decision with its windows, in one transaction."""
    command = each.command
    what = decision(
        each.packet.epoch,
        each.packet.run_id,
        command_id=str(command.command_id),
        command=command.model_dump_json().encode(),
        packet=each.packet.model_dump_json().encode(),
        **more,
    )
    store.record(what, CALM, also=lambda connection: observe_within(connection, each, config, now))
    return what


def reported(store, count, run_id="run", first=0, **more):
    """Record so many decisions that so many reports are due."""
    for epoch in range(first, first + count):
        record(store, seen(epoch, 1.0, run_id=run_id), **more)
    for epoch in range(first + count, first + count + 3):
        record(store, seen(epoch, 1.0, run_id=run_id, opens=False), **more)


def found(directory, state=None):
    """The reports of a state directory that can be read, by id."""
    with Records.open(directory) as records:
        return {str(each.report.report_id): each for each in entries(records, state) if isinstance(each, Entry)}
