"""What training never showed is neither read nor drawn in play."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from envs.action_masks import split_mask
from envs.slots import SlotConfig
from envs.vocabulary import Blueprint, LifecycleOp
from policies.distribution import ActionTables
from policies.strategic.graph import GraphBatch
from policies.strategic.network import GraphPolicyNetwork
from policies.strategic.network_config import SMALL
from policies.strategic.seen import BLUEPRINTS, INPUTS, OPS, Seen
from tests.policies.strategic.graphs import SIZES, random_arrays, rows

SLOTS = SlotConfig.for_row(SIZES["seed"], internal_levels=True)
EVERYTHING = Seen(frozenset(INPUTS), frozenset(OPS), frozenset(BLUEPRINTS))
SEEN = st.builds(
    Seen,
    st.frozensets(st.sampled_from(INPUTS)),
    st.frozensets(st.sampled_from(OPS)),
    st.frozensets(st.sampled_from(BLUEPRINTS)),
)


def arrays(**options):
    return random_arrays(slots=SLOTS, **options)


def seen_in(graphs):
    return Seen.of(GraphBatch.from_arrays(graphs), SLOTS.heads)


def test_everything_known_is_seen():
    assert seen_in(arrays(count=40, unknown=0.0)) == EVERYTHING
    assert seen_in(arrays(count=40, unknown=1.0)).inputs == {
        name for name in INPUTS if "_type" in name or name.endswith(".edges")
    } | {
        "seed.blueprint",
        "seed.seed_kind",
        "seed.specialisation",
        "parameter.optimizer_family",
    }


def test_what_one_batch_showed_and_another_one_adds_up():
    whole = arrays(count=6, unknown=0.95)
    parts = [rows(whole, [at]) for at in range(6)]
    together = Seen()
    for part in parts:
        together |= seen_in(part)
    assert together == seen_in(whole)
    assert Seen.all_but(together.never) == together


@given(SEEN, st.integers(0, 5))
def test_play_shows_what_training_showed_and_no_more(seen, seed):
    graphs = seen.restrict(arrays(count=3, seed=seed), SLOTS.heads)
    shown = seen_in(graphs)
    assert shown.inputs <= seen.inputs
    assert shown.ops <= seen.ops | {"WAIT"}
    assert shown.blueprints <= seen.blueprints
    masks = split_mask(graphs.action_mask, SLOTS.heads)
    before = split_mask(arrays(count=3, seed=seed).action_mask, SLOTS.heads)
    assert (masks["op"][:, LifecycleOp.WAIT] == 1).all(), "waiting is always possible"
    assert all((masks[name] <= before[name]).all() for name in masks), "nothing new is admitted"
    if not seen.blueprints:
        assert not masks["op"][:, LifecycleOp.GERMINATE].any()
    for head in SLOTS.heads[2:]:
        unneeded = ~masks["op"][:, list(head.needed_by)].any(dim=1)
        assert not masks[head.name][unneeded].any(), "as the world's own masks are"


def test_nothing_changes_where_everything_was_seen():
    graphs = arrays()
    restricted = EVERYTHING.restrict(graphs, SLOTS.heads)
    for name, nodes in graphs.nodes.items():
        torch.testing.assert_close(restricted.nodes[name].values, nodes.values, equal_nan=True, rtol=0, atol=0)
        assert torch.equal(restricted.nodes[name].codes, nodes.codes)


def test_an_op_or_a_blueprint_never_seen_is_never_drawn():
    torch.manual_seed(0)
    seen = Seen(frozenset(INPUTS), frozenset({"WAIT", "GERMINATE", "PRUNE"}), frozenset({"NORM", "LORA"}))
    graphs = GraphBatch.from_arrays(seen.restrict(arrays(count=300), SLOTS.heads))
    with torch.inference_mode():
        distribution = GraphPolicyNetwork(SMALL)(graphs, ActionTables(SLOTS.heads)).distribution
    actions = distribution.sample(torch.Generator().manual_seed(0))
    heads = [head.name for head in SLOTS.heads]
    ops = actions[:, 0]
    assert set(ops.tolist()) <= {LifecycleOp.WAIT, LifecycleOp.GERMINATE, LifecycleOp.PRUNE}
    planted = actions[ops == LifecycleOp.GERMINATE][:, heads.index("blueprint")]
    assert len(planted)
    assert set(planted.tolist()) <= {Blueprint.NORM, Blueprint.LORA}


def test_the_arrays_and_masks_that_were_given_stay():
    graphs = arrays()
    mask, values = graphs.action_mask.clone(), graphs.nodes["layer"].values.clone()
    Seen().restrict(graphs, SLOTS.heads)
    assert torch.equal(graphs.action_mask, mask)
    torch.testing.assert_close(graphs.nodes["layer"].values, values, equal_nan=True)


def test_names_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="there is nothing called 'JUMP' among the ops"):
        Seen(ops=frozenset({"JUMP"}))
    with pytest.raises(ValueError, match="there is nothing called 'x' among the inputs"):
        Seen.all_but({"inputs": ("x",), "ops": (), "blueprints": ()})
