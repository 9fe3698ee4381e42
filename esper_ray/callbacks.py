"""What RLlib's events mean here: episodes and updates become metrics, metrics become TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ray.rllib.callbacks.callbacks import RLlibCallback

from envs.governor import Panic
from envs.lifecycle import Fate
from envs.reward import COMPONENTS
from envs.slots import SlotConfig
from envs.vocabulary import HEAD_NAMES, LifecycleOp
from esper_ray.config import TrainConfig
from esper_ray.episodes import held_out_seeds
from policies.learned import LearnedPolicy, build_network
from policies.network import NetworkConfig, RecurrentPolicyNetwork

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

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
    """

    def __init__(self, slots: SlotConfig) -> None:
        super().__init__()
        self._slots = slots

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
        numbers |= {f"op_share/{op.name}": float((ops == op).mean()) for op in self._slots.ops}
        metrics_logger.log_value(("world", "episodes"), 1, reduce="sum", window=None)
        for name, value in numbers.items():
            metrics_logger.log_value(("world", name), float(value), reduce="mean", window=None)
        for op in self._slots.ops:
            metrics_logger.log_value(("choices", "op", op.name), int((ops == op).sum()), reduce="sum", window=None)
        for kind in self._slots.blueprints:
            count = int((blueprints == kind).sum())
            metrics_logger.log_value(("choices", "blueprint", kind.name), count, reduce="sum", window=None)


class TensorBoard(RLlibCallback):
    """In the driver: writes every iteration's metrics, and now and then a held-out episode as a picture.

    The horizontal axis is the number of host epochs trained. Where a run goes on from a checkpoint, TensorBoard hides
    what was written after it before.

    RLlib makes one in every runner too, where it does nothing. What it draws and writes with is therefore imported
    where it is used: 32 MB that runners do without.

    Args:
        run_dir: Where the event files go.
        config: The run's config, written as text.
    """

    def __init__(self, run_dir: Path, config: TrainConfig) -> None:
        super().__init__()
        self._run_dir, self._config = run_dir, config
        self._writer: SummaryWriter | None = None
        self._written = 0

    def on_train_result(self, *, algorithm: Any, result: dict[str, Any], **kwargs: Any) -> None:
        """Write one iteration."""
        config = self._config.run
        step = int(result["num_env_steps_sampled_lifetime"])
        sampled, seconds = int(result["env_runners"]["num_env_steps_sampled"]), result["time_this_iter_s"]
        writer = self._writer_after(step - sampled)
        writer.add_scalar(f"{SPEED}/iteration_seconds", seconds, step)
        writer.add_scalar(f"{SPEED}/epochs_per_second", sampled / seconds, step)
        for name, value in readable_metrics(result):
            writer.add_scalar(name, value, step)
        self._write_choices(writer, result, step)
        iteration = result["training_iteration"]
        if iteration % config.replay_interval == 0 or iteration == config.iterations:
            slots = self._config.env.make_task().slots
            policy = LearnedPolicy(slots, current_network(algorithm, slots, self._config.network))
            host_seed = held_out_seeds(config.seed, 1)[0]
            from esper_ray.replay import draw_replay

            figure = draw_replay(policy, self._config.env, host_seed, f"held-out host, iteration {iteration}")
            writer.add_figure("Replay/held_out_episode", figure, step)
        writer.flush()
        self._written = step

    def _writer_after(self, step: int) -> SummaryWriter:
        """The writer of what follows ``step``: a new one unless it wrote that step last."""
        if self._writer is None or step != self._written:
            from torch.utils.tensorboard import SummaryWriter

            from esper_ray.dashboard import write_hyperparameters, write_layout

            self._writer = SummaryWriter(str(self._run_dir), purge_step=step + 1)
            self._writer.add_text("config", f"```json\n{self._config.to_json()}```", step + 1)
            write_layout(self._writer)
            write_hyperparameters(self._writer, self._config)
        return self._writer

    def _write_choices(self, writer: SummaryWriter, result: Mapping[str, Any], step: int) -> None:
        from esper_ray.dashboard import write_choices

        slots = self._config.env.make_task().slots
        counts = result["env_runners"].get("choices", {})
        for head, choices in (("op", slots.ops), ("blueprint", slots.blueprints)):
            made = {choice.name: float(counts.get(head, {}).get(choice.name, 0)) for choice in choices}
            total = sum(made.values())
            if not total:
                continue
            write_choices(writer, f"{POLICY}/{head}", made, step)
            if head == "blueprint":  # ops have their shares from the runners, per episode
                for name, count in made.items():
                    writer.add_scalar(f"{POLICY}/blueprint_share/{name}", count / total, step)


def readable_metrics(result: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Name in TensorBoard and value of everything in a result that is watched."""
    for name, value in flatten(result.get("env_runners", {}).get("world", {})):
        yield f"{POLICY if name.startswith('op_share') else WORLD}/{name}", value
    for name, value in flatten(result.get("learners", {}).get("default_policy", {})):
        group = GROUPS.get(name.split("/")[0])
        if group is not None and np.isfinite(value):
            yield f"{group}/{name.removeprefix('alarm/')}", value


def flatten(numbers: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Nested metrics as ``a/b`` names with plain numbers."""
    for name, value in numbers.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{inner}", number) for inner, number in flatten(value))
        elif isinstance(value, int | float | np.number):
            yield name, float(value)


def current_network(algorithm: Any, slots: SlotConfig, config: NetworkConfig) -> RecurrentPolicyNetwork:
    """A copy of the network with the learner's newest weights."""
    network = build_network(slots, config)
    weights = algorithm.learner_group.get_weights()["default_policy"]
    prefix = "network."
    network.load_state_dict({name.removeprefix(prefix): torch.as_tensor(value) for name, value in weights.items()})
    return network
