"""Probation: an update decides, and goes again by itself if it does what counts against it too often."""

from __future__ import annotations

from dataclasses import dataclass

PROBATION_INFERENCES = 50
"""Evaluations in which it was asked, after which an update is no longer watched."""
MOST_ANOMALIES = 3
"""Of these with an anomaly, at which it is rolled back."""


@dataclass
class Probation:
    """How an update has done so far.

    Attributes:
        inferences: Evaluations in which it was asked.
        anomalies: Of these, in which it failed, was late or not finite, or expected CRITICAL risk.
    """

    inferences: int = 0
    anomalies: int = 0

    def note(self, anomaly: bool) -> None:
        """It was asked once more."""
        self.inferences += 1
        self.anomalies += anomaly

    @property
    def failed(self) -> bool:
        """Whether it is to be rolled back."""
        return self.anomalies >= MOST_ANOMALIES

    @property
    def passed(self) -> bool:
        """Whether it is over, and well."""
        return not self.failed and self.inferences >= PROBATION_INFERENCES

    def __str__(self) -> str:
        return f"{self.inferences} of {PROBATION_INFERENCES} evaluations of its probation"
