"""What every network of actor and critic is to those who train and play it. Plain torch, without RLlib."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from envs.vocabulary import HeadSpec
from policies.network_config import NetworkConfig
from policies.normalisers import Normalisers
from policies.results import ActionResult, ActorCriticResult, HiddenState
from policies.return_scale import ReturnScale


class PolicyNetwork(nn.Module, ABC):
    """A policy over a factored action, with a critic.

    Attributes:
        head_specs: Parts of the action, op first.
        config: Widths, and how it is played.
        return_scale: Says what the critic's outputs mean.
        normalisers: All its running scales; the learner shows them every rollout.
    """

    head_specs: tuple[HeadSpec, ...]
    config: NetworkConfig
    return_scale: ReturnScale
    normalisers: Normalisers

    @property
    @abstractmethod
    def hidden_dim(self) -> int:
        """Numbers per host in each tensor of the hidden state; 0 without memory."""

    @abstractmethod
    def forward(self, obs: Mapping[str, Tensor], hidden: HiddenState) -> ActorCriticResult:
        """Read whole sequences.

        Args:
            obs: Observation leaves with leading axes ``[B, T]``; no sequence spans two episodes.
            hidden: State before the first step.

        Returns:
            Distribution and values of every step.
        """

    def initial_hidden(self, batch_size: int) -> HiddenState:
        """The state at the start of an episode: zeros, on the network's device."""
        zeros = next(self.parameters()).new_zeros(batch_size, self.hidden_dim)
        return zeros, zeros.clone()

    @torch.no_grad()
    def act(
        self,
        obs: Mapping[str, Tensor],
        hidden: HiddenState,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
        temperature: float = 1.0,
    ) -> ActionResult:
        """Decide one step for a batch of hosts.

        Args:
            obs: Observation leaves with leading axis ``[B]``.
            hidden: State after the previous step, or :meth:`initial_hidden` at the start of an episode.
            generator: Source of randomness; torch's global one if None.
            deterministic: Take the most probable entry of every head.
            temperature: Of the distribution that is drawn from, see :meth:`FactoredDistribution.at_temperature`.

        Returns:
            Actions, their log-probabilities, V(s) and Q(s, op drawn).
        """
        output: ActorCriticResult = self({name: leaf.unsqueeze(1) for name, leaf in obs.items()}, hidden)
        distribution = output.distribution.at_temperature(temperature)
        actions = distribution.sample(generator, deterministic)
        return ActionResult(
            actions=actions.squeeze(1),
            head_log_probs=distribution.log_prob(actions).squeeze(1),
            op_probs=distribution.op_log_probs.exp().squeeze(1),
            hidden=output.hidden,
            value=output.value.squeeze(1),
            q_value=output.q_value(actions[..., 0]).squeeze(1),
        )
