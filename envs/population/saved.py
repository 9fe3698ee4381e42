"""Copies of a population's hosts and fossils."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from envs.lifecycle import Lifecycle
from envs.population.bank import MemberRows
from envs.population.population import Population
from envs.vocabulary import AlphaAlgorithm, Blueprint

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


class SavedPopulation:
    """Parameters, momentum and running statistics of each member (see :class:`envs.snapshots.SavedWeights`)."""

    def __init__(self, population: Population) -> None:
        self._population = population
        self._flat = torch.zeros_like(population.flat)
        self._momentum = torch.zeros_like(population.momentum)
        self._buffers = {name: torch.zeros_like(buffer) for name, buffer in population.buffers.items()}
        self._fossils: dict[tuple[int, Blueprint], MemberRows] = {}

    def forget(self, hosts: IntArray) -> None:
        """See :class:`envs.snapshots.SavedWeights`."""
        chosen = self._population.marked(hosts)
        kept = {key: rows.only(~chosen) for key, rows in self._fossils.items()}
        self._fossils = {key: rows for key, rows in kept.items() if len(rows.members)}

    def save(self, hosts: IntArray, fossils: BoolArray) -> None:
        """See :class:`envs.snapshots.SavedWeights`."""
        population = self._population
        index = torch.from_numpy(hosts).to(population.device)
        for saved, live in self._tensors():
            saved[index] = live[index]
        self.forget(hosts)
        chosen = population.marked(hosts)
        for key, bank in population.banks.items():
            rows = bank.rows.only(chosen & fossils[:, key[0]])
            if len(rows.members):
                self._fossils[key] = self._fossils[key].merged(rows) if key in self._fossils else rows

    def restore(self, hosts: IntArray, lifecycle: Lifecycle) -> None:
        """See :class:`envs.snapshots.SavedWeights`."""
        population = self._population
        index = torch.from_numpy(hosts).to(population.device)
        for saved, live in self._tensors():
            live[index] = saved[index]
        chosen = population.marked(hosts)
        for bank in population.banks.values():
            bank.drop(chosen)
        gated = lifecycle.algorithm == AlphaAlgorithm.GATE
        for (slot, blueprint), rows in self._fossils.items():
            saved_rows = rows.only(chosen)
            if len(saved_rows.members):
                population.bank(slot, blueprint).adopt(saved_rows, gated[:, slot], lifecycle.internal_level[:, slot])
        population.sync(lifecycle)

    def _tensors(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        live = self._population
        pairs = [(self._flat, live.flat), (self._momentum, live.momentum)]
        return pairs + [(self._buffers[name], live.buffers[name]) for name in self._buffers]
