"""Every kind of policy says in a worker what it says elsewhere, keeps nothing, and is held to numbers and masks."""

import asyncio
import dataclasses
import json
import socket
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from envs.action_masks import split_mask
from envs.slots import SlotConfig
from envs.vocabulary import LifecycleOp
from esper_ray.controller.framing import read, received
from esper_ray.controller.proposals import Answer, Ending, Proposal, Request, TrainedOn, draw_seed
from esper_ray.controller.proposing import ObservationProposer, PacketProposer, answer, expected_risk, load_proposer
from esper_ray.controller.worker import warm_up
from esper_ray.errors import UserError
from esper_ray.keeping.export import load_export
from esper_ray.live.policies import SHIPPED
from esper_ray.serving.packets import said
from policies.bundle import PolicySettings
from policies.factory import build_policy, playing_anywhere
from policies.strategic.inference import StrategicPolicy
from policies.strategic.messages import SystemState
from policies.strategic.schema import RISK_CLASSES
from policies.strategic.taught import NOTHING, Taught
from tests.esper_ray.controller import faulty
from tests.esper_ray.controller.episodes import play
from tests.policies.strategic.states import METRICS, changed, state
from tests.policies.strategic.test_inference import ALL, trained

EXPORT = str(SHIPPED / "images")
CONTROLS = playing_anywhere()
SLOTS = SlotConfig.for_row(3)


@pytest.fixture(scope="module")
def lstm():
    return load_proposer(EXPORT)[0]


@pytest.fixture(scope="module")
def episode(lstm):
    """Packets of which the LSTM's own decisions are the course, and its proposals."""
    return play(lambda request: proposed(lstm, request), epochs=10)


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """A strategic policy's directory."""
    directory = tmp_path_factory.mktemp("graph")
    trained().save(directory)
    return directory


def proposed(proposer, request):
    answered = answer(proposer, "version", request)
    assert answered.ending is Ending.ANSWER, answered
    return answered.proposal


def request_of(packet, hidden=None, **changes):
    seed = draw_seed(packet.run_id, packet.packet_id)
    return Request(packet.model_dump_json().encode(), seed, hidden, **changes)


def without_time(proposal):
    return proposal.model_copy(update={"inference_ms": 0.0})


def played(policy, packets):
    """What a policy itself says of a run's packets, with the draws that a service gives it."""
    hidden = policy.initial_hidden(1)
    for packet in packets:
        observation = {
            "obs": torch.tensor([packet.observation]),
            "blueprint_indices": torch.tensor([packet.blueprint_indices]),
            "action_mask": torch.tensor([packet.action_mask], dtype=torch.int8),
        }
        generator = torch.Generator().manual_seed(draw_seed(packet.run_id, packet.packet_id))
        result = policy.get_action(observation, hidden, generator)
        hidden = result.hidden
        yield result


# ------------------------------------------------------------------ policies of Obs V3
def test_the_lstm_decides_as_it_does_by_itself(episode):
    packets, proposals = episode
    for result, proposal in zip(played(load_export(SHIPPED / "images")[1], packets), proposals, strict=True):
        assert proposal.action == tuple(result.actions[0].tolist())
        assert (proposal.log_prob, proposal.value) == (result.log_prob.item(), result.value.item())
        assert list(proposal.op_probs.values()) == result.op_probs[0].tolist()
        assert list(proposal.op_probs) == [op.name for op in SLOTS.ops]
        assert proposal.risk is proposal.embedding is None
        assert proposal.blending == {}
    assert len({proposal.action[0] for proposal in proposals}) > 1


def test_nothing_is_kept_between_two_questions(lstm, episode):
    packets, proposals = episode
    hidden = [None, *(proposal.hidden for proposal in proposals)]
    for at in reversed(range(len(packets))):
        again = proposed(lstm, request_of(packets[at], hidden[at]))
        assert without_time(again) == without_time(proposals[at])
    assert proposed(lstm, request_of(packets[-1])).hidden != proposals[-1].hidden


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_decides_as_it_does_by_itself(name, episode):
    packets, _ = episode
    proposer, version = load_proposer(name)
    assert version == name
    hidden = None
    for packet, result in zip(packets, played(build_policy(name, PolicySettings(SLOTS, 20)), packets), strict=True):
        proposal = proposed(proposer, request_of(packet, hidden))
        hidden = proposal.hidden
        assert proposal.action == tuple(result.actions[0].tolist())
        assert proposal.log_prob == result.log_prob.item()
        assert proposal.value is None


def test_a_schedule_decides_as_it_says(tmp_path, episode):
    file = tmp_path / "schedule.json"
    file.write_text(json.dumps({"schedule": [{"slot": 1, "blueprint": "NORM", "epoch": 2}]}))
    proposer, _ = load_proposer(str(file))
    _, proposals = play(lambda request: proposed(proposer, request), epochs=4)
    ops = [LifecycleOp(proposal.action[0]) for proposal in proposals]
    assert ops == [LifecycleOp.WAIT, LifecycleOp.WAIT, LifecycleOp.GERMINATE, LifecycleOp.ADVANCE]
    assert proposals[2].action[:3] == (LifecycleOp.GERMINATE, 1, 3)


def test_the_most_probable_choices_depend_on_no_seed(lstm, episode):
    packets, _ = episode
    said = {proposed(lstm, Request(packets[0].model_dump_json().encode(), seed, greedy=True)).action for seed in (1, 2)}
    assert len(said) == 1


def test_another_mask_than_the_packets_is_kept_to(lstm, episode):
    packets, _ = episode
    mask = np.array(packets[0].action_mask)
    assert mask[LifecycleOp.GERMINATE]
    split_mask(mask, SLOTS.heads)["op"][LifecycleOp.GERMINATE] = 0
    proposal = proposed(lstm, request_of(packets[0], mask=tuple(mask.tolist())))
    assert proposal.op_probs["GERMINATE"] == 0.0


# ------------------------------------------------------------------ policies of packets
def test_a_strategic_policy_says_all_that_it_says_by_itself_and_moves_the_runs_scale(graph):
    proposer, _ = load_proposer(str(graph))
    alone = StrategicPolicy(trained()).open_run("run")
    hidden = None
    for at in range(5):
        packet = changed(state(), packet_id=str(at), metrics={**METRICS, "samples_per_s": 100.0 * at})
        reading = alone.read(packet)
        generator = torch.Generator().manual_seed(draw_seed("run", str(at)))
        action = reading.result.distribution.sample(generator)
        alone.commit()
        proposal = proposed(proposer, request_of(packet, hidden))
        hidden = proposal.hidden
        expected = said(packet, reading, action[0].numpy(), 1.0)
        assert list(proposal.action) == expected["action"]
        assert proposal.log_prob == pytest.approx(float(reading.result.distribution.log_prob(action).sum()))
        assert proposal.value == expected["value"]
        assert proposal.risk == pytest.approx(
            sum(at / 4 * expected["risk"][name] for at, name in enumerate(RISK_CLASSES))
        )
        told = {
            slot: {"method": how.method, "start": how.schedule_start, "end": how.schedule_end}
            for slot, how in proposal.blending.items()
        }
        assert told == expected["blending"]
        assert list(proposal.embedding) == reading.result.telemetry_embedding[0].tolist()
    assert json.loads(hidden) == alone.scale


def test_a_strategic_policy_only_waits_where_nothing_is_admitted(graph):
    proposer, _ = load_proposer(str(graph))
    packet = SystemState(run_id="run", packet_id="1", timestamp_ns=0, declared=(), epoch=0)
    assert proposed(proposer, request_of(packet)).action == (0,) * 8


def test_two_workers_with_a_policy_have_the_same_whatever_their_first_passes_took(graph, lstm):
    one, another = (load_proposer(str(graph))[0].hello("v") for _ in range(2))
    assert one.compiled is False
    assert one.compile_warm_ms != another.compile_warm_ms
    assert one.policy == another.policy
    assert one.policy != lstm.hello("v").policy
    assert lstm.hello("v").trained_on == TrainedOn(topologies=("cnn",), shortest=15, longest=150)


def test_expected_risk_is_from_none_to_all():
    assert expected_risk([1.0, 0.0, 0.0, 0.0, 0.0]) == 0.0
    assert expected_risk([0.0, 0.0, 0.0, 0.0, 1.0]) == 1.0
    assert expected_risk([0.2, 0.2, 0.2, 0.2, 0.2]) == pytest.approx(0.5)


# ------------------------------------------------------------------ what cannot be answered
def refused(proposer, request):
    answered = answer(proposer, "version", request)
    assert answered.proposal is None
    assert "\n" not in answered.reason
    return answered.ending, answered.reason


def test_weights_that_are_not_finite_give_no_proposal(episode):
    packets, _ = episode
    for where in ("heads.op.", "lstm.", "state_stream."):
        _, policy = load_export(SHIPPED / "images")
        parameters = [p for name, p in policy.network.named_parameters() if where in name]
        with torch.no_grad():
            parameters[0].fill_(torch.nan)
        kind, _ = refused(ObservationProposer(lambda settings, policy=policy: policy), request_of(packets[0]))
        assert kind is Ending.NOT_FINITE


def test_neither_do_those_of_a_strategic_policy(graph):
    checkpoint = trained()
    for where in ("heads.value", "heads.risk", "heads.window", "heads.telemetry"):
        weights = {name: w.clone().fill_(torch.nan) if where in name else w for name, w in checkpoint.weights.items()}
        kind, _ = refused(PacketProposer(dataclasses.replace(checkpoint, weights=weights)), request_of(state()))
        assert kind is Ending.NOT_FINITE


@pytest.mark.parametrize("policy", [EXPORT, "heuristic", faulty.POLICY, "graph"])
def test_what_warms_a_policy_up_is_a_question_that_it_can_answer(policy, graph):
    proposer, _ = load_proposer(str(graph) if policy == "graph" else policy)
    assert warm_up(proposer).ending is Ending.ANSWER


def test_what_a_policy_cannot_read_is_an_error_with_its_reason(lstm, graph, episode):
    packet = episode[0][0]
    heuristic, strategic = load_proposer("heuristic")[0], load_proposer(str(graph))[0]
    foreign = proposed(heuristic, request_of(packet)).hidden
    without = changed(packet, observation=None, declared=("run.max_epochs", "run.blueprint_indices", "run.action_mask"))
    cases = [
        (lstm, request_of(packet, foreign), "what was remembered is not this policy's"),
        (lstm, request_of(packet, b"\x80\x04pickled"), "what was remembered cannot be read"),
        (strategic, request_of(packet, b"{}"), "there must be the moments of"),
        (strategic, request_of(packet, b"\xff"), "UnicodeDecodeError"),
        (lstm, request_of(without), "no slots with observation, blueprint_indices and action_mask"),
        (lstm, faulty.request(), "the packet has 2 slots, the policy is for 3"),
        (heuristic, request_of(changed(packet, max_epochs=None)), "does not say max_epochs"),
        (lstm, request_of(packet, mask=(1, 1)), "action_mask must have 56 numbers"),
        (lstm, Request(b"{}", 0), "run_id: Field required"),
        (lstm, Request(b"\xff", 0), "content: Invalid JSON"),
    ]
    for proposer, request, reason in cases:
        kind, given = refused(proposer, request)
        assert kind is Ending.ERROR
        assert reason in given


def test_a_policy_that_cannot_be_used_is_refused_in_a_line(tmp_path):
    (tmp_path / "own.py").write_text("class Half:\n    pass\n\nnumber = 3\n")
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "file.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    reasons = {
        "learned": "no policy 'learned': give the directory of an export",
        "nowhere": "or one of fixed_schedule, heuristic, never_grow, random_valid",
        tmp_path / "empty": "is no export",
        tmp_path / "file.json": "holds no schedule",
        f"{tmp_path}/own.py:Half": "is no policy: class method build is missing",
        f"{tmp_path}/own.py:Whole": "own.py has no class 'Whole'",
        f"{tmp_path}/own.py:number": "own.py has no class 'number'",
        f"{tmp_path}/broken.py:Any": "ModuleNotFoundError: No module named 'nothing_of_this_name'",
        f"{tmp_path}/absent.py:Any": "FileNotFoundError",
    }
    for policy, reason in reasons.items():
        with pytest.raises(UserError) as error:
            load_proposer(str(policy))
        assert reason in str(error.value)
        assert "\n" not in str(error.value)


def test_a_policy_that_reads_packets_says_neither_risk_nor_blending_that_it_was_not_taught():
    for taught, says in ((NOTHING, (False, False)), (Taught(risk=True), (True, False)), (ALL, (True, True))):
        proposal = proposed(PacketProposer(trained(taught=taught)), request_of(state()))
        assert (proposal.risk is not None, bool(proposal.blending)) == says


# ------------------------------------------------------------------ how it travels
REQUESTS = st.builds(
    Request,
    packet=st.binary(max_size=50),
    seed=st.integers(0, 2**63 - 1),
    hidden=st.none() | st.binary(max_size=50),
    mask=st.none() | st.lists(st.integers(0, 1), max_size=9).map(tuple),
    greedy=st.booleans(),
)


def through_a_socket(content):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(content)
        ours.shutdown(socket.SHUT_WR)
        return received(theirs)


def through_a_stream(content):
    async def parts():
        stream = asyncio.StreamReader()
        stream.feed_data(content)
        stream.feed_eof()
        return await read(stream)

    return asyncio.run(parts())


@given(REQUESTS)
def test_a_request_travels_whole(request):
    assert Request.of(through_a_socket(request.framed())) == request


@given(st.none() | st.binary(max_size=50))
def test_a_proposal_travels_whole(hidden):
    proposal = Proposal(
        policy_version="v", action=(1, 0), log_prob=-0.1, op_probs={"WAIT": 0.3}, inference_ms=1.5, hidden=hidden
    )
    outcome = Answer.reply(through_a_stream(Answer(ending=Ending.ANSWER, proposal=proposal).framed()))
    assert (outcome.ending, outcome.proposal) == (Ending.ANSWER, proposal)


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda body: struct.pack(">Q", len(body)) + body))
def test_what_is_no_frame_is_refused_as_such(content):
    for travel in (through_a_socket, through_a_stream):
        try:
            parts = travel(content)
        except (EOFError, ValueError):
            continue
        assert b"".join(struct.pack(">Q", len(part)) + part for part in parts) == content[8:][: len(content) - 8]


def test_draws_depend_on_run_and_packet_alone():
    seeds = {
        draw_seed(run, packet)
        for run, packet in [("run", "1"), ("run", "2"), ("other", "1"), ("run1", ""), ("", "run1")]
    }
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert draw_seed("run", "1") == 8561739832640722074
