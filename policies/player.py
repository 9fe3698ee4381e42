"""Plays a policy in a world of numpy arrays: the one driver of every bundle outside RLlib."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from policies.bundle import Actions, Observations, PolicyBundle


class Player:
    """One episode of N hosts: keeps the policy's hidden state and randomness between its decisions.

    Args:
        policy: Decides.
        num_hosts: N.
        seed: Of the policy's own randomness, if it has any.
        deterministic: Take the most probable op and arguments instead of drawing.
    """

    def __init__(self, policy: PolicyBundle, num_hosts: int, seed: int, deterministic: bool = False) -> None:
        self._policy, self._deterministic = policy, deterministic
        self._hidden = policy.initial_hidden(num_hosts)
        self._generator = torch.Generator(policy.device).manual_seed(seed)

    def act(self, observations: Observations) -> Actions:
        """Choose an action that the masks admit for every host.

        Args:
            observations: The hosts' current observations.

        Returns:
            ``[N, num_heads]`` head indices.
        """
        device = self._policy.device
        tensors = {name: torch.from_numpy(values).to(device) for name, values in observations.items()}
        result = self._policy.get_action(tensors, self._hidden, self._generator, self._deterministic)
        self._hidden = result.hidden
        return result.actions.cpu().numpy()

    def state_dict(self) -> dict[str, Any]:
        """What the next decision depends on, beside the policy: tensors."""
        return {"hidden": [tensor.clone() for tensor in self._hidden], "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the player that gave :meth:`state_dict`.

        Raises:
            ValueError: a hidden state of another shape.
        """
        given, own = ([tuple(tensor.shape) for tensor in hidden] for hidden in (state["hidden"], self._hidden))
        if given != own:
            raise ValueError(f"the policy remembers tensors of shapes {own}, got {given}: it is another policy's state")
        self._hidden = tuple(tensor.to(self._policy.device) for tensor in state["hidden"])
        self._generator.set_state(state["generator"].cpu())
