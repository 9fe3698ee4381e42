"""Carries out commands on a live host, at its ends of epochs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.action_masks import refusals
from envs.slots import SlotConfig
from envs.vocabulary import LifecycleOp, SeedStage
from esper_ray.controller.commands import (
    AdaptationCommand,
    CommandResult,
    Expectation,
    Outcome,
    Refusal,
    SeedOperation,
)
from esper_ray.controller.operations import SHAPEABLE, action_of, ramp_of
from esper_ray.live.choosing import Choice
from esper_ray.live.grower import Grower
from esper_ray.live.policies import enabled_slots
from policies.bundle import Observations

NS_PER_MS, LONGEST_DETAIL = 1_000_000, 500


@dataclass(frozen=True)
class _Received:
    """A command, and how old it was when it came."""

    command: AdaptationCommand
    age_ms: float

    @property
    def is_late(self) -> bool:
        return self.age_ms > self.command.deadline_ms


@dataclass(frozen=True)
class _Host:
    """A host as a command finds it."""

    epoch: int
    stopped: bool
    slots: SlotConfig
    names: tuple[str, ...]
    seeds: tuple[str | None, ...]
    stages: dict[str, SeedStage]
    mask: npt.NDArray[np.int8]


class Executor:
    """Chooses for a grower what commands say (:class:`esper_ray.live.grower.Chooser`).

    At an end of an epoch it carries out the first of the commands that it has received that fits the host as it is
    then. Those before it are refused, those behind it wait for the next end. Without a command nothing is done. A
    command is compared with the host before anything is changed: one that is refused changes nothing, and none raises.

    PAUSE and CIRCUIT_BREAKER do nothing: ramps that have begun go on. Nor does OPTIMIZER, but that all seeds take
    smaller steps from then on, until a command that is clean.

    Args:
        run_id: Of the run; commands for others are refused.
        report: Takes the result of every command, at an end of an epoch; it must not raise.
        ask: Who decides there and then: asked at each end of an epoch, and once before the first, for a command; it
            must not raise. Commands from elsewhere come through :meth:`receive`.
        slots: Of the policy behind the commands, of which the first ones are the host's; by default the host's alone.
        slack_epochs: Epochs that the host may be ahead of what a command expects.
        time_ns: Nanoseconds since 1970.
        now: Seconds on a clock that never goes back.
    """

    name = "commands"

    def __init__(
        self,
        run_id: str,
        report: Callable[[CommandResult], None],
        ask: Callable[[Grower], AdaptationCommand | None] | None = None,
        *,
        slots: SlotConfig | None = None,
        slack_epochs: int = 0,
        time_ns: Callable[[], int] = time.time_ns,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._run_id, self._report, self._ask = run_id, report, ask
        self._slots, self._slack = slots, slack_epochs
        self._time_ns, self._now = time_ns, now
        self._waiting: deque[_Received] = deque()
        self._applied: list[str] = []
        self._under_way: tuple[AdaptationCommand, _Host, float] | None = None

    def receive(self, command: AdaptationCommand) -> None:
        """Take a command for the next end of an epoch, from any thread; whether it came in time is settled now."""
        age_ms = (self._time_ns() - command.issued_at_ns) / NS_PER_MS
        self._waiting.append(_Received(command, age_ms))

    # ------------------------------------------------------------------ a grower's chooser
    def slots_of(self, count: int) -> SlotConfig:
        """See :class:`esper_ray.live.grower.Chooser`."""
        if self._slots is None:
            return SlotConfig.for_row(count)
        return enabled_slots(self._slots, count, "the policy behind the commands")

    def choose(self, grower: Grower, observations: Observations) -> Choice:
        """Settle what was received, up to the first command that fits."""
        if self._ask is not None and (command := self._ask(grower)) is not None:
            self.receive(command)
        host, notes = _look(grower, observations), list[str]()
        while self._waiting:
            received, started = self._waiting.popleft(), self._now()
            command = received.command
            why = self._refusal(received, host)
            if why is None:
                self._under_way = command, host, started
                return _choice(command, host, notes)
            reason, detail = why
            notes.append(f"a command was refused: {detail}")
            outcome = Outcome.EXPIRED if reason is Refusal.TOO_LATE else Outcome.REFUSED
            self._report(
                CommandResult(
                    command_id=command.command_id,
                    run_id=self._run_id,
                    outcome=outcome,
                    reason=reason,
                    detail=detail[:LONGEST_DETAIL],
                    epoch=host.epoch,
                    stages_before=host.stages,
                    stages_after=host.stages,
                )
            )
        return Choice(note="; ".join([*notes, "no command to carry out"]))

    def begun(self, grower: Grower) -> None:
        """Report the command that was carried out, if one was."""
        if self._under_way is None:
            return
        (command, host, started), self._under_way = self._under_way, None
        self._applied.append(str(command.command_id))
        self._report(
            CommandResult(
                command_id=command.command_id,
                run_id=self._run_id,
                outcome=Outcome.APPLIED,
                epoch=host.epoch,
                stages_before=host.stages,
                stages_after=_stages(grower),
                apply_ms=1e3 * (self._now() - started),
            )
        )

    def end(self) -> None:
        """Nothing to put away."""

    def state_dict(self) -> dict[str, Any]:
        """The commands that were carried out, which are never carried out again."""
        return {"applied": list(self._applied)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self._applied = list(state["applied"])

    # ------------------------------------------------------------------ what does not fit
    def _refusal(self, received: _Received, host: _Host) -> tuple[Refusal, str] | None:
        """Why a command is not carried out, as a code and in words; None where it is."""
        command = received.command
        if received.is_late:
            return Refusal.TOO_LATE, f"it came {received.age_ms:.0f} ms after it was issued, not {command.deadline_ms}"
        if command.run_id != self._run_id:
            return Refusal.WRONG_RUN, f"it is for run {command.run_id!r}, this is {self._run_id!r}"
        if str(command.command_id) in self._applied:
            return Refusal.ALREADY_APPLIED, f"{command.command_id} was carried out already"
        if not 0 <= host.epoch - command.expects.epoch <= self._slack:
            return Refusal.EPOCH_CHANGED, f"it expects {command.expects.epoch} epochs, {host.epoch} are done"
        if command.expects.epoch < host.epoch and self._has_one_for(host.epoch):
            return Refusal.EPOCH_CHANGED, f"it expects {command.expects.epoch} epochs, and one of this epoch is here"
        if command.expects.slot is not None and (why := _changed(command.expects, command.expects.slot, host)):
            return why
        return None if command.operation is None else _not_admitted(command.operation, host)

    def _has_one_for(self, epoch: int) -> bool:
        return any(received.command.expects.epoch == epoch for received in list(self._waiting))


def _changed(expects: Expectation, slot: str, host: _Host) -> tuple[Refusal, str] | None:
    """What is not as expected in a slot."""
    if slot not in host.names:
        return Refusal.UNKNOWN_SLOT, f"there is no slot {slot!r}, only {', '.join(host.names)}"
    seed, stage = host.seeds[host.names.index(slot)], host.stages[slot]
    if expects.seed_id is not None and expects.seed_id != seed:
        return Refusal.SEED_CHANGED, f"it expects {expects.seed_id} in {slot}, there lives {seed or 'none'}"
    if expects.stage != stage:
        expected = "no stage" if expects.stage is None else expects.stage.name
        return Refusal.STAGE_CHANGED, f"it expects {slot} in {expected}, it is {stage.name}"
    return None


def _not_admitted(operation: SeedOperation, host: _Host) -> tuple[Refusal, str] | None:
    """What stands against an operation in the host's own rules."""
    if host.stopped and operation.op is not LifecycleOp.WAIT:
        return Refusal.NOT_ADMITTED, "the training broke and was taken back: nothing grows any more"
    action, heads = action_of(operation, host.names), host.slots.heads
    unknown = [head.name for head, choice in zip(heads, action, strict=True) if choice >= head.size]
    refused = unknown or [name for name, wrong in refusals(action[None], host.mask, heads).items() if wrong[0]]
    if refused:
        return Refusal.NOT_ADMITTED, f"{operation.op.name} is not possible now ({', '.join(refused)})"
    late = operation.op is LifecycleOp.ADVANCE and host.stages[str(operation.slot)] not in SHAPEABLE
    if operation.blending is not None and late:
        return Refusal.NOT_ADMITTED, f"the seed in {operation.slot} is blended in already: leave blending out"
    return None


# ---------------------------------------------------------------------- what a command says
def _look(grower: Grower, observations: Observations) -> _Host:
    return _Host(
        epoch=grower.epoch,
        stopped=grower.stopped,
        slots=grower.slot_config,
        names=grower.slot_names,
        seeds=grower.seed_ids,
        stages=_stages(grower),
        mask=observations["action_mask"],
    )


def _stages(grower: Grower) -> dict[str, SeedStage]:
    return {name: report.stage for name, report in zip(grower.slot_names, grower.reports(), strict=True)}


def in_words(command: AdaptationCommand) -> str:
    """What is commanded and why, short, with what the signal measured that it follows from."""
    what = command.kind.value.lower().replace("_", " ")
    fired = next((signal for signal in command.risk.signals if signal.reason is command.reason), None)
    if fired is None:
        return f"{what}: {command.reason}"
    return f"{what}: {command.reason} {fired.value:.3g} (threshold {fired.threshold:g})"


def _choice(command: AdaptationCommand, host: _Host, notes: list[str]) -> Choice:
    rate = 1.0 if command.is_clean else None
    if command.optimizer is not None:
        rate = command.optimizer.rate_factor
    notes = [*notes, in_words(command)]
    operation = command.operation
    if operation is None:
        return Choice(seed_rate=rate, note="; ".join(notes))
    blending = None if operation.blending is None else ramp_of(operation.blending)
    return Choice(action_of(operation, host.names), blending, rate, "; ".join(notes))
