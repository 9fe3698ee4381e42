"""The strategic policy as it reads recorded observations of several worlds.

Shapes: ``B`` is the number of steps that are read at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from policies.distribution import ActionTables
from policies.strategic.builder import GraphBuilder, vocabulary
from policies.strategic.graph import GraphBatch
from policies.strategic.greenhouse import GreenhouseReader
from policies.strategic.heads import GraphPolicyResult
from policies.strategic.labels import observations_in
from policies.strategic.network import GraphPolicyNetwork
from policies.strategic.normaliser import SCALED_METRICS, MetricNormaliser, metric_sums
from policies.strategic.registries import Capacities, RegistryViews
from policies.strategic.replay_store import Replay
from policies.strategic.seen import Seen


class GraphStudent:
    """A network that reads worlds through their layouts (:class:`policies.strategic.lessons.Student`).

    Args:
        network: Has the weights.
        builder: Makes graphs of what was measured.
        readers: World → who reads its observations.
        seen: What of the graphs is shown to the network; by default everything.
    """

    def __init__(
        self,
        network: GraphPolicyNetwork,
        builder: GraphBuilder,
        readers: Mapping[str, GreenhouseReader],
        seen: Seen | None = None,
    ) -> None:
        self._network, self._builder, self._readers, self._seen = network, builder, readers, seen
        device = next(network.parameters()).device
        self._tables = {world: ActionTables(reader.slots.heads).to(device) for world, reader in readers.items()}

    @property
    def network(self) -> GraphPolicyNetwork:
        """As given."""
        return self._network

    def graphs(self, world: str, observations: Mapping[str, Tensor]) -> GraphBatch:
        """The graphs of B steps of a world."""
        arrays = self._builder.build(self._readers[world].measured(observations))
        if self._seen is not None:
            arrays = self._seen.restrict(arrays, self._tables[world].heads)
        return GraphBatch.from_arrays(arrays)

    def read(self, world: str, observations: Mapping[str, Tensor], imitating: bool = False) -> GraphPolicyResult:
        """What the network says of B steps of a world."""
        result: GraphPolicyResult = self._network(
            self.graphs(world, observations), self._tables[world], imitating=imitating
        )
        return result


@dataclass(frozen=True)
class Survey:
    """What a record shows before anything is learnt from it.

    Attributes:
        builder: With numbers for all names on record, and metrics on the scale that they have in exemplary steps: of
            hosts that were driven into the ground a single one may be a million times off.
        seen: Inputs, ops and blueprints on record.
    """

    builder: GraphBuilder
    seen: Seen

    @classmethod
    def of(
        cls,
        replay: Replay,
        rows: Mapping[str, Tensor],
        readers: Mapping[str, GreenhouseReader],
        batch_size: int,
    ) -> Survey:
        """Look at some steps of a record.

        Args:
            replay: The record.
            rows: World → the steps, some of them exemplary.
            readers: World → who reads its observations.
            batch_size: Steps to look at at a time.

        Raises:
            ValueError: more names than a registry has room for.
        """
        sums = torch.zeros(3, len(SCALED_METRICS), dtype=torch.float64)
        examples = {world: of[replay.worlds[world].exemplary_rows[of]] for world, of in rows.items()}
        for world, observations in _batches(replay, examples, batch_size):
            measured = readers[world].measured(observations)
            sums += metric_sums(torch.cat([measured.number(f"metrics.{name}") for name in SCALED_METRICS], dim=1))
        builder = GraphBuilder(_registries(replay, rows, readers), _normaliser(sums))
        seen = Seen()
        for world, observations in _batches(replay, rows, batch_size):
            reader = readers[world]
            graphs = GraphBatch.from_arrays(builder.build(reader.measured(observations)))
            seen |= Seen.of(graphs, reader.slots.heads)
        return cls(builder, seen)


def _batches(replay: Replay, rows: Mapping[str, Tensor], size: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    for world, of in rows.items():
        for batch in of.split(size):
            yield world, observations_in(replay.worlds[world].take(batch))


def _registries(replay: Replay, rows: Mapping[str, Tensor], readers: Mapping[str, GreenhouseReader]) -> RegistryViews:
    """Numbers for the names of all worlds; each has the same ones at every step."""
    fresh = RegistryViews.fresh(Capacities())
    names = {family: dict.fromkeys(known) for family, known in fresh.names.items()}
    for world, observations in _batches(replay, {world: of[:1] for world, of in rows.items()}, 1):
        for family, new in vocabulary(readers[world].measured(observations)).items():
            names[family].update(dict.fromkeys(new))
    return RegistryViews.of(names, Capacities())


def _normaliser(sums: Tensor) -> MetricNormaliser:
    """Means and variances of what was measured, ``[3, M]``; of what never was, those of a fresh normaliser."""
    normaliser = MetricNormaliser()
    content = normaliser.to_json()
    for metric, (count, total, squares) in zip(SCALED_METRICS, sums.T.tolist(), strict=True):
        if count:
            mean = total / count
            content[metric] = {"mean": mean, "variance": max(squares / count - mean**2, 0.0)}
    normaliser.load_json(content)
    return normaliser
