"""What the learner reads of a live host's packets is what the host's own lifecycle knows."""

import dataclasses

import numpy as np
import pytest
import torch

from envs.reward import RewardConfig, score_components
from envs.vocabulary import Blueprint, LifecycleOp
from esper_ray.controller.learner.score import score_terms
from esper_ray.controller.learner.steps import last_op
from esper_ray.live.probe import Probe
from tests.envs.helpers import act, advance, germinate
from tests.esper_ray.controller.commanding import Commanded, commanded

torch.set_num_threads(1)


def test_the_score_of_a_packet_is_the_worlds_and_the_last_op_the_one_executed():
    plan = {
        1: germinate(0, Blueprint.NORM),
        2: advance(0),
        3: germinate(1, Blueprint.NORM),
        6: act(LifecycleOp.PRUNE, 0),
    }
    run = Commanded("mlp", plan=commanded(plan))
    probe = Probe(run.loop.model, run.loop.optimizer, run.loop.held_out[0], grower=run.grower)
    config, seen, host = RewardConfig(parameter_rent=0.5, path_rent=0.1), [], None
    for _ in range(9):
        run.loop.epoch()
        run.grower.end_epoch()
        packet = probe.end_epoch()
        lifecycle, (_, accuracy) = run.grower._watch.lifecycle, run.grower.result
        world = score_components(np.array([accuracy]), lifecycle, config).sum()
        terms = score_terms(packet)
        assert terms.extra == lifecycle.extra_parameters[0]
        assert terms.host in (lifecycle.costs.host[0], None)
        host = terms.host or host
        assert dataclasses.replace(terms, host=host).score(0.5, 0.1) == pytest.approx(world)
        seen.append((last_op(packet), terms.living, terms.host is None))
    waits = [LifecycleOp.WAIT] * 3
    ops = [LifecycleOp.GERMINATE, LifecycleOp.ADVANCE, LifecycleOp.GERMINATE, *waits[1:], LifecycleOp.PRUNE, *waits]
    assert [op for op, _, _ in seen] == ops
    assert [living for _, living, _ in seen] == [1, 1, 2, 2, 2, 1, 1, 1, 1]
    assert [unknown for _, _, unknown in seen] == [False] * 2 + [True] * 3 + [False] * 4
