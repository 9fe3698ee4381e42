"""Random graphs for tests: irregular, with absent nodes, parallel edges and numbers that nobody measured."""

from dataclasses import replace

import torch

from envs.action_masks import mask_size, split_mask
from envs.slots import SlotConfig
from policies.strategic.graph import EdgeArrays, GraphArrays, NodeArrays
from policies.strategic.schema import CONTEXT, FORWARD_RELATIONS, NODE_TYPES

SIZES = {"layer": 7, "seed": 3, "activation": 5, "parameter": 4}
NO_NODES = dict.fromkeys(SIZES, 0)


def random_arrays(count=4, sizes=SIZES, edges=9, slots=None, seed=0, absent=0.2, unknown=0.2):
    """Arrays of ``count`` graphs; every slot has a seed node, the others are absent by chance."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(shape, generator=generator)

    def numbers(*shape):
        values = torch.randn(shape, generator=generator)
        return torch.where(rand(*shape) < unknown, torch.nan, values)

    nodes = {}
    for name, kind in NODE_TYPES.items():
        shape = (count, sizes[name])
        present = torch.ones(shape, dtype=torch.bool) if name == "seed" else rand(*shape) >= absent
        codes = [torch.randint(code.capacity + 1, shape, generator=generator) for code in kind.codes]
        nodes[name] = NodeArrays(present, numbers(*shape, kind.columns.width), torch.stack(codes, dim=-1))
    links = {}
    for relation in FORWARD_RELATIONS:
        ends = [
            torch.randint(-1, max(sizes[name], 1), (count, edges), generator=generator)
            if sizes[name]
            else torch.full((count, edges), -1)
            for name in (relation.source, relation.target)
        ]
        links[relation.name] = EdgeArrays(torch.stack(ends, dim=-1), numbers(count, edges, relation.attributes.width))
    config = SlotConfig.for_row(max(sizes["seed"], 1)) if slots is None else slots
    mask = (rand(count, mask_size(config.heads)) < 0.6).to(torch.int8)
    split_mask(mask, config.heads)["op"][:, 0] = 1
    seeds = torch.arange(config.num_slots).expand(count, -1)
    seeds = torch.where(seeds < sizes["seed"], seeds, -1)
    return GraphArrays(nodes, links, seeds, numbers(count, CONTEXT.width), mask)


def rows(arrays, chosen):
    """Some of the graphs of the arrays."""
    return GraphArrays(
        {
            name: NodeArrays(of.present[chosen], of.values[chosen], of.codes[chosen])
            for name, of in arrays.nodes.items()
        },
        {name: EdgeArrays(of.ends[chosen], of.values[chosen]) for name, of in arrays.edges.items()},
        arrays.seeds[chosen],
        arrays.context[chosen],
        arrays.action_mask[chosen],
    )


def with_nodes(arrays, name, **changes):
    """The arrays with other fields of the nodes of one type."""
    return replace(arrays, nodes={**arrays.nodes, name: replace(arrays.nodes[name], **changes)})


def tensors_of(result):
    """Everything that a pass yields, by name, but for a risk that it does not say."""
    tensors = {
        name: getattr(result, name)
        for name in (
            "scaled_value",
            "scaled_q_values",
            "policy_logits",
            "blending_method_logits",
            "schedule",
            "risk_logits",
            "telemetry_embedding",
        )
    }
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    heads = [head.name for head in result.distribution.tables.heads]
    tensors |= {f"log_probs.{n}": table for n, table in zip(heads, result.distribution.log_probs, strict=True)}
    return tensors | {f"params.{name}": table for name, table in result.policy_params.items()}
