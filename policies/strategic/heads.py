"""What the strategic policy says of a graph: the joint action, values, blending, risk, and an embedding to store.

Shapes: ``B`` is the number of graphs, ``S`` of slots, ``K`` of ops that need a slot, ``W`` the heads' width and ``G``
that of a node.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from envs.action_masks import mask_size
from envs.vocabulary import BLENDING_METHODS, HEADS_NEEDED, HeadSpec, LifecycleOp, head_specs
from policies.distribution import ActionTables, FactoredDistribution, masked_log_softmax
from policies.network import op_bias
from policies.strategic.layers import linear
from policies.strategic.network_config import GraphNetworkConfig
from policies.strategic.schema import NUM_KERNELS, RISK_CLASSES

TELEMETRY_WIDTH = 64
EARLIEST_END, LATEST_START = 0.05, 0.95
"""A blending window starts at 0.95 of the ramp at the latest, and is at least 0.05 long."""
SLOT_OPS = tuple(op for op in LifecycleOp if "slot" in HEADS_NEEDED[op])
"""Ops that are done to a slot. A world's are the first of these."""
FREE_OPS = tuple(op for op in LifecycleOp if op not in SLOT_OPS)
"""Ops that are not: they stand before all others."""
_CHOICE_GAIN, _VALUE_GAIN = 0.01, 0.1
"""Of output layers, as in the recurrent network: at first every choice is about as likely, every value about 0."""


@dataclass(frozen=True)
class GraphPolicyResult:
    """One pass over B graphs.

    Attributes:
        distribution: Of the joint action, leading axis ``[B]``.
        scaled_value: State value ``[B]``, in units of the return scale.
        scaled_q_values: Q(s, op) ``[B, num_ops]`` in the same units; their mean under the policy is ``scaled_value``.
        policy_logits: Over kernels ``[B, NUM_KERNELS]``: kernel k is Blueprint k, 0 holds. Those that the world does
            not have are the smallest finite float.
        policy_params: Logits of the other arguments by head, ``[B, K_h, n_h]``, a row per op that needs it.
        blending_method_logits: ``[B, S, 4]`` in the order of ``BLENDING_METHODS``; a method that the seed does not
            allow is the smallest finite float. Where it names none, linear alone is left.
        schedule: Start and end of each seed's blending as shares of its ramp, ``[B, S, 2]``.
        risk_logits: ``[B, 5]`` in the order of ``RISK_CLASSES``; a network says them always, a policy in use only if it
            was taught them.
        telemetry_embedding: ``[B, TELEMETRY_WIDTH]``, for whoever acts on the answer to store with the decision.
    """

    distribution: FactoredDistribution
    scaled_value: Tensor
    scaled_q_values: Tensor
    policy_logits: Tensor
    policy_params: dict[str, Tensor]
    blending_method_logits: Tensor
    schedule: Tensor
    risk_logits: Tensor | None
    telemetry_embedding: Tensor


def _stream(inputs: int, width: int, outputs: int, gain: float) -> nn.Sequential:
    return nn.Sequential(linear(inputs, width), nn.GELU(), linear(width, outputs, gain))


class Beside(nn.Module):
    """One hidden layer over a node's vector beside its graph's: ``[B, k, G]`` beside ``[B, W]`` gives ``[B, k, W]``.

    Args:
        node: ``G``.
        graph: ``W``.
    """

    def __init__(self, node: int, graph: int) -> None:
        super().__init__()
        self.node, self.graph = linear(node, graph, bias=False), linear(graph, graph)

    def forward(self, nodes: Tensor, graph: Tensor, offset: Tensor | None = None) -> Tensor:
        """The layer.

        Args:
            nodes: ``[B, k, G]``.
            graph: ``[B, W]``.
            offset: Added before the nonlinearity; broadcasts to ``[B, k, W]``.
        """
        hidden = self.node(nodes) + self.graph(graph).unsqueeze(1)
        return F.gelu(hidden if offset is None else hidden + offset)


class ActionHeads(nn.Module):
    """The joint action in the recurrent policy's form, from scores of slots; its weights know no number of slots.

    Args:
        node: Width of a slot's seed node.
        graph: Width of the graph's vector.
        config: Has the logits that ops start with.
    """

    columns: Tensor

    def __init__(self, node: int, graph: int, config: GraphNetworkConfig) -> None:
        super().__init__()
        self.op_bias = nn.Parameter(op_bias([op.name for op in LifecycleOp], config.op_bias))
        self.slot_hidden = Beside(node, graph)
        self.slot_scores = linear(graph, len(SLOT_OPS), _CHOICE_GAIN)
        self.free_scores = _stream(graph, graph, len(FREE_OPS), _CHOICE_GAIN)
        # An argument is chosen once its op is. The vectors start at zero: at first it looks the same to every op.
        self.op_embedding = nn.Parameter(torch.zeros(len(SLOT_OPS), graph))
        self.argument_hidden = Beside(node, graph)
        sizes = {head.name: head.size for head in head_specs(("slot",))[2:]} | {"blueprint": NUM_KERNELS}
        self.arguments = nn.ModuleDict({name: linear(graph, size, _CHOICE_GAIN) for name, size in sizes.items()})
        # Where each head's logits are among all of theirs; rows are as long as the longest.
        starts, choices = accumulate(sizes.values(), initial=0), torch.arange(max(sizes.values()))
        columns = [start + choices.clamp(max=size - 1) for start, size in zip(starts, sizes.values(), strict=False)]
        self.register_buffer("columns", torch.stack(columns), persistent=False)

    def forward(
        self, graph: Tensor, slots: Tensor, action_mask: Tensor, tables: ActionTables
    ) -> tuple[FactoredDistribution, dict[str, Tensor]]:
        """The distribution, and the logits of all arguments by head, ``[B, K_h, n_h]``.

        Args:
            graph: ``[B, W]``.
            slots: ``[B, S, G]``, zeros where there is no seed node.
            action_mask: ``[B, mask_size(tables.heads)]``.
            tables: Of the world's heads.
        """
        every = tables.all_masks(action_mask)
        masks = tables.split(every)
        ops = masks[1].shape[1]
        scores = self.slot_scores(self.slot_hidden(slots, graph))[..., :ops].transpose(1, 2).float()
        op_log_probs = masked_log_softmax(self._op_logits(scores, graph, masks[1]).unsqueeze(1), masks[0])
        slot_log_probs = masked_log_softmax(scores, masks[1])
        # Which slots an op looks at here only weighs. Detached, or the arguments' losses would choose slots.
        attended = slot_log_probs.detach().exp().to(slots.dtype) @ slots
        hidden = self.argument_hidden(attended, graph, self.op_embedding[:ops])
        logits, log_probs = self._arguments(hidden, every, tables)
        return FactoredDistribution((op_log_probs, slot_log_probs, *log_probs), masks, tables), logits

    def _arguments(
        self, hidden: Tensor, masks: Tensor, tables: ActionTables
    ) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        """Logits and log-probabilities of each argument, from ``hidden [B, K, W]``: all rows as one table, padded."""
        rows, head = tables.arguments.unbind(1)
        weight, bias = (torch.cat([of.get_parameter(n) for of in self.arguments.values()]) for n in ("weight", "bias"))
        every, columns = F.linear(hidden, weight, bias).index_select(1, rows), self.columns[head]
        table = every.gather(2, columns.expand(len(every), -1, -1))
        more = (0, table.shape[-1] - masks.shape[-1])
        ended = F.pad(tables.entries[-len(rows) :] == mask_size(tables.heads), more, value=True)
        mask = F.pad(masks[:, -len(rows) :], more) | ended
        log_probs = masked_log_softmax(table.masked_fill(ended, -torch.inf), mask)
        counts = tables.counts[2:]
        logits = {
            name: part[..., : layer.out_features]
            for (name, layer), part in zip(self.arguments.items(), table.split(counts, dim=1), strict=True)
        }
        parts = zip(log_probs.split(counts, dim=1), tables.heads[2:], strict=True)
        return logits, tuple(part[..., : of.size] for part, of in parts)

    def _op_logits(self, scores: Tensor, graph: Tensor, mask: Tensor) -> Tensor:
        """Bias plus the mean of the admitted slots' scores on the exponential scale, ``[B, num_ops]``.

        A sum in place of the mean would make every op likelier the more slots there are, and WAIT rarer.
        """
        # Of no slot at all it is the smallest float, or nearly, so that such an op is never drawn.
        masked = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        over_slots = masked.logsumexp(dim=-1) - mask.sum(dim=-1).clamp(min=1).log()
        logits = torch.cat([self.free_scores(graph).float(), over_slots], dim=1)
        return logits + self.op_bias[: logits.shape[1]]


class GraphHeads(nn.Module):
    """All heads.

    Args:
        node: Width of a node.
        context: Width of the graph's context, read beside the mean of its layer nodes.
        config: Widths.
    """

    def __init__(self, node: int, context: int, config: GraphNetworkConfig) -> None:
        super().__init__()
        width = config.sage_width
        self.graph = nn.Sequential(linear(node + context, width), nn.GELU())
        self.action = ActionHeads(node, width, config)
        self.value = _stream(width, width, 1, _VALUE_GAIN)
        self.op_advantages = _stream(width, width, len(LifecycleOp), _VALUE_GAIN)
        self.seed_hidden = Beside(node, width)
        self.blending = linear(width, len(BLENDING_METHODS), _CHOICE_GAIN)
        self.window = linear(width, 2, _CHOICE_GAIN)
        self.risk = _stream(width, width, len(RISK_CLASSES), _CHOICE_GAIN)
        self.telemetry = linear(width, TELEMETRY_WIDTH)

    @property
    def beside_the_action(self) -> tuple[nn.Module, ...]:
        """What neither the action nor its values depend on."""
        return self.seed_hidden, self.blending, self.window, self.risk, self.telemetry

    def forward(
        self,
        pooled: Tensor,
        context: Tensor,
        slots: Tensor,
        allowed: Tensor,
        action_mask: Tensor,
        tables: ActionTables,
    ) -> GraphPolicyResult:
        """Everything that is said of B graphs.

        Args:
            pooled: Mean of the layer nodes ``[B, G]``.
            context: ``[B, context]``.
            slots: Seed node of each slot ``[B, S, G]``, zeros where there is none.
            allowed: Blending methods that each slot's seed allows, bool ``[B, S, 4]``.
            action_mask: ``[B, mask_size(tables.heads)]``.
            tables: Of the world's heads.
        """
        graph = self.graph(torch.cat([pooled, context], dim=1))
        distribution, logits = self.action(graph, slots, action_mask, tables)
        seeds = self.seed_hidden(slots, graph)
        value = self.value(graph).squeeze(-1).float()
        kernels = logits.pop("blueprint").squeeze(1)
        unknown = torch.arange(NUM_KERNELS, device=kernels.device) >= _size(tables, "blueprint")
        return GraphPolicyResult(
            distribution,
            value,
            self._q_values(graph, value, distribution),
            kernels.masked_fill(unknown, torch.finfo(kernels.dtype).min),
            logits,
            _methods(self.blending(seeds), allowed),
            blending_window(self.window(seeds)),
            self.risk(graph),
            self.telemetry(graph),
        )

    def _q_values(self, graph: Tensor, value: Tensor, distribution: FactoredDistribution) -> Tensor:
        """Q of the ops: advantages, shifted so that their mean under the policy is the value."""
        probs = distribution.op_log_probs.detach().exp()
        advantages = self.op_advantages(graph).float()[:, : probs.shape[1]]
        return value.unsqueeze(1) + advantages - (probs * advantages).sum(dim=1, keepdim=True)


def blending_window(raw: Tensor) -> Tensor:
    """Start and end ``[..., 2]`` of any two numbers: 0 <= start <= 0.95, start + 0.05 <= end <= 1."""
    start, length = raw.sigmoid().unbind(-1)
    start = LATEST_START * start
    return torch.stack([start, start + EARLIEST_END + (LATEST_START - start) * length], dim=-1)


def _methods(logits: Tensor, allowed: Tensor) -> Tensor:
    linear_alone = torch.arange(len(BLENDING_METHODS), device=logits.device) == BLENDING_METHODS.index("linear")
    admitted = torch.where(allowed.any(dim=-1, keepdim=True), allowed, linear_alone)
    return logits.masked_fill(~admitted, torch.finfo(logits.dtype).min)


def _size(tables: ActionTables, name: str) -> int:
    head: HeadSpec = next(head for head in tables.heads if head.name == name)
    return head.size
