"""Policies that follow a rule: what the bundle's methods mean where there is no network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from envs.observation import ObservationLayout
from envs.slots import SlotConfig
from envs.vocabulary import LifecycleOp
from policies.bundle import (
    Actions,
    BoolArray,
    Observations,
    PolicySettings,
    UnsupportedByPolicyError,
)
from policies.distribution import ActionTables, FactoredDistribution, masked_log_softmax
from policies.results import ActionResult, EvalResult, ForwardResult, HiddenState

Memory = npt.NDArray[np.float64]
"""What a rule remembers, ``[N, hidden_dim]``."""


class RulePolicy(ABC):
    """A rule in numpy as a bundle (see :class:`policies.bundle.PolicyBundle` for the methods).

    A rule leaves some of the admitted choices and decides uniformly among them. One that always knows what to do
    leaves a single one: that has log-probability 0, and everything else float32's minimum, which is probability 0.
    There is no critic, so values are None and asking for them is an error; there are no weights, so the state dict
    is empty and there is nothing to compile.

    Where a rule remembers something, :meth:`evaluate_actions` lets it remember the stored actions, and
    :meth:`forward`, which is given none, those that the rule would take.

    Args:
        slots: Slots of the hosts.
    """

    def __init__(self, slots: SlotConfig) -> None:
        self._slots, self._heads, self._layout = slots, slots.heads, ObservationLayout(slots)
        self._tables = ActionTables(self._heads)

    @abstractmethod
    def choices(self, observations: Observations, memory: Memory) -> tuple[Tensor, ...]:
        """What the rule leaves: per head bool ``[N, K_h, n_h]``, as in :class:`FactoredDistribution`."""

    def remember(self, observations: Observations, memory: Memory, actions: Actions) -> Memory:
        """The memory after ``actions`` were taken, a new array."""
        return memory

    def decide(self, wants: Mapping[LifecycleOp, BoolArray]) -> tuple[Actions, Actions]:
        """What each host does, and where: of the ops that it may want the last one, in the first slot; else WAIT.

        Args:
            wants: Op → ``[N, S]`` where it is wanted and admitted.

        Returns:
            Op and slot, ``[N]`` each.
        """
        hosts = len(next(iter(wants.values())))
        op, slot = np.full(hosts, int(LifecycleOp.WAIT)), np.zeros(hosts, np.int64)
        for kind, where in wants.items():
            chosen = where.any(axis=1)
            op, slot = np.where(chosen, kind, op), np.where(chosen, where.argmax(axis=1), slot)
        return op, slot

    def assemble(self, op: Actions, arguments: Mapping[str, npt.ArrayLike]) -> Actions:
        """Actions ``[N, H]`` of ops and what they need: 0 in heads that the op does not need, or that are not named.

        Args:
            op: ``[N]``.
            arguments: Name of a head → its entries, ``[N]`` or one for all.
        """
        columns = [np.where(np.isin(op, head.needed_by), arguments.get(head.name, 0), 0) for head in self._heads[1:]]
        return np.stack([op, *columns], axis=1).astype(np.int64)

    def certain(self, actions: Actions) -> tuple[Tensor, ...]:
        """Choices that leave nothing but the actions ``[N, H]``."""
        taken = torch.from_numpy(actions)
        needs, row = self._tables.needs.cpu(), self._tables.rows.cpu()
        hosts, op = torch.arange(len(taken)), taken[:, 0]
        tables = []
        for column, head in enumerate(self._heads):
            rows = 1 if column == 0 else len(head.needed_by)
            table = torch.zeros(len(taken), rows, head.size, dtype=torch.bool)
            table[hosts, row[op, column], taken[:, column]] = needs[op, column]
            tables.append(table)
        return tuple(tables)

    # ------------------------------------------------------------------ the bundle
    @classmethod
    def build(cls, settings: PolicySettings) -> Self:
        """For the slots of the settings."""
        return cls(settings.slots)

    @property
    def is_recurrent(self) -> bool:
        """Whether the rule remembers something."""
        return self.hidden_dim > 0

    @property
    def supports_off_policy(self) -> bool:
        """A rule that always knows what to do gives everything else probability 0."""
        return False

    @property
    def device(self) -> torch.device:
        """Of the results; the rule itself works on the CPU."""
        return self._tables.needs.device

    @property
    def dtype(self) -> torch.dtype:
        """Of log-probabilities."""
        return torch.float32

    @property
    def slot_config(self) -> SlotConfig:
        """As given."""
        return self._slots

    @property
    def reads_graphs(self) -> bool:
        """Rules read Obs V3, unless they say otherwise."""
        return False

    @property
    def feature_dim(self) -> int:
        """Length of ``obs``."""
        return self._layout.size

    @property
    def hidden_dim(self) -> int:
        """Nothing is remembered unless a rule says so."""
        return 0

    @property
    def network(self) -> None:
        """There is none."""
        return None

    @property
    def is_compiled(self) -> bool:
        """There is nothing to compile."""
        return False

    def get_action(
        self,
        obs: Mapping[str, Tensor],
        hidden: HiddenState,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
    ) -> ActionResult:
        """Decide among the choices that the rule leaves."""
        observations, memory = _arrays(obs), self._memory(hidden, len(obs["action_mask"]))
        distribution = self._distribution(observations, memory)
        actions = distribution.sample(generator, deterministic)
        memory = self.remember(observations, memory, actions.cpu().numpy())
        return ActionResult(
            actions=actions,
            head_log_probs=distribution.log_prob(actions),
            op_probs=distribution.op_log_probs.exp(),
            hidden=self._hidden(memory),
        )

    def forward(self, obs: Mapping[str, Tensor], hidden: HiddenState) -> ForwardResult:
        """Step by step; the rule remembers what it would do."""
        return self._read(obs, hidden, None)

    def evaluate_actions(self, obs: Mapping[str, Tensor], actions: Tensor, hidden: HiddenState) -> EvalResult:
        """Step by step; the rule remembers what was done."""
        return self._read(obs, hidden, actions).evaluated(actions)

    def get_value(self, obs: Mapping[str, Tensor], hidden: HiddenState) -> Tensor:
        """Always an error."""
        raise UnsupportedByPolicyError(
            f"{type(self).__name__} follows a rule and has no critic: only a learned policy has state values"
        )

    def initial_hidden(self, batch_size: int) -> HiddenState:
        """Zeros, float64; no tensor at all if the rule remembers nothing."""
        with torch.inference_mode(False):
            return self._hidden(np.zeros((batch_size, self.hidden_dim)))

    def state_dict(self) -> dict[str, Tensor]:
        """Training changes nothing in a rule."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Only the empty one fits."""
        if state:
            raise RuntimeError(f"{type(self).__name__} follows a rule and has no weights, got {', '.join(state)}")

    def to(self, device: torch.device | str) -> Self:
        """Where results go."""
        self._tables.to(device)
        return self

    def compile(self) -> None:
        """Always an error."""
        raise UnsupportedByPolicyError(f"{type(self).__name__} follows a rule and has no network to compile")

    # ------------------------------------------------------------------ between the two
    def _distribution(self, observations: Observations, memory: Memory) -> FactoredDistribution:
        masks = tuple(table.to(self.device) for table in self.choices(observations, memory))
        log_probs = tuple(masked_log_softmax(torch.zeros_like(mask, dtype=self.dtype), mask) for mask in masks)
        return FactoredDistribution(log_probs, masks, self._tables)

    def _read(self, obs: Mapping[str, Tensor], hidden: HiddenState, actions: Tensor | None) -> ForwardResult:
        batch, steps = obs["action_mask"].shape[:2]
        memory, distributions = self._memory(hidden, batch), []
        for step in range(steps):
            observations = _arrays({name: leaf[:, step] for name, leaf in obs.items()})
            distribution = self._distribution(observations, memory)
            taken = distribution.sample(deterministic=True) if actions is None else actions[:, step]
            memory = self.remember(observations, memory, taken.cpu().numpy())
            distributions.append(distribution)
        joint = FactoredDistribution(
            _stack([distribution.log_probs for distribution in distributions]),
            _stack([distribution.masks for distribution in distributions]),
            self._tables,
        )
        return ForwardResult(joint, self._hidden(memory))

    def _memory(self, hidden: HiddenState, batch_size: int) -> Memory:
        return hidden[0].cpu().numpy() if self.is_recurrent else np.zeros((batch_size, 0))

    def _hidden(self, memory: Memory) -> HiddenState:
        return (torch.from_numpy(memory).to(self.device),) if self.is_recurrent else ()


def _arrays(obs: Mapping[str, Tensor]) -> Observations:
    return {name: leaf.cpu().numpy() for name, leaf in obs.items()}


def _stack(steps: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Per head the steps' tables ``[B, ...]`` as one ``[B, T, ...]``."""
    return tuple(torch.stack(tables, dim=1) for tables in zip(*steps, strict=True))
