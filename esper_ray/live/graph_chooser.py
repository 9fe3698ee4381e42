"""A policy of graphs in somebody's own loop: it reads what a probe measures of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from envs.live.errors import LiveError
from envs.slots import SlotConfig
from esper_ray.live.choosing import Choice, Training
from esper_ray.live.grower import Grower
from esper_ray.live.late_probe import LateProbe
from esper_ray.live.policies import GraphDecider
from policies.bundle import Observations
from policies.strategic.inference import StrategicPolicy


class GraphChooser:
    """A strategic policy that chooses; see :class:`esper_ray.live.grower.Chooser` for the methods.

    How a seed is blended in is what the action's style says, as where such a policy is evaluated.

    Args:
        decider: Which.
        training: What is grown.
        seed: Of its draws.
        deterministic: Take the likeliest action instead of drawing one.
    """

    def __init__(self, decider: GraphDecider, training: Training, seed: int, deterministic: bool) -> None:
        self.name, self._probe, self._deterministic = decider.name, LateProbe(training, decider.name), deterministic
        self._policy = StrategicPolicy(decider.checkpoint)
        # That log is of senders that leave out what they declare; this probe is ours, and at first nothing has moved.
        self._run = self._policy.open_run(self.name, log_coverage=False)
        self._generator = torch.Generator().manual_seed(seed)

    def slots_of(self, count: int) -> SlotConfig:
        """As many as the host has."""
        return SlotConfig.for_row(count)

    def choose(self, grower: Grower, observations: Observations) -> Choice:
        """Measure and act, until the governor has stopped the run.

        What cannot be measured from the start is refused; where a probe fails later, nothing is done with that epoch.

        Raises:
            LiveError: the model cannot be measured.
        """
        if grower.stopped:
            return Choice()
        probe = self._probe.of(grower)
        try:
            packet = probe.end_epoch(training_loss=grower.training_loss, samples=grower.samples)
        except LiveError as error:
            return Choice(note=f"not measured, and left alone: {error}")
        distribution = self._run.read(packet).result.distribution
        action = distribution.sample(self._generator, self._deterministic)[0]
        self._run.commit()
        return Choice(action.numpy())

    def begun(self, grower: Grower) -> None:
        """Nothing to remember."""

    def end(self) -> None:
        """Watch the model no longer."""
        self._probe.remove()

    def state_dict(self) -> dict[str, Any]:
        """Its draws, the run's scale, and what the probe remembers."""
        return {
            "generator": self._generator.get_state(),
            "scale": self._run.scale,
            "probe": self._probe.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the one that gave :meth:`state_dict`."""
        run = self._policy.open_run(self.name, state["scale"], log_coverage=False)
        self._probe.load_state_dict(state["probe"])
        self._run = run
        self._generator.set_state(state["generator"].cpu())
