"""Decisions of a run in the field as steps to learn from: graphs, actions, rewards, risks.

Shapes: ``H`` is the number of the action's heads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from envs.action_masks import mask_size
from envs.observation import ObservationLayout
from envs.slots import SlotConfig
from envs.vocabulary import HEAD_NAMES, LifecycleOp
from esper_ray.controller.commanding import sent_command
from esper_ray.controller.commands import Kind
from esper_ray.controller.learner.experience_store import Told
from esper_ray.controller.learner.report_risk import risk_of
from esper_ray.controller.proposals import Proposal
from esper_ray.controller.records import Decision
from policies.strategic.builder import GraphBuilder
from policies.strategic.checkpoint import Checkpoint
from policies.strategic.graph import GraphArrays
from policies.strategic.measured import NOWHERE, Measured
from policies.strategic.messages import SystemState
from policies.strategic.normaliser import metric_sums, metric_values


@dataclass(frozen=True)
class Step:
    """A decision whose next packet is known.

    Attributes:
        sequence: Number of its row in the store.
        graph: What it was decided on, N = 1. Where nothing was decided, its mask admits only to wait.
        action: Head indices ``[H]``; to wait, where nothing was decided.
        log_probs: Of the op, and of all of its arguments together, under the policy that acted; 0 where nothing was
            decided.
        decided: Whether the policy's choice was what was carried out. What the risk table, an operator or the run
            itself put in its place is no choice: the state has a value, and the policy nothing to learn.
        reward: Score after it, less score before.
        risk: Class of what followed, or ``UNKNOWN_RISK``.
        is_new: Whether no update has learnt from it.
    """

    sequence: int
    graph: GraphArrays
    action: tuple[int, ...]
    log_probs: tuple[float, float]
    decided: bool
    reward: float
    risk: int
    is_new: bool


@dataclass(frozen=True)
class Stretch:
    """Steps of a run one after the other, without a gap.

    Attributes:
        run_id: Of the run.
        slots: Of the run.
        steps: At least one.
        end: The state after the last of them.
        terminated: Whether the run is over there.
        max_epochs: Of the run; None where it does not say.
    """

    run_id: str
    slots: SlotConfig
    steps: tuple[Step, ...]
    end: GraphArrays
    terminated: bool
    max_epochs: int | None

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.steps)

    def part(self, start: int, stop: int) -> Stretch:
        """Some of its steps, from ``start`` on, without ``stop``; at least one."""
        if stop >= len(self):
            return replace(self, steps=self.steps[start:])
        return replace(self, steps=self.steps[start:stop], end=self.steps[stop].graph, terminated=False)


def chosen(new: Iterable[Stretch], others: Iterable[Stretch], most: int) -> list[Stretch]:
    """What an update learns from: all that is new, and then the latest of what is not.

    Args:
        new: Of runs with something new, in the order in which it is to be learnt; of each what comes before its first
            new step is left out.
        others: Of other runs, in the order in which they are wanted; of each the end is.
        most: Steps.
    """
    found: list[Stretch] = []
    for of in new:
        start = next((at for at, step in enumerate(of.steps) if step.is_new), None)
        if most > 0 and start is not None:
            found.append(of.part(start, start + most))
            most -= len(found[-1])
    for of in others:
        if most <= 0:
            break
        found.append(of.part(max(len(of) - most, 0), len(of)))
        most -= len(found[-1])
    return found


def check_readable(decision: Decision) -> SystemState:
    """The packet of a decision from which can be learnt.

    Raises:
        ValueError: packet, mask, action or command cannot be read, or do not fit each other.
    """
    packet = SystemState.model_validate_json(decision.packet)
    sent_command(decision.command)
    if (packet.run_id, packet.epoch) != (decision.run_id, decision.epoch):
        raise ValueError(f"its packet is of epoch {packet.epoch} of the run {packet.run_id!r}")
    heads = slots_of(packet).heads
    if decision.mask is not None and len(decision.mask) != mask_size(heads):
        raise ValueError(f"its mask has {len(decision.mask)} entries in place of {mask_size(heads)}")
    if decision.action is not None:
        sizes = [head.size for head in heads]
        if len(decision.action) != len(sizes) or any(map(int.__ge__, decision.action, sizes)):
            raise ValueError(f"its action {list(decision.action)} is none in {len(packet.seeds)} slots")
        _log_probs(decision)
    return packet


def stretches_of(
    run: Sequence[Told], checkpoint: Checkpoint, parameter_rent: float, path_rent: float
) -> Iterator[Stretch]:
    """What there is to be learnt from a run.

    Its packets are read as the policy in the field has read them: on the scale that the run's metrics had by then, with
    what was admitted, and nothing that the policy's training never showed.

    Args:
        run: A decision per epoch, in their order.
        checkpoint: Of the policy.
        parameter_rent: As of :meth:`esper_ray.controller.learner.score.ScoreTerms.score`.
        path_rent: Likewise.

    Yields:
        Stretches between gaps, in their order.
    """
    scores = [told.terms.score(parameter_rent, path_rent) for told in run]
    packets = [SystemState.model_validate_json(told.decision.packet) for told in run]
    follow = [_follow(*pair) for pair in itertools.pairwise(packets)] + [False]
    decided = [
        follows and _was_carried_out(told, packets[at + 1])
        for at, (told, follows) in enumerate(zip(run, follow, strict=True))
    ]
    graphs = _graphs(run, packets, decided, checkpoint)
    rewards = [
        later - now if follows and later is not None and now is not None else None
        for follows, (now, later) in zip(follow, itertools.pairwise(scores), strict=False)
    ]
    for known, group in itertools.groupby(enumerate(rewards), lambda of: of[1] is not None):
        places = {at: reward for at, reward in group if reward is not None}
        if not known:
            continue
        end = max(places) + 1
        last = packets[end]
        yield Stretch(
            run_id=last.run_id,
            slots=slots_of(last),
            steps=tuple(_step(run[at], graphs[at], decided[at], reward) for at, reward in places.items()),
            end=graphs[end],
            terminated=last.max_epochs is not None and last.epoch >= last.max_epochs,
            max_epochs=last.max_epochs,
        )


def _step(told: Told, graph: GraphArrays, decided: bool, reward: float) -> Step:
    action, log_probs = (0,) * len(HEAD_NAMES), (0.0, 0.0)
    if decided:
        assert told.decision.action is not None
        action, log_probs = told.decision.action, _log_probs(told.decision)
    return Step(told.sequence, graph, action, log_probs, decided, reward, risk_of(told.report), told.is_new)


def _follow(packet: SystemState, later: SystemState) -> bool:
    return later.epoch == packet.epoch + 1 and slots_of(later) == slots_of(packet)


def slots_of(packet: SystemState) -> SlotConfig:
    """Those that its action is of; of packets with as many the same object."""
    return _row(len(packet.seeds), packet.internal_levels) if packet.seeds else NOWHERE


_row = cache(SlotConfig.for_row)


@cache
def _ops_last(slots: SlotConfig) -> tuple[tuple[int, LifecycleOp], ...]:
    """Where Obs V3 says of each op whether it was executed last."""
    places = {field.name: at for at, field in enumerate(ObservationLayout(slots).fields)}
    return tuple((places[f"last_op_{op.name}"], op) for op in slots.ops)


def _was_carried_out(told: Told, following: SystemState) -> bool:
    """Whether a policy's choice left as a command, was applied, and is what the run says that it did."""
    if told.decision.action is None or told.report.applied is not True:
        return False
    command = sent_command(told.decision.command)
    proposed = None if command.selection is None else command.selection.proposed
    if command.kind is not Kind.SEED or command.operation is None or command.operation != proposed:
        return False
    return last_op(following) is command.operation.op


def last_op(packet: SystemState) -> LifecycleOp | None:
    """The op that a run executed last, as Obs V3 says; None where it does not."""
    if packet.observation is None:
        return None
    said = packet.observation
    return next((op for at, op in _ops_last(slots_of(packet)) if said[at] > 0), None)


def _log_probs(decision: Decision) -> tuple[float, float]:
    """Of the op and of all its arguments, as the policy that acted said them.

    Raises:
        ValueError: it did not say them.
    """
    if decision.proposal is None or decision.log_prob is None or decision.action is None:
        raise ValueError("it has an action and no probability of it")
    op = LifecycleOp(decision.action[0])
    probability = Proposal.model_validate_json(decision.proposal).op_probs.get(op.name)
    if not probability or not math.isfinite(decision.log_prob):
        raise ValueError(f"its policy gave {op.name}, which it chose, no probability")
    return math.log(probability), decision.log_prob - math.log(probability)


def _graphs(
    run: Sequence[Told], packets: Sequence[SystemState], decided: Sequence[bool], checkpoint: Checkpoint
) -> list[GraphArrays]:
    normaliser = checkpoint.normaliser.for_run()
    builder, graphs = GraphBuilder(checkpoint.registries, normaliser), []
    for told, packet, is_decided in zip(run, packets, decided, strict=True):
        # Of a packet without a mask the reader admits to wait, and nothing else.
        mask = told.decision.mask if is_decided else None
        measured = Measured.of(packet.model_copy(update={"action_mask": mask}))
        graphs.append(checkpoint.seen.restrict(builder.build(measured), slots_of(packet).heads))
        if told.decision.action is not None:  # as the run's reader does, once a policy's answer stands
            normaliser.observe(metric_sums(metric_values(packet.metrics)))
    return graphs
