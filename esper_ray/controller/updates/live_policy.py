"""The policy that decides: the one that the service was started with, or the last update that was accepted."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from esper_ray.controller.asking import FAULTS, Inquiry
from esper_ray.controller.breakers import CircuitBreaker
from esper_ray.controller.disk import Disk
from esper_ray.controller.errands import Errands
from esper_ray.controller.isolated_policy import IsolatedPolicy
from esper_ray.controller.proposals import Hello
from esper_ray.controller.records import StoreFailed
from esper_ray.controller.store import Store
from esper_ray.controller.updates import history
from esper_ray.controller.updates.files import UpdateFiles
from esper_ray.controller.updates.history import UpdateRecord, UpdateState
from esper_ray.controller.updates.probation import Probation
from esper_ray.controller.updates.retiring import Retiring
from esper_ray.controller.updates.telling import UpdateTelling
from esper_ray.controller.updates.unwritten import Unwritten
from esper_ray.controller.updates.verdicts import RollbackReason, UpdateReason, UpdateRejected
from esper_ray.errors import UserError
from esper_ray.keeping.strategic_policy import checkpoint_in
from esper_ray.terminal import command
from policies.strategic.checkpoint import Manifest

logger = logging.getLogger(__name__)

KEPT_UPDATES = 8
"""Policies before the one that decides that are kept, so that it can be gone back to them."""


@dataclass(frozen=True)
class Incumbent:
    """A policy at work. An evaluation takes it once and asks no other.

    Attributes:
        policy: In its process.
        breaker: Around it.
    """

    policy: IsolatedPolicy
    breaker: CircuitBreaker


class LivePolicy:
    """Who decides, and who did before. Any thread may call it; nobody who decides waits for the disk here.

    Args:
        given: The policy that the service was started with.
        store: Of the service.
        directory: Of its state.
        disk: Does what must be written.
        start: Starts a policy of this name in a process of its own.
        new_breaker: A fresh one.
        critical_risk: From which on a policy's own expected risk counts against it in probation.
        telling: Says what happens.
        time_ns: Nanoseconds since 1970.

    Raises:
        UserError: the update that decides is not there any more.

    Attributes:
        store: As given.
        files: Of the policies that decide or decided.
        start: As given.
        telling: As given.
    """

    def __init__(
        self,
        given: str,
        store: Store,
        directory: Path,
        disk: Disk,
        start: Callable[[str], IsolatedPolicy],
        new_breaker: Callable[[], CircuitBreaker],
        critical_risk: float,
        telling: UpdateTelling,
        time_ns: Callable[[], int],
    ) -> None:
        self.store, self.files = store, UpdateFiles(directory)
        self._given, self._disk, self.start, self._new_breaker = given, disk, start, new_breaker
        self._critical_risk, self.telling, self._time_ns = critical_risk, telling, time_ns
        self._changing = Lock()  # of whoever changes who decides and writes it down, which takes the disk's time
        self._turn = Lock()  # of what is said here at any one moment
        self._unwritten, self._retiring = Unwritten(store), Retiring()
        self._before: Incumbent | None = None
        self._errands = Errands("controller's policies")
        self._takes_updates = checkpoint_in(Path(given).expanduser()) is not None
        self._in_force = self._found()
        self._probation = self._unfinished_probation()
        self._version = self._in_force[-1].policy if self._in_force else None
        self._incumbent = self._started(self._name_of_deciding())

    # ------------------------------------------------------------------ at the service's start
    def _found(self) -> list[UpdateRecord]:
        """The updates in force; one that was to be rolled back is first."""
        found = history.in_force(history.updates_in(self.store))
        if found and not self._takes_updates:
            logger.warning(
                "the policy %s takes no updates: it decides, and not update %s", self._given, found[-1].version
            )
            return []
        if found and found[-1].ordered:
            last = found.pop()
            with self.store.transaction(leaving=True) as connection:
                history.change(connection, last.sequence, **self._rolled_back(RollbackReason.OPERATOR, "by hand"))
            self.telling.rolled_back(last, RollbackReason.OPERATOR, "while no service ran")
        return found

    def _unfinished_probation(self) -> Probation | None:
        if not self._in_force or self._in_force[-1].state is not UpdateState.PROBATION:
            return None
        return Probation(self._in_force[-1].inferences, self._in_force[-1].anomalies)

    def _name_of_deciding(self) -> str:
        if not self._in_force:
            return self._given
        update = self._in_force[-1]
        assert update.policy is not None
        self.files.manifest_of(update.policy)
        logger.warning(
            "update %s (policy %s) decides, as it did before, and not %s: %s goes back",
            *(update.version, update.policy[:16], self._given, command("updates", "rollback")),
        )
        return str(self.files.path_of(update.policy))

    def _started(self, name: str) -> Incumbent:
        return Incumbent(self.start(name), self._new_breaker())

    def wait_ready(self) -> Hello:
        """Wait until a worker has the policy, and keep what it was started with.

        Raises:
            UserError: as :meth:`esper_ray.controller.isolated_policy.IsolatedPolicy.wait_ready`, or it cannot be kept.
        """
        hello = self._incumbent.policy.wait_ready()
        if self._takes_updates:
            self._version = self._version or hello.policy_version
            assert self._version is not None
            if not self._in_force:
                self.files.keep_copy(self._given, self._version)
            self._tidy()
        return hello

    def _tidy(self) -> None:
        self.files.tidy(self._kept())

    def _kept(self) -> set[str]:
        """Versions of the policies that are needed, or can be gone back to."""
        with self._turn:
            updates = self._in_force[-KEPT_UPDATES:]
            versions = {self._version, *(version for update in updates for version in (update.policy, update.before))}
        return {version for version in versions if version is not None}

    def drop(self, *policy_versions: str | None) -> None:
        """Remove policies, but for those that are needed."""
        kept = self._kept()
        for version in policy_versions:
            if version is not None and version not in kept:
                self.files.drop(version)

    # ------------------------------------------------------------------ for evaluations
    @property
    def incumbent(self) -> Incumbent:
        """Who decides now."""
        return self._incumbent

    @property
    def update(self) -> UpdateRecord | None:
        """Which update decides now, as it was accepted; None where the policy does that the service began with."""
        with self._turn:
            return self._in_force[-1] if self._in_force else None

    def note(self, incumbent: Incumbent, inquiry: Inquiry) -> None:
        """Take in how an evaluation's asking went; it returns at once.

        Args:
            incumbent: That was asked.
            inquiry: How it went.
        """
        asked = inquiry.proposal is not None or inquiry.fault in FAULTS.values()
        if not asked or self._probation is None:
            return
        risk = None if inquiry.proposal is None else inquiry.proposal.risk
        anomaly = inquiry.proposal is None or (risk is not None and risk >= self._critical_risk)
        with self._turn:
            probation = self._probation
            if probation is None or incumbent is not self._incumbent:
                return
            probation.note(anomaly)
            update = self._in_force[-1]
            counted: dict[str, Any] = {"inferences": probation.inferences, "anomalies": probation.anomalies}
            if probation.failed:
                detail = f"{probation.anomalies} anomalies in {probation.inferences} evaluations"
                self._fall_back()
                counted |= self._rolled_back(RollbackReason.ANOMALIES, detail)
                self._errands.later(lambda: self.telling.rolled_back(update, RollbackReason.ANOMALIES, detail))
            elif probation.passed:
                self._probation = None
                self._in_force[-1] = update.model_copy(update={"state": UpdateState.ACCEPTED})
                self._retire(self._before)
                self._before = None
                counted["state"] = UpdateState.ACCEPTED
                self._errands.later(lambda: self.telling.passed(update))
                old = [one.before for one in self._in_force[:-KEPT_UPDATES]]
                self._errands.later(lambda: self.drop(*old))
            self._unwritten.change(update.sequence, counted)
        self._disk.later(self.write)

    def obey(self) -> None:
        """Do what somebody has said of the update that decides, and write what is not written yet: a disk's matter.

        Raises:
            StoreFailed: nobody knows what was said, or it could not be written; nothing is changed then.
        """
        self.write()
        update = self.update
        if update is None or not history.is_ordered(self.store, update.sequence):
            return
        with self._changing, self._unwritten.writing:
            with self._turn:
                if not self._in_force or self._in_force[-1].sequence != update.sequence:
                    return
            if not self._is_kept(update.before):
                logger.warning("update %s is not rolled back: the policy before it is not kept", update.version)
                with self.store.transaction() as connection:
                    history.change(connection, update.sequence, ordered=False)
                return
            with self.store.transaction(leaving=True) as connection:
                history.change(connection, update.sequence, **self._rolled_back(RollbackReason.OPERATOR, "by hand"))
            with self._turn:
                if self._in_force and self._in_force[-1].sequence == update.sequence:
                    self._fall_back()
            self._unwritten.forget(update.sequence)
        self._errands.later(lambda: self.telling.rolled_back(update, RollbackReason.OPERATOR, "by hand"))

    # ------------------------------------------------------------------ for who considers updates
    def check_open(self) -> Manifest:
        """The live policy's manifest, which an update is held to.

        Raises:
            UpdateRejected: it takes no updates, or not now.
        """
        if not self._takes_updates:
            detail = f"the policy {self._given} is no checkpoint of a graph policy: updates are for such alone"
            raise UpdateRejected(UpdateReason.NOT_TAKEN, detail)
        with self._turn:
            probation, version = self._probation, self._version
        if probation is not None:
            raise UpdateRejected(
                UpdateReason.PROBATION, f"the update before has had {probation}: send it anew after that"
            )
        assert version is not None, "it was ready before anybody considered an update"
        return self.files.manifest_of(version)

    def accept(self, candidate: IsolatedPolicy, record: UpdateRecord) -> UpdateRecord:
        """Let a candidate decide from the next evaluation on, and write that down first.

        Args:
            candidate: Its worker is ready; it belongs to the service from now on.
            record: Of the update; on probation.

        Raises:
            UpdateRejected: another one has come to decide meanwhile.
            StoreFailed: it could not be written; nothing is changed.
            UserError: its files are not there any more.
        """
        with self._changing:
            self.check_open()
            self.files.manifest_of(record.policy or "")
            record = record.model_copy(update={"before": self._version})
            try:
                with self.store.transaction(leaving=True) as connection:
                    record = history.insert(connection, record)
            except StoreFailed:
                self._unwritten.withdraw(record.envelope)  # it may be in the store all the same
                raise
            with self._turn:
                self._before, self._incumbent = self._incumbent, Incumbent(candidate, self._new_breaker())
                self._in_force.append(record)
                self._probation, self._version = Probation(), record.policy
        return record

    # ------------------------------------------------------------------ its parts
    def _fall_back(self) -> None:
        """Let the policy before decide again; with the turn."""
        update = self._in_force.pop()
        assert update.before is not None
        failed, self._probation, self._version = self._incumbent, None, update.before
        self._incumbent = self._before or self._started(str(self.files.path_of(update.before)))
        self._before = None
        self._retire(failed)
        self._errands.later(lambda: self.drop(update.policy))

    def _is_kept(self, policy_version: str | None) -> bool:
        with suppress(UserError):
            return policy_version is not None and bool(self.files.manifest_of(policy_version))
        return False

    def _rolled_back(self, reason: RollbackReason, detail: str) -> dict[str, Any]:
        ended = {"state": UpdateState.ROLLED_BACK, "ended_at_ns": self._time_ns(), "ordered": False}
        return ended | {"reason": reason.value, "detail": detail}

    def _retire(self, incumbent: Incumbent | None) -> None:
        if incumbent is not None:
            self._retiring.add(incumbent.policy)

    def write(self) -> None:
        """Write down what is not written yet: a disk's matter.

        Raises:
            StoreFailed: nothing was written; it is tried again with the next evaluation.
        """
        self._unwritten.write()

    def close(self) -> None:
        """End all workers. What is not written yet is."""
        with suppress(UserError):
            self.write()
        self._errands.close()
        self._retiring.close()
        for incumbent in (self._incumbent, self._before):
            if incumbent is not None:
                incumbent.policy.close()
