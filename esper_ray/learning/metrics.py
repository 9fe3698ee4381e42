"""What RLlib's results mean here: an episode's numbers, and the names under which results are watched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ray.rllib.callbacks.callbacks import RLlibCallback

from envs.governor import Panic
from envs.reward import COMPONENTS
from envs.slot_states import Fate
from envs.slots import SlotConfig
from envs.vocabulary import HEAD_NAMES, LifecycleOp
from policies.return_scale import WORLD as WORLD_LEAF

WORLD, POLICY, CRITIC, OPTIMISER, LSTM, ALARM, SPEED = (
    "World",
    "Policy",
    "Critic",
    "Optimiser",
    "LSTM",
    "Alarm",
    "Speed",
)

GROUPS = {
    **dict.fromkeys(
        ("value_loss", "q_value_loss", "value_nrmse", "explained_variance", "q_spread", "advantage_mean"), CRITIC
    ),
    **dict.fromkeys(("return_scale",), CRITIC),
    **dict.fromkeys(
        ("entropy", "entropy_available", "ratio_min", "ratio_mean", "ratio_max", "clip_share", "decided_share"), POLICY
    ),
    **dict.fromkeys(
        ("policy_loss", "entropy_coeff", "kl", "joint_ratio_mean", "joint_ratio_max", "forced_share"), POLICY
    ),
    **dict.fromkeys(
        ("loss", "lr", "gradient_norm", "gradient_clipped_share", "applied_share", "replay_error"), OPTIMISER
    ),
    **dict.fromkeys(("lstm_hidden_norm", "lstm_cell_norm"), LSTM),
    "alarm": ALARM,
    "update_seconds": SPEED,
}
"""TensorBoard group of each learner metric, by the first part of its name. RLlib's own counters have none."""


class EpisodeMetrics(RLlibCallback):
    """In the runners: logs every finished episode under ``env_runners/world``, and its choices under ``choices``.

    Each number of the world is the mean over the iteration's episodes; choices are counted over all of them.

    Args:
        slots: Of the task: say which ops and blueprints exist.
        tasks: Where there are several, their names; each has a score of its own.
    """

    def __init__(self, slots: SlotConfig, tasks: Sequence[str] = ()) -> None:
        super().__init__()
        self._slots, self._tasks = slots, tasks

    def on_episode_end(
        self, *, episode: Any, prev_episode_chunks: list[Any], metrics_logger: Any, **kwargs: Any
    ) -> None:
        """Log one finished episode; an episode cut by a rollout's end has its earlier parts in the chunks."""
        chunks = [chunk for chunk in [*prev_episode_chunks, episode] if len(chunk)]
        steps = [info for chunk in chunks for info in chunk.get_infos()[1:]]
        last = steps[-1]
        numbers = {
            "score": last["committed_score"],
            "accuracy": last["committed_accuracy"],
            "parameters": last["committed_parameters"],
            "governor_stops": float(last["panic"] != Panic.NONE),
            "episode_epochs": len(steps),
            **{f"seeds/{fate.name.lower()}": last[f"seeds_{fate.name.lower()}"] for fate in Fate},
            **{f"reward/{name}": sum(info[f"reward_{name}"] for info in steps) for name in COMPONENTS},
        }
        actions = np.concatenate([np.stack(chunk.get_actions()) for chunk in chunks])
        ops = actions[:, HEAD_NAMES.index("op")]
        blueprints = actions[ops == LifecycleOp.GERMINATE, HEAD_NAMES.index("blueprint")]
        if self._tasks:
            played = int(episode.get_observations(-1)[WORLD_LEAF][0])
            numbers[f"score_by_task/{self._tasks[played]}"] = numbers["score"]
        numbers |= {f"op_share/{op.name}": float((ops == op).mean()) for op in self._slots.ops}
        metrics_logger.log_value(("world", "episodes"), 1, reduce="sum", window=None)
        for name, value in numbers.items():
            metrics_logger.log_value(("world", name), float(value), reduce="mean", window=None)
        for op in self._slots.ops:
            metrics_logger.log_value(("choices", "op", op.name), int((ops == op).sum()), reduce="sum", window=None)
        for kind in self._slots.blueprints:
            count = int((blueprints == kind).sum())
            metrics_logger.log_value(("choices", "blueprint", kind.name), count, reduce="sum", window=None)


def readable_metrics(result: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Name in TensorBoard and value of everything in a result that is watched."""
    for name, value in flatten(result.get("env_runners", {}).get("world", {})):
        if not np.isnan(value):  # of a task that was not played in this iteration
            yield f"{POLICY if name.startswith('op_share') else WORLD}/{name}", value
    for name, value in flatten(result.get("learners", {}).get("default_policy", {})):
        group = GROUPS.get(name.split("/")[0])
        if group is not None and np.isfinite(value):
            yield f"{group}/{name.removeprefix('alarm/')}", value


def named(horizons: range) -> str:
    """A name for some horizons: ``15..59``."""
    return f"{horizons[0]}..{horizons[-1]}"


def flatten(numbers: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Nested metrics as ``a/b`` names with plain numbers."""
    for name, value in numbers.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{inner}", number) for inner, number in flatten(value))
        elif isinstance(value, int | float | np.number):
            yield name, float(value)
