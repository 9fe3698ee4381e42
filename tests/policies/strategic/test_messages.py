"""A packet says what was measured, in one form, or is refused."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from envs.slots import SlotConfig
from envs.vocabulary import BLENDING_METHODS, SeedStage
from policies.strategic.graph_columns import (
    MOST_EDGES,
    MOST_NODES,
    Activations,
    Allowed,
    Connects,
    Feeds,
    Graph,
    Influences,
    Layers,
    Monitors,
    Parameters,
    Tunes,
)
from policies.strategic.messages import KEYS, SeedState, SystemState
from policies.strategic.packet_page import PAGE_FILE, SCHEMA_FILE, page, schema_text
from policies.strategic.packet_values import METRICS
from tests.envs.helpers import tiny_env
from tests.places import ROOT
from tests.policies.strategic.packets import packets, sent_keys

SCHEMA = Draft202012Validator(SystemState.model_json_schema())
LEAST = {"run_id": "r", "packet_id": "p", "timestamp_ns": 1, "declared": KEYS, "epoch": 3}


def packet(**fields):
    return SystemState(**{**LEAST, **fields})


def layers(count, **columns):
    return Layers(name=tuple(f"layer{i}" for i in range(count)), **columns)


def graph(count=3, **tables):
    return Graph(layers=layers(count), layer_count=count, **tables)


def seed(slot="r0c0", **fields):
    return SeedState(**{"slot": slot, "stage": SeedStage.TRAINING, **fields})


@given(packets())
def test_a_packet_is_what_its_json_says(state):
    text = state.model_dump_json()
    assert SystemState.model_validate_json(text) == state
    SCHEMA.validate(json.loads(text))


@pytest.mark.parametrize(("file", "content"), [(PAGE_FILE, page), (SCHEMA_FILE, schema_text)])
def test_the_page_and_the_schema_are_those_of_the_code(file, content):
    written = Path(ROOT, "docs", file).read_text()
    assert written == content(), "run: python -m policies.strategic.packet_page docs"


def objects(content):
    """Every message in a packet's JSON."""
    if isinstance(content, dict):
        yield content
        for value in content.values():
            yield from objects(value)
    if isinstance(content, list):
        for value in content:
            yield from objects(value)


@settings(max_examples=20)
@given(packets(), st.data())
def test_unknown_fields_are_refused_wherever_they_stand(state, data):
    content = json.loads(state.model_dump_json())
    data.draw(st.sampled_from(list(objects(content))))["surplus"] = 1
    with pytest.raises(ValidationError, match="surplus"):
        SystemState.model_validate_json(json.dumps(content))


def test_nothing_can_be_changed():
    state = packet(graph=graph(), seeds=(seed(),))
    for message, field in (
        (state, "epoch"),
        (state.graph, "layers"),
        (state.graph.layers, "name"),
        (state.seeds[0], "alpha"),
    ):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(message, field, None)


def test_what_is_absent_is_none():
    state = packet(graph=graph(), seeds=(seed(),))
    assert sent_keys(state) == []
    assert all(value is None for key in KEYS for value in state.measurements(key))


@pytest.mark.parametrize("written", ["3.5", '"3"', "true", "-1", "1e400", "NaN", "[]"])
def test_values_of_another_kind_are_refused(written):
    content = packet().model_dump_json().replace('"epoch":3', f'"epoch":{written}')
    with pytest.raises(ValidationError, match="epoch"):
        SystemState.model_validate_json(content)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e31])
def test_what_is_not_finite_is_refused(value):
    with pytest.raises(ValidationError, match="validation_loss"):
        packet(validation_loss=value)
    with pytest.raises(ValidationError, match="weight_norm"):
        layers(1, weight_norm=(abs(value),))
    with pytest.raises(ValidationError, match="loss"):
        packet(metrics={"loss": value})


def test_at_most_128_layers_are_sent_and_the_true_count_is_said():
    assert graph(MOST_NODES).layers.size == MOST_NODES == 128
    with pytest.raises(ValidationError, match="at most 128"):
        layers(MOST_NODES + 1)
    assert Graph(layers=layers(3), layer_count=10_000, sampled=True).layer_count == 10_000
    for count, sampled in ((2, False), (2, True), (4, False)):
        with pytest.raises(ValidationError, match="layer_count must be 3 where all layers are sent"):
            Graph(layers=layers(3), layer_count=count, sampled=sampled)


def named(count):
    return {"name": tuple(f"node{at}" for at in range(count))}


def test_every_other_table_has_a_limit_of_its_own():
    for kind in (Activations, Parameters):
        assert kind(**named(MOST_NODES)).size == MOST_NODES
        with pytest.raises(ValidationError, match="at most 128"):
            kind(**named(MOST_NODES + 1))
    rows = tuple(range(MOST_EDGES + 1))
    for kind in (Connects, Feeds, Influences, Tunes, partial(Allowed, method=("linear",) * len(rows))):
        with pytest.raises(ValidationError, match="at most 1024"):
            kind(source=rows, target=rows)
    watching = [seed(f"slot {at}", monitored_layers=Monitors(layer=tuple(range(128)))) for at in range(9)]
    assert len(packet(graph=graph(128), seeds=tuple(watching[:8])).seeds) == 8
    with pytest.raises(ValidationError, match="of all slots together must be at most 1024, got 1152"):
        packet(graph=graph(128), seeds=tuple(watching))


def test_activations_may_be_sampled_where_layers_are_not():
    assert Graph(layers=layers(3), layer_count=3, sampled=True).sampled


def test_columns_have_one_length():
    with pytest.raises(ValidationError, match="weight_norm has 2 entries for 3 rows"):
        layers(3, weight_norm=(1.0, None))
    with pytest.raises(ValidationError, match="target has 1 entries for 2 rows"):
        Connects(source=(0, 1), target=(0,))


@pytest.mark.parametrize(
    ("table", "ends"),
    [
        ("connects", {"source": (3,), "target": (0,)}),
        ("connects", {"source": (0,), "target": (3,)}),
        ("feeds", {"source": (0,), "target": (2,)}),
        ("influences", {"source": (2,), "target": (0,)}),
        ("tunes", {"source": (1,), "target": (0,)}),
        ("allowed", {"source": (0,), "target": (1,), "method": ("linear",)}),
        ("allowed", {"source": (1,), "target": (0,), "method": ("linear",)}),
        ("seeds", None),
    ],
)
def test_rows_must_exist(table, ends):
    content = json.loads(packet(graph=graph(), seeds=(seed(),)).model_dump_json())
    content["graph"]["activations"] = {"name": ["a", "b"]}
    content["graph"]["parameters"] = {"name": ["p"]}
    SystemState.model_validate_json(json.dumps(content))
    if ends is None:
        content["seeds"][0]["monitored_layers"] = {"layer": [0, 3]}
    else:
        content["graph"][table] = ends
    with pytest.raises(ValidationError, match=r"row \d of a table of \d"):
        SystemState.model_validate_json(json.dumps(content))


def test_nothing_is_said_twice():
    with pytest.raises(ValidationError, match=r"the edge \(0, 1\) is given twice"):
        Connects(source=(0, 1, 0), target=(1, 0, 1))
    with pytest.raises(ValidationError, match="the name 'a' is given twice"):
        Layers(name=("a", "a"))
    with pytest.raises(ValidationError, match="the slot 'r0c0' is given twice"):
        packet(seeds=(seed(), seed()))
    with pytest.raises(ValidationError, match="the layer 1 is given twice"):
        Monitors(layer=(1, 1))
    with pytest.raises(ValidationError, match=r"the key 'metrics\.loss' is given twice"):
        packet(declared=("metrics.loss", "metrics.loss"))
    with pytest.raises(ValidationError, match="the method 'linear' is given twice"):
        seed(allowed_blending_methods=("linear", "linear"))


def test_metrics_are_known_and_in_their_range():
    with pytest.raises(ValidationError, match="'throughput' is not a known metric: there are loss, gradient_norm"):
        packet(metrics={"throughput": 1.0})
    for name, value in (("gpu_util_percent", 101.0), ("apply_ms", -0.1), ("grad_conflict_rate", 1.5)):
        with pytest.raises(ValidationError, match=f"{name} must be from 0 to"):
            packet(metrics={name: value})
    assert packet(metrics={"loss_delta": -0.1}).metrics == {"loss_delta": -0.1}


def test_what_is_sent_is_declared():
    with pytest.raises(ValidationError, match="'loss' is not a key that can be measured"):
        packet(declared=("loss",))
    for fields, key in (
        ({"metrics": {"loss": 0.3}}, "metrics.loss"),
        ({"validation_loss": 0.3}, "run.validation_loss"),
        ({"graph": Graph(layers=layers(2, weight_norm=(None, 1.0)), layer_count=2)}, "layers.weight_norm"),
        ({"seeds": (seed(alpha=0.5),)}, "seeds.alpha"),
    ):
        others = tuple(other for other in KEYS if other != key)
        assert sent_keys(packet(**fields)) == [key]
        with pytest.raises(ValidationError, match=f"{key} is sent but not declared"):
            packet(declared=others, **fields)


def test_stages_and_methods_are_known_and_an_empty_slot_has_no_seed():
    assert json.loads(seed().model_dump_json())["stage"] == "TRAINING"
    assert seed(stage="HOLDING").stage is SeedStage.HOLDING
    for stage in ("GROWING", 3, None):
        with pytest.raises(ValidationError, match="stage"):
            seed(stage=stage)
    assert seed(allowed_blending_methods=BLENDING_METHODS).allowed_blending_methods == BLENDING_METHODS
    with pytest.raises(ValidationError, match="allowed_blending_methods"):
        seed(allowed_blending_methods=("step",))
    with pytest.raises(ValidationError, match="r0c0 is DORMANT: no seed lives there"):
        seed(stage=SeedStage.DORMANT, blueprint="norm")
    with pytest.raises(ValidationError, match="internal_level 2 is above internal_max_level 1"):
        seed(internal_level=2, internal_max_level=1)


@pytest.mark.parametrize("internal_levels", [False, True])
def test_an_observation_of_the_world_is_one_of_a_packet(internal_levels):
    env = tiny_env(1, task_changes={"internal_levels": internal_levels})
    observation, _ = env.reset(seed=0)
    slots = env.task.slots
    states = tuple(seed(slot, stage=SeedStage.DORMANT) for slot in slots.slot_ids)
    fields = {
        "observation": tuple(observation["obs"][0].tolist()),
        "blueprint_indices": tuple(observation["blueprint_indices"][0].tolist()),
        "action_mask": tuple(observation["action_mask"][0].tolist()),
    }
    state = packet(seeds=states, internal_levels=internal_levels, **fields)
    np.testing.assert_array_equal(np.array(state.observation, np.float32), observation["obs"][0])
    for name, values in fields.items():
        with pytest.raises(ValidationError, match=f"{name} must have {len(values)} numbers for {len(states)} slots"):
            packet(seeds=states, internal_levels=internal_levels, **{name: values[1:]})


def test_keys_are_all_that_may_be_absent():
    assert len(set(KEYS)) == len(KEYS)
    assert {key.partition(".")[0] for key in KEYS} == {
        *("run", "metrics", "seeds", "monitors", "layers", "activations", "parameters"),
        *("connects", "feeds", "influences", "tunes"),
    }
    assert {key for key in KEYS if key.startswith("metrics.")} == {f"metrics.{name}" for name in METRICS}


def test_a_host_of_any_number_of_slots_has_a_packet():
    for count in (1, 3, 10):
        slots = SlotConfig.for_row(count).slot_ids
        assert len(packet(seeds=tuple(seed(slot) for slot in slots)).seeds) == count
    with pytest.raises(ValidationError, match="at most 128 items"):
        packet(seeds=tuple(seed(slot) for slot in SlotConfig.for_row(129).slot_ids))
    assert packet().seeds == ()
    with pytest.raises(ValidationError, match="action_mask must have 0 numbers for 0 slots"):
        packet(action_mask=(1,))
