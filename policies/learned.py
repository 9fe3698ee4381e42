"""The trained network as a policy bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from envs.observation import ObservationLayout
from envs.slots import SlotConfig
from policies.bundle import PolicySettings
from policies.encoders import BlueprintEncoder
from policies.network import RecurrentPolicyNetwork
from policies.network_config import NetworkConfig
from policies.policy_network import PolicyNetwork
from policies.registry import register
from policies.results import ActionResult, ActorCriticResult, EvalResult, HiddenState
from policies.strategic.actor_critic import GraphActorCritic, GraphWorlds

LEARNED = "learned"
"""Name of the trained policy in the registry."""


def build_network(slots: SlotConfig, config: NetworkConfig) -> RecurrentPolicyNetwork:
    """A network for Obs V3, whose sizes follow from the slots."""
    encoder = BlueprintEncoder(
        ObservationLayout(slots).size, slots.num_slots, len(slots.blueprints), config.embedding_dim
    )
    return RecurrentPolicyNetwork(slots.heads, encoder, config)


def build_graph_network(settings: PolicySettings) -> GraphActorCritic:
    """A network that plays hosts of one world, and nothing that its training never showed.

    Raises:
        ValueError: it is not said what the hosts' graphs are.
    """
    if settings.graph is None:
        raise ValueError("a policy that reads graphs needs the layout of its world's: give PolicySettings.graph")
    worlds = GraphWorlds((settings.graph,), settings.names)
    return GraphActorCritic(settings.slots.heads, worlds, settings.network, only_seen=True)


@register(LEARNED)
class LearnedPolicy:
    """The trained network (see :class:`policies.bundle.PolicyBundle` for the methods).

    Args:
        slots: Slots of the hosts.
        network: Built for these slots.
    """

    def __init__(self, slots: SlotConfig, network: PolicyNetwork) -> None:
        self._slots, self._network = slots, network
        self._temperature = network.config.play_temperature
        self._compiled = False

    @classmethod
    def build(cls, settings: PolicySettings) -> Self:
        """With fresh weights."""
        if settings.network.kind == "graph":
            return cls(settings.slots, build_graph_network(settings))
        return cls(settings.slots, build_network(settings.slots, settings.network))

    @property
    def is_recurrent(self) -> bool:
        """Whether the network has a state."""
        return self._network.hidden_dim > 0

    @property
    def supports_off_policy(self) -> bool:
        """A softmax gives every admitted entry a positive probability."""
        return True

    @property
    def device(self) -> torch.device:
        """That of the weights."""
        return next(self._network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """That of the weights."""
        return next(self._network.parameters()).dtype

    @property
    def slot_config(self) -> SlotConfig:
        """As given."""
        return self._slots

    @property
    def reads_graphs(self) -> bool:
        """As its network does."""
        return isinstance(self._network, GraphActorCritic)

    @property
    def feature_dim(self) -> int:
        """Length of ``graph``, or of ``obs``, beside which the blueprints come."""
        if isinstance(self._network, GraphActorCritic):
            return self._network.layouts[0].size
        return ObservationLayout(self._slots).size

    @property
    def hidden_dim(self) -> int:
        """As the network's."""
        return self._network.hidden_dim

    @property
    def network(self) -> PolicyNetwork:
        """The plain torch network."""
        return self._network

    @property
    def is_compiled(self) -> bool:
        """Whether :meth:`compile` was called."""
        return self._compiled

    def get_action(
        self,
        obs: Mapping[str, Tensor],
        hidden: HiddenState,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
    ) -> ActionResult:
        """Draw from the network's distribution at its temperature, or take its mode."""
        return self._network.act(obs, hidden, generator, deterministic, self._temperature)

    def forward(self, obs: Mapping[str, Tensor], hidden: HiddenState) -> ActorCriticResult:
        """One pass, with gradients."""
        result: ActorCriticResult = self._network(obs, hidden)
        return replace(result, distribution=result.distribution.at_temperature(self._temperature))

    def evaluate_actions(self, obs: Mapping[str, Tensor], actions: Tensor, hidden: HiddenState) -> EvalResult:
        """One pass, with gradients; reproduces the log-probabilities of :meth:`get_action`."""
        return self.forward(obs, hidden).evaluated(actions)

    def get_value(self, obs: Mapping[str, Tensor], hidden: HiddenState) -> Tensor:
        """The critic's V(s)."""
        return self.forward(obs, hidden).value

    def initial_hidden(self, batch_size: int) -> HiddenState:
        """Zeros; ordinary tensors even within inference mode."""
        with torch.inference_mode(False):
            return self._network.initial_hidden(batch_size)

    def state_dict(self) -> dict[str, Tensor]:
        """Weights and running scales."""
        return self._network.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing may be missing or unknown."""
        self._network.load_state_dict(state)

    def to(self, device: torch.device | str) -> Self:
        """Move weights and tables."""
        self._network.to(device)
        return self

    def compile(self) -> None:
        """Compile the network's pass."""
        self._network.compile()
        self._compiled = True
