"""What is known of a host as one vector of numbers, with views by name.

The graph of a world's hosts is the same for all of them, so that its nodes, edges and names stand in the layout; a
vector holds what differs between hosts and epochs. It begins with a 1: a row of zeros, as RLlib pads with, is no host.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from envs.graph.structure import GraphStructure
from envs.observation import ObservationLayout
from envs.population.optimizer import MOMENTUM
from envs.tasks.base import Task

UNKNOWN = float(np.finfo(np.float32).min)
"""Stands in a vector for what was not measured, since RLlib's spaces take no NaN. No measurement is as small."""

OBSERVATION, BLUEPRINTS = "run.observation", "run.blueprint_indices"
"""Keys of what the flat policy reads: Obs V3 and the blueprint in each slot, -1 for none."""

MAX_EPOCHS = "run.max_epochs"
"""Key of the episode's length, of which Obs V3 tells times as shares only."""

METRICS = ("loss", "gradient_norm", "loss_delta", "loss_volatility", "grad_var", "optimizer_lr")
"""Metrics of the whole host that are measured; a packet knows more."""


@dataclass(frozen=True)
class GraphLayout:
    """Where everything is in the vectors of one world's hosts.

    Keys are those of a packet (docs/packet.md), TYPE.FIELD, with the same units; rows are those of the structure's
    tables. ``seeds`` have a row per slot, ``metrics`` one row.

    Attributes:
        structure: Nodes and edges of the hosts.
    """

    structure: GraphStructure

    @classmethod
    def of(cls, task: Task) -> GraphLayout:
        """Of a task's hosts; their data are not looked at."""
        return cls(GraphStructure.of(task))

    @cached_property
    def rows(self) -> dict[str, int]:
        """Type of node or edge → rows of its table."""
        structure = self.structure
        nodes = {
            "layers": len(structure.layers),
            "activations": len(structure.activations),
            "parameters": len(structure.names["parameters.name"]),
            "seeds": structure.slots.num_slots,
            "metrics": 1,
        }
        return nodes | {name: len(ends) for name, ends in structure.edges.items()}

    @cached_property
    def places(self) -> dict[str, slice]:
        """Where each key's numbers are."""
        num_slots = self.structure.slots.num_slots
        sizes = {OBSERVATION: ObservationLayout(self.structure.slots).size, BLUEPRINTS: num_slots, MAX_EPOCHS: 1}
        sizes |= {key: self.rows[key.partition(".")[0]] for key in MEASURED}
        ends = (1 + np.cumsum(list(sizes.values()))).tolist()
        return {key: slice(end - size, end) for (key, size), end in zip(sizes.items(), ends, strict=True)}

    @property
    def size(self) -> int:
        """Length of a vector."""
        return max(place.stop for place in self.places.values())

    @cached_property
    def constants(self) -> dict[str, npt.NDArray[np.float32]]:
        """What is the same for all hosts at all times, one number per row."""
        structure, rows = self.structure, self.rows
        reads, is_read = structure.degrees
        layers, slots = rows["layers"], range(rows["seeds"])
        readers = np.bincount(structure.edges["influences"][:, 0], minlength=rows["activations"])
        values = {
            "layers.dropout_rate": np.zeros(layers),
            "layers.in_degree": reads,
            "layers.out_degree": is_read,
            "layers.depth": np.arange(layers) / max(1, layers - 1),
            "parameters.momentum": np.full(rows["parameters"], MOMENTUM),
            # What a layer reads is added up before it comes in, so that all of its weights read each source.
            "connects.connection_strength": np.ones(rows["connects"]),
            # Of several readers each has a share, which is not measured.
            "influences.gradient_contribution": np.where(
                readers[structure.edges["influences"][:, 0]] == 1, 1.0, np.nan
            ),
            "seeds.layer_depth": np.array([structure.beside(slot)[1] / layers for slot in slots]),
            "seeds.scope": np.array([len(structure.beside(slot)) / layers for slot in slots]),
            "monitors.monitoring_frequency": np.ones(rows["monitors"]),
        }
        return {key: numbers.astype(np.float32) for key, numbers in values.items()}

    def present(self, vectors: Tensor) -> Tensor:
        """Which vectors are of a host, and not padding: bool ``[N]`` of ``[N, size]``."""
        return vectors[:, 0] == 1.0

    def views(self, vectors: Tensor) -> dict[str, Tensor]:
        """The numbers by key, ``[N, rows]``, NaN where not measured.

        Args:
            vectors: ``[N, size]``.
        """
        known = vectors.where(vectors != UNKNOWN, torch.nan)
        both = torch.cat([known, self._constant_row.to(vectors.device).expand(len(vectors), -1)], dim=1)
        sizes = [place.stop - place.start for place in self.places.values()]
        parts = both.split([1, *sizes, *map(len, self.constants.values())], dim=1)
        return dict(zip((*self.places, *self.constants), parts[1:], strict=True))

    @cached_property
    def _constant_row(self) -> Tensor:
        return torch.from_numpy(np.concatenate(list(self.constants.values())))


MEASURED = (
    *(f"layers.{name}" for name in ("input_channels", "output_channels")),
    *(f"layers.{name}" for name in ("weight_norm", "gradient_norm", "update_frequency", "loss_share")),
    *(f"activations.{name}" for name in ("saturation_rate", "gradient_flow", "computational_cost")),
    *(f"parameters.{name}" for name in ("count", "learning_rate", "gradient_variance")),
    "connects.data_flow_volume",
    *(f"feeds.{name}" for name in ("activation_frequency", "saturation_events")),
    "influences.nonlinearity_strength",
    *(f"tunes.{name}" for name in ("update_magnitude", "convergence_rate")),
    *(f"seeds.{name}" for name in ("learning_rate", "activity_level", "success_rate")),
    *(f"metrics.{name}" for name in METRICS),
)
"""Keys of what a vector holds behind Obs V3, the blueprints and the episode's length."""
