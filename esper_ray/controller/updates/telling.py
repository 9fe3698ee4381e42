"""What is told of updates: one event each, and a line in the log."""

from __future__ import annotations

import logging

from esper_ray.controller import telemetry as items
from esper_ray.controller.emitting import Telemetry
from esper_ray.controller.updates.history import UpdateRecord
from esper_ray.controller.updates.probation import PROBATION_INFERENCES
from esper_ray.controller.updates.verdicts import RollbackReason, UpdateVerdict

logger = logging.getLogger(__name__)


class UpdateTelling:
    """Tells it to the log and to telemetry.

    Args:
        telemetry: Emits.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def considered(self, verdict: UpdateVerdict) -> None:
        """An update was accepted or rejected."""
        which = "an update" if verdict.version is None else f"update {verdict.version}"
        if verdict.reason is not None:
            logger.warning("%s is rejected: %s: %s", which, verdict.reason, verdict.detail)
            self._telemetry.emit(items.UPDATE_REJECTED, f"{which}: {verdict.detail}", part=verdict.reason)
            return
        words = f"{which}, policy {(verdict.policy_version or '')[:16]}"
        logger.warning("%s decides from now on, on probation for %d evaluations", words, PROBATION_INFERENCES)
        self._telemetry.emit(items.UPDATE_ACCEPTED, words)

    def passed(self, update: UpdateRecord) -> None:
        """An update has passed its probation."""
        logger.warning("update %s has passed its probation", update.version)

    def rolled_back(self, update: UpdateRecord, reason: RollbackReason, detail: str) -> None:
        """An update decides no more."""
        logger.warning("update %s is rolled back: %s: %s; the policy before it decides", update.version, reason, detail)
        self._telemetry.emit(items.UPDATE_ROLLED_BACK, f"update {update.version}: {detail}", part=reason)
