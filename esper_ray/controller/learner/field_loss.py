"""The loss of steps in the field: IMPALA's, as the project has it, and the risk's.

Shapes: ``E`` is the number of stretches, ``T`` that of the longest one's states, ``H`` of heads, ``C`` of risk classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from esper_ray.config import LearnerConfig
from esper_ray.controller.learner.steps import Stretch
from esper_ray.learning.advantages import VTraceSignals, scaled_advantages
from esper_ray.learning.loss import LossTerms, Minibatch, entropy_weights, impala_loss
from policies.distribution import ActionTables, FactoredDistribution
from policies.results import ActorCriticResult
from policies.strategic.agreement import risk_confusion
from policies.strategic.graph import GraphArrays, GraphBatch
from policies.strategic.heads import GraphPolicyResult
from policies.strategic.imitation import risk_loss
from policies.strategic.labels import UNKNOWN_RISK
from policies.strategic.network import GraphPolicyNetwork


@dataclass(frozen=True)
class FieldBatch:
    """Stretches of runs with the same slots, each a row with its last state at its end as an artificial step.

    Attributes:
        graphs: Of all states, stretch by stretch.
        places: Which graph each state has, int64 ``[E, T]``; 0 in padding.
        real: Steps, bool ``[E, T]``.
        actions: int64 ``[E, T, H]``.
        log_probs: Of the op and of its arguments, under the policy that acted, ``[E, T, 2]``.
        rewards: ``[E, T]``.
        terminated: bool ``[E, T]``.
        risk: Class of what followed, int64 ``[E, T]``, or ``UNKNOWN_RISK``.
        tables: Of the action's heads.
    """

    graphs: GraphBatch
    places: Tensor
    real: Tensor
    actions: Tensor
    log_probs: Tensor
    rewards: Tensor
    terminated: Tensor
    risk: Tensor
    tables: ActionTables

    @classmethod
    def of(cls, stretches: Sequence[Stretch]) -> Self:
        """Of at least one stretch."""
        arrays = [graph for of in stretches for graph in (*(step.graph for step in of.steps), of.end)]
        numbers = torch.arange(len(arrays)).split([len(of) + 1 for of in stretches])
        tables = ActionTables(stretches[0].slots.heads)
        nothing = [0] * len(tables.heads)

        def rows(of_each: list[Tensor], fill: float = 0) -> Tensor:
            return pad_sequence(of_each, batch_first=True, padding_value=fill)

        ends = [torch.arange(len(of) + 1) == len(of) - 1 for of in stretches]
        return cls(
            graphs=GraphBatch.from_arrays(GraphArrays.together(arrays)),
            places=rows([*numbers]),
            real=rows([torch.arange(len(of) + 1) < len(of) for of in stretches]),
            actions=rows([torch.tensor([*(step.action for step in of.steps), nothing]) for of in stretches]),
            log_probs=rows([torch.tensor([*(step.log_probs for step in of.steps), (0.0, 0.0)]) for of in stretches]),
            rewards=rows([torch.tensor([*(step.reward for step in of.steps), 0.0]) for of in stretches]),
            terminated=rows([at & of.terminated for at, of in zip(ends, stretches, strict=True)]),
            risk=rows(
                [torch.tensor([*(step.risk for step in of.steps), UNKNOWN_RISK]) for of in stretches], UNKNOWN_RISK
            ),
            tables=tables,
        )

    def read(
        self, network: GraphPolicyNetwork, return_scale: float, temperature: float
    ) -> tuple[Tensor, ActorCriticResult]:
        """What a network says of all states.

        Args:
            network: Is asked.
            return_scale: Reward units per unit of its values.
            temperature: At which it draws its actions.

        Returns:
            Logits of the risk ``[E, T, C]``, and action and values.
        """
        result: GraphPolicyResult = network(self.graphs, self.tables)
        assert result.risk_logits is not None, "a network says it always"
        distribution, at = result.distribution.at_temperature(temperature), self.places
        placed = FactoredDistribution(
            tuple(table[at] for table in distribution.log_probs),
            tuple(mask[at] for mask in distribution.masks),
            self.tables,
        )
        values, scale = (result.scaled_value[at], result.scaled_q_values[at]), torch.tensor(return_scale)
        return result.risk_logits[at], ActorCriticResult(placed, (), *values, scale)

    def head_log_probs(self, output: ActorCriticResult) -> Tensor:
        """Log-probabilities under the policy that acted, ``[E, T, H]``.

        Of the arguments it said one number: the first of them that had a choice has it. All arguments have one
        advantage, and V-trace takes the joint action's ratio, so that it makes no difference which.
        """
        decided = output.distribution.decided(self.actions[..., 0])
        old = self.log_probs.new_zeros(decided.shape)
        old[..., 0] = self.log_probs[..., 0]
        first = 1 + decided[..., 1:].int().argmax(dim=-1, keepdim=True)
        return old.scatter(-1, first, self.log_probs[..., 1:])


@dataclass(frozen=True)
class FieldLoss:
    """The loss of a batch.

    Attributes:
        total: What is minimised.
        terms: IMPALA's.
        signals: Of V-trace.
        confusion: Steps by class of what followed and most probable class, int64 ``[C, C]``.
    """

    total: Tensor
    terms: LossTerms
    signals: VTraceSignals
    confusion: Tensor


def field_loss(
    network: GraphPolicyNetwork,
    batch: FieldBatch,
    settings: LearnerConfig,
    return_scale: float,
    temperature: float,
    class_weights: Tensor,
    risk_weight: float,
) -> FieldLoss:
    """The loss of some steps: V-trace for both baselines of the critic, a policy loss per head, entropy, and risk.

    A step at which nothing was decided is one that admits only to wait: its ratio is 1, its state's value is learnt,
    and no choice of the policy gets a gradient.

    Args:
        network: Is trained.
        batch: The steps.
        settings: Discount, λ, weights of the critic and of the entropy.
        return_scale: Reward units per unit of the network's values.
        temperature: At which it draws its actions.
        class_weights: Of the risk classes, ``[C]``.
        risk_weight: Of the risk's cross-entropy.
    """
    risk_logits, output = batch.read(network, return_scale, temperature)
    old = batch.head_log_probs(output)
    with torch.no_grad():
        signals = VTraceSignals.of(output, batch.actions, old, batch.rewards, batch.terminated, batch.real, settings)
        advantages = scaled_advantages(
            signals.streams, output, [batch.real], settings.centre_advantages, mean_over_learners=_alone
        )
    minibatch = Minibatch(
        actions=batch.actions,
        old_log_probs=old,
        advantages=advantages,
        scaled_returns=signals.targets / return_scale,
        real=batch.real,
        scaled_q_returns=signals.worth / return_scale,
    )
    weights = torch.tensor(entropy_weights(settings, batch.tables.heads))
    terms = impala_loss(output, minibatch, settings, weights, _alone)
    logits, risk = risk_logits[batch.real], batch.risk[batch.real]
    total = terms.total + risk_weight * risk_loss(logits, risk, class_weights)
    return FieldLoss(total, terms, signals, risk_confusion(logits, risk))


def _alone(values: Tensor) -> Tensor:
    """The average over one learner."""
    return values


def batches(stretches: Sequence[Stretch], size: int, generator: torch.Generator) -> Iterator[FieldBatch]:
    """Every step once, in a random order of batches that are each of runs with the same slots.

    Args:
        stretches: To learn from; those that are longer than a batch are cut.
        size: Steps of a batch, about.
        generator: Draws the order.
    """
    pieces = [of.part(at, at + size) for of in stretches for at in range(0, len(of), size)]
    order = torch.randperm(len(pieces), generator=generator).tolist()
    for slots in dict.fromkeys(pieces[at].slots for at in order):
        together: list[Stretch] = []
        for at in order:
            if pieces[at].slots != slots:
                continue
            if together and sum(map(len, together)) + len(pieces[at]) > size:
                yield FieldBatch.of(together)
                together = []
            together.append(pieces[at])
        yield FieldBatch.of(together)
