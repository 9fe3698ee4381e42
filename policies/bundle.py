"""What decides: one protocol for learned and scripted policies."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Observations = dict[str, npt.NDArray[Any]]
"""Batched observations of the env: ``obs``, ``blueprint_indices``, ``action_mask``, each with leading axis N."""

Actions = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class Policy(Protocol):
    """Decides for N hosts at once and may remember each host's episode."""

    def reset(self, num_hosts: int, seed: int) -> None:
        """Begin with N fresh hosts.

        Args:
            num_hosts: N.
            seed: Of the policy's own randomness, if it has any.
        """
        ...

    def act(self, observations: Observations) -> Actions:
        """Choose an action that the masks admit for every host.

        Args:
            observations: The hosts' current observations.

        Returns:
            ``[N, num_heads]`` head indices.
        """
        ...
