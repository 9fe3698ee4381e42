"""The learner: takes field reports, and makes updates of them."""

from __future__ import annotations

import itertools
import logging
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch

from envs.seeding import Purpose, seed_sequence
from esper_ray.controller.learner.experience_store import ExperienceStore
from esper_ray.controller.learner.greenhouse import Greenhouse
from esper_ray.controller.learner.score import NOTHING, ScoreTerms, score_terms
from esper_ray.controller.learner.settings import ReportLearning
from esper_ray.controller.learner.steps import Stretch, check_readable, chosen, slots_of, stretches_of
from esper_ray.controller.learner.update_pass import PassSummary, learn
from esper_ray.controller.reports.field_report import Experience
from esper_ray.controller.updates.making import update_of
from esper_ray.controller.updates.policy_update import PolicyUpdate
from esper_ray.keeping.revision import git_commit
from esper_ray.keeping.strategic_policy import POLICY, checkpoint_in, load_strategic
from esper_ray.keeping.writing import make_directories, writing

logger = logging.getLogger(__name__)

MOST_WORDS = 500
"""Letters in which an update says what it was trained on."""


class NotYet(Exception):
    """There is too little to learn from for an update; the text says what is missing."""


@dataclass(frozen=True)
class Learnt:
    """An update that was made.

    Attributes:
        version: Its number.
        decisions: That it was learnt from.
        new: Those of them that no update before had learnt from.
        undecided: Those of them in which something else was carried out than the policy's choice.
        runs: That they are of.
        loss: Mean over the gradient steps.
        entropy: Of the op, over its maximum, likewise.
        risk_recall: Share of the steps whose class of risk was told, mean over the classes that occurred; None if none
            did.
    """

    version: int
    decisions: int
    new: int
    undecided: int
    runs: int
    loss: float
    entropy: float
    risk_recall: float | None

    def __str__(self) -> str:
        """In a line."""
        recall = "none known" if self.risk_recall is None else f"{100 * self.risk_recall:.0f} %"
        return (
            f"update {self.version}: {self.decisions} decisions of {self.runs} runs ({self.new} new, {self.undecided} "
            f"undecided), loss {self.loss:.4f}, entropy {self.entropy:.3f}, risk recall {recall}"
        )


class Learner:
    """Learns a graph policy from decisions in the field, beside the greenhouse. Any thread may call :meth:`take`.

    It goes on from its latest update where there is one in its directory, with the decisions that it has.

    Args:
        start: Where the policy is that it begins with (:func:`esper_ray.keeping.strategic_policy.load_strategic`).
        greenhouse: What ``esper-ray strategic collect`` recorded.
        directory: For what outlives this process; no second learner uses it.
        settings: How it learns.

    Raises:
        UserError: a policy, a record or a directory that cannot be used.

    Attributes:
        checkpoint: The policy now.
        path: Of the SQLite file that reports are taken into.
    """

    def __init__(self, start: Path, greenhouse: Path, directory: Path, settings: ReportLearning | None = None) -> None:
        self._settings, self._policy = settings or ReportLearning(), directory / POLICY
        self.checkpoint = load_strategic(self._policy if checkpoint_in(self._policy) is not None else start)
        self._network = self.checkpoint.network()
        self._greenhouse = Greenhouse(greenhouse, self._network, self.checkpoint, self._settings.held_out)
        make_directories(directory)
        self._store = ExperienceStore(directory, self._settings.capacity)
        self.path = self._store.path

    def take(self, experience: Experience) -> bool:
        """Take a report in, for good: it is on disk when this returns, and can be acknowledged.

        Returns:
            Whether it is new: the same report changes nothing the second time.

        Raises:
            UserError: it could not be written; nothing was taken.
        """
        return self._store.add(experience, *_told(experience))

    def take_within(self, connection: sqlite3.Connection, experience: Experience) -> None:
        """The same, in a transaction of :attr:`path` that somebody else commits: what they write is there with it.

        Args:
            connection: To that file, in a transaction.
            experience: A report and its decision.
        """
        self._store.add_within(connection, experience, *_told(experience))

    def lacking(self) -> str:
        """What there is too little of for an update, in words; empty if there is enough."""
        found, wanted = self._store.new_steps(), self._settings.least_decisions
        if found >= wanted:
            return ""
        return f"{found} new decisions whose run's next packet is known, and an update needs {wanted}"

    def learn_once(self) -> Learnt:
        """Make one update, which is on disk when this returns.

        Raises:
            NotYet: there is too little to learn from; nothing has changed.
            UserError: a gradient that is not finite, or a disk that is full; the policy is what it was.
        """
        if lacking := self.lacking():
            raise NotYet(lacking)
        version = self.latest_version + 1
        order = torch.Generator().manual_seed(_seed(self._settings.seed, version))
        stretches = self._stretches()
        try:
            seen = learn(self._network, self.checkpoint, stretches, self._greenhouse, self._settings, order)
            self._keep(version, stretches, seen)
        except BaseException:
            self._network.load_state_dict(self.checkpoint.weights)
            raise
        steps = [step for of in stretches for step in of.steps]
        return Learnt(
            version=version,
            decisions=len(steps),
            new=sum(step.is_new for step in steps),
            undecided=sum(not step.decided for step in steps),
            runs=len({of.run_id for of in stretches}),
            loss=seen.loss,
            entropy=seen.entropy,
            risk_recall=seen.risk_recall,
        )

    def _stretches(self) -> list[Stretch]:
        new, others = (map(self._read, runs) for runs in self._store.runs())
        chain = itertools.chain.from_iterable
        return chosen(chain(new), chain(others), self._settings.most_decisions)

    def _read(self, run_id: str) -> Iterator[Stretch]:
        settings = self._settings
        run = self._store.steps(run_id)
        return stretches_of(run, self.checkpoint, settings.parameter_rent, settings.path_rent)

    def _keep(self, version: int, stretches: Sequence[Stretch], seen: PassSummary) -> None:
        """The policy first: whoever is cut off between the two learns from the same decisions once more."""
        decisions = sum(map(len, stretches))
        runs = {of.run_id for of in stretches}
        trained_on = (
            f"{decisions} decisions of {len(runs)} runs, and {self._greenhouse.decisions} recorded ones of "
            f"{', '.join(self._greenhouse.tasks)}"
        )[:MOST_WORDS]
        lengths = [of.max_epochs for of in stretches if of.max_epochs is not None]
        before = self.checkpoint
        checkpoint = replace(
            before,
            weights={name: tensor.detach().clone() for name, tensor in self._network.state_dict().items()},
            tasks=tuple(sorted({*before.tasks, *self._greenhouse.tasks})),
            min_epochs=min([before.min_epochs, *lengths]),
            max_epochs=max([before.max_epochs, *lengths]),
            commit=git_commit(),
            taught=seen.taught,
        )
        with writing(self._policy):
            checkpoint.save(self._policy)
        sequences = [step.sequence for of in stretches for step in of.steps]
        self._store.updated(version, trained_on, sequences)
        self.checkpoint = checkpoint

    @property
    def latest_version(self) -> int:
        """Of the updates that were made; before the first, the number before its own."""
        latest = self._store.latest_update()
        return self._settings.first_version - 1 if latest is None else latest[0]

    def unsent(self) -> PolicyUpdate | None:
        """The latest update, if it was not sent yet.

        Raises:
            UserError: it is not there any more, or was damaged.
        """
        latest = self._store.latest_update()
        if latest is None or latest[2]:
            return None
        version, trained_on, _ = latest
        return update_of(self._policy, version, trained_on)

    def mark_sent(self, update: PolicyUpdate) -> None:
        """Note that an update was sent.

        Raises:
            UserError: it is not noted, and will be sent again.
        """
        self._store.mark_sent(update.head.version)

    def close(self) -> None:
        """Let go of the directory."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _told(experience: Experience) -> tuple[ScoreTerms, str | None]:
    """What the store keeps beside a decision: the terms of its packet's score, and its slots."""
    try:
        packet = check_readable(experience.decision)
    except ValueError as error:  # another program's; asking for it again would not help
        command = experience.decision.command_id
        logger.warning("nothing can be learnt from command %s: %s", command, " ".join(str(error).split()))
        return NOTHING, None
    slots = slots_of(packet)
    return score_terms(packet), f"{slots.num_slots} {slots.internal_levels}"


def _seed(seed: int, version: int) -> int:
    return int(seed_sequence(Purpose.REPORTS, seed, version).generate_state(1)[0])
