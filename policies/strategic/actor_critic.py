"""The graph network as actor and critic of the greenhouse's hosts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from envs.action_masks import mask_size
from envs.graph.layout import GraphLayout
from envs.vocabulary import HeadSpec
from policies.distribution import ActionTables, FactoredDistribution
from policies.network_config import NetworkConfig
from policies.normalisers import Normalisers
from policies.policy_network import PolicyNetwork
from policies.results import ActorCriticResult, HiddenState
from policies.return_scale import WORLD, ReturnScale
from policies.strategic.builder import GraphBuilder, numbered
from policies.strategic.graph import GraphArrays, GraphBatch
from policies.strategic.greenhouse import ACTION_MASK, GRAPH, GreenhouseReader
from policies.strategic.heads import GraphPolicyResult
from policies.strategic.measured import Measured
from policies.strategic.network import GraphPolicyNetwork
from policies.strategic.network_config import GraphNetworkConfig
from policies.strategic.normaliser import MetricNormaliser
from policies.strategic.registries import Capacities, RegistryViews


@dataclass(frozen=True)
class GraphWorlds:
    """The worlds whose hosts a policy reads.

    Attributes:
        layouts: Of their observations; of several the leaf ``world`` says which.
        names: Registry family → the names that it knows.
    """

    layouts: tuple[GraphLayout, ...]
    names: Mapping[str, tuple[str, ...]]

    @classmethod
    def to_train_in(cls, layouts: Sequence[GraphLayout]) -> GraphWorlds:
        """Those with these layouts, whose names are what there is to know."""
        return cls(tuple(layouts), registry_names(layouts))


def registry_names(layouts: Iterable[GraphLayout]) -> dict[str, tuple[str, ...]]:
    """Registry family → the names that the hosts of some worlds use (:func:`policies.strategic.builder.numbered`)."""
    return numbered(_nobody(layout) for layout in layouts).names


def _nobody(layout: GraphLayout) -> Measured:
    """Of no host; their names are of the layout."""
    mask = torch.empty(0, mask_size(layout.structure.slots.heads))
    return GreenhouseReader(layout).measured({GRAPH: torch.empty(0, layout.size), ACTION_MASK: mask})


class GraphActorCritic(PolicyNetwork):
    """Reads hosts of any layers and any number of slots as graphs; it remembers nothing.

    No weight depends on the worlds, the slots or the heads. Observations have the leaves ``graph``, the vectors of
    :class:`envs.graph.layout.GraphLayout` or longer, and ``action_mask``.

    The metrics' own scale is that of the priors: the running scale of all numbers (:class:`GraphScale`) follows the
    rollouts, so that this one need not.

    Args:
        heads: Parts of the action, op first; their slots are as many as those of any world, or more.
        worlds: What is read.
        config: Widths and the like.
        only_seen: Hide whatever training has never shown, and admit no op or blueprint that it never had: for play.
    """

    def __init__(
        self, heads: Sequence[HeadSpec], worlds: GraphWorlds, config: NetworkConfig, only_seen: bool = False
    ) -> None:
        super().__init__()
        self.head_specs, self.config = tuple(heads), config
        self.layouts, self.only_seen = worlds.layouts, only_seen
        self._readers = tuple(GreenhouseReader(layout) for layout in worlds.layouts)
        self.graphs = GraphPolicyNetwork(
            GraphNetworkConfig(config.sage_width, config.gat_width, config.attention_heads, op_bias=config.op_bias)
        )
        for head in self.graphs.heads.beside_the_action:
            head.requires_grad_(False)  # rewards say nothing of them; several learners would wait for their gradients
        self.return_scale = ReturnScale(len(worlds.layouts))
        self.normalisers = Normalisers(self.graphs.scale, self.return_scale, self._observed)
        self.tables = ActionTables(heads)
        self._builder = GraphBuilder(RegistryViews.of(worlds.names, Capacities()), MetricNormaliser())

    @property
    def hidden_dim(self) -> int:
        """None is remembered."""
        return 0

    def forward(self, obs: Mapping[str, Tensor], hidden: HiddenState) -> ActorCriticResult:
        """See :meth:`PolicyNetwork.forward`.

        Raises:
            ValueError: no observation, or one of a world that it does not read.
        """
        shape = obs[GRAPH].shape[:-1]
        if not shape.numel():
            raise ValueError(f"there is no observation among {tuple(shape)} hosts and steps: give one at least")
        rows, arrays = zip(*self._arrays({name: leaf.flatten(0, 1) for name, leaf in obs.items()}), strict=True)
        results: list[GraphPolicyResult] = [self.graphs(GraphBatch.from_arrays(of), self.tables) for of in arrays]
        order = torch.cat(rows).argsort()

        def whole(*parts: Tensor) -> Tensor:
            return torch.cat(parts)[order].unflatten(0, shape)

        distributions = [result.distribution for result in results]
        distribution = FactoredDistribution(
            tuple(whole(*tables) for tables in zip(*(of.log_probs for of in distributions), strict=True)),
            tuple(whole(*masks) for masks in zip(*(of.masks for of in distributions), strict=True)),
            self.tables,
        )
        value = whole(*(result.scaled_value for result in results))
        q_values = whole(*(result.scaled_q_values for result in results))
        return ActorCriticResult(distribution, hidden, value, q_values, self.return_scale.of(obs))

    def _arrays(self, obs: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, GraphArrays]]:
        """Of each world that is among the observations ``[N, ...]``: which rows are of it, and their graphs.

        Raises:
            ValueError: some are of no world that is read.
        """
        vectors, mask = obs[GRAPH].float(), obs[ACTION_MASK]
        world = obs[WORLD].squeeze(-1) if len(self.layouts) > 1 else mask.new_zeros(len(mask))
        foreign = (world < 0) | (world >= len(self.layouts))
        if foreign.any():
            raise ValueError(
                f"this policy reads the worlds 0 to {len(self.layouts) - 1}, got observations labelled as of "
                f"{world[foreign][0].item():g}"
            )
        for number, (layout, reader) in enumerate(zip(self.layouts, self._readers, strict=True)):
            rows = (world == number).nonzero().squeeze(-1)
            if len(rows):
                measured = reader.measured({GRAPH: vectors[rows, : layout.size], ACTION_MASK: mask[rows]})
                yield rows, self._fitted(self._builder.build(measured))

    def _fitted(self, graphs: GraphArrays) -> GraphArrays:
        """Graphs with as many slots as the heads, and in play with nothing that training never showed."""
        missing = self.head_specs[1].size - graphs.seeds.shape[1]
        fitted = replace(graphs, seeds=F.pad(graphs.seeds, (0, missing), value=-1))
        return self.graphs.scale.seen.restrict(fitted, self.head_specs) if self.only_seen else fitted

    def _observed(self, obs: Mapping[str, Tensor], real: Tensor) -> Tensor:
        """What the scale collects of the real steps, bool ``[...]``."""
        steps = {name: leaf[real] for name, leaf in obs.items()}
        scale = self.graphs.scale
        sums = (scale.sums(GraphBatch.from_arrays(graphs), self.head_specs) for _, graphs in self._arrays(steps))
        return sum(sums, start=torch.zeros_like(scale.moments, dtype=torch.float64))
