"""Metrics become TensorBoard: curves, choices, and now and then the picture of a held-out episode."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.rllib.callbacks.callbacks import RLlibCallback

from esper_ray.config import TrainConfig
from esper_ray.keeping.policy_settings import policy_settings, trained_names
from esper_ray.keeping.writing import writing
from esper_ray.learning.metrics import POLICY, SPEED, WORLD, named, readable_metrics
from esper_ray.measuring.episodes import held_out_seeds
from policies.factory import build_policy
from policies.learned import LEARNED

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


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
        """Write one iteration.

        Raises:
            UserError: it cannot be written.
        """
        with writing(self._run_dir), _told_once():
            self._write(algorithm, result)

    def _write(self, algorithm: Any, result: dict[str, Any]) -> None:
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
        self._write_horizon(writer, result, iteration, step)
        if iteration % config.replay_interval == 0 or iteration == config.iterations:
            state, names = algorithm.newest_policy(), trained_names(self._config.env, self._config.network)
            host_seed = held_out_seeds(config.seed, 1)[0]
            from esper_ray.measuring.replay import draw_replay

            for world in self._config.env.worlds:
                title = f"held-out host of {world.task}, iteration {iteration}"
                policy = build_policy(LEARNED, policy_settings(world, self._config.network, names))
                policy.load_state_dict(state)
                figure = draw_replay(policy, world.lasting(), host_seed, title)
                of_task = f"/{world.task}" if self._config.env.tasks else ""
                writer.add_figure(f"Replay/held_out_episode{of_task}", figure, step)
        writer.flush()
        self._written = step

    def _writer_after(self, step: int) -> SummaryWriter:
        """The writer of what follows ``step``: a new one unless it wrote that step last."""
        if self._writer is None or step != self._written:
            from torch.utils.tensorboard import SummaryWriter

            from esper_ray.learning.dashboard import write_hyperparameters, write_layout

            self._writer = SummaryWriter(str(self._run_dir), purge_step=step + 1)
            self._writer.add_text("config", f"```json\n{self._config.to_json()}```", step + 1)
            write_layout(self._writer)
            write_hyperparameters(self._writer, self._config)
        return self._writer

    def _write_horizon(self, writer: SummaryWriter, result: Mapping[str, Any], iteration: int, step: int) -> None:
        """Where horizons are drawn: this iteration's, and the score once more among those of about its length."""
        thirds, score = self._config.env.thirds, result["env_runners"].get("world", {}).get("score")
        if len(thirds) == 1:
            return
        horizon = self._config.env_in(iteration - 1).longest
        writer.add_scalar(f"{WORLD}/horizon", horizon, step)
        if score is not None:
            third = next(third for third in thirds if horizon in third)
            writer.add_scalar(f"{WORLD}/score_by_horizon/{named(third)}", score, step)

    def _write_choices(self, writer: SummaryWriter, result: Mapping[str, Any], step: int) -> None:
        from esper_ray.learning.dashboard import write_choices

        slots = self._config.env.slots
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


@contextmanager
def _told_once() -> Iterator[None]:
    """What TensorBoard's thread cannot write it raises in this one too: no traceback of the thread's own beside it."""
    usual = threading.excepthook

    def tell(failure: threading.ExceptHookArgs) -> None:
        if not isinstance(failure.exc_value, OSError):
            usual(failure)

    threading.excepthook = tell
    try:
        yield
    except OSError as error:
        for thread in threading.enumerate():
            if getattr(thread, "exception", None) is error:
                thread.join()  # it is about to tell it
        raise
    finally:
        threading.excepthook = usual
