"""The trained network as a policy outside RLlib: weights from a file, nothing unpickled but tensors."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch

from envs.observation import ObservationLayout
from envs.slots import SlotConfig
from policies.bundle import Actions, Observations
from policies.encoders import BlueprintEncoder
from policies.network import NetworkConfig, RecurrentPolicyNetwork


def build_network(slots: SlotConfig, config: NetworkConfig) -> RecurrentPolicyNetwork:
    """A network for our world, whose sizes follow from the slots."""
    encoder = BlueprintEncoder(
        ObservationLayout(slots).size, slots.num_slots, len(slots.blueprints), config.embedding_dim
    )
    return RecurrentPolicyNetwork(slots.heads, encoder, config)


class LearnedPolicy:
    """Draws from the network's distribution, or takes its mode.

    Args:
        network: With trained weights.
        deterministic: Take the most probable op and arguments instead of drawing.
    """

    def __init__(self, network: RecurrentPolicyNetwork, deterministic: bool = False) -> None:
        self.network, self.deterministic = network.eval(), deterministic
        self.reset(0, 0)

    @classmethod
    def load(
        cls, weights: Path, slots: SlotConfig, config: NetworkConfig, deterministic: bool = False
    ) -> LearnedPolicy:
        """Read weights that :func:`save_weights` wrote.

        Raises:
            ValueError: the file does not hold a network of these sizes.
        """
        network = build_network(slots, config)
        try:
            network.load_state_dict(torch.load(weights, weights_only=True))
        except (RuntimeError, KeyError, AttributeError, TypeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"{weights} does not hold a policy for {slots.num_slots} slots with {config}: use the config it was "
                "trained with, or train anew"
            ) from error
        return cls(network, deterministic)

    def reset(self, num_hosts: int, seed: int) -> None:
        """See :class:`policies.bundle.Policy`."""
        self._hidden = self.network.initial_hidden(num_hosts)
        self._generator = torch.Generator().manual_seed(seed)

    def act(self, observations: Observations) -> Actions:
        """See :class:`policies.bundle.Policy`."""
        tensors = {name: torch.from_numpy(values) for name, values in observations.items()}
        result = self.network.act(tensors, self._hidden, self._generator, self.deterministic)
        self._hidden = result.hidden
        return result.actions.numpy()


def save_weights(network: RecurrentPolicyNetwork, path: Path) -> None:
    """Write the weights as a plain state dict."""
    torch.save(network.state_dict(), path)
