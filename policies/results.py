"""What a policy answers: the one set of results that networks, bundles, rules, RLlib's module and the learner share.

Shapes: ``B`` is the number of hosts, ``T`` of steps in a row, ``H`` of heads. Values come in two units. What is named
``scaled_...`` is in units of the return scale, as the critic learns it; every other value is in reward units.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from policies.distribution import FactoredDistribution, take_entry

HiddenState = tuple[Tensor, ...]
"""What a policy remembers of each host's episode, tensors ``[B, ...]``; empty if it remembers nothing.
The network's are hidden and cell vectors of its LSTM, each ``[B, hidden_dim]``, or ``[B, 0]`` without memory."""


@dataclass(frozen=True)
class ActionResult:
    """One decision per host; values are in reward units.

    Attributes:
        actions: int64 ``[B, H]``; 0 in heads that the op does not need.
        head_log_probs: float32 ``[B, H]``, 0 in heads that the op does not need.
        op_probs: Probabilities of the ops ``[B, num_ops]``.
        hidden: State to hand to the next call.
        value: State value ``[B]``; None in a policy without a critic.
        q_value: Q of the op taken ``[B]``, the state value if the critic does not look at the op; None likewise.
    """

    actions: Tensor
    head_log_probs: Tensor
    op_probs: Tensor
    hidden: HiddenState
    value: Tensor | None = None
    q_value: Tensor | None = None

    @property
    def log_prob(self) -> Tensor:
        """Joint log-probability ``[B]``."""
        return self.head_log_probs.sum(dim=-1)


@dataclass(frozen=True)
class EvalResult:
    """What a policy thinks of stored actions.

    Attributes:
        head_log_probs: float32 ``[B, T, H]``, 0 in heads that the stored op does not need, −inf for a choice that
            the policy would never make.
        entropies: Per head ``[B, T, K_h]``, see :meth:`FactoredDistribution.normalised_entropies`.
        value: State values ``[B, T]`` in reward units; None in a policy without a critic.
        hidden: State after the last step.
    """

    head_log_probs: Tensor
    entropies: tuple[Tensor, ...]
    value: Tensor | None
    hidden: HiddenState


@dataclass(frozen=True)
class ForwardResult:
    """What one pass over sequences yields.

    Attributes:
        distribution: Joint distribution per step, leading axes ``[B, T]``.
        hidden: State after the last step.
    """

    distribution: FactoredDistribution
    hidden: HiddenState

    @property
    def value(self) -> Tensor | None:
        """State values ``[B, T]`` in reward units; None, as there is no critic."""
        return None

    def evaluated(self, actions: Tensor) -> EvalResult:
        """What this pass says about stored actions, int64 ``[B, T, H]``."""
        distribution = self.distribution
        return EvalResult(distribution.log_prob(actions), distribution.normalised_entropies(), self.value, self.hidden)


@dataclass(frozen=True)
class ActorCriticResult(ForwardResult):
    """What one pass of a policy with a critic yields.

    Attributes:
        scaled_value: State value v(s) ``[B, T]``, in units of the return scale.
        scaled_q_values: Q(s, op) of every op ``[B, T, num_ops]``, likewise; their mean under the policy is
            ``scaled_value``. None if the critic does not look at the op.
        return_scale: Reward units per unit of the return scale when the pass was made, a scalar, or ``[B, T]`` where
            there are several worlds.
    """

    scaled_value: Tensor
    scaled_q_values: Tensor | None
    return_scale: Tensor

    @property
    def value(self) -> Tensor:
        """State values ``[B, T]`` in reward units."""
        return self.scaled_value * self.return_scale

    def scaled_q_value(self, op: Tensor) -> Tensor:
        """Q(s, op) of the ops ``[B, T]`` in units of the return scale; v(s) if the critic does not look at the op."""
        return self.scaled_value if self.scaled_q_values is None else take_entry(self.scaled_q_values, op)

    def q_value(self, op: Tensor) -> Tensor:
        """Q(s, op) of the ops ``[B, T]`` in reward units; v(s) if the critic does not look at the op."""
        return self.scaled_q_value(op) * self.return_scale
