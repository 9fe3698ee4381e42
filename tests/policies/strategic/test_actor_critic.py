"""The graph network among the greenhouse's worlds: what is read, what is scaled, and what is never drawn."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.action_masks import mask_places, mask_size, split_mask
from envs.graph.layout import UNKNOWN
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.slots import SlotConfig
from envs.tasks import make_task
from envs.vocabulary import Blueprint, LifecycleOp
from policies.bundle import PolicySettings
from policies.factory import build_policy
from policies.learned import LEARNED
from policies.player import Player
from policies.return_scale import WORLD
from policies.strategic.actor_critic import registry_names
from policies.strategic.graph import GraphBatch
from policies.strategic.scale import GraphScale
from policies.strategic.schema import NODE_TYPES
from tests.policies.strategic.graphs import random_arrays
from tests.policies.strategic.greenhouses import LAYOUTS, TINY, graph_network, graph_observations, vectors

torch.set_num_threads(1)

EVERYWHERE = ("digits", "digits_scale", "text")


def tables(output):
    """Everything that a pass says, ``[B, T, ...]``."""
    return [*output.distribution.log_probs, output.scaled_value, output.scaled_q_values]


# ------------------------------------------------------------------ several worlds
@settings(max_examples=20)
@given(order=st.permutations(range(6)), seed=st.integers(0, 99))
def test_what_is_said_of_a_host_does_not_depend_on_whom_it_shares_a_pass_with(order, seed):
    network = graph_network(*EVERYWHERE, away=0.1)
    obs = graph_observations(network, 6, 2, seed=seed)
    together = network({name: leaf[list(order)] for name, leaf in obs.items()}, network.initial_hidden(6))
    for place, row in enumerate(order):
        alone = network({name: leaf[row : row + 1] for name, leaf in obs.items()}, network.initial_hidden(1))
        for whole, own in zip(tables(together), tables(alone), strict=True):
            torch.testing.assert_close(whole[place], own[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("task", ["digits", "text"])
def test_a_policy_bound_to_a_world_says_there_what_it_says_of_it_among_others(task):
    """Its slots are fewer than those of training, its vectors shorter, its heads smaller; its weights are the same."""
    network = graph_network(*EVERYWHERE, away=0.1)
    layout = LAYOUTS[task]
    bound = graph_network(task, trained_in=EVERYWHERE)
    bound.load_state_dict(network.state_dict() | {"return_scale.moments": bound.return_scale.moments})
    heads, wider = layout.structure.slots.heads, network.head_specs
    mask = torch.zeros(5, 1, mask_size(wider), dtype=torch.int8)
    mask[..., mask_places(heads, wider)] = 1
    obs = {"graph": vectors(layout, 5, 1, longest=max(of.size for of in network.layouts)), "action_mask": mask}
    obs[WORLD] = torch.full((5, 1, 1), EVERYWHERE.index(task))
    among = network(obs, network.initial_hidden(5))
    own = {"graph": obs["graph"][..., : layout.size], "action_mask": mask[..., mask_places(heads, wider)]}
    alone = bound(own, bound.initial_hidden(5))
    for head, wide, own in zip(heads, among.distribution.log_probs, alone.distribution.log_probs, strict=True):
        rows = 1 if head.name == "op" else len(head.needed_by)
        torch.testing.assert_close(wide[..., :rows, : head.size], own, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(among.scaled_value, alone.scaled_value, atol=1e-5, rtol=1e-5)


def test_what_is_of_no_world_of_its_own_is_refused():
    network = graph_network("digits", "tabular")
    obs = graph_observations(network, 4, 2)
    for label in (-1, 2):
        world = obs[WORLD].clone()
        world[3, 1] = label
        with pytest.raises(ValueError, match=f"reads the worlds 0 to 1, got observations labelled as of {label}"):
            network({**obs, WORLD: world}, ())
        with pytest.raises(ValueError, match="reads the worlds 0 to 1"):
            network.normalisers.observed({**obs, WORLD: world}, torch.ones(4, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"there is no observation among \(0, 2\) hosts and steps"):
        network({name: leaf[:0] for name, leaf in obs.items()}, ())


# ------------------------------------------------------------------ scale
def seen_by(network, obs, times=1):
    """Have the network's scale take in some observations."""
    real = torch.ones(obs["graph"].shape[:-1], dtype=torch.bool)
    for _ in range(times):
        network.normalisers.observations.update(network.normalisers.observed(obs, real), decay=1.0)


def test_what_is_known_is_scaled_and_what_is_not_changes_nothing():
    network = graph_network("digits")
    scale, obs = network.graphs.scale, graph_observations(network, 8, 4)
    seen_by(network, obs)
    before = scale.moments.clone()
    place = LAYOUTS["digits"].places["layers.weight_norm"]
    gone = obs["graph"].clone()
    gone[..., place] = UNKNOWN
    seen_by(network, obs | {"graph": gone}, times=60)
    columns = NODE_TYPES["layer"].columns
    column, other = (columns.names.index(name) for name in ("weight_norm", "gradient_norm"))
    assert torch.equal(scale.moments[:, column], before[:, column])
    assert scale.moments[0, other] == 61 * before[0, other]
    [(_, arrays)] = network._arrays({name: leaf.flatten(0, 1) for name, leaf in obs.items()})
    numbers = scale(GraphBatch.from_arrays(arrays)).nodes["layer"].numbers
    norms = numbers[:, column][numbers[:, columns.width + column] > 0]
    assert abs(norms.mean()) < 0.1
    assert 0.8 < norms.std() < 1.2


def test_what_never_varied_in_training_is_not_read():
    """Its weights got no gradient: whatever it becomes in play would act through what nobody has trained."""
    graphs = GraphBatch.from_arrays(random_arrays(count=20, unknown=0.0))
    same = graphs.context.clone()
    same[:, 3] = 0.3
    scale = GraphScale()
    for _ in range(3):
        scale.update(scale.sums(replace(graphs, context=same), SlotConfig.for_row(3).heads), decay=1.0)
    other = same.clone()
    other[:, 3] = 40.0
    scaled, changed = (scale(replace(graphs, context=context)).context for context in (same, other))
    assert torch.equal(scaled, changed)
    assert not scaled[:, 3].any()
    assert scaled[:, 4].std() > 0.5


def test_steps_that_are_not_real_never_count():
    network = graph_network("digits", "tabular")
    obs = graph_observations(network, 4, 3)
    real = torch.tensor([[True, True, False], [True, False, False], [False] * 3, [True] * 3])
    sums = network.normalisers.observed(obs, real)
    noise = {name: torch.where(real.unsqueeze(-1), leaf, torch.zeros_like(leaf)) for name, leaf in obs.items()}
    assert torch.equal(network.normalisers.observed(noise, real), sums)
    nothing = network.normalisers.observed(obs, torch.zeros_like(real))
    assert torch.equal(nothing, torch.zeros_like(sums))


def test_the_scale_travels_with_the_weights():
    network, other = graph_network("digits"), graph_network("digits", seed=9)
    seen_by(network, graph_observations(network, 5, 2))
    other.load_state_dict(network.state_dict())
    assert other.graphs.scale.seen == network.graphs.scale.seen != GraphScale().seen
    obs = graph_observations(network, 3, 2, seed=4)
    for mine, its in zip(tables(network(obs, ())), tables(other(obs, ())), strict=True):
        assert torch.equal(mine, its)


# ------------------------------------------------------------------ what was never seen
@settings(max_examples=30)
@given(
    ops=st.sets(st.sampled_from([op for op in LifecycleOp if op < 6 and op != LifecycleOp.WAIT])),
    blueprints=st.sets(st.sampled_from([kind for kind in Blueprint if kind < 10]), min_size=1),
    seed=st.integers(0, 99),
)
def test_ops_and_blueprints_never_seen_in_training_are_never_drawn(ops, blueprints, seed):
    trained = graph_network("digits", away=0.1)
    obs = graph_observations(trained, 6, 2, seed=seed)
    views = split_mask(obs["action_mask"], trained.head_specs)
    views["op"][..., [op for op in range(6) if op and LifecycleOp(op) not in ops]] = 0
    views["blueprint"][..., [kind for kind in range(views["blueprint"].shape[-1]) if kind not in blueprints]] = 0
    seen_by(trained, obs)
    playing = graph_network("digits", only_seen=True)
    playing.load_state_dict(trained.state_dict())
    offered = graph_observations(playing, 50, full=True, seed=seed)
    for deterministic in (False, True):
        actions = playing.act(offered, playing.initial_hidden(50), torch.Generator().manual_seed(seed), deterministic)
        seen_ops = {int(LifecycleOp.WAIT), *(int(op) for op in ops)}
        assert set(actions.actions[:, 0].tolist()) <= seen_ops
        grown = actions.actions[actions.actions[:, 0] == LifecycleOp.GERMINATE, 2]
        assert set(grown.tolist()) <= {int(kind) for kind in blueprints}


def test_an_input_never_seen_in_training_changes_nothing_in_play():
    trained = graph_network("digits", away=0.1)
    obs = graph_observations(trained, 6, 2)
    place = LAYOUTS["digits"].places["activations.saturation_rate"]
    obs["graph"][..., place] = UNKNOWN
    seen_by(trained, obs)
    playing = graph_network("digits", only_seen=True)
    playing.load_state_dict(trained.state_dict())
    other = graph_observations(playing, 4, 1, seed=1)
    changed = {**other, "graph": other["graph"].clone()}
    changed["graph"][..., place] = 0.77
    for network, same in ((playing, True), (trained, False)):
        outputs = [tables(network(given, ())) for given in (other, changed)]
        assert all(torch.equal(*pair) for pair in zip(*outputs, strict=True)) == same


# ------------------------------------------------------------------ the world
def test_a_policy_plays_a_host_of_another_topology_with_more_slots():
    """Trained on three slots of an MLP, played on five convolutional ones that can grow inside."""
    trained = graph_network("tabular", away=0.1)
    seen_by(trained, graph_observations(trained, 8, 2))
    task = make_task("digits_scale")
    names = registry_names([LAYOUTS["tabular"]])
    bound = PolicySettings(task.slots, 6, TINY, LAYOUTS["digits_scale"], names)
    policy = build_policy(LEARNED, bound)
    policy.load_state_dict(trained.state_dict())
    env = MorphogenesisVectorEnv(3, task=task, max_epochs=6, graph=True)
    observation, _ = env.reset(seed=0)
    player, ops = Player(policy, 3, seed=0), set()
    for _ in range(6):
        actions = player.act(observation)
        ops |= set(actions[:, 0].tolist())
        observation, *_, info = env.step(actions)
        assert "refused" not in info
    assert LifecycleOp.GERMINATE in ops
    assert not ops & {LifecycleOp.GROW_INTERNAL, LifecycleOp.SHRINK_INTERNAL}
    assert policy.feature_dim == observation["graph"].shape[1]
    with pytest.raises(ValueError, match="needs the layout"):
        build_policy(LEARNED, replace(bound, graph=None))


def test_a_rollout_of_real_hosts_is_replayed():
    network = graph_network("digits", away=0.05)
    env = MorphogenesisVectorEnv(3, task="digits", max_epochs=5, graph=True)
    observation, _ = env.reset(seed=1)
    generator, steps, stored = torch.Generator().manual_seed(0), [], []
    for _ in range(5):
        steps.append({name: torch.from_numpy(leaf.copy()) for name, leaf in observation.items()})
        stored.append(network.act(steps[-1], network.initial_hidden(3), generator))
        observation, *_, info = env.step(stored[-1].actions.numpy())
        assert "refused" not in info
    obs = {name: torch.stack([step[name] for step in steps], dim=1) for name in steps[0]}
    seen = network(obs, network.initial_hidden(3)).evaluated(torch.stack([r.actions for r in stored], dim=1))
    expected = torch.stack([result.head_log_probs for result in stored], dim=1)
    torch.testing.assert_close(seen.head_log_probs, expected, atol=1e-5, rtol=1e-5)
