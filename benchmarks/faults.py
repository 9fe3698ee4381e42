"""What can go wrong with a controller, when it does, and what a decision then says."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from esper_ray.controller.commands import AdaptationCommand, Kind, Reason

QUIET_EPOCHS = 4
"""Without faults at the end."""


class Fault(StrEnum):
    """What can go wrong."""

    SLOW = "a slow policy"
    STUCK = "a stuck policy"
    ENDS = "a policy that ends its process"
    RAISES = "a policy that raises"
    NOT_FINITE = "a policy that returns NaN"
    REMEMBERS_NAN = "a policy that remembers NaN"
    MASKED = "a policy that returns a masked action"
    KILLED = "a worker killed from outside"
    POLICY_GONE = "a worker killed, and its policy's files gone"
    DISK_FULL = "a full disk"
    DISK_READ_ONLY = "a disk that becomes read-only"
    DISK_SLOW = "a disk that does not answer"
    NO_METRICS = "a packet without metrics"
    NO_OBSERVATION = "a packet without what the policy reads"
    NO_PACKET = "no packet"
    NO_FIELDS = "a packet built past its own checks"
    CLOCK_AHEAD = "a clock an hour ahead"
    CLOCK_BACK = "a clock an hour behind"
    ASLEEP = "a machine that sleeps for ten minutes within a decision"
    CATALOGUE_BROKEN = "a catalogue that cannot be read"
    CATALOGUE_STUCK = "a catalogue whose disk does not answer"
    RESULT_LOST = "a result that is lost"
    RESULT_LATE = "a result that comes late"


EXPECTED: Mapping[Fault, frozenset[Reason]] = {
    Fault.SLOW: frozenset({Reason.TIMEOUT_INFERENCE}),
    Fault.STUCK: frozenset({Reason.TIMEOUT_INFERENCE}),
    Fault.ENDS: frozenset({Reason.POLICY_FAILED}),
    Fault.RAISES: frozenset({Reason.POLICY_FAILED}),
    Fault.NOT_FINITE: frozenset({Reason.POLICY_NOT_FINITE}),
    Fault.REMEMBERS_NAN: frozenset({Reason.POLICY_NOT_FINITE}),
    Fault.MASKED: frozenset({Reason.ACTION_MASKED}),
    Fault.KILLED: frozenset({Reason.POLICY_FAILED, Reason.WORKER_STARTING}),
    Fault.POLICY_GONE: frozenset({Reason.POLICY_FAILED, Reason.WORKER_STARTING}),
    Fault.DISK_FULL: frozenset({Reason.STORE_FAILED}),
    Fault.DISK_READ_ONLY: frozenset({Reason.STORE_FAILED}),
    Fault.DISK_SLOW: frozenset({Reason.STORE_FAILED}),
    Fault.NO_OBSERVATION: frozenset({Reason.POLICY_FAILED}),
    Fault.NO_PACKET: frozenset({Reason.PACKET_REFUSED}),
    Fault.NO_FIELDS: frozenset({Reason.PACKET_REFUSED}),
}
"""What a decision says at which one strikes; those left out need not change it."""
EXCUSES = frozenset({Reason.BREAKER_INFERENCE, Reason.TIMEOUT_INFERENCE, Reason.TIMEOUT_EVALUATE, Reason.STORE_FAILED})
"""The policy was left alone because of the faults before, or the machine was too busy: then this one did not strike."""
UNRECORDED = frozenset({Reason.STORE_FAILED, Reason.PACKET_REFUSED, Reason.EVALUATION_FAILED})
"""Of decisions with these nothing is on record."""
LASTING = frozenset(
    {Fault.STUCK, Fault.ENDS, Fault.KILLED, Fault.POLICY_GONE, Fault.CATALOGUE_BROKEN, Fault.CATALOGUE_STUCK}
)
"""What ends a worker, or is broken until somebody mends it."""


def planned(seed: int, epochs: int, faults: Collection[Fault] = tuple(Fault), times: int = 1) -> dict[int, Fault]:
    """At which epochs what goes wrong, each fault so many times.

    Raises:
        ValueError: there are not so many epochs.
    """
    chance, wanted = np.random.default_rng(seed), list(faults) * times
    at = chance.choice(np.arange(1, epochs - QUIET_EPOCHS), len(wanted), replace=False)
    return {int(epoch): wanted[which] for epoch, which in zip(at, chance.permutation(len(wanted)), strict=True)}


@dataclass(frozen=True)
class Told:
    """One answer of the controller.

    Attributes:
        epoch: Epochs done.
        fault: That was to strike.
        command: The answer.
        seconds: That the trainer waited for it.
    """

    epoch: int
    fault: Fault | None
    command: AdaptationCommand
    seconds: float

    @property
    def reasons(self) -> set[Reason]:
        """All that it gives."""
        return {self.command.reason} | {signal.reason for signal in self.command.risk.signals}

    @property
    def is_pause(self) -> bool:
        """Whether nothing is to be done."""
        return self.command.kind in (Kind.PAUSE, Kind.CIRCUIT_BREAKER)

    @property
    def struck(self) -> bool:
        """Whether the fault did, as far as the answer says."""
        return self.fault is not None and (self.fault not in EXPECTED or bool(self.reasons & EXPECTED[self.fault]))
