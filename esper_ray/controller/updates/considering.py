"""Updates are considered: from bytes that anybody may have sent to a policy that decides, or to one reason why not."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from threading import Lock
from typing import Self

from esper_ray.bus.streams import Stream
from esper_ray.controller.envelope import Envelope
from esper_ray.controller.errands import Errands
from esper_ray.controller.isolated_policy import IsolatedPolicy
from esper_ray.controller.records import StoreFailed
from esper_ray.controller.updates import history
from esper_ray.controller.updates.candidate import check_weights, read_update
from esper_ray.controller.updates.history import UpdateRecord, UpdateState
from esper_ray.controller.updates.live_policy import LivePolicy
from esper_ray.controller.updates.policy_update import AUDIENCE, PolicyUpdate
from esper_ray.controller.updates.shadow import shadow_run, snapshots_of
from esper_ray.controller.updates.verdicts import UpdateReason, UpdateRejected, UpdateVerdict
from esper_ray.controller.verifier import EnvelopeRefused, Verifier
from esper_ray.errors import UserError
from policies.strategic.checkpoint import Manifest

logger = logging.getLogger(__name__)

MOST_DETAIL = 500
"""Letters of a detail that are kept."""


class PolicyUpdates:
    """Considers updates, one at a time, while the live policy decides.

    Which messages had their effect is known by the history of updates, so that one that is delivered again has the
    verdict that it had; the verifier's ledger is not asked.

    Args:
        live: The policy that decides (:attr:`esper_ray.controller.service.Controller.live`).
        verifier: Of envelopes.
        time_ns: Nanoseconds since 1970.
    """

    def __init__(self, live: LivePolicy, verifier: Verifier, time_ns: Callable[[], int] = time.time_ns) -> None:
        self._live, self._verifier, self._time_ns = live, verifier, time_ns
        self._turn = Lock()
        self._errands = Errands("controller's updates")

    def consider(self, content: bytes) -> UpdateVerdict:
        """Let an update decide, or say why not. It takes seconds, waits for no evaluation, and raises nothing.

        Args:
            content: Of the envelope, exactly as it came.
        """
        try:
            with self._turn:
                return self._considered(content)
        except Exception as error:
            logger.exception("an update could not be considered")
            return self._told(UpdateVerdict(UpdateReason.FAILED, _line(error)))

    def later(self, content: bytes, told: Callable[[UpdateVerdict], None]) -> None:
        """Consider an update in a thread of its own, after those before it.

        Args:
            content: As above.
            told: Is given the verdict, in that thread.
        """
        self._errands.later(lambda: told(self.consider(content)))

    def close(self) -> None:
        """Finish what was given; to be called before the service is closed."""
        self._errands.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------ one update
    def _considered(self, content: bytes) -> UpdateVerdict:
        try:
            envelope = self._verifier.verify(content, Stream.UPDATES, AUDIENCE)
        except EnvelopeRefused as error:  # of which there is no record: anybody could fill the disk with them
            return self._told(UpdateVerdict(UpdateReason.ENVELOPE, str(error)))
        record = UpdateRecord(
            envelope=hashlib.sha256(content).hexdigest(), state=UpdateState.REJECTED, at_ns=self._time_ns()
        )
        try:
            self._live.write()
            known = history.updates_in(self._live.store)
        except StoreFailed as error:
            return self._told(UpdateVerdict(UpdateReason.STORE_FAILED, _line(error)))
        before = next((one for one in known if one.envelope == record.envelope), None)
        return self._judged(envelope, record, known) if before is None else _verdict_of(before)

    def _judged(self, envelope: Envelope, record: UpdateRecord, known: list[UpdateRecord]) -> UpdateVerdict:
        try:
            update, manifest = read_update(envelope.payload)
            content = update.head.manifest.encode()
            record = record.model_copy(
                update={
                    "version": update.head.version,
                    "sha256": manifest.weights_sha256,
                    "policy": hashlib.sha256(content).hexdigest(),
                    "trained_on": update.head.trained_on,
                }
            )
            live = self._live.check_open()
            _check_history(record, known)
            check_weights(update, manifest, live)
            return self._told(_verdict_of(self._tried(update, manifest, record)))
        except UpdateRejected as error:
            return self._rejected(record, error.reason, str(error))
        except StoreFailed as error:
            return self._told(_verdict_of(_with(record, UpdateReason.STORE_FAILED, _line(error))))

    def _tried(self, update: PolicyUpdate, manifest: Manifest, record: UpdateRecord) -> UpdateRecord:
        """The candidate's shadow run, and if it stands that, its coming to decide.

        Raises:
            UpdateRejected: it does not come to decide, and nothing is left of it.
            StoreFailed: it could not be written down; likewise.
        """
        content = update.head.manifest.encode()
        try:
            place = self._live.files.keep(content, manifest.weights_file, update.weights)
        except UserError as error:
            raise UpdateRejected(UpdateReason.STORE_FAILED, str(error)) from error
        candidate: IsolatedPolicy | None = None
        try:
            candidate = self._live.start(str(place))
            shadow_run(candidate, snapshots_of(self._live.store), candidate.deadline_s)
            return self._live.accept(candidate, record.model_copy(update={"state": UpdateState.PROBATION}))
        except BaseException:
            if candidate is not None:
                candidate.close()
            self._live.drop(record.policy)
            raise

    def _rejected(self, record: UpdateRecord, reason: UpdateReason, detail: str) -> UpdateVerdict:
        record = _with(record, reason, detail)
        try:
            with self._live.store.transaction() as connection:
                history.insert(connection, record)
        except StoreFailed as error:  # what it was rejected for is said all the same
            logger.warning("%s", error)
        return self._told(_verdict_of(record))

    def _told(self, verdict: UpdateVerdict) -> UpdateVerdict:
        self._live.telling.considered(verdict)
        return verdict


def _check_history(record: UpdateRecord, known: list[UpdateRecord]) -> None:
    accepted = [one for one in known if one.state is not UpdateState.REJECTED]
    highest = max((one.version or 0 for one in accepted), default=0)
    if record.version is None or record.version <= highest:
        detail = f"its version is {record.version}, and {highest} was accepted: it must be above that"
        raise UpdateRejected(UpdateReason.VERSION, detail)
    for one in accepted:
        if one.state is UpdateState.ROLLED_BACK and one.sha256 == record.sha256:
            detail = f"update {one.version} had these weights, and was rolled back ({one.reason})"
            raise UpdateRejected(UpdateReason.ROLLED_BACK, detail)


def _with(record: UpdateRecord, reason: UpdateReason, detail: str) -> UpdateRecord:
    changes = {"state": UpdateState.REJECTED, "reason": reason.value, "detail": detail[:MOST_DETAIL]}
    return record.model_copy(update=changes)


def _verdict_of(record: UpdateRecord) -> UpdateVerdict:
    if record.state is not UpdateState.REJECTED:
        return UpdateVerdict(None, "", record.version, record.policy)
    return UpdateVerdict(UpdateReason(record.reason), record.detail, record.version, record.policy)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
