"""Growth while a Lightning trainer fits: ``Trainer(callbacks=[GrowCallback(slots=[...], score=...)])``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from envs.live.errors import LiveError
from envs.live.examples import Example
from envs.live.planting import make_room, uproot
from envs.live.slot import GROWTH
from esper_ray.live.grower import Grower
from esper_ray.live.growing import grow
from esper_ray.live.records import Report

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.strategies import SingleDeviceStrategy
    from lightning.pytorch.utilities import CombinedLoader, rank_zero_info
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"esper_ray.live.lightning needs Lightning: pip install 'esper-ray[lightning]' ({error})", name=error.name
    ) from error

Score = Callable[[Any, Any], Sequence[float | Tensor]]
"""``score(module, batch)``: sum of the losses, hits and number of samples (or tokens) of a validation batch."""

_AVERAGING = {"StochasticWeightAveraging", "WeightAveraging"}


class GrowCallback(Callback):
    """Lets a policy grow a module while a trainer fits it.

    The module's validation loaders are run at the start, and then two or three times after every epoch of training, to
    measure what the seeds are worth. The measurements are logged as ``grow/...``, and each decision is printed. What
    has grown is committed when the fit ends. A checkpoint that the trainer saves holds the growth, and going on from it
    equals not having stopped.

    Args:
        slots: As of :func:`esper_ray.live.grow`, names of the module's own modules.
        score: What a validation batch gives: ``score(module, batch)`` returns the sum of its losses, its hits (correct
            predictions) and how many there could have been. It is called in mode ``eval``, without gradients, and under
            the trainer's precision.
        example: A batch of at least two inputs of the module's ``forward``; its ``example_input_array`` by default.
        max_epochs: Epochs that the policy plans for; what the trainer has left by default.
        **options: Other keywords of :func:`esper_ray.live.grow`, ``policy=`` first of all.

    Raises:
        TypeError: a keyword that is none of them.

    Attributes:
        grower: Since the training began; None before.
        report: What has grown, once the fit has ended; None before.
    """

    def __init__(
        self,
        slots: Sequence[str] | str | None = None,
        *,
        score: Score,
        example: Example | None = None,
        max_epochs: int | None = None,
        **options: Any,
    ) -> None:
        unused: Any = None
        inspect.signature(grow).bind(
            unused, unused, slots, example=example, evaluate=unused, max_epochs=max_epochs, writer=unused, **options
        )
        self._slots, self._score, self._example = slots, score, example
        self._max_epochs, self._options = max_epochs, options
        self._scalars = _Scalars()
        self._loading = ExitStack()
        self._state: dict[str, Any] = {}
        self._seeds: dict[str, Tensor] = {}
        self.grower: Grower | None = None
        self.report: Report | None = None

    # ------------------------------------------------------------------ loading
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Be ready for a checkpoint with seeds: a fit plants them itself, later; whoever tests needs them at once."""
        self._state, self._seeds = {}, {}
        receive = self._withhold_seeds if stage == "fit" else self._make_room
        self._loading.callback(pl_module.register_load_state_dict_pre_hook(receive).remove)

    def _withhold_seeds(self, module: LightningModule, state: dict[str, Any], *args: Any) -> None:
        uproot(module)
        for name in [name for name in state if name.startswith(f"{GROWTH}.")]:
            self._seeds[name.removeprefix(f"{GROWTH}.")] = state.pop(name)

    def _make_room(self, module: LightningModule, state: dict[str, Any], *args: Any) -> None:
        make_room(module, state, self._example_of(module), self._options.get("batch_axis", 0))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state for the start of the fit."""
        self._state = state_dict

    def state_dict(self) -> dict[str, Any]:
        """The grower's state until it has committed, and the card of what has grown."""
        if self.grower is None:
            return {}
        going_on = self.report is None
        return {"card": self.grower.card, "grower": self.grower.state_dict() if going_on else None}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave no hook behind."""
        self._loading.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no hook behind."""
        self._loading.close()

    # ------------------------------------------------------------------ starting
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot grow; plant what a checkpoint has grown, before the optimiser's state is loaded."""
        self._loading.close()
        self.grower = self.report = None
        _refuse(trainer, pl_module)
        if self._state:
            self._resume(trainer, pl_module)
        elif self._seeds:
            raise LiveError(
                "the checkpoint has seeds but not the state of a GrowCallback (save_weights_only leaves it out): go on "
                "from a whole checkpoint, or rebuild() the network and train it without GrowCallback"
            )

    def _resume(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state = self._state["grower"]
        if state is None:
            raise LiveError(
                "the checkpoint is of a committed run, whose growth is over: rebuild() the network from its card, and "
                "train it without GrowCallback"
            )
        grower = self._grow(trainer, pl_module, self._max_epochs or state["max_epochs"])
        grower.load_state_dict(state)
        if self._seeds:
            pl_module.get_submodule(GROWTH).load_state_dict(self._seeds)
        self.grower = grower

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to grow, if the fit does not go on with what has begun already."""
        if self.grower is not None:
            return
        left = (trainer.max_epochs or -1) - trainer.current_epoch
        if self._max_epochs is None and left < 0:
            raise LiveError("the trainer has no max_epochs: tell GrowCallback how many to plan for (max_epochs=)")
        self.grower = self._grow(trainer, pl_module, self._max_epochs or left)
        rank_zero_info(str(self.grower.decision))

    def _grow(self, trainer: Trainer, pl_module: LightningModule, max_epochs: int) -> Grower:
        with _validating(trainer):
            return grow(
                pl_module,
                trainer.optimizers[0],
                self._slots,
                example=_on_device(trainer, pl_module, self._example_of(pl_module)),
                evaluate=lambda: self._evaluate(trainer, pl_module),
                max_epochs=max_epochs,
                writer=self._scalars,
                **self._options,
            )

    def _example_of(self, module: LightningModule) -> Example:
        example = module.example_input_array if self._example is None else self._example
        if example is None:
            raise LiveError(
                "GrowCallback has to run the module's forward once: pass example=, a batch of at least two inputs, or "
                "set the module's example_input_array"
            )
        return example

    # ------------------------------------------------------------------ training
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Keep the seeds out of the trainer's clipping."""
        if self.grower is not None:
            self.grower.set_gradients_aside()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, decide and change the model, before the trainer saves it."""
        grower = self.grower
        if grower is None or grower.epoch == grower.max_epochs:
            return
        self._scalars.latest.clear()
        with _validating(trainer):
            decision = grower.end_epoch()
        pl_module.log_dict(self._scalars.latest)
        rank_zero_info(str(decision))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Commit."""
        if self.grower is None:
            return
        left_on = pl_module.device  # the trainer has taken the module from its device already
        pl_module.to(trainer.strategy.root_device)
        with _validating(trainer):
            self.report = self.grower.commit()
        pl_module.to(left_on)
        rank_zero_info(str(self.report))

    # ------------------------------------------------------------------ validation
    def _evaluate(self, trainer: Trainer, pl_module: LightningModule) -> tuple[float, float]:
        totals = [0.0, 0.0, 0.0]
        for batch, _, loader in _batches(trainer):
            with _unlogged(pl_module):
                result = self._score(pl_module, _on_device(trainer, pl_module, batch, loader))
            try:
                totals = [total + float(value) for total, value in zip(totals, result, strict=True)]
            except (TypeError, ValueError, RuntimeError) as error:
                raise LiveError(
                    "score(module, batch) must return three numbers, the sum of the losses, the hits and the number of "
                    f"samples, got {result!r}"
                ) from error
        loss, hits, number = totals
        if not number:
            raise LiveError("the validation loaders hold no samples: a policy decides on what they give")
        return loss / number, 100.0 * hits / number


@contextmanager
def _unlogged(module: LightningModule) -> Iterator[None]:
    """What a module logs in here, a ``validation_step`` say, is no validation of the trainer's, and goes nowhere."""

    def ignore(*args: Any, **kwargs: Any) -> None:
        pass

    vars(module).update(log=ignore, log_dict=ignore)
    try:
        yield
    finally:
        del module.log, module.log_dict


class _Scalars:
    """Keeps the latest of what a grower writes, for the trainer to log."""

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.latest[tag] = scalar_value


def _refuse(trainer: Trainer, pl_module: LightningModule) -> None:
    """Refuse what cannot be grown by a callback.

    Raises:
        LiveError: several devices, manual optimization, a compiled module, no validation, or averaged weights.
    """
    if not isinstance(trainer.strategy, SingleDeviceStrategy) or trainer.world_size > 1:
        raise LiveError(
            f"the trainer's strategy is {type(trainer.strategy).__name__}, and a network grows in one process, on one "
            "device: fit with Trainer(devices=1), and train on several devices when it is committed"
        )
    if not pl_module.automatic_optimization:
        raise LiveError(
            "the module optimizes manually, as one with several optimizers must, and a callback cannot see when: call "
            "grow(), end_epoch() and commit() in the module's own hooks"
        )
    if "forward" in vars(pl_module):  # what the trainer makes of a compiled module
        raise LiveError(
            "the module was compiled before it grew, and what is compiled sees no slot: hand the plain module to fit, "
            "and compile its network in its on_train_start"
        )
    if not trainer.enable_validation:
        raise LiveError(
            "a policy decides on validation data: give the trainer validation loaders and the module a validation_step"
        )
    for callback in trainer.callbacks:
        averaging = _AVERAGING & {base.__name__ for base in type(callback).__mro__}
        if averaging:
            raise LiveError(
                f"{averaging.pop()} averages into a copy that was made before the module grew and has no slots: "
                "average into a copy made later, and call Grower.mirror() on it after every epoch"
            )


@contextmanager
def _validating(trainer: Trainer) -> Iterator[None]:
    """The trainer validates in here, so that its precision and the module's own hooks for batches are validation's."""
    trainer.validating = True
    try:
        with trainer.precision_plugin.val_step_context():
            yield
    finally:
        trainer.training = True


def _batches(trainer: Trainer) -> Iterator[tuple[Any, int, int]]:
    """Validation batches, each with its number and its loader's."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    if not loop.max_batches:
        loop.setup_data()
    loader = CombinedLoader(trainer.val_dataloaders, "sequential")
    loader.limits = loop.max_batches
    return iter(loader)


def _on_device(trainer: Trainer, pl_module: LightningModule, batch: Any, loader: int = 0) -> Any:
    """A batch as the trainer hands it to the module."""
    batch = trainer.precision_plugin.convert_input(batch)
    for hooks in (pl_module, getattr(trainer, "datamodule", None)):  # one of them has its own, if any has
        batch = batch if hooks is None else hooks.on_before_batch_transfer(batch, dataloader_idx=loader)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=loader)
