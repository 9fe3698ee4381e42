"""Small tasks, actions by name and random play, for the tests of the world."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from envs.action_masks import split_mask
from envs.batched.kernels import operators
from envs.hosts.cnn import CnnHost, CnnVariant
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.slots import SlotConfig
from envs.tasks import Split, make_task
from envs.vocabulary import (
    AlphaCurve,
    AlphaSpeed,
    AlphaTarget,
    Blueprint,
    GerminationStyle,
    LifecycleOp,
    SeedStage,
    Tempo,
)

TINY = CnnVariant(widths=(4, 8, 8), kernels=(1, 3, 1))
CNN_BLUEPRINTS = (
    Blueprint.CONV_LIGHT,
    Blueprint.ATTENTION,
    Blueprint.NORM,
    Blueprint.DEPTHWISE,
    Blueprint.BOTTLENECK,
    Blueprint.CONV_SMALL,
    Blueprint.CONV_HEAVY,
)
STYLE_OF = {"ADD": GerminationStyle.LINEAR_ADD, "MULTIPLY": GerminationStyle.LINEAR_MULTIPLY, "GATE": 3}


def task_of(*variants, widest=None, batches=2, samples=60, internal_levels=False, **changes):
    """A task on a part of the digits whose epochs are cheap."""
    variants = variants or (TINY,)
    widest = widest or CnnVariant.widest(variants)
    base = make_task("digits")
    splits = {name: Split(split.x[:samples], split.y[:samples]) for name, split in base.splits.items()}
    return replace(
        base,
        name="tiny",
        host=CnnHost(widest, in_channels=1, num_classes=base.num_classes),
        variants=tuple(variants),
        slots=SlotConfig.for_row(len(widest.widths), internal_levels),
        splits=splits,
        batch_size=16,
        batches_per_epoch=batches,
        **changes,
    )


def tiny_env(num_envs=2, variants=(), task_changes=None, **settings):
    settings.setdefault("max_epochs", 20)
    return MorphogenesisVectorEnv(num_envs, task=task_of(*variants, **(task_changes or {})), **settings)


@contextmanager
def torch_alone():
    """Hosts compute as where there is no compiler, and as on a GPU: with torch's own operators."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operators, "_kernels", lambda: None)
        yield


def act(
    op,
    slot=0,
    blueprint=Blueprint.DEPTHWISE,
    style=GerminationStyle.LINEAR_ADD,
    tempo=Tempo.FAST,
    target=AlphaTarget.FULL,
    speed=AlphaSpeed.INSTANT,
    curve=AlphaCurve.LINEAR,
):
    """One host's action, by name."""
    return np.array([op, slot, blueprint, style, tempo, target, speed, curve], np.int64)


WAIT = act(LifecycleOp.WAIT)


def germinate(slot=0, blueprint=Blueprint.DEPTHWISE, **heads):
    return act(LifecycleOp.GERMINATE, slot, blueprint, **heads)


def advance(slot=0):
    return act(LifecycleOp.ADVANCE, slot)


def fossilize(slot=0):
    return act(LifecycleOp.FOSSILIZE, slot)


def grow_inside(slot=0):
    return act(LifecycleOp.GROW_INTERNAL, slot)


def shrink_inside(slot=0):
    return act(LifecycleOp.SHRINK_INTERNAL, slot)


def everyone(env, action):
    return np.tile(action, (env.num_envs, 1))


def views_of(env, mask):
    return split_mask(mask, env.task.slots.heads)


def random_valid_action(mask, heads, rng, op_weights=None):
    """One admitted action for one host; heads that the op does not need are drawn from the whole head.

    Args:
        mask: The host's flat mask.
        heads: The action's heads.
        rng: Source of chance.
        op_weights: Op → weight among the admitted ones, 1 by default.
    """
    views = split_mask(mask, heads)
    weights = np.array([float(on) * (op_weights or {}).get(op, 1.0) for op, on in enumerate(views["op"])])
    op = int(rng.choice(len(weights), p=weights / weights.sum()))
    action = [op]
    for head in heads[1:]:
        row = views[head.name][op] if head.masked_by_op else views[head.name]
        choices = np.flatnonzero(row) if op in head.needed_by else np.arange(head.size)
        action.append(int(rng.choice(choices)))
    return action


EAGER = {LifecycleOp.WAIT: 0.5, LifecycleOp.PRUNE: 0.15, LifecycleOp.ADVANCE: 3.0, LifecycleOp.SET_ALPHA_TARGET: 0.4}
"""Weights under which random play reaches every stage within a short episode."""


def random_valid_actions(env, obs, rng, op_weights=EAGER):
    heads = env.task.slots.heads
    return np.array([random_valid_action(mask, heads, rng, op_weights) for mask in obs["action_mask"]])


def schedule(slot=0, start=1, training=3, blueprint=Blueprint.DEPTHWISE, tempo=3, fossilised=True, **heads):
    """Epoch → action that grows one seed and commits it (tempo in epochs of ramp must match the tempo head)."""
    plan = {
        start: germinate(slot, blueprint, **heads),
        start + 1: advance(slot),
        start + 1 + training: advance(slot),
        start + 1 + training + tempo: advance(slot),
    }
    if fossilised:
        plan[start + 2 + training + tempo] = fossilize(slot)
    return plan


def stages(env):
    return [[SeedStage(int(stage)).name for stage in row] for row in env.lifecycle.stage]


def same_observations(left, right, rows=slice(None)):
    return all(np.array_equal(left[name][rows], right[name][rows]) for name in left)
