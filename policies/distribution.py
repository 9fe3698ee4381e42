"""The joint distribution of a factored action: an operation first, then the arguments that it needs.

Every head is a masked categorical. The first head ("op") is drawn alone; each other head is a table with one
row per op that needs it, because its logits and sometimes its mask depend on the op. Reading the row of the
*stored* op is what makes training reproduce the log-probabilities of the rollout exactly.

Shapes: ``...`` stands for any leading axes (batch, or batch and time), ``H`` for the number of heads, ``K_h``
for the number of ops that need head h (1 for the op head) and ``n_h`` for the head's number of choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from envs.action_masks import mask_size, split_mask
from envs.vocabulary import HeadSpec


class ActionTables(nn.Module):
    """What an action's heads say of each other, as tensors made once: a pass of a policy makes and reads none.

    Args:
        heads: The action's heads, op first.

    Attributes:
        heads: As given.
        entries: Where the choices of all heads' rows stand in a flat mask, int64 ``[sum K_h, max n_h]``, row by row of
            one head after the other; where a row has no choice any more it is the mask's size.
        counts: ``K_h`` of each head.
        arguments: Of each row of the heads behind the slot's, the row of its op among the slot's and its head, counted
            from the first of them: int64 ``[sum K_h, 2]``.
        needs: Which heads matter for which op: bool ``[num_ops, H]``.
        rows: Row that each op reads in each head's table: int64 ``[num_ops, H]``, 0 where the op needs no such head.
    """

    entries: Tensor
    arguments: Tensor
    needs: Tensor
    rows: Tensor

    def __init__(self, heads: Sequence[HeadSpec]) -> None:
        super().__init__()
        self.heads = tuple(heads)
        ops = range(heads[0].size)
        rows = torch.zeros(len(ops), len(heads), dtype=torch.int64)
        for column, head in enumerate(heads[1:], start=1):
            self.register_buffer(_needed_by(column), torch.tensor(head.needed_by, dtype=torch.int64), persistent=False)
            rows[list(head.needed_by), column] = torch.arange(len(head.needed_by))
        needs = torch.tensor([[op in head.needed_by for head in heads] for op in ops], dtype=torch.bool)
        arguments = [(heads[1].needed_by.index(op), at) for at, head in enumerate(heads[2:]) for op in head.needed_by]
        self.counts = (1, *(len(head.needed_by) for head in heads[1:]))
        self.register_buffer("entries", torch.cat(_entries(self.heads)), persistent=False)
        self.register_buffer("arguments", torch.tensor(arguments), persistent=False)
        self.register_buffer("needs", needs, persistent=False)
        self.register_buffer("rows", rows, persistent=False)

    def needed_by(self, column: int) -> Tensor:
        """The ops that need a head other than the first, in the order of its rows: int64 ``[K_h]``."""
        return self.get_buffer(_needed_by(column))

    def masks(self, action_mask: Tensor) -> tuple[Tensor, ...]:
        """Masks in the shape of the heads' tables.

        Args:
            action_mask: Flat mask ``[..., mask_size(heads)]``, any dtype, non-zero where admitted.

        Returns:
            Per head a bool mask ``[..., K_h, n_h]``.
        """
        return self.split(self.all_masks(action_mask))

    def all_masks(self, action_mask: Tensor) -> Tensor:
        """The masks of all heads as one, bool ``[..., sum K_h, max n_h]``; see :meth:`masks`."""
        return F.pad(action_mask != 0, (0, 1))[..., self.entries]

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Rows of all heads ``[..., sum K_h, max n_h or more]`` by head, ``[..., K_h, n_h]``."""
        parts = zip(rows.split(self.counts, dim=-2), self.heads, strict=True)
        return tuple(part[..., : head.size] for part, head in parts)


def _entries(heads: Sequence[HeadSpec]) -> list[Tensor]:
    """Of each head, where its rows' choices stand in a flat mask (:attr:`ActionTables.entries`)."""
    size, most = mask_size(heads), max(head.size for head in heads)
    views, tables = split_mask(torch.arange(size), heads), []
    for column, head in enumerate(heads):
        view = views[head.name]
        table = (
            view[list(head.needed_by)] if head.masked_by_op else view.expand(len(head.needed_by) if column else 1, -1)
        )
        tables.append(F.pad(table, (0, most - head.size), value=size))
    return tables


def _needed_by(column: int) -> str:
    return f"needed_by_{column}"


def masked_log_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Log-probabilities in float32 over the admitted entries.

    A refused entry gets the smallest finite float32 before the softmax, so its probability is exactly 0 while a
    row without any admitted entry (padding) stays finite, with finite gradients.

    Args:
        logits: ``[..., n]``, any floating dtype.
        mask: bool, broadcastable to ``logits``.

    Returns:
        float32 ``[..., n]``.
    """
    floor = torch.finfo(torch.float32).min
    return torch.log_softmax(logits.float().masked_fill(~mask, floor), dim=-1)


def draw(
    log_probs: Tensor, mask: Tensor, generator: torch.Generator | None = None, deterministic: bool = False
) -> Tensor:
    """Draw one index per row by the Gumbel-max trick, or take the most probable one.

    Args:
        log_probs: ``[..., n]`` from :func:`masked_log_softmax`.
        mask: bool ``[..., n]``; a refused entry is never drawn. A row without admitted entries yields 0.
        generator: Source of randomness on the tensors' device; torch's global one if None.
        deterministic: Take the mode and use no randomness.

    Returns:
        int64 ``[...]``.
    """
    scores = log_probs
    if not deterministic:
        scores = log_probs - torch.empty_like(log_probs).exponential_(generator=generator).log()
    return scores.masked_fill(~mask, -torch.inf).argmax(dim=-1)


def take_row(table: Tensor, row: Tensor) -> Tensor:
    """Pick row ``row[...]`` of a table ``[..., K, n]``; returns ``[..., n]``."""
    return torch.take_along_dim(table, row[..., None, None], dim=-2).squeeze(-2)


def take_entry(values: Tensor, index: Tensor) -> Tensor:
    """Pick entry ``index[...]`` of ``[..., n]``; returns ``[...]``."""
    return torch.take_along_dim(values, index.unsqueeze(-1), dim=-1).squeeze(-1)


@dataclass(frozen=True)
class FactoredDistribution:
    """Distribution of one factored action per leading index.

    Attributes:
        log_probs: Per head float32 ``[..., K_h, n_h]``.
        masks: Per head bool ``[..., K_h, n_h]``.
        tables: Of the action's heads.
    """

    log_probs: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]
    tables: ActionTables

    @cached_property
    def admitted(self) -> tuple[Tensor, ...]:
        """Per head int64 ``[..., K_h]``: how many entries are admitted."""
        return tuple(mask.sum(dim=-1) for mask in self.masks)

    @property
    def op_log_probs(self) -> Tensor:
        """Log-probabilities of the ops, ``[..., num_ops]``."""
        return self.log_probs[0].squeeze(-2)

    @property
    def op_mask(self) -> Tensor:
        """Admitted ops, bool ``[..., num_ops]``."""
        return self.masks[0].squeeze(-2)

    @property
    def forced(self) -> Tensor:
        """Whether at most one op is admitted, so that there was nothing to decide: bool ``[...]``."""
        return self.admitted[0].squeeze(-1) <= 1

    def at_temperature(self, temperature: float) -> FactoredDistribution:
        """The same choices with probabilities raised to the power 1/temperature: below 1 the likelier ones gain.

        Each row by itself: the op's, and each argument's given the op.
        """
        if temperature == 1.0:
            return self
        log_probs = (
            masked_log_softmax(table / temperature, mask)
            for table, mask in zip(self.log_probs, self.masks, strict=True)
        )
        return replace(self, log_probs=tuple(log_probs))

    def needed(self, op: Tensor) -> Tensor:
        """Which heads matter for the ops ``[...]``: bool ``[..., H]``."""
        return self.tables.needs[op]

    def rows_of(self, op: Tensor) -> Tensor:
        """Rows that the ops ``[...]`` read in the heads' tables: int64 ``[..., H]``, 0 where a head is not needed."""
        return self.tables.rows[op]

    def decided(self, op: Tensor) -> Tensor:
        """Which heads had a choice given the ops ``[...]``: needed, with at least 2 admitted entries; ``[..., H]``."""
        rows = self.rows_of(op)
        several = [take_entry(count, rows[..., head]) >= 2 for head, count in enumerate(self.admitted)]
        return torch.stack(several, dim=-1) & self.needed(op)

    def sample(self, generator: torch.Generator | None = None, deterministic: bool = False) -> Tensor:
        """Draw an action: the op, then every head that it needs from the row of that op.

        Args:
            generator: Source of randomness; torch's global one if None.
            deterministic: Take the mode of every head instead (the op's mode first).

        Returns:
            int64 ``[..., H]``; 0 in heads that the op does not need.
        """
        op = draw(self.op_log_probs, self.op_mask, generator, deterministic)
        rows, needed = self.rows_of(op), self.needed(op)
        columns = [op]
        for head in range(1, len(self.log_probs)):
            row = rows[..., head]
            choice = draw(
                take_row(self.log_probs[head], row), take_row(self.masks[head], row), generator, deterministic
            )
            columns.append(choice.masked_fill(~needed[..., head], 0))
        return torch.stack(columns, dim=-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-probability of each head's entry in stored actions.

        Args:
            actions: int64 ``[..., H]``.

        Returns:
            float32 ``[..., H]``; 0 (and no gradient) in heads that the stored op does not need. The joint
            log-probability is the sum over the last axis.
        """
        op = actions[..., 0]
        rows, needed = self.rows_of(op), self.needed(op)
        columns = [
            take_entry(take_row(table, rows[..., head]), actions[..., head])
            for head, table in enumerate(self.log_probs)
        ]
        return torch.stack(columns, dim=-1).masked_fill(~needed, 0.0)

    def available(self) -> tuple[Tensor, ...]:
        """Per head bool ``[..., K_h]``: the op of that row is admitted and leaves the head at least 2 entries."""
        several = [count >= 2 for count in self.admitted]
        for head in range(1, len(several)):
            several[head] = several[head] & self.op_mask.index_select(-1, self.tables.needed_by(head))
        return tuple(several)

    def normalised_entropies(self) -> tuple[Tensor, ...]:
        """Per head ``[..., K_h]``: entropy over its maximum ln n for n admitted entries, 0 where n < 2."""
        entropies = []
        for log_probs, count in zip(self.log_probs, self.admitted, strict=True):
            entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
            entropies.append(torch.where(count >= 2, entropy / count.clamp(min=2).log(), 0.0))
        return tuple(entropies)
