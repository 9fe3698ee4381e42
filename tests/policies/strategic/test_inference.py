"""A packet in, what the policy says out: always the same, on the run's own scale, and nothing else changes."""

import logging
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

from policies.distribution import ActionTables
from policies.strategic.builder import GraphBuilder, numbered
from policies.strategic.checkpoint import Checkpoint
from policies.strategic.coverage import CoverageLevel
from policies.strategic.graph import GraphBatch
from policies.strategic.inference import FallingBack, StrategicPolicy, _reduced_precision
from policies.strategic.measured import Measured
from policies.strategic.messages import SystemState
from policies.strategic.network import GraphPolicyNetwork
from policies.strategic.network_config import SMALL
from policies.strategic.normaliser import MetricNormaliser
from policies.strategic.schema import BLENDING_METHODS, RISK_CLASSES
from policies.strategic.seen import BLUEPRINTS, INPUTS, OPS, Seen
from policies.strategic.taught import Taught
from tests.devices import GPU
from tests.policies.strategic.graphs import random_arrays, tensors_of, with_nodes
from tests.policies.strategic.packets import packets
from tests.policies.strategic.states import METRICS, SLOTS, changed, seed, state

EVERYTHING = Seen(frozenset(INPUTS), frozenset(OPS), frozenset(BLUEPRINTS))
OF_MACHINES = ("latency_ms", "samples_per_s", "percent", "free_gb", "memory_share")
STEADY = replace(EVERYTHING, inputs=frozenset(name for name in INPUTS if not name.endswith(OF_MACHINES)))
"""Of a policy that does not read how fast and how full the machine is, like one that has learnt in the greenhouse."""


ALL = Taught(risk=True, methods=True, windows=True)


def trained(seen=EVERYTHING, taught=ALL, play_temperature=1.0):
    torch.manual_seed(0)
    return Checkpoint(
        config=SMALL,
        weights=GraphPolicyNetwork(SMALL).state_dict(),
        registries=numbered([Measured.of(state())]),
        normaliser=MetricNormaliser(),
        seen=seen,
        tasks=("digits_mixed",),
        min_epochs=15,
        max_epochs=60,
        commit=None,
        taught=taught,
        play_temperature=play_temperature,
    )


@pytest.fixture(scope="module")
def checkpoint():
    return trained()


@pytest.fixture(scope="module")
def policy(checkpoint):
    return StrategicPolicy(checkpoint)


def same(first, second):
    before, after = tensors_of(first.result), tensors_of(second.result)
    return all(torch.equal(before[name], after[name]) for name in before)


def test_two_identical_evaluations_give_identical_bits(checkpoint, policy):
    run = policy.open_run("run")
    first = run.read(state())
    assert same(first, run.read(state()))
    assert same(first, StrategicPolicy(checkpoint).open_run("run").read(state()))


def test_it_says_what_the_network_says(checkpoint, policy):
    measured = Measured.of(state())
    arrays = GraphBuilder(checkpoint.registries, checkpoint.normaliser).build(measured)
    with torch.inference_mode():
        expected = checkpoint.network()(GraphBatch.from_arrays(arrays), ActionTables(SLOTS.heads))
    said = policy.open_run("run").read(state()).result
    assert all(torch.equal(tensors_of(said)[name], tensor) for name, tensor in tensors_of(expected).items())


@settings(max_examples=30, deadline=None)
@given(packets())
def test_any_packet_is_read(policy, packet):
    reading = policy.open_run(packet.run_id).read(packet)
    assert all(tensor.isfinite().all() for tensor in tensors_of(reading.result).values())
    action = reading.result.distribution.sample(torch.Generator().manual_seed(0))
    assert action.shape == (1, len(reading.slots.heads))


def process():
    autocast = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
    return torch.get_num_threads(), torch.get_rng_state().tolist(), torch.get_float32_matmul_precision(), autocast


def test_the_process_stays_as_it_is(checkpoint):
    before = process()
    StrategicPolicy(checkpoint).open_run("run").read(state())
    assert process() == before


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_reduced_precision_lasts_as_long_as_a_pass():
    before = process()

    def fails():
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.is_autocast_enabled("cuda") == torch.cuda.is_available()
        raise KeyError

    with pytest.raises(KeyError), _reduced_precision():
        fails()
    assert process() == before


def test_reduced_precision_is_for_cuda_alone(checkpoint, policy):
    there = StrategicPolicy(checkpoint, reduced_precision=True)
    assert same(policy.open_run("run").read(state()), there.open_run("run").read(state()))


# ------------------------------------------------------------------ what it was taught, and how it draws
def test_what_it_was_not_taught_it_does_not_say(policy):
    """Linear over the whole ramp; the second slot's seed refuses that method, and gets the first that it allows."""
    packet = state(seeds=(seed(), seed(slot="r0c1", allowed_blending_methods=("sigmoid", "cosine"))))
    whole = policy.open_run("run").read(packet)
    assert whole.risk == dict(zip(RISK_CLASSES, whole.result.risk_logits[0].softmax(-1).tolist(), strict=True))
    for name in Taught.model_fields:
        taught = ALL.model_copy(update={name: False})
        reading = StrategicPolicy(trained(taught=taught)).open_run("run").read(packet)
        refused = torch.finfo(torch.float32).min
        left = [
            [BLENDING_METHODS[at] for at in row.nonzero()] for row in reading.result.blending_method_logits[0] > refused
        ]
        expected = {"methods": [["linear"], ["cosine"]]}.get(name, [["linear", "sigmoid"], ["cosine", "sigmoid"]])
        assert (reading.risk is None) == (name == "risk")
        assert left == expected
        assert (reading.result.schedule.tolist() == [[[0.0, 1.0]] * 2]) == (name == "windows")
        before, after = tensors_of(whole.result), tensors_of(reading.result)
        changed = {"risk": "risk_logits", "methods": "blending_method_logits", "windows": "schedule"}[name]
        assert all(torch.equal(before[of], after[of]) for of in before if of != changed)


def test_it_draws_at_its_own_temperature(policy):
    whole = policy.open_run("run").read(state()).result.distribution
    cold = StrategicPolicy(trained(play_temperature=0.3)).open_run("run").read(state()).result.distribution
    for own, table in zip(cold.log_probs, whole.at_temperature(0.3).log_probs, strict=True):
        assert torch.equal(own, table)
    assert not torch.equal(cold.op_log_probs, whole.op_log_probs)


# ------------------------------------------------------------------ the run's own scale
def slow(packet_id, rate=100.0):
    return changed(state(), packet_id=packet_id, metrics={**METRICS, "samples_per_s": rate})


def test_a_packet_is_read_before_it_moves_the_scale(policy):
    run = policy.open_run("run")
    first = run.read(slow("1"))
    assert same(first, policy.open_run("run").read(slow("1"))), "it is not measured by itself"
    assert same(first, run.read(slow("1"))), "reading alone moves nothing"
    run.commit()
    assert not same(first, run.read(slow("2"))), "once the decision stands, it does"


def test_the_scale_of_loss_and_gradients_stays_that_of_training(policy):
    run = policy.open_run("run")
    first = run.read(state())
    run.read(changed(state(), metrics={"loss": 50.0, "gradient_norm": 900.0}))
    run.commit()
    assert same(first, run.read(state()))


def test_sixty_packets_without_a_metric_leave_its_scale_alone(policy):
    run = policy.open_run("run")
    first = run.read(state())
    for at in range(60):
        run.read(changed(state(), packet_id=str(at), metrics={"loss": 0.7}))
        run.commit()
    assert same(first, run.read(state()))


def test_runs_do_not_see_each_other(policy):
    one, other = policy.open_run("run"), policy.open_run("run")
    before = other.read(state())
    one.read(slow("1"))
    one.commit()
    assert same(before, other.read(state()))


def test_a_decision_is_committed_once(policy):
    run = policy.open_run("run")
    with pytest.raises(ValueError, match="there is nothing to commit: no packet of 'run' was read"):
        run.commit()
    run.read(state())
    run.commit()
    with pytest.raises(ValueError, match="there is nothing to commit"):
        run.commit()


def test_a_packet_of_another_run_is_refused(policy):
    with pytest.raises(ValueError, match="the packet is of the run 'other', this is the run 'run'"):
        policy.open_run("run").read(changed(state(), run_id="other"))


# ------------------------------------------------------------------ coverage
def test_coverage_comes_with_the_answer_and_is_logged_once(policy, caplog):
    empty = SystemState(run_id="run", packet_id="1", timestamp_ns=0, declared=("layers.depth",), epoch=0)
    run = policy.open_run("run")
    for _ in range(3):
        assert run.read(empty).coverage.level is CoverageLevel.CRITICAL
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.CRITICAL]
    assert policy.open_run("run").read(state()).coverage.level is CoverageLevel.OK


# ------------------------------------------------------------------ what training never showed
def test_an_input_never_seen_changes_nothing():
    seen = Seen.all_but({"inputs": ("layer.weight_norm", "seed.risk"), "ops": ("PRUNE",), "blueprints": ()})
    run = StrategicPolicy(trained(seen)).open_run("run")
    before = run.read(state())
    graph = changed(state().graph, layers=changed(state().graph.layers, weight_norm=(7.0,) * 4))
    assert same(before, run.read(changed(state(), graph=graph)))
    assert before.result.distribution.op_log_probs.exp()[0, OPS.index("PRUNE")] == 0.0


# ------------------------------------------------------------------ compiling and precision
def compiling(monkeypatch, checkpoint, compile_):
    """A policy whose network is compiled by another compiler, wherever it is."""
    monkeypatch.setattr(torch, "compile", compile_)
    policy = StrategicPolicy(checkpoint)
    policy._forward = FallingBack(policy._network)
    return policy


def broken(network, **options):
    raise RuntimeError("no compiler\nat all")


def breaks(network, **options):
    return lambda graphs, tables: broken(network)


@pytest.mark.parametrize("compile_", [broken, breaks])
def test_a_policy_that_cannot_be_compiled_answers_as_it_is(checkpoint, policy, monkeypatch, caplog, compile_):
    run = compiling(monkeypatch, checkpoint, compile_).open_run("run")
    for _ in range(2):
        assert same(run.read(state()), policy.open_run("run").read(state()))
    (record,) = (record for record in caplog.records if record.name == "policies.strategic.inference")
    assert record.getMessage() == "torch.compile failed, the network runs as it is: RuntimeError: no compiler"


def test_what_fails_uncompiled_too_is_not_the_compilers_fault(checkpoint, monkeypatch, caplog):
    calls = []

    def counting(network, **options):
        return lambda graphs, tables: calls.append(graphs) or network(graphs, tables)

    policy = compiling(monkeypatch, checkpoint, counting)
    arrays = random_arrays(1, slots=SLOTS)
    with pytest.raises(IndexError, match="out of range"):
        policy.answer(with_nodes(arrays, "layer", codes=arrays.nodes["layer"].codes + 1000), SLOTS)
    policy.answer(arrays, SLOTS)
    assert len(calls) == 2, "it is still compiled"
    assert not caplog.records


def test_a_compile_that_fails_falls_back_once_and_says_so(caplog):
    """Of one product: the whole network takes the compiler seconds until it finds that there is none."""
    from torch._inductor import config  # here: it takes long to import

    caplog.set_level(logging.WARNING)
    falling, tables = FallingBack(lambda graphs, tables: graphs.context * 2.0), ActionTables(SLOTS.heads)
    batches = [GraphBatch.from_arrays(random_arrays(1, slots=SLOTS, seed=at)) for at in range(3)]
    with torch.inference_mode(), config.patch({"cpp.cxx": ("/no/such/compiler",)}):
        for batch in batches:
            assert torch.equal(falling(batch, tables), batch.context * 2.0)
    (record,) = (record for record in caplog.records if record.name == "policies.strategic.inference")
    assert "torch.compile failed, the network runs as it is: InductorError" in record.message


def test_bfloat16_says_about_the_same(checkpoint):
    network, tables = checkpoint.network().eval(), ActionTables(SLOTS.heads)
    graphs = GraphBatch.from_arrays(random_arrays(20, slots=SLOTS))
    with torch.inference_mode():
        whole = network(graphs, tables)
        with torch.autocast("cpu", torch.bfloat16):
            reduced = network(graphs, tables)
    for first, second in zip(whole.distribution.log_probs, reduced.distribution.log_probs, strict=True):
        torch.testing.assert_close(second.exp(), first.exp(), atol=0.02, rtol=0)
    torch.testing.assert_close(reduced.scaled_value, whole.scaled_value, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("device", [GPU])
@pytest.mark.parametrize("options", [{}, {"compiled": False}, {"reduced_precision": True, "compiled": False}])
def test_a_gpu_says_about_the_same(checkpoint, policy, device, options):
    expected = policy.open_run("run").read(state()).result
    there = StrategicPolicy(checkpoint, device, **options)
    on_gpu = there.open_run("run").read(state()).result
    if options.get("compiled", True):
        assert isinstance(there._forward, FallingBack)
        assert there._forward._compiled is not None, "it did not fall back"
    tolerance = 0.02 if "reduced_precision" in options else 1e-3
    for first, second in zip(expected.distribution.log_probs, on_gpu.distribution.log_probs, strict=True):
        torch.testing.assert_close(second.exp(), first.exp(), atol=tolerance, rtol=0)
