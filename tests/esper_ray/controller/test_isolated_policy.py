"""Whatever a policy does, asking it ends by the deadline, with one of a few outcomes, and a worker is there again."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from esper_ray.controller.isolated_policy import IsolatedPolicy
from esper_ray.controller.proposals import Ending, Request, draw_seed
from esper_ray.controller.proposing import answer, load_proposer
from esper_ray.errors import UserError
from esper_ray.live.policies import SHIPPED
from tests.esper_ray.bus.patience import wait_for
from tests.esper_ray.controller.episodes import play
from tests.esper_ray.controller.faulty import POLICY, request
from tests.places import ROOT

LONG = 120.0
"""Seconds: no answer that is waited for takes so long, on the slowest of machines."""
AT_ONCE = 0.01
"""Before which a slow policy has no answer."""


class Clock:
    """Goes as time does, but for its jumps."""

    ahead = 0.0

    def __call__(self):
        return time.monotonic() + self.ahead


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture(scope="module")
def clock():
    return Clock()


@pytest.fixture(scope="module")
def faulty(clock):
    """The faulty policy in a worker, and another worker on standby."""
    with IsolatedPolicy(POLICY, patience_s=5.0, standby=True, now=clock) as policy:
        first = policy.ask(request(), LONG)
        assert (first.ending, first.reason) == (Ending.STARTING, "no worker has the policy yet, or not again")
        policy.wait_ready(LONG)
        yield policy
        wait_for(lambda: policy.pids)
        left = policy.pids
    assert all(map(is_gone, left))
    assert policy.ask(request()).reason == "the policy's workers are closed"
    policy.close()


def asked(policy, fault="none", **changes):
    """The answer to a question that there is enough time for."""
    outcome = policy.ask(request(fault, **changes), LONG)
    assert outcome.ending is Ending.ANSWER, outcome
    return outcome.proposal


def test_what_is_wrong_with_an_answer_is_an_outcome_and_the_worker_goes_on(faulty):
    (pid, *_), before = faulty.pids, asked(faulty).value
    expected = {
        "raises": (Ending.ERROR, "RuntimeError: the policy is broken"),
        "not finite": (Ending.NOT_FINITE, "value"),
        "forgets numbers": (Ending.NOT_FINITE, "what the policy remembers is not finite"),
        "masked": (Ending.MASKED_ACTION, "op GERMINATE is masked"),
        "no index": (Ending.MASKED_ACTION, "got shape (1, 8) with values from 99 to 99"),
        "no tensor": (Ending.ERROR, "TypeError: "),
    }
    for fault, (kind, reason) in expected.items():
        outcome = faulty.ask(request(fault), LONG)
        assert (outcome.ending, outcome.proposal) == (kind, None)
        assert reason in outcome.reason
        assert "\n" not in outcome.reason
    assert asked(faulty).value == before + len(expected) + 1
    assert faulty.pids[0] == pid


def test_a_question_that_is_none_is_an_outcome_too(faulty):
    outcome = faulty.ask(Request(b"{}", seed=-1), LONG)
    assert outcome.ending is Ending.ERROR
    assert outcome.reason.startswith("ValidationError: ")


def test_a_late_answer_is_dropped_and_the_next_question_has_its_own(faulty):
    (pid, *_), before = faulty.pids, asked(faulty).value
    assert faulty.ask(request("slow"), AT_ONCE).ending is Ending.TIMEOUT
    assert asked(faulty).value == before + 2, "the late answer was the one before this"
    assert faulty.pids[0] == pid


def test_whether_an_answer_is_late_is_told_by_the_clock(faulty, clock):
    before = asked(faulty).value
    with ThreadPoolExecutor() as threads:
        asking = threads.submit(faulty.ask, request("slow"), LONG)
        clock.ahead += 2 * LONG
        outcome = asking.result()
    assert (outcome.ending, outcome.reason) == (Ending.TIMEOUT, f"no answer within {1e3 * LONG:.0f} ms")
    assert asked(faulty).value >= before + 1


def test_a_run_waits_for_another_no_longer_than_its_deadline_and_then_has_asked_nothing(faulty):
    before = asked(faulty).value
    with ThreadPoolExecutor() as threads:
        asking = threads.submit(asked, faulty, "slow", run_id="other")
        wait_for(lambda: faulty.ask(request(), AT_ONCE).ending is Ending.TIMEOUT)
        slow = asking.result().value
    answered = slow - before
    assert asked(faulty).value == slow + 1, "the question that was too late was never put"
    assert answered >= 1


def test_a_policy_that_ends_its_process_costs_one_answer(faulty):
    wait_for(lambda: len(faulty.pids) == 2)
    _, standby = faulty.pids
    outcome = faulty.ask(request("exits"), LONG)
    assert (outcome.ending, outcome.reason) == (Ending.CRASHED, "the worker ended with exit code 3")
    wait_for(lambda: faulty.pids[:1] == (standby,))
    assert asked(faulty).action[0] == 0


def test_a_stuck_worker_is_ended_and_the_standby_takes_over(faulty):
    wait_for(lambda: len(faulty.pids) == 2)
    stuck, standby = faulty.pids
    assert faulty.ask(request("stuck"), AT_ONCE).ending is Ending.TIMEOUT
    assert faulty.ask(request(), AT_ONCE).ending is Ending.TIMEOUT, "nobody waits for it"
    wait_for(lambda: faulty.pids[:1] == (standby,))
    wait_for(lambda: is_gone(stuck))
    assert asked(faulty).value == 1.0 + 3, "the standby has only warmed up"


def test_a_killed_worker_leaves_all_decisions_as_they_would_have_been():
    export = str(SHIPPED / "images")
    proposer, version = load_proposer(export)
    packets, expected = play(lambda asked: answer(proposer, version, asked).proposal, epochs=8)
    with IsolatedPolicy(export) as policy:
        assert policy.wait_ready(LONG).policy_version == version
        hidden = None
        for at, (packet, alone) in enumerate(zip(packets, expected, strict=True)):
            if at == 4:
                (pid,) = policy.pids
                os.kill(pid, signal.SIGKILL)
                wait_for(lambda before=pid: policy.pids not in ((), (before,)))
            asked = Request(packet.model_dump_json().encode(), draw_seed(packet.run_id, packet.packet_id), hidden)
            proposal = policy.ask(asked, LONG).proposal
            same = {"inference_ms": alone.inference_ms}
            assert proposal.model_copy(update=same) == alone
            hidden = proposal.hidden


def test_a_policy_that_is_not_there_is_refused_in_a_line():
    with IsolatedPolicy("nobody") as policy:
        with pytest.raises(UserError, match="no policy 'nobody': give the directory of an export") as refused:
            policy.wait_ready(LONG)
        outcome = policy.ask(request(), LONG)
        assert (outcome.ending, outcome.reason) == (Ending.STARTING, str(refused.value))


def test_a_name_that_no_process_can_be_given_is_refused_like_any_other():
    with IsolatedPolicy("no\0body") as policy, pytest.raises(UserError, match="no worker could be started for 'no"):
        policy.wait_ready(LONG)


def test_another_policy_in_the_same_place_does_not_go_on_with_the_run(tmp_path):
    file = tmp_path / "schedule.json"
    file.write_text(json.dumps({"schedule": []}))
    with IsolatedPolicy(str(file)) as policy:
        policy.wait_ready(LONG)
        file.write_text(json.dumps({"schedule": [], "note": "another"}))
        os.kill(policy.pids[0], signal.SIGKILL)
        wait_for(lambda: "has changed" in policy.ask(request(), LONG).reason)
        assert policy.pids == ()


SCRIPT = """
from esper_ray.controller.isolated_policy import IsolatedPolicy
from tests.esper_ray.controller.faulty import POLICY, request

policy = IsolatedPolicy(POLICY, patience_s=1000.0)
policy.wait_ready()
print(policy.pids[0], policy.ask(request("stuck"), 0.01).ending.name, flush=True)
input()
"""


def test_a_worker_ends_with_a_script_without_a_main_guard_even_while_it_computes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with subprocess.Popen(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        pid, outcome = process.stdout.readline().split()
        assert outcome == "TIMEOUT"
        assert not is_gone(pid)
        process.kill()
    wait_for(lambda: is_gone(pid))
