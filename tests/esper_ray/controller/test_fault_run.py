"""A training under a controller goes on whatever goes wrong; ``benchmarks/controller.py`` runs it at full length."""

import dataclasses

import pytest
import torch

from benchmarks.faults import EXPECTED, Fault, planned
from benchmarks.faulty_run import faulty_run
from tests.esper_ray.controller.test_attending import UNHURRIED

torch.set_num_threads(1)

EPOCHS, SEED = 30, 0
PATIENT = dataclasses.replace(UNHURRIED, inference_ms=20e3, evaluate_ms=25e3, return_ms=30e3)
ELSEWHERE = {Fault.SLOW, Fault.STUCK, Fault.ENDS, Fault.DISK_SLOW, Fault.CATALOGUE_STUCK}
"""These take a deadline or one more worker's start; of most of them ``test_service.py`` has a test on a clock."""


def test_a_training_in_which_all_goes_wrong_ends_and_every_decision_is_accounted_for(tmp_path):
    plan = planned(SEED, EPOCHS, [fault for fault in Fault if fault not in ELSEWHERE])
    run = faulty_run(tmp_path, SEED, EPOCHS, plan, PATIENT)
    assert run.exceptions == ()
    assert run.broken == ()
    assert [one.epoch for one in run.told] == list(range(EPOCHS))
    assert {one.fault for one in run.told if one.struck} >= {Fault.NO_PACKET, Fault.DISK_FULL, Fault.NO_FIELDS}
    assert not all(one.is_pause for one in run.told)
    assert run.accuracy >= run.never_grown


def test_faults_are_drawn_by_the_seed_and_each_is_there():
    plan = planned(3, 150, times=2)
    assert plan == planned(3, 150, times=2) != planned(4, 150, times=2)
    assert sorted(plan.values()) == sorted([*Fault] * 2)
    assert set(EXPECTED) < set(Fault)
    with pytest.raises(ValueError, match="larger sample"):
        planned(0, 20)
