"""Coverage counts what was measured, entry by entry, and nothing that stands in for it."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.vocabulary import SeedStage
from policies.strategic.coverage import Coverage, CoverageLevel, CoverageLog
from policies.strategic.graph_columns import Connects, Graph, Layers, Monitors
from policies.strategic.messages import KEYS, SeedState, SystemState
from tests.policies.strategic.packets import packets
from tests.policies.strategic.states import chain, changed, state


def packet(declared=KEYS, **fields):
    return SystemState(run_id="r", packet_id="p", timestamp_ns=1, declared=declared, epoch=3, **fields)


def host(count=4, **columns):
    return Graph(layers=Layers(name=tuple(map(str, range(count))), **columns), layer_count=count)


def counted(measured, expected):
    return Coverage({"metrics.loss": measured}, {"metrics.loss": expected})


@pytest.mark.parametrize("declared", [KEYS, (), ("metrics.loss",)])
def test_an_empty_packet_is_critical(declared):
    coverage = Coverage.of(packet(declared))
    assert coverage.average == 0.0
    assert coverage.level is CoverageLevel.CRITICAL
    assert set(coverage.keys.values()) <= {0.0}
    assert set(coverage.keys) == set(declared)


@pytest.mark.parametrize(
    ("measured", "level"),
    [(0, "CRITICAL"), (10, "CRITICAL"), (11, "WARNING"), (29, "WARNING"), (30, "OK"), (100, "OK")],
)
def test_a_tenth_is_critical_and_less_than_three_a_warning(measured, level):
    assert counted(measured, 100).level.name == level


def test_every_entry_counts_once():
    state = packet(
        ("metrics.loss", "layers.weight_norm", "layers.gradient_norm"),
        metrics={"loss": 0.5},
        graph=host(4, weight_norm=(1.0, None, 0.0, None), gradient_norm=(None, None, None, 2.0)),
    )
    coverage = Coverage.of(state)
    assert coverage.keys == {"metrics.loss": 1.0, "layers.weight_norm": 0.5, "layers.gradient_norm": 0.25}
    assert coverage.types == {"metrics": 1.0, "layers": 3 / 8}
    assert coverage.average == 4 / 9


def test_what_is_not_declared_does_not_count():
    assert Coverage.of(packet(("metrics.loss",), metrics={"loss": 0.5})).average == 1.0


def test_a_table_without_rows_is_a_placeholder_and_no_coverage():
    state = packet(("metrics.loss", "layers.weight_norm", "connects.latency_ms"), metrics={"loss": 0.5})
    assert Coverage.of(state).types == {"metrics": 1.0, "layers": 0.0, "connects": 0.0}


@pytest.mark.parametrize("table", ["activations", "parameters", "connects", "feeds", "influences", "tunes"])
def test_a_table_that_is_left_out_is_missed_however_much_the_others_say(table):
    """A graph without one of them is another graph: never OK where the source says that it can measure it."""
    whole = state(chain(layers=100))
    ends = {"activations": ("feeds", "influences"), "parameters": ("tunes", "allowed")}.get(table, ())
    left = {name: type(getattr(whole.graph, name)) for name in (table, *ends)}
    empty = {name: Graph.model_fields[name].default for name in left}
    before, after = Coverage.of(whole), Coverage.of(changed(whole, graph=changed(whole.graph, **empty)))
    assert (before.level, before.lacking) == (CoverageLevel.OK, ())
    assert after.level is CoverageLevel.WARNING
    assert set(after.lacking) == set(left) - {"allowed"}
    assert after.average < before.average


def test_layers_alone_are_less_than_half_of_a_graph():
    layers = chain(layers=128).layers
    coverage = Coverage.of(state(Graph(layers=layers, layer_count=128), seeds=(), metrics={}))
    assert coverage.average < 0.5
    assert coverage.level is CoverageLevel.WARNING


def test_one_layer_has_no_neighbours_to_miss():
    assert "connects" not in Coverage.of(packet(("layers.depth", "connects.latency_ms"), graph=host(1))).types


def test_empty_slots_lack_nothing_and_living_seeds_may():
    declared = ("metrics.loss", "seeds.alpha", "monitors.monitoring_frequency")
    empty = SeedState(slot="r0c0", stage=SeedStage.DORMANT)
    living = SeedState(slot="r0c1", stage=SeedStage.BLENDING)
    assert Coverage.of(packet(declared, metrics={"loss": 0.5}, seeds=(empty,))).keys == {"metrics.loss": 1.0}
    coverage = Coverage.of(packet(declared, metrics={"loss": 0.5}, seeds=(empty, living)))
    assert coverage.keys == {"metrics.loss": 1.0, "seeds.alpha": 0.0, "monitors.monitoring_frequency": 0.0}


def test_adjacency_and_monitors_are_counted_edge_by_edge():
    graph = Graph(
        layers=Layers(name=("a", "b", "c")),
        layer_count=3,
        connects=Connects(source=(0, 1), target=(1, 2), latency_ms=(0.5, None)),
    )
    watching = SeedState(
        slot="r0c0",
        stage=SeedStage.TRAINING,
        monitored_layers=Monitors(layer=(0, 1, 2), monitoring_frequency=(1.0, None, 2.0)),
    )
    declared = ("connects.latency_ms", "seeds.monitored_layers", "monitors.monitoring_frequency")
    coverage = Coverage.of(packet(declared, graph=graph, seeds=(watching,)))
    assert coverage.keys == dict(zip(declared, (0.5, 1.0, 2 / 3), strict=True))


@given(packets())
def test_types_and_average_are_means_weighted_by_entries(state):
    coverage = Coverage.of(state)
    assert set(coverage.keys) <= set(state.declared)
    weights = {key: coverage.expected[key] for key in coverage.keys}
    for shares in (coverage.keys, coverage.types):
        assert all(0.0 <= share <= 1.0 for share in shares.values())
    total = sum(weights.values())
    if total:
        assert coverage.average == pytest.approx(sum(coverage.keys[key] * n for key, n in weights.items()) / total)
        assert min(coverage.types.values()) - 1e-12 <= coverage.average <= max(coverage.types.values()) + 1e-12


@given(packets(), st.data())
def test_what_is_left_out_lowers_the_coverage_of_its_key_alone(state, data):
    if not state.metrics:
        return
    left_out = data.draw(st.sampled_from(sorted(state.metrics)))
    less = SystemState(**{**dict(state), "metrics": {k: v for k, v in state.metrics.items() if k != left_out}})
    before, after = Coverage.of(state), Coverage.of(less)
    assert after.keys == before.keys | {f"metrics.{left_out}": 0.0}
    assert after.average < before.average


def test_missing_data_are_told_once_per_session_and_type(caplog):
    state = packet(
        ("metrics.loss", "metrics.apply_ms", "layers.depth", "layers.weight_norm"),
        metrics={"loss": 0.5},
        graph=host(1, weight_norm=(1.0,)),
    )
    later = packet(("metrics.loss", "metrics.apply_ms"), metrics={"apply_ms": 0.5})
    with caplog.at_level(logging.INFO):
        log = CoverageLog("run 1")
        for sent in (state, state, later):
            log.report(Coverage.of(sent))
        told = [record.getMessage() for record in caplog.records]
        assert len(told) == 2
        assert all(text.startswith("run 1: ") for text in told)
        assert "metrics.apply_ms" in told[0]
        assert "layers.depth" in told[1]
        CoverageLog("run 2").report(Coverage.of(state))
        assert len(caplog.records) == 4


def test_levels_are_told_once_per_session(caplog):
    log = CoverageLog("run 1")
    for measured in (1, 2, 0, 5, 0, 8):
        log.report(counted(measured, 8))
    levels = [record.levelno for record in caplog.records]
    assert levels == [logging.WARNING, logging.WARNING, logging.CRITICAL]
    log = CoverageLog("run 2")
    log.report(counted(8, 8))
    assert len(caplog.records) == 3
