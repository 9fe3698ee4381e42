"""The last healthy state of each host and its fossils, for the governor's rollback."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from envs.episode_state import EpisodeState
from envs.lifecycle import Lifecycle
from envs.population.bank import MemberRows
from envs.population.population import Population
from envs.vocabulary import AlphaAlgorithm, Blueprint, SeedStage

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


class Snapshots(EpisodeState):
    """One snapshot per member, taken and restored for any set of members at once."""

    def __init__(self, population: Population, num_slots: int) -> None:
        self._population = population
        self._flat = torch.zeros_like(population.flat)
        self._momentum = torch.zeros_like(population.momentum)
        self._buffers = {name: torch.zeros_like(buffer) for name, buffer in population.buffers.items()}
        self._fossils: dict[tuple[int, Blueprint], MemberRows] = {}
        self._fossilized = np.zeros((population.num_members, num_slots), bool)

    def start(self, members: IntArray) -> None:
        """Forget these members' snapshots; the next one is taken of the hosts as they are drawn."""
        chosen = self._population.marked(members)
        self._fossilized[members] = False
        kept = {key: rows.only(~chosen) for key, rows in self._fossils.items()}
        self._fossils = {key: rows for key, rows in kept.items() if len(rows.members)}

    def lacks(self, lifecycle: Lifecycle) -> BoolArray:
        """``[N]`` members with a fossil that is not in their snapshot."""
        return ((lifecycle.stage == SeedStage.FOSSILIZED) & ~self._fossilized).any(axis=1)

    def take(self, members: IntArray, lifecycle: Lifecycle) -> None:
        """Save these members' hosts and fossilised seeds (parameters, momentum, running statistics)."""
        population = self._population
        index = torch.from_numpy(members).to(population.device)
        for saved, live in self._tensors():
            saved[index] = live[index]
        chosen = self._population.marked(members)
        self._fossilized[members] = lifecycle.stage[members] == SeedStage.FOSSILIZED
        kept = {key: rows.only(~chosen) for key, rows in self._fossils.items()}
        for key, bank in population.banks.items():
            rows = bank.rows.only(chosen & self._fossilized[:, key[0]])
            kept[key] = kept[key].merged(rows) if key in kept else rows
        self._fossils = {key: rows for key, rows in kept.items() if len(rows.members)}

    def restore(self, members: IntArray, lifecycle: Lifecycle) -> None:
        """Bring these members back to their snapshot; every seed that is not in it is gone."""
        population = self._population
        index = torch.from_numpy(members).to(population.device)
        for saved, live in self._tensors():
            live[index] = saved[index]
        chosen = self._population.marked(members)
        lifecycle.roll_back(members, self._fossilized[members])
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
