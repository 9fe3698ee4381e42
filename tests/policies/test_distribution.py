import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.action_masks import mask_size, split_mask
from envs.slots import SlotConfig
from envs.vocabulary import LifecycleOp
from policies.distribution import (
    ActionTables,
    FactoredDistribution,
    draw,
    masked_log_softmax,
)

torch.set_num_threads(1)
HEADS = SlotConfig.for_row(3).heads
TABLES = ActionTables(HEADS)
COLUMNS = {head.name: column for column, head in enumerate(HEADS)}


def distribution(flat_mask, seed=0, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    masks = TABLES.masks(flat_mask)
    logits = [torch.randn(mask.shape, generator=generator) * spread for mask in masks]
    log_probs = tuple(masked_log_softmax(logit, mask) for logit, mask in zip(logits, masks, strict=True))
    return FactoredDistribution(log_probs, masks, TABLES), logits


def random_flat_mask(seed, steps, density):
    """Masks in which every op that is admitted finds an entry in each head that it needs."""
    rng = np.random.default_rng(seed)
    flat = (rng.random((steps, mask_size(HEADS))) < density).astype(np.int8)
    views = split_mask(flat, HEADS)
    views["op"][:, 0] = 1
    for head in HEADS[1:]:
        rows = views[head.name]
        np.put_along_axis(rows, rng.integers(head.size, size=(*rows.shape[:-1], 1)), 1, axis=-1)
    return torch.from_numpy(flat)


def row_of(table, step, head, op):
    return table[COLUMNS[head.name]][step, 0 if head is HEADS[0] else head.needed_by.index(op)]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.sampled_from([0.15, 0.5, 0.95]), st.booleans())
def test_draws_are_admitted_and_their_log_probability_is_the_literal_one(seed, density, deterministic):
    flat = random_flat_mask(seed, 6, density)
    joint, logits = distribution(flat, seed)
    actions = joint.sample(torch.Generator().manual_seed(seed), deterministic)
    log_probs = joint.log_prob(actions)
    views = split_mask(flat, HEADS)
    for step in range(6):
        op = int(actions[step, 0])
        for column, head in enumerate(HEADS):
            choice = int(actions[step, column])
            if op not in head.needed_by:
                assert choice == 0
                assert log_probs[step, column] == 0
                continue
            admitted = views[head.name][step][op] if head.masked_by_op else views[head.name][step]
            assert admitted[choice] == 1
            entries = [float(x) for x in row_of(logits, step, head, op)[admitted.bool()]]
            chosen = float(row_of(logits, step, head, op)[choice])
            expected = chosen - math.log(sum(math.exp(entry) for entry in entries))
            assert log_probs[step, column] == pytest.approx(expected, abs=1e-5)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.sampled_from([0.05, 0.3, 0.95]))
def test_a_head_had_a_choice_if_the_op_needs_it_and_two_entries_were_admitted(seed, density):
    flat = random_flat_mask(seed, 6, density)
    joint, _ = distribution(flat, seed)
    op = joint.sample(torch.Generator().manual_seed(seed))[:, 0]
    decided = joint.decided(op)
    for step, column in itertools.product(range(6), range(len(HEADS))):
        head, taken = HEADS[column], int(op[step])
        expected = taken in head.needed_by and int(row_of(joint.masks, step, head, taken).sum()) >= 2
        assert bool(decided[step, column]) == expected


def test_probabilities_of_all_actions_sum_to_one():
    joint, _ = distribution(random_flat_mask(3, 1, 0.5))
    total = 0.0
    for op in range(HEADS[0].size):
        ranges = [range(h.size) if op in h.needed_by and h is not HEADS[0] else [0] for h in HEADS[1:]]
        actions = torch.tensor([[op, *rest] for rest in itertools.product(*ranges)])
        step = FactoredDistribution(
            tuple(t.expand(len(actions), *t.shape[1:]) for t in joint.log_probs),
            tuple(m.expand(len(actions), *m.shape[1:]) for m in joint.masks),
            joint.tables,
        )
        total += step.log_prob(actions).double().sum(-1).exp().sum().item()
    assert total == pytest.approx(1.0, abs=1e-5)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.sampled_from([0.05, 0.5, 0.95]), st.floats(0.05, 4.0))
def test_a_temperature_raises_every_rows_probabilities_to_a_power(seed, density, temperature):
    joint, _ = distribution(random_flat_mask(seed, 4, density), seed)
    other = joint.at_temperature(temperature)
    for before, after, mask in zip(joint.log_probs, other.log_probs, joint.masks, strict=True):
        power = (before.double().exp() ** (1 / temperature)).masked_fill(~mask, 0.0)
        admitted = mask.any(-1, keepdim=True).expand(mask.shape)  # a row of padding means nothing
        expected = power / power.sum(-1, keepdim=True)
        torch.testing.assert_close(after.double().exp()[admitted], expected[admitted], atol=1e-5, rtol=0)
        assert bool(after.isfinite().all())
    assert all(ours is theirs for ours, theirs in zip(joint.masks, other.masks, strict=True))
    modes = [one.sample(deterministic=True) for one in (joint, other)]
    assert torch.equal(modes[0], modes[1])


def test_frequencies_follow_the_probabilities():
    logits = torch.tensor([0.3, -1.0, 2.0, 5.0])
    mask = torch.tensor([True, True, True, False])
    log_probs = masked_log_softmax(logits, mask).expand(40_000, 4)
    drawn = draw(log_probs, mask.expand(40_000, 4), torch.Generator().manual_seed(0))
    frequencies = torch.bincount(drawn, minlength=4) / 40_000
    torch.testing.assert_close(frequencies, log_probs[0].exp(), atol=0.01, rtol=0)
    assert frequencies[3] == 0


def test_same_generator_same_actions_and_mode_needs_none():
    joint, _ = distribution(random_flat_mask(1, 50, 0.7))
    first, second = (joint.sample(torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, joint.sample(torch.Generator().manual_seed(8)))
    mode = joint.sample(deterministic=True)
    assert torch.equal(mode[:, 0], joint.op_log_probs.argmax(-1))


def test_padding_is_finite_in_value_and_gradient():
    masks = TABLES.masks(torch.zeros(2, mask_size(HEADS), dtype=torch.int8))
    logits = [torch.randn(mask.shape, requires_grad=True) for mask in masks]
    log_probs = tuple(masked_log_softmax(logit, mask) for logit, mask in zip(logits, masks, strict=True))
    joint = FactoredDistribution(log_probs, masks, TABLES)
    assert torch.equal(joint.sample(), torch.zeros(2, len(HEADS), dtype=torch.int64))
    loss = sum(e.sum() for e in joint.normalised_entropies()) + joint.log_prob(joint.sample()).sum()
    loss.backward()
    assert loss.isfinite()
    assert all(logit.grad.isfinite().all() for logit in logits)
    assert not any(available.any() for available in joint.available())
    assert joint.forced.all()


def test_log_softmax_is_float32_and_refused_entries_have_no_probability():
    logits = torch.randn(5, 4, dtype=torch.bfloat16)
    log_probs = masked_log_softmax(logits, torch.tensor([True, False, True, True]))
    assert log_probs.dtype == torch.float32
    assert (log_probs[:, 1].exp() == 0).all()


def test_entropy_is_one_where_uniform_and_zero_where_there_is_no_choice():
    flat = torch.zeros(1, mask_size(HEADS), dtype=torch.int8)
    views = split_mask(flat, HEADS)
    views["op"][0, [LifecycleOp.WAIT, LifecycleOp.PRUNE]] = 1
    views["slot"][0, LifecycleOp.PRUNE, 1] = 1
    views["alpha_speed"][0, 1:] = 1
    views["alpha_curve"][0] = 1
    joint, _ = distribution(flat, spread=0.0)
    entropies = dict(zip(COLUMNS, joint.normalised_entropies(), strict=True))
    available = dict(zip(COLUMNS, joint.available(), strict=True))
    prune = HEADS[COLUMNS["alpha_speed"]].needed_by.index(LifecycleOp.PRUNE)
    assert entropies["op"].item() == pytest.approx(1)
    assert entropies["alpha_speed"][0, prune] == pytest.approx(1)
    assert (entropies["slot"] == 0).all()
    # PRUNE needs slot, speed and curve, but leaves the slot a single entry; nothing else is admitted.
    assert not available["slot"].any()
    assert available["alpha_speed"].tolist() == [[op == LifecycleOp.PRUNE for op in (2, 3)]]
    assert not available["blueprint"].any()
    assert available["op"].all()
    assert not joint.forced.any()
