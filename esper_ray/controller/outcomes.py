"""What became of seeds on record, by blueprint: the evidence of how risky a blueprint is.

The record is what ``esper-ray strategic collect`` wrote; ``studies/catalogue.sh`` makes the one that ships, and counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from envs.vocabulary import LIVING_STAGES, Blueprint, LifecycleOp, SeedStage
from esper_ray.measuring.recording import RecordedWorld
from policies.strategic.labels import ACTIONS, LOSS_AFTER, LOSS_BEFORE, STOPPED, observations_in, risk_labels
from policies.strategic.measured import BLUEPRINT_NAMES
from policies.strategic.replay_store import Replay, WorldRecord
from policies.strategic.schema import RISK_CLASSES

IntArray = npt.NDArray[np.int64]

PRIOR_RISK, PRIOR_SEEDS = 0.25, 8
"""What is believed of a blueprint of which nothing is on record, and for how many recorded seeds that belief counts."""
_SHOWING = (SeedStage.BLENDING, SeedStage.HOLDING, SeedStage.FOSSILIZED)
"""Stages in which the host computes with a seed; before them it can do no harm."""
_RELYING = (LifecycleOp.ADVANCE, LifecycleOp.SET_ALPHA_TARGET, LifecycleOp.FOSSILIZE, LifecycleOp.GROW_INTERNAL)
"""Ops by which a host comes to rely on a seed that it has."""
_HIGH, _CRITICAL = RISK_CLASSES.index("HIGH"), RISK_CLASSES.index("CRITICAL")

Natural = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class End(StrEnum):
    """What came of a seed: the first of these that is true.

    UNSEEN: it was never blended in, so that it can have done nothing.
    ROLLED_BACK: the governor stopped the host while the seed was blended in and not permanent, or within 5 epochs of a
        decision by which the host relied on it.
    REGRESSED: the validation loss rose by more than 0.15 within 5 epochs of such a decision.
    PRUNED: it was taken out again.
    HARMLESS: it became permanent, or the episode ended.
    """

    UNSEEN = "unseen"
    ROLLED_BACK = "rolled_back"
    REGRESSED = "regressed"
    PRUNED = "pruned"
    HARMLESS = "harmless"


HARM = {End.ROLLED_BACK: 1.0, End.REGRESSED: 0.75, End.PRUNED: 0.25, End.HARMLESS: 0.0}
"""How bad an end is, on the scale of the risk classes: CRITICAL is 1, HIGH three quarters, LOW one quarter, SAFE 0."""


class SeedOutcomes(_Strict):
    """Seeds of one blueprint on record, by their ends (see :class:`End`)."""

    unseen: Natural = 0
    rolled_back: Natural = 0
    regressed: Natural = 0
    pruned: Natural = 0
    harmless: Natural = 0

    @property
    def blended(self) -> int:
        """Seeds that were blended in."""
        return sum(getattr(self, end) for end in HARM)

    @property
    def risk(self) -> float:
        """Expected harm of blending one more in, above 0 and below 1.

        (Σ harm(e)·n(e) + w·p) / (Σ n(e) + w), over the ends e of seeds that were blended in, with n(e) of them, harm
        from :data:`HARM`, and the prior p = ``PRIOR_RISK`` with the weight of w = ``PRIOR_SEEDS`` seeds: the mean of
        what is on record, drawn towards LOW where that is little.
        """
        harm = sum(weight * getattr(self, end) for end, weight in HARM.items())
        return (harm + PRIOR_SEEDS * PRIOR_RISK) / (self.blended + PRIOR_SEEDS)


class RecordedSource(_Strict):
    """Episodes of one policy in one world.

    Attributes:
        world: Task, its arguments, and whether ramps were drawn.
        policy: Who decided.
        episodes: Of one host each.
    """

    world: str
    policy: str
    episodes: Natural


class RecordedOutcomes(_Strict):
    """Counts by blueprint, and what was counted.

    Attributes:
        format: Of this.
        commit: Of the code that counted; None outside a checkout.
        command: By which it did.
        record: SHA-256 of what is on record.
        sources: All episodes.
        blueprints: Name → what became of its seeds.
    """

    format: Literal["esper-ray outcomes 1"] = "esper-ray outcomes 1"
    commit: str | None
    command: str
    record: str
    sources: tuple[RecordedSource, ...]
    blueprints: dict[str, SeedOutcomes]

    @classmethod
    def of(cls, replay: Replay, commit: str | None, command: str) -> Self:
        """That of recorded episodes.

        Raises:
            UserError: a world that there is not here.
        """
        episodes, ends = Counter[tuple[str, str]](), Counter[tuple[Blueprint, End]]()
        for record in replay.worlds.values():
            world = RecordedWorld.read(record.world)
            episodes.update((world.label, policy) for policy in record.sources)
            ends.update(_seeds(record, world))
        kinds = [kind for kind in Blueprint if any(ends[kind, end] for end in End)]
        return cls(
            commit=commit,
            command=command,
            record=replay.digest,
            sources=tuple(RecordedSource(world=w, policy=p, episodes=n) for (w, p), n in episodes.items()),
            blueprints={
                BLUEPRINT_NAMES[kind]: SeedOutcomes(**{end.value: ends[kind, end] for end in End}) for kind in kinds
            },
        )


def _seeds(record: WorldRecord, world: RecordedWorld) -> Iterator[tuple[Blueprint, End]]:
    """Every seed of a world's episodes."""
    reader = world.reader()
    for episode in range(len(record.lengths)):
        steps = record.take(record.rows_of([episode]))
        measured = reader.measured(observations_in(steps))
        yield from ends_of_seeds(
            measured.stages.numpy(),
            measured.texts["seeds.blueprint"].index.numpy(),
            steps[ACTIONS].numpy(),
            risk_labels(steps[LOSS_BEFORE], steps[LOSS_AFTER], steps[STOPPED]).numpy(),
            stopped=bool(steps[STOPPED][-1]),
        )


def ends_of_seeds(
    stages: IntArray, blueprints: IntArray, actions: IntArray, risk: IntArray, stopped: bool
) -> Iterator[tuple[Blueprint, End]]:
    """What came of each seed of an episode of T decisions in S slots.

    A seed that germinates with the last decision is on no record, and not counted.

    Args:
        stages: ``[T, S]`` ``SeedStage`` at each decision.
        blueprints: ``[T, S]`` kinds of the seeds then.
        actions: ``[T, H]`` what was done.
        risk: ``[T]`` class of ``RISK_CLASSES`` by what followed, see :func:`policies.strategic.labels.risk_labels`.
        stopped: Whether the governor ended the episode.

    Yields:
        A seed's kind, and its end.
    """
    for slot, lives in enumerate(np.isin(stages, LIVING_STAGES).T):
        edges = np.flatnonzero(np.diff(lives, prepend=False, append=False)).reshape(-1, 2)
        for life in (slice(*edge) for edge in edges.tolist()):
            own = actions[life, 1] == slot
            ops, last = actions[life, 0][own], life.stop == len(stages)
            yield (
                Blueprint(int(blueprints[life.start, slot])),
                _end(
                    stages[life, slot],
                    worst=risk[life][own][np.isin(ops, _RELYING)].max(initial=-1),
                    pruned=not last or LifecycleOp.PRUNE in ops,  # or would have been, had the episode gone on
                    stopped=stopped and last,
                ),
            )


def _end(stages: IntArray, worst: int, pruned: bool, stopped: bool) -> End:
    """That of a seed.

    Args:
        stages: That it was in.
        worst: Class of the riskiest decision to rely on it; -1 where there was none.
        pruned: Whether it was taken out.
        stopped: Whether the governor stopped the host while it lived.
    """
    if not np.isin(stages, _SHOWING).any():
        return End.UNSEEN
    if worst == _CRITICAL or (stopped and stages[-1] != SeedStage.FOSSILIZED):
        return End.ROLLED_BACK
    if worst == _HIGH:
        return End.REGRESSED
    return End.PRUNED if pruned else End.HARMLESS
