"""What decides: one protocol for learned, scripted and later kinds of policy.

Shapes: ``B`` is the number of hosts, ``T`` of steps in a row, ``H`` of heads. Observations of :meth:`get_action` have
the leading axis ``[B]``, those of all other methods ``[B, T]``, and no row spans two episodes. Values are in reward
units everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from envs.graph.layout import GraphLayout
from envs.slots import SlotConfig
from policies.network_config import NetworkConfig
from policies.results import ActionResult, EvalResult, ForwardResult, HiddenState

Observations = dict[str, npt.NDArray[Any]]
"""Batched observations of the env, each with leading axis N: ``obs``, ``blueprint_indices`` and ``action_mask``, or
``graph`` and ``action_mask``."""

Actions = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class UnsupportedByPolicyError(NotImplementedError):
    """A policy was asked for something that its kind does not have; the message says what and why."""


@dataclass(frozen=True)
class PolicySettings:
    """Everything that a policy may be built from; each kind reads what it needs.

    Attributes:
        slots: Slots of the task's hosts.
        max_epochs: Steps of an episode.
        network: Of a policy that has one: its widths, and how it is played.
        graph: Of a policy that reads graphs: where everything is in its observations.
        names: Of such a policy: registry family → the names that it knows.
    """

    slots: SlotConfig
    max_epochs: int
    network: NetworkConfig = field(default_factory=NetworkConfig)
    graph: GraphLayout | None = None
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class PolicyBundle(Protocol):
    """Decides for B hosts at once. It keeps nothing between calls: what it remembers is handed in and out.

    :func:`policies.registry.register` checks a class against this protocol; :class:`policies.player.Player` plays
    any that conforms.
    """

    @classmethod
    def build(cls, settings: PolicySettings) -> Self:
        """A fresh policy on torch's default device."""
        ...

    @property
    def is_recurrent(self) -> bool:
        """Whether decisions depend on the hidden state."""
        ...

    @property
    def supports_off_policy(self) -> bool:
        """Whether every admitted action has a positive probability.

        Only then does an action that another policy took have an importance ratio, as V-trace needs it.
        """
        ...

    @property
    def device(self) -> torch.device:
        """Where its tensors are; observations, hidden states and generators must be there too."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Floating type in which it computes."""
        ...

    @property
    def slot_config(self) -> SlotConfig:
        """Slots of the hosts that it decides for."""
        ...

    @property
    def reads_graphs(self) -> bool:
        """Whether the observations that it reads are hosts as graphs, in place of Obs V3."""
        ...

    @property
    def feature_dim(self) -> int:
        """Length of the vector ``obs``, or ``graph``, in the observations that it reads."""
        ...

    @property
    def hidden_dim(self) -> int:
        """Numbers per host in each tensor of the hidden state; 0 if it remembers nothing."""
        ...

    @property
    def network(self) -> nn.Module | None:
        """What has weights; None in a policy without any."""
        ...

    @property
    def is_compiled(self) -> bool:
        """Whether :meth:`compile` was called."""
        ...

    def get_action(
        self,
        obs: Mapping[str, Tensor],
        hidden: HiddenState,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
    ) -> ActionResult:
        """Decide one step, without gradients.

        Args:
            obs: Observation leaves ``[B, ...]``.
            hidden: State after the previous step, or :meth:`initial_hidden`.
            generator: Source of randomness; torch's global one if None.
            deterministic: Take the most probable entry of every head.
        """
        ...

    def forward(self, obs: Mapping[str, Tensor], hidden: HiddenState) -> ForwardResult:
        """Read whole sequences.

        Args:
            obs: Observation leaves ``[B, T, ...]``.
            hidden: State before the first step.
        """
        ...

    def evaluate_actions(self, obs: Mapping[str, Tensor], actions: Tensor, hidden: HiddenState) -> EvalResult:
        """What the policy thinks of stored actions.

        Args:
            obs: Observation leaves ``[B, T, ...]``.
            actions: int64 ``[B, T, H]``.
            hidden: State before the first step.
        """
        ...

    def get_value(self, obs: Mapping[str, Tensor], hidden: HiddenState) -> Tensor:
        """State values ``[B, T]``.

        Raises:
            UnsupportedByPolicyError: the policy has no critic.
        """
        ...

    def initial_hidden(self, batch_size: int) -> HiddenState:
        """The state at the start of an episode; never inference tensors, which no gradient could pass."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that training changes, by name; empty if that is nothing."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state_dict` of the same kind of policy gave.

        Raises:
            RuntimeError: names or shapes are others.
        """
        ...

    def to(self, device: torch.device | str) -> Self:
        """Move to a device; returns itself."""
        ...

    def compile(self) -> None:
        """Let torch compile the network at its next call.

        Raises:
            UnsupportedByPolicyError: the policy has no network.
        """
        ...
