"""Conservative mode: a run in trouble is left alone until it has been out of it for a while."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from envs.ranges import Count, check_numbers
from esper_ray.controller.commands import Reason, Severity
from esper_ray.controller.risk import Verdict
from esper_ray.errors import UserError
from policies.strategic.packet_values import Message, Natural


@dataclass(frozen=True)
class ConservativeConfig:
    """When conservative mode begins and ends. A CRITICAL signal and an open breaker begin it whatever this says."""

    high_evaluations: Count = 3
    """Evaluations with a HIGH signal that begin it."""
    within_evaluations: Count = 10
    """Evaluations in a row among which they are counted."""
    cool_down_epochs: Count = 5
    """Epochs since the last evaluation that was not clean, at least, before it ends."""
    clean_evaluations: Count = 3
    """Clean evaluations since then, with an answer of the policy, at least, before it ends."""

    def __post_init__(self) -> None:
        check_numbers(self, UserError)
        if self.high_evaluations > self.within_evaluations:
            raise UserError(
                f"high_evaluations must be at most within_evaluations, {self.within_evaluations}, "
                f"got {self.high_evaluations}"
            )


class Change(StrEnum):
    """Of the mode."""

    ENTERED = "entered"
    """The table or a breaker began it."""
    LEFT = "left"
    """Its rule ended it."""
    RELEASED = "released"
    """Somebody ended it by hand."""


class ModeEvent(Message):
    """A change of the mode."""

    change: Change
    """Which."""
    reason: Reason | None = None
    """Of the signal that began it."""


class ConservativeMode(Message):
    """A run's mode. An evaluation gives another mode and leaves this one as it was.

    Signals of the lifecycle count in nothing here, and what the policy proposes does not make an evaluation unclean: it
    is never sent. But the mode does not end in an evaluation that would begin it.
    """

    reason: Reason | None = None
    """Of the signal that began it; None where it is off."""
    high: tuple[bool, ...] = ()
    """While it is off: whether each of the last evaluations had a HIGH signal."""
    unclean_epoch: Natural | None = None
    """While it is on: epoch of the last evaluation that was not clean."""
    epochs: tuple[Natural, ...] = ()
    """Other epochs since, each once."""
    clean: Natural = 0
    """Clean evaluations since in which the policy answered."""

    @property
    def is_on(self) -> bool:
        """Whether the run is in it."""
        return self.reason is not None

    def evaluate(
        self, verdict: Verdict, epoch: int, config: ConservativeConfig, *, answered: bool
    ) -> tuple[ConservativeMode, ModeEvent | None]:
        """After an evaluation: either it can begin, or it can end.

        Args:
            verdict: Of the risk table.
            epoch: Of the packet.
            config: When it begins and ends.
            answered: Whether the policy proposed something.
        """
        high = (*self.high, verdict.counted >= Severity.HIGH)[-config.within_evaluations :]
        at_once = verdict.counted >= Severity.CRITICAL or verdict.breaker_open
        if self.is_on:
            return self._while_on(verdict.is_clean, epoch, config, at_once=at_once, answered=answered)
        if at_once or sum(high) >= config.high_evaluations:
            return ConservativeMode(reason=verdict.counted_reason, unclean_epoch=epoch), ModeEvent(
                change=Change.ENTERED, reason=verdict.counted_reason
            )
        return ConservativeMode(high=high), None

    def release(self) -> tuple[ConservativeMode, ModeEvent | None]:
        """By an operator's hand."""
        return ConservativeMode(), ModeEvent(change=Change.RELEASED, reason=self.reason) if self.is_on else None

    def _while_on(
        self, is_clean: bool, epoch: int, config: ConservativeConfig, *, at_once: bool, answered: bool
    ) -> tuple[ConservativeMode, ModeEvent | None]:
        if not is_clean:
            return ConservativeMode(reason=self.reason, unclean_epoch=epoch), None
        epochs = self.epochs if epoch in (*self.epochs, self.unclean_epoch) else (*self.epochs, epoch)
        clean = self.clean + answered
        if len(epochs) >= config.cool_down_epochs and clean >= config.clean_evaluations and not at_once:
            return ConservativeMode(), ModeEvent(change=Change.LEFT, reason=self.reason)
        cooling = ConservativeMode(
            reason=self.reason, unclean_epoch=self.unclean_epoch, epochs=epochs[-config.cool_down_epochs :], clean=clean
        )
        return cooling, None
