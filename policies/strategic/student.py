"""The strategic policy as it reads recorded observations of several worlds.

Shapes: ``B`` is the number of steps that are read at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from policies.distribution import ActionTables
from policies.strategic.builder import GraphBuilder, numbered
from policies.strategic.graph import GraphBatch
from policies.strategic.greenhouse import GreenhouseReader
from policies.strategic.heads import GraphPolicyResult
from policies.strategic.labels import observations_in
from policies.strategic.network import GraphPolicyNetwork
from policies.strategic.normaliser import MetricNormaliser
from policies.strategic.replay_store import Replay
from policies.strategic.seen import Seen
from policies.strategic.taught import Taught


class GraphStudent:
    """A network that reads worlds through their layouts (:class:`policies.strategic.lessons.Student`).

    Args:
        network: Has the weights.
        builder: Makes graphs of what was measured.
        readers: World → who reads its observations.
        seen: What of the graphs is shown to the network; by default everything.
        taught: What of the network's answers is told; by default everything.
    """

    def __init__(
        self,
        network: GraphPolicyNetwork,
        builder: GraphBuilder,
        readers: Mapping[str, GreenhouseReader],
        seen: Seen | None = None,
        taught: Taught | None = None,
    ) -> None:
        self._network, self._builder, self._readers = network, builder, readers
        self._seen, self._taught = seen, taught
        device = next(network.parameters()).device
        self._tables = {world: ActionTables(reader.slots.heads).to(device) for world, reader in readers.items()}

    @property
    def network(self) -> GraphPolicyNetwork:
        """As given."""
        return self._network

    def graphs(self, world: str, observations: Mapping[str, Tensor]) -> GraphBatch:
        """The graphs of B steps of a world, whose observations are leaves ``[B, ...]``."""
        arrays = self._builder.build(self._readers[world].measured(observations))
        if self._seen is not None:
            arrays = self._seen.restrict(arrays, self._tables[world].heads)
        return GraphBatch.from_arrays(arrays)

    def read(self, world: str, observations: Mapping[str, Tensor], imitating: bool = False) -> GraphPolicyResult:
        """What the network says of B steps of a world; see :meth:`policies.strategic.lessons.Student.read`."""
        result: GraphPolicyResult = self._network(
            self.graphs(world, observations), self._tables[world], imitating=imitating
        )
        return result if self._taught is None else self._taught.restrict(result)


def survey(
    network: GraphPolicyNetwork,
    replay: Replay,
    rows: Mapping[str, Tensor],
    readers: Mapping[str, GreenhouseReader],
    batch_size: int,
) -> GraphBuilder:
    """Look at a record before anything is learnt from it.

    The network's running scale becomes that of the exemplary steps, as rollouts would have made it; with it, it is
    known what training shows. Of hosts that were driven into the ground a single number may be a million times off.

    Args:
        network: As it begins.
        replay: The record.
        rows: World → the steps, some of them exemplary.
        readers: World → who reads its observations.
        batch_size: Steps to look at at a time.

    Returns:
        Who makes graphs for it, with numbers for all names on record.
    """
    # Every step of a world has the same names.
    firsts = _batches(replay, {world: of[:1] for world, of in rows.items()}, 1)
    names = numbered(readers[world].measured(observations) for world, observations in firsts)
    builder = GraphBuilder(names, MetricNormaliser())
    examples = {world: of[replay.worlds[world].exemplary_rows[of]] for world, of in rows.items()}
    for world, observations in _batches(replay, examples, batch_size):
        graphs = GraphBatch.from_arrays(builder.build(readers[world].measured(observations)))
        network.scale.update(network.scale.sums(graphs, readers[world].slots.heads), decay=1.0)
    return builder


def _batches(replay: Replay, rows: Mapping[str, Tensor], size: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    for world, of in rows.items():
        for batch in of.split(size):
            yield world, observations_in(replay.worlds[world].take(batch))
