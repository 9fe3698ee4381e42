"""What the controller remembers of a run from packet to packet. Nothing here is measured by the run itself."""

from __future__ import annotations

import itertools
import statistics

from pydantic import Field

from envs.vocabulary import DEVELOPING_STAGES
from policies.strategic.messages import SystemState
from policies.strategic.packet_values import Message, Name, Natural, Number

DIFFERENCES = 10
"""Differences of training losses that their volatility is the standard deviation of."""
THROUGHPUT_EPOCHS = 50
"""Epochs whose median a run's throughput is compared with."""
LEAST_THROUGHPUT_EPOCHS = 5
"""Epochs that a median takes."""

Series = tuple[tuple[Natural, Number], ...]
"""Epochs, rising, and what was measured in each."""


class Developing(Message):
    """A seed whose fate is open."""

    seed: Name | None = None
    """Its id, or its blueprint where it has none."""
    since: int
    """Epochs that the host had done when it came."""


class History(Message):
    """A run so far. Looking at a packet gives another history and leaves this one as it was.

    A packet of an epoch that was seen before takes that epoch's place; one of an earlier epoch, after the run went back
    to a checkpoint, takes the place of all from there on.
    """

    validation: Series = ()
    """Validation losses, the last two."""
    training: Series = ()
    """Training losses, as many as a volatility takes."""
    throughput: Series = ()
    """Samples per second."""
    developing: dict[Name, Developing] = Field(default_factory=dict)
    """Seeds whose fate is open, by slot."""

    def observe(self, packet: SystemState) -> History:
        """With a packet."""
        epoch = packet.epoch
        return History(
            validation=with_epoch(self.validation, epoch, packet.validation_loss, 2),
            training=with_epoch(self.training, epoch, packet.training_loss, DIFFERENCES + 1),
            throughput=with_epoch(self.throughput, epoch, packet.metrics.get("samples_per_s"), THROUGHPUT_EPOCHS + 1),
            developing=self._developing(packet),
        )

    @property
    def loss_delta(self) -> float | None:
        """The last validation loss less the one before it; None of fewer."""
        return self.validation[-1][1] - self.validation[-2][1] if len(self.validation) == 2 else None

    @property
    def loss_volatility(self) -> float | None:
        """Standard deviation of the last 10 differences of training losses; None of fewer."""
        losses = [loss for _, loss in self.training]
        if len(losses) <= DIFFERENCES:
            return None
        return statistics.pstdev(now - before for before, now in itertools.pairwise(losses))

    @property
    def throughput_drop(self) -> float | None:
        """Share by which the last throughput is below the median of those before it; None of fewer than 5."""
        *before, now = [rate for _, rate in self.throughput] or [0.0]
        if len(before) < LEAST_THROUGHPUT_EPOCHS:
            return None
        median = statistics.median(before)
        return 1.0 - now / median if median > 0.0 else None

    def _developing(self, packet: SystemState) -> dict[str, Developing]:
        found = {}
        for seed in packet.seeds:
            if seed.stage in DEVELOPING_STAGES:
                name, known = seed.seed_id or seed.blueprint, self.developing.get(seed.slot)
                since = packet.epoch - (seed.age_epochs or 0)
                if known is not None and known.seed == name:
                    since = min(since, known.since)
                found[seed.slot] = Developing(seed=name, since=since)
        return found


def with_epoch(series: Series, epoch: int, value: float | None, most: int) -> Series:
    """The last so many, with what an epoch measured; None leaves what it had. All of later epochs goes."""
    before = tuple(entry for entry in series if entry[0] < epoch or (value is None and entry[0] == epoch))
    return (before if value is None else (*before, (epoch, value)))[-most:]
