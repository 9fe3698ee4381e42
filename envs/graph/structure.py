"""The graph of a task's hosts, as far as it is the same for all of them: nodes, edges, and where the slots stand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from envs.hosts.structure import HostLayer
from envs.slots import SlotConfig
from envs.tasks.base import Task

IntArray = npt.NDArray[np.int64]

OPTIMIZER_FAMILY = "sgd"
"""The optimiser that trains every host."""
GROUP = "host"
"""The one group of parameters of a host's optimiser; those of seeds, which come and go, have no node."""


@dataclass(frozen=True)
class GraphStructure:
    """Nodes and edges of the hosts of one world.

    Attributes:
        slots: The hosts' slots.
        topology: Of the hosts: it says which blueprints they have.
        layers: The layers, in the order in which data pass them: a node each.
    """

    slots: SlotConfig
    topology: str
    layers: tuple[HostLayer, ...]

    @classmethod
    def of(cls, task: Task) -> GraphStructure:
        """Of a task's hosts; their data are not looked at."""
        return cls(task.slots, task.host.topology, task.host.layers(task.host.widest))

    @cached_property
    def activations(self) -> tuple[HostLayer, ...]:
        """The layers that an activation function follows: a node each, of the function."""
        return tuple(layer for layer in self.layers if layer.activation is not None)

    @cached_property
    def names(self) -> dict[str, tuple[str | None, ...]]:
        """Names under a packet's keys, one per row; None where there is nothing to name."""
        return {
            "layers.name": tuple(layer.name for layer in self.layers),
            "layers.layer_type": tuple(layer.layer_type for layer in self.layers),
            "layers.activation_type": tuple(layer.activation for layer in self.layers),
            "activations.name": tuple(f"{layer.name}_{layer.activation}" for layer in self.activations),
            "activations.activation_type": tuple(layer.activation for layer in self.activations),
            "parameters.name": (GROUP,),
            "parameters.optimizer_family": (OPTIMIZER_FAMILY,),
        }

    @cached_property
    def edges(self) -> dict[str, IntArray]:
        """Relation → rows of source and target, int64 ``[e, 2]``.

        A slot *monitors* the layers that stand next to it, the last before it and the first behind it.
        """
        row = {layer.name: at for at, layer in enumerate(self.layers)}
        function = {layer.name: at for at, layer in enumerate(self.activations)}
        reading = [(name, layer.name) for layer in self.layers for name in layer.reads]
        slots = range(self.slots.num_slots)
        edges = {
            "connects": [(row[source], row[target]) for source, target in reading],
            "feeds": [(row[name], at) for name, at in function.items()],
            "influences": [(function[source], row[target]) for source, target in reading if source in function],
            "tunes": [(0, at) for at in row.values()],
            "monitors": [(slot, at) for slot in slots for at in self.beside(slot)],
        }
        return {name: np.array(ends, np.int64).reshape(-1, 2) for name, ends in edges.items()}

    def beside(self, slot: int) -> tuple[int, int]:
        """Rows of the last layer before a slot and of the first behind it."""
        first_behind = sum(layer.segment <= slot for layer in self.layers)
        return first_behind - 1, first_behind

    @cached_property
    def degrees(self) -> tuple[IntArray, IntArray]:
        """Layers that each layer reads, and that read it."""
        source, target = self.edges["connects"].T
        size = len(self.layers)
        return np.bincount(target, minlength=size), np.bincount(source, minlength=size)
