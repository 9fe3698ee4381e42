"""Observation windows: for how long a decision is followed, and what of the run is remembered for that.

All here is values in, values out. A window counts epochs with a validation loss, not calls: packets of one epoch count
once, and epochs without a loss do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated
from uuid import UUID

from envs.ranges import Range, check_numbers
from envs.vocabulary import Blueprint, LifecycleOp
from esper_ray.controller.commands import AdaptationCommand, Reason, Severity
from esper_ray.controller.history import Series, with_epoch
from esper_ray.errors import UserError
from policies.strategic.measured import BLUEPRINT_NAMES
from policies.strategic.messages import SeedState, SystemState
from policies.strategic.packet_values import ByName, Count, Message, Name, Natural

BEFORE = 5
"""Differences of validation losses before a decision that its course is compared with."""

MOST_COMPANIONS = 256
"""Overlapping windows of a run that are remembered: more there are only where it goes back again and again."""


@dataclass(frozen=True)
class WindowConfig:
    """For how long a decision is followed."""

    window_epochs: Annotated[int, Range(1, 50, whole=True)] = 3
    """Epochs with a validation loss that a decision is followed for."""
    longest_epochs: Annotated[int, Range(1, 1000, whole=True)] = 50
    """Epochs of any kind after which it is followed no longer."""
    most_windows: Annotated[int, Range(1, 1000, whole=True)] = 64
    """Decisions of a run that are followed at the same time; the oldest gives way."""

    def __post_init__(self) -> None:
        check_numbers(self, UserError)


class Closing(StrEnum):
    """How a window closes, in words; only the first lets the decision be judged."""

    WATCHED = "it was watched to its end"
    RUN_ENDED = "the run ended before it had all its epochs"
    WENT_BACK = "the run went back to an epoch before it"
    TOO_LONG = "there were too few validation losses for too long"
    TOO_MANY = "too many windows were open: it was the oldest"


class Window(Message):
    """A decision that is followed."""

    command_id: UUID
    """Of its command."""
    number: Natural
    """How many of the run were opened before it."""
    epoch: Natural
    """At which it was decided."""
    epochs: Count
    """With a validation loss, that it is to have."""
    op: Annotated[LifecycleOp, ByName()] | None = None
    """That was commanded; None of a command that is no SEED."""
    slot: Name | None = None
    """Of the operation."""
    seed_id: Name | None = None
    """Individual in the slot."""
    blueprint: Annotated[Blueprint, ByName()] | None = None
    """Of that seed."""
    awaits_seed: bool = False
    """A seed was germinated, and no packet since has said which."""
    policy_version: Name | None = None
    """Of the policy that proposed."""
    architecture_version: Name | None = None
    """Of its architecture."""
    critical: tuple[Reason, ...] = ()
    """CRITICAL signals of the decision itself."""
    new_critical: tuple[Reason, ...] = ()
    """Others that came after it."""


class Companion(Message):
    """A window that is open, or was while one that is open was."""

    command_id: UUID
    """Of its command."""
    number: Natural
    """Of the window."""
    closed: Natural | None = None
    """How many of the run had been opened when it closed; None of one that is open."""


class Observation(Message):
    """What is remembered of a run between two decisions, so that those before can be judged."""

    losses: Series = ()
    """Epochs, rising, and validation losses: as many as the open windows and the epochs before them need."""
    windows: tuple[Window, ...] = ()
    """Those that are open, the oldest first."""
    companions: tuple[Companion, ...] = ()
    """Those that overlap one of them, they themselves among them, in the order in which they were opened."""
    opened: Natural = 0
    """How many there have been."""


@dataclass(frozen=True)
class Closed:
    """A window that is over.

    Attributes:
        window: It.
        how: It closed.
        losses: Of the run, as far as they are remembered.
        overlaps: Commands of the windows that were open at the same time.
    """

    window: Window
    how: Closing
    losses: Series
    overlaps: tuple[UUID, ...]


@dataclass(frozen=True)
class Seen:
    """One evaluation, as windows see it.

    Attributes:
        packet: That was judged.
        command: That came of it.
        opens: Whether the command is to be followed: it leaves, and is of the end of an epoch.
        is_step: Whether it was within an epoch: then only its CRITICAL signals count.
    """

    packet: SystemState
    command: AdaptationCommand
    opens: bool = True
    is_step: bool = False

    @property
    def critical(self) -> tuple[Reason, ...]:
        """Signals that were CRITICAL."""
        return tuple(signal.reason for signal in self.command.risk.signals if signal.severity is Severity.CRITICAL)


def observe(before: Observation, seen: Seen, config: WindowConfig) -> tuple[Observation, tuple[Closed, ...]]:
    """Go on with an evaluation.

    Args:
        before: Of the run.
        seen: The evaluation.
        config: For how long decisions are followed.

    Returns:
        Of the run from now on, and the windows that have closed with it, the oldest first.
    """
    epoch, critical = seen.packet.epoch, seen.critical
    windows = tuple(_looked(window, seen, critical) for window in before.windows)
    if seen.is_step:
        return before.model_copy(update={"windows": windows}), ()
    most = BEFORE + 1 + max([config.window_epochs, *(window.epochs for window in windows)])
    losses = with_epoch(before.losses, epoch, seen.packet.validation_loss, most)
    is_over = seen.packet.max_epochs is not None and epoch >= seen.packet.max_epochs

    def ending(window: Window) -> Closing | None:
        if epoch < window.epoch:
            return Closing.WENT_BACK
        if sum(at > window.epoch for at, _ in losses) >= window.epochs:
            return Closing.WATCHED
        if is_over:
            return Closing.RUN_ENDED
        return Closing.TOO_LONG if epoch - window.epoch >= config.longest_epochs else None

    endings = {window.number: how for window in windows if (how := ending(window)) is not None}
    now = before.model_copy(update={"windows": windows, "losses": losses})
    after, closed = _close(now, endings, before.losses)
    if seen.opens:
        after = _open(after, seen, critical, config.window_epochs)
        crowded = after.windows[: -config.most_windows]
        endings = {window.number: Closing.RUN_ENDED if is_over else Closing.TOO_MANY for window in crowded}
        if is_over:
            endings |= {window.number: Closing.RUN_ENDED for window in after.windows}
        after, more = _close(after, endings, losses)
        closed += more
    return after, closed


def end(before: Observation) -> tuple[Observation, tuple[Closed, ...]]:
    """Close what is open: the run is over.

    Args:
        before: Of the run.

    Returns:
        As :func:`observe`.
    """
    return _close(before, {window.number: Closing.RUN_ENDED for window in before.windows}, before.losses)


def _looked(window: Window, seen: Seen, critical: tuple[Reason, ...]) -> Window:
    """A window that was open when a packet came."""
    packet = seen.packet
    update: dict[str, object] = {}
    if packet.epoch >= window.epoch and (new := set(critical) - {*window.critical, *window.new_critical}):
        update["new_critical"] = (*window.new_critical, *sorted(new))
    if window.awaits_seed and packet.epoch > window.epoch and packet.seeds:
        update["awaits_seed"] = False
        seed = _seed(packet, window.slot)
        if seed is not None and _blueprint(seed) is window.blueprint:
            update["seed_id"] = seed.seed_id
    return window.model_copy(update=update) if update else window


def _open(now: Observation, seen: Seen, critical: tuple[Reason, ...], epochs: int) -> Observation:
    command, number = seen.command, now.opened
    operation, policy = command.operation, command.policy
    slot = None if operation is None else operation.slot
    seed, planted = _seed(seen.packet, slot), operation is not None and operation.op is LifecycleOp.GERMINATE
    blueprint = None if seed is None else _blueprint(seed)
    window = Window(
        command_id=command.command_id,
        number=number,
        epoch=seen.packet.epoch,
        epochs=epochs,
        op=None if operation is None else operation.op,
        slot=slot,
        seed_id=None if planted else command.expects.seed_id,
        blueprint=operation.blueprint if operation is not None and planted else blueprint,
        awaits_seed=planted,
        policy_version=None if policy is None else policy.version,
        architecture_version=None if policy is None else policy.architecture,
        critical=critical,
    )
    companion = Companion(command_id=window.command_id, number=number)
    return now.model_copy(
        update={
            "windows": (*now.windows, window),
            "companions": (*now.companions, companion),
            "opened": number + 1,
        }
    )


def _close(now: Observation, endings: dict[int, Closing], losses: Series) -> tuple[Observation, tuple[Closed, ...]]:
    """Close windows.

    Args:
        now: Of the run.
        endings: Numbers of the windows, and how each closes.
        losses: As they were before the run went back, if it did.
    """
    closed = tuple(
        Closed(
            window,
            how,
            losses if how is Closing.WENT_BACK else now.losses,
            tuple(other.command_id for other in now.companions if _overlap(other, window)),
        )
        for window in now.windows
        if (how := endings.get(window.number)) is not None
    )
    windows = tuple(window for window in now.windows if window.number not in endings)
    # One that closed before the oldest that is open was opened overlaps none of them, and none that is still to come.
    oldest = min((window.number for window in windows), default=now.opened)
    companions = tuple(
        other.model_copy(update={"closed": now.opened}) if other.number in endings else other
        for other in now.companions
    )
    kept = tuple(other for other in companions if other.closed is None or other.closed > oldest)[-MOST_COMPANIONS:]
    return now.model_copy(update={"windows": windows, "companions": kept}), closed


def _overlap(other: Companion, window: Window) -> bool:
    if other.number == window.number:
        return False
    return other.number > window.number or other.closed is None or other.closed > window.number


def _seed(packet: SystemState, slot: str | None) -> SeedState | None:
    return next((seed for seed in packet.seeds if seed.slot == slot), None)


def _blueprint(seed: SeedState) -> Blueprint | None:
    return Blueprint(BLUEPRINT_NAMES.index(seed.blueprint)) if seed.blueprint in BLUEPRINT_NAMES else None
