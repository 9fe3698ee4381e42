"""Imitation learns what is on record, no more than that, and goes on later to the same bits."""

import dataclasses

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from envs.action_masks import split_mask
from envs.slots import SlotConfig
from envs.vocabulary import HEADS_NEEDED, LifecycleOp, RampShape
from policies.distribution import ActionTables
from policies.strategic.graph import GraphBatch
from policies.strategic.imitation import Imitation, balancing_weights, decision_loss
from policies.strategic.imitation_config import ImitationConfig
from policies.strategic.labels import Outcomes, recorded
from policies.strategic.lessons import Lessons, held_out_rows, measure
from policies.strategic.network import GraphPolicyNetwork
from policies.strategic.network_config import GraphNetworkConfig
from policies.strategic.replay_store import Replay, ReplayStore, held_out
from policies.strategic.schema import BLENDING_METHODS, NODE_TYPES, RISK_CLASSES
from policies.strategic.taught import NOTHING, Taught
from tests.policies.strategic.graphs import random_arrays, rows, with_nodes

torch.set_num_threads(1)
TINY = GraphNetworkConfig(sage_width=16, gat_width=12, attention_heads=2, dropout=0.05)
CONFIG = ImitationConfig(batch_size=32, lr=5e-3, risk_weight=1.0, held_out=0.25)
SLOTS = SlotConfig.for_row(3)
LENGTH = 5
OP, VALUE, RISK = range(3)
"""Numbers of the context that say what to do, what is gained, and how risky it is."""
RISES = (0.0, 0.05, 0.1, 0.2, 0.0)


class ArraysStudent:
    """Reads graphs of fixed arrays, which the observation numbers."""

    def __init__(self, arrays, config=TINY, seed=0):
        torch.manual_seed(seed)
        self.arrays, self.tables = arrays, ActionTables(SLOTS.heads)
        self.network = GraphPolicyNetwork(config)

    def read(self, world, observations, imitating=False):
        graphs = GraphBatch.from_arrays(rows(self.arrays, observations["number"]))
        return self.network(graphs, self.tables, imitating)


def toy_arrays(steps):
    """One small graph in as many versions, which differ in the numbers that matter."""
    sizes = {"layer": 2, "seed": 3, "activation": 1, "parameter": 1}
    arrays = rows(random_arrays(1, sizes, edges=2, unknown=0.0), torch.zeros(steps, dtype=torch.int64))
    generator = torch.Generator().manual_seed(7)
    context = arrays.context.clone()
    context[:, OP] = torch.randint(-1, 2, (steps,), generator=generator).float()
    context[:, VALUE] = torch.randn(steps, generator=generator)
    context[:, RISK] = torch.arange(steps) // LENGTH % len(RISK_CLASSES) - 2.0
    allows = NODE_TYPES["seed"].columns.place(f"allows_{BLENDING_METHODS[0]}")
    seeds = arrays.nodes["seed"].values.clone()
    seeds[..., allows] = 1.0
    arrays = with_nodes(arrays, "seed", values=seeds)
    return dataclasses.replace(arrays, context=context, action_mask=torch.ones_like(arrays.action_mask))


def arrays_without(arrays, number):
    """What nobody can see in the graphs."""
    context = arrays.context.clone()
    context[:, number] = torch.nan
    return dataclasses.replace(arrays, context=context)


def teacher(arrays):
    """Prunes, germinates or waits, each with arguments of its own."""
    says = arrays.context[:, OP]
    actions = torch.zeros(len(says), len(SLOTS.heads), dtype=torch.int64)
    for op, where in ((LifecycleOp.GERMINATE, says > 0), (LifecycleOp.PRUNE, says < 0)):
        for column, head in enumerate(SLOTS.heads):
            if head.name in HEADS_NEEDED[op]:
                actions[where, column] = op if head.name == "op" else (int(op) + column) % head.size
    return actions


def record(path, arrays, actions=None, ramps=None):
    """A store of the arrays' graphs, each a step."""
    actions = teacher(arrays) if actions is None else actions
    store, episodes = ReplayStore(path), []
    for host, at in enumerate(torch.arange(len(actions)).split(LENGTH)):
        gained = torch.cat([arrays.context[at, VALUE], torch.zeros(1)])
        kind = int(arrays.context[at[0], RISK]) + 2
        stopped = (torch.arange(LENGTH) == LENGTH - 1) & (kind == RISK_CLASSES.index("CRITICAL"))
        outcomes = Outcomes(
            gained[:-1] - gained[1:], torch.ones(LENGTH), torch.full((LENGTH,), 1 + RISES[kind]), stopped
        )
        episodes.append(recorded(host, {"number": at}, actions[at], outcomes, None if ramps is None else ramps[at]))
    for at in range(0, len(episodes), 40):
        store.append("toy", "teacher", episodes[at : at + 40])
    return Replay.open(path)


@pytest.fixture(scope="module")
def arrays():
    return toy_arrays(120)


@pytest.fixture(scope="module")
def replay(arrays, tmp_path_factory):
    return record(tmp_path_factory.mktemp("store"), arrays)


def taught(arrays, replay, passes, config=CONFIG, seed=0):
    imitation = Imitation(ArraysStudent(arrays, seed=seed), replay, config)
    for _ in range(passes):
        imitation.run_pass()
    return imitation


def content(imitation, path):
    imitation.save(path)
    return path.read_bytes()


def test_a_small_deterministic_teacher_is_imitated(tmp_path):
    arrays = toy_arrays(500)
    imitation = taught(arrays, record(tmp_path, arrays), 20)
    best = imitation.history[imitation.best_pass - 1].agreement
    assert best["agreement"] > 0.95
    assert all(of["agreement"] > 0.95 for of in best["heads"].values())
    assert all(of["recall"] > 0.95 for of in best["risk"].values())
    assert best["value"]["explained"] > 0.9


def test_whoever_goes_on_later_gets_the_same_bits(arrays, replay, tmp_path):
    whole = taught(arrays, replay, 3)
    taught(arrays, replay, 1).save(tmp_path / "cut")
    torch.manual_seed(123)
    gone_on = Imitation(ArraysStudent(arrays, seed=9), replay, CONFIG)
    gone_on.load(tmp_path / "cut")
    for _ in range(2):
        gone_on.run_pass()
    assert gone_on.history == whole.history
    assert content(gone_on, tmp_path / "a") == content(whole, tmp_path / "b")


def test_the_seed_decides_everything_and_nobody_elses_chance_is_touched(arrays, replay, tmp_path):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = taught(arrays, replay, 0)
    torch.set_rng_state(before)
    first.run_pass()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = taught(arrays, replay, 1), taught(arrays, replay, 1, dataclasses.replace(CONFIG, seed=1))
    assert content(first, tmp_path / "a") == content(again, tmp_path / "b")
    assert first.history != other.history


def test_held_out_hosts_are_examined_without_dropout_and_never_learnt_from(arrays, replay):
    read = {True: set(), False: set()}

    class Watched(ArraysStudent):
        def read(self, world, observations, imitating=False):
            read[imitating].update((observations["number"] // LENGTH).tolist())
            return super().read(world, observations, imitating)

    Imitation(Watched(arrays), replay, CONFIG).run_pass()
    hosts = set(replay.worlds["toy"].hosts)
    assert read[False] == {host for host in hosts if held_out(host, CONFIG.held_out)}
    assert read[True] == hosts - read[False]
    assert read[True]
    assert read[False]


def test_the_best_pass_is_kept_with_the_weights_it_had(arrays, replay):
    imitation = taught(arrays, replay, 4, dataclasses.replace(CONFIG, lr=0.05))
    losses = [report.held_out["total"] for report in imitation.history]
    assert losses[imitation.best_pass - 1] == min(losses)
    student = ArraysStudent(arrays, seed=5)
    student.network.load_state_dict(imitation.best)
    kept = held_out_rows(replay, CONFIG.held_out)
    found = measure(Lessons(student, replay), kept, imitation.return_scale, CONFIG.batch_size)
    assert found.to_json() == imitation.history[imitation.best_pass - 1].agreement


@pytest.mark.parametrize("op", list(SLOTS.ops))
def test_heads_that_the_op_on_record_does_not_need_get_no_gradient(arrays, op):
    student = ArraysStudent(arrays)
    few = torch.arange(6)
    actions = torch.zeros(len(few), len(SLOTS.heads), dtype=torch.int64)
    actions[:, 0] = op
    everyone = torch.ones(len(few), dtype=torch.bool)
    decision_loss(student.read("toy", {"number": few}), actions, everyone).backward()
    action = student.network.heads.action
    for name, head in action.arguments.items():
        gradient = head.weight.grad
        assert (gradient is not None and bool(gradient.any())) == (name in HEADS_NEEDED[op])
    assert bool(action.op_bias.grad.any())


def test_forced_steps_teach_nothing(arrays):
    mask = torch.zeros_like(arrays.action_mask)
    split_mask(mask, SLOTS.heads)["op"][:, LifecycleOp.WAIT] = 1
    student = ArraysStudent(dataclasses.replace(arrays, action_mask=mask))
    few = torch.arange(4)
    waiting = torch.zeros(4, len(SLOTS.heads), dtype=torch.int64)
    loss = decision_loss(student.read("toy", {"number": few}), waiting, few >= 0)
    assert loss == 0.0


def test_what_is_no_example_teaches_risks_alone(arrays, replay, tmp_path):
    """Actions and rewards of a bad policy leave no trace, what became of its hosts does."""

    def learnt(path, seed, stopped=0):
        generator = torch.Generator().manual_seed(seed)
        path.mkdir()
        record(path, arrays)
        actions = torch.randint(0, 2, (LENGTH, len(SLOTS.heads)), generator=generator)
        ends = torch.arange(LENGTH) < stopped
        outcomes = Outcomes(torch.randn(LENGTH, generator=generator), torch.ones(LENGTH), torch.ones(LENGTH), ends)
        bad = recorded(learnt_host, {"number": torch.arange(LENGTH)}, actions, outcomes)
        ReplayStore(path).append("toy", "bad", [bad], exemplary=False)
        student = ArraysStudent(arrays)
        imitation = Imitation(student, Replay.open(path), CONFIG)
        return imitation.run_pass(), student.network.state_dict()

    learnt_host = next(host for host in replay.worlds["toy"].hosts if not held_out(host, CONFIG.held_out))
    (report, weights), (again, same), (_, other) = (
        learnt(tmp_path / name, *of) for name, of in {"a": (0,), "b": (1,), "c": (0, 1)}.items()
    )
    assert report == again
    assert all(torch.equal(tensor, same[name]) for name, tensor in weights.items())
    assert not all(torch.equal(tensor, other[name]) for name, tensor in weights.items())


@pytest.mark.parametrize(
    ("weights", "drawn", "taught"),
    [
        ({}, False, Taught(risk=True)),
        ({}, True, Taught(risk=True, methods=True, windows=True)),
        ({"risk_weight": 0.0, "ramp_weight": 0.0}, True, NOTHING),
    ],
)
def test_what_is_on_record_and_weighs_is_taught(arrays, tmp_path, weights, drawn, taught):
    ramps = torch.tensor([0.0, 0.0, 1.0]).expand(len(arrays.seeds), 3) if drawn else None
    config = dataclasses.replace(CONFIG, **weights)
    assert Imitation(ArraysStudent(arrays), record(tmp_path, arrays, ramps=ramps), config).taught == taught


def test_risks_that_nobody_measured_are_not_taught(arrays, tmp_path):
    store, hosts = ReplayStore(tmp_path), torch.arange(len(arrays.seeds)).split(LENGTH)
    lost = Outcomes(torch.zeros(LENGTH), *2 * [torch.full((LENGTH,), torch.nan)], torch.zeros(LENGTH, dtype=bool))
    actions = teacher(arrays)
    store.append("toy", "t", [recorded(host, {"number": at}, actions[at], lost) for host, at in enumerate(hosts)])
    assert Imitation(ArraysStudent(arrays), Replay.open(tmp_path), CONFIG).taught == NOTHING


def test_blending_that_went_well_is_imitated_more(arrays, tmp_path):
    shapes = torch.arange(len(arrays.seeds)) % len(BLENDING_METHODS)
    well = shapes == RampShape.COSINE
    windows = torch.where(well.unsqueeze(1), torch.tensor([0.1, 0.5]), torch.tensor([0.7, 0.9]))
    arrays = dataclasses.replace(arrays, context=arrays.context.clone())
    arrays.context[:, VALUE] = well * 3.0 - 1.0
    actions = torch.zeros(len(shapes), len(SLOTS.heads), dtype=torch.int64)
    actions[:, 0], actions[:, 1] = LifecycleOp.ADVANCE, 2
    ramps = torch.cat([shapes.unsqueeze(1).float(), windows], dim=1)
    ramps[: len(ramps) // 2] = torch.nan  # of these steps none begins to blend
    student = ArraysStudent(arrays_without(arrays, VALUE))
    config = dataclasses.replace(CONFIG, ramp_weight=1.0)
    imitation = Imitation(student, record(tmp_path, arrays, actions, ramps), config)
    for _ in range(12):
        imitation.run_pass()
    said = student.read("toy", {"number": torch.arange(20)})
    assert (said.blending_method_logits[:, 2].argmax(dim=-1) == RampShape.COSINE).all()
    assert (said.schedule[:, 2, 0] < 0.35).all()


def test_an_action_that_its_mask_refuses_is_named(arrays, tmp_path):
    closed = dataclasses.replace(arrays, action_mask=arrays.action_mask.clone())
    split_mask(closed.action_mask, SLOTS.heads)["op"][:, LifecycleOp.PRUNE] = 0
    imitation = Imitation(ArraysStudent(closed), record(tmp_path, arrays), CONFIG)
    with pytest.raises(ValueError, match=r"the mask on record refuses the action on record \[3, "):
        imitation.run_pass()


def test_what_cannot_be_learnt_from_is_refused(arrays, tmp_path):
    endless = dataclasses.replace(arrays, context=arrays.context.clone())
    endless.context[:, VALUE] = torch.inf
    imitation = Imitation(ArraysStudent(arrays), record(tmp_path, endless), CONFIG)
    with pytest.raises(ValueError, match=r"a gradient is not finite: begin elsewhere with a smaller lr than 0.005"):
        imitation.run_pass()


def test_records_without_hosts_on_both_sides_are_refused(arrays, tmp_path):
    few = record(tmp_path, rows(arrays, torch.arange(LENGTH)))
    with pytest.raises(ValueError, match=r"of the 1 recorded episodes .* none is (held out|left to learn from)"):
        Imitation(ArraysStudent(arrays), few, CONFIG)


def test_going_on_needs_the_same_settings_record_and_network(arrays, replay, tmp_path):
    state, other = tmp_path / "state", tmp_path / "other"
    taught(arrays, replay, 1).save(state)
    other.mkdir()
    others = [
        ("lr", Imitation(ArraysStudent(arrays), replay, dataclasses.replace(CONFIG, lr=0.1))),
        ("records", Imitation(ArraysStudent(arrays), record(other, rows(arrays, torch.arange(100))), CONFIG)),
        ("network.gat_width", Imitation(ArraysStudent(arrays, GraphNetworkConfig(16, 8, 2)), replay, CONFIG)),
    ]
    for name, imitation in others:
        before = content(imitation, tmp_path / "before")
        with pytest.raises(ValueError, match=f"was begun with {name} "):
            imitation.load(state)
        assert content(imitation, tmp_path / "after") == before


@pytest.mark.parametrize("content", [b"", b"{}", safetensors.torch.save({"x": torch.zeros(2)})])
def test_another_file_is_nothing_to_go_on_with(arrays, replay, tmp_path, content):
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(ValueError, match="is no imitation to go on with"):
        Imitation(ArraysStudent(arrays), replay, CONFIG).load(tmp_path / "state")


@given(st.lists(st.integers(-1, len(RISK_CLASSES) - 1), max_size=40))
def test_every_risk_that_occurs_weighs_the_same_in_all(classes):
    classes = torch.tensor(classes, dtype=torch.int64)
    weights = balancing_weights(classes)
    known = classes[classes >= 0]
    totals = [float(weights[known[known == risk]].sum()) for risk in known.unique().tolist()]
    assert totals == pytest.approx([len(known) / max(len(totals), 1)] * len(totals))
    assert weights.isfinite().all()
