"""The probe of whoever chooses for a grower: made with the first choice, when there is a grower to watch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from esper_ray.live.choosing import Training
from esper_ray.live.grower import Grower
from esper_ray.live.probe import Probe


class LateProbe:
    """A probe to be.

    Args:
        training: What is to be watched.
        run_id: Of its packets.
    """

    def __init__(self, training: Training, run_id: str = "run") -> None:
        self._training, self._run_id = training, run_id
        self._probe: Probe | None = None

    def of(self, grower: Grower) -> Probe:
        """The probe of this grower, the same every time.

        Raises:
            LiveError: the model cannot be measured; only the first time.
        """
        if self._probe is None:
            given = self._training
            self._probe = Probe(
                given.model,
                given.optimizer,
                given.example,
                grower=grower,
                run_id=self._run_id,
                batch_axis=given.batch_axis,
            )
        return self._probe

    def remove(self) -> None:
        """Watch the model no longer."""
        if self._probe is not None:
            self._probe.remove()

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`esper_ray.live.probe.Probe.state_dict`."""
        return self._made.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`esper_ray.live.probe.Probe.load_state_dict`."""
        self._made.load_state_dict(state)

    @property
    def _made(self) -> Probe:
        assert self._probe is not None, "a grower chooses as it is made"
        return self._probe
