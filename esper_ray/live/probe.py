"""What the strategic policy reads of somebody's training run: a packet per epoch, from a model as it is."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from envs.graph.measurements import ACTIVITY_SAMPLES, VOLATILITY_EPOCHS
from envs.live.examples import Example, batch_size, shortened
from envs.live.host import checked_result
from envs.live.optimizer import check_hooks
from envs.live.slot import GROWTH, Growth, LiveSlot
from envs.seed_report import SeedReport
from envs.vocabulary import LIVING_STAGES
from esper_ray.live.arrays import model_arrays, update_magnitudes
from esper_ray.live.grower import Grower
from esper_ray.live.hardware import DECLARED as OF_MACHINES
from esper_ray.live.hardware import DECLARED_ON_CUDA, UTILISATION, HardwareMeter
from esper_ray.live.metering import Motion, StepMeter
from esper_ray.live.refusals import refuse_to_measure
from esper_ray.live.tracing import Trace, trace
from policies.strategic.graph_columns import Monitors
from policies.strategic.measured import BLUEPRINT_NAMES, Measured
from policies.strategic.messages import Budgets, SeedState, SystemState
from policies.strategic.packet_values import LARGEST_NUMBER
from policies.strategic.sampling import SAMPLING, Sampling, sample
from policies.strategic.sending import graph_of, monitors_of

OF_FUNCTIONS = ("activations", "feeds", "influences")
"""Tables of activation functions and of their edges."""

DECLARED = (
    *("run.max_epochs", "run.global_step", "run.training_loss", "run.validation_loss", "run.validation_accuracy"),
    "run.hardware",
    *("metrics.loss", "metrics.gradient_norm", "metrics.samples_per_s", "metrics.hook_latency_ms"),
    *("metrics.step_latency_ms", "metrics.loss_delta", "metrics.loss_volatility", "metrics.grad_var"),
    "metrics.optimizer_lr",
    *OF_MACHINES,
    *("layers.layer_type", "layers.input_channels", "layers.output_channels", "layers.activation_type"),
    *("layers.dropout_rate", "layers.weight_norm", "layers.gradient_norm", "layers.update_frequency"),
    *("layers.loss_share", "layers.in_degree", "layers.out_degree", "layers.depth"),
    *("activations.activation_type", "activations.saturation_rate", "activations.gradient_flow"),
    "activations.computational_cost",
    *("parameters.count", "parameters.learning_rate", "parameters.momentum", "parameters.gradient_variance"),
    "parameters.optimizer_family",
    *("connects.connection_strength", "connects.data_flow_volume"),
    *("feeds.activation_frequency", "feeds.saturation_events"),
    *("influences.gradient_contribution", "influences.nonlinearity_strength"),
    *("tunes.update_magnitude", "tunes.convergence_rate"),
)
"""What a probe can measure of any model."""
DECLARED_OF_GROWERS = (
    *("run.observation", "run.blueprint_indices", "run.action_mask", "run.budgets"),
    *(
        "seeds.seed_id",
        "seeds.blueprint",
        "seeds.alpha",
        "seeds.alpha_target",
        "seeds.age_epochs",
        "seeds.internal_level",
    ),
    *("seeds.internal_max_level", "seeds.monitored_layers", "seeds.scope", "seeds.activity_level"),
)
"""What it can measure besides where a grower is at work."""


class Probe:
    """Watches a model while somebody's own loop trains it, and changes nothing of the training, not a bit.

    Between two epochs it holds one hook, in the optimiser, and twice the memory of the parameters.

    Args:
        model: What is trained; not compiled yet (it may be later).
        optimizer: That trains it.
        inputs: Validation inputs as the loop passes them, a tensor, a tuple or a dict of arguments: the first 16 run
            through the model at the end of every epoch.
        grower: That grows it, if one does.
        max_epochs: Epochs that it will be trained for; the grower's if there is one.
        run_id: Of the run.
        batch_axis: Axis of the batch in the inputs.
        sampling: How much of a large model a packet has.

    Raises:
        LiveError: something that cannot be measured.

    Attributes:
        seconds: Time that measuring has taken so far, the CPU's.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        inputs: Example,
        *,
        grower: Grower | None = None,
        max_epochs: int | None = None,
        run_id: str = "run",
        batch_axis: int = 0,
        sampling: Sampling = SAMPLING,
    ) -> None:
        refuse_to_measure(model)
        check_hooks(optimizer)
        size = batch_size(inputs, batch_axis)
        self._samples = min(size, ACTIVITY_SAMPLES)
        self._inputs = shortened(inputs, batch_axis, size, self._samples)
        self._model, self._optimizer, self._grower, self._run_id = model, optimizer, grower, run_id
        self._sampling = sampling
        self._max_epochs = max_epochs if grower is None else grower.max_epochs
        self._epochs, self._steps, self.seconds = 0, 0, 0.0
        self._losses: list[float] = []
        self._magnitudes: dict[str, float] = {}
        self._kind = self._kind_of_model()
        self._hardware = HardwareMeter()
        trace(model, self._inputs, self._samples)  # what does not run is refused now
        host = (p for name, p in model.named_parameters() if name.partition(".")[0] != GROWTH)
        self._meter = StepMeter([p for p in host if p.is_floating_point()], optimizer, self._on_first_step)
        self._known, self._seeds = self._seed_ids(), list[dict[str, Tensor]]()

    def remove(self) -> None:
        """Watch no longer: model and optimiser are as if there had never been a probe."""
        self._meter.remove()

    def state_dict(self) -> dict[str, Any]:
        """What packets to come depend on, beside the model, its optimiser and its grower, between two epochs."""
        return {
            "epochs": self._epochs,
            "steps": self._steps,
            "losses": list(self._losses),
            "magnitudes": dict(self._magnitudes),
            "known": list(self._known),
            "meter": self._meter.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the probe that gave :meth:`state_dict`; model, optimiser and grower have their own.

        Raises:
            ValueError: it watched another model; nothing has changed then.
        """
        self._meter.load_state_dict(state["meter"])
        self._meter.begin()
        self._epochs, self._steps = state["epochs"], state["steps"]
        self._losses, self._magnitudes = list(state["losses"]), dict(state["magnitudes"])
        self._known, self._seeds = list(state["known"]), []

    def end_epoch(
        self,
        training_loss: float | None = None,
        validation_loss: float | None = None,
        validation_accuracy: float | None = None,
        samples: int | None = None,
    ) -> SystemState:
        """End an epoch, which is whatever was trained since the last call, and measure it.

        Args:
            training_loss: Mean over the epoch, if the loop knows it.
            validation_loss: Likewise at its end; the grower's if there is one.
            validation_accuracy: Likewise, in percent.
            samples: That were trained on.

        Returns:
            What was measured. What was not, or is not finite, is left out.

        Raises:
            LiveError: the model does not run any more, or an accuracy is no percentage; the call can be repeated.
        """
        started = time.perf_counter()
        if self._grower is not None and validation_loss is None:
            validation_loss, validation_accuracy = self._grower.result
        if _finite(validation_accuracy) is not None:
            _, validation_accuracy = checked_result((0.0, validation_accuracy), "end_epoch() was given")
        motion = self._meter.end()
        self._follow_model()
        seen = trace(self._model, self._inputs, self._samples, self._slots)
        self._epochs, self._steps = self._epochs + 1, self._steps + motion.steps
        epoch = self._epochs if self._grower is None else self._grower.epoch
        packet_id = str(epoch)
        whole = self._measured(seen, motion)
        self._magnitudes = update_magnitudes(whole)
        loss = _finite(training_loss)
        metrics = self._metrics(motion, loss, samples) | self._hardware.measure(self._device)
        part = sample(whole, packet_id, self._sampling)
        packet = SystemState(
            run_id=self._run_id,
            packet_id=packet_id,
            timestamp_ns=time.time_ns(),
            declared=self._declared(seen, metrics),
            epoch=epoch,
            max_epochs=self._max_epochs,
            global_step=self._steps,
            training_loss=loss,
            validation_loss=_finite(validation_loss),
            validation_accuracy=_finite(validation_accuracy),
            metrics={name: value for name, value in metrics.items() if _finite(value) is not None},
            graph=graph_of(part),
            hardware=self._hardware.describe(self._device),
            **self._growing(whole, part),
        )
        self._meter.begin()
        self._known, self._seeds = self._seed_ids(), []
        self.seconds += time.perf_counter() - started + motion.hook_seconds
        return packet

    # ------------------------------------------------------------------ parts of a packet
    @property
    def _slots(self) -> tuple[str, ...]:
        """Modules that are slots."""
        return () if self._grower is None else self._grower.slots

    @property
    def _device(self) -> torch.device:
        return next((parameter.device for parameter in self._model.parameters()), torch.device("cpu"))

    def _kind_of_model(self) -> tuple[torch.dtype, torch.device]:
        of = (parameter for parameter in self._model.parameters() if parameter.is_floating_point())
        return next(((p.dtype, p.device) for p in of), (torch.get_default_dtype(), torch.device("cpu")))

    def _follow_model(self) -> None:
        """Move the inputs where the model was moved to; those of its type become of its new type."""
        (was, _), now = self._kind, self._kind_of_model()
        dtype, device = now

        def moved(x: Tensor) -> Tensor:
            return x.to(device, dtype if x.dtype == was else x.dtype)

        if self._kind != now:
            self._kind, self._inputs = now, tree_map_only(Tensor, moved, self._inputs)

    def _declared(self, seen: Trace, metrics: Collection[str]) -> tuple[str, ...]:
        """What can be measured of this model: nothing of activation functions where it calls none."""
        here = tuple(key for key in (*DECLARED_ON_CUDA, UTILISATION) if key.partition(".")[2] in metrics)
        declared = DECLARED + here + (() if self._grower is None else DECLARED_OF_GROWERS)
        return tuple(key for key in declared if seen.activations or key.partition(".")[0] not in OF_FUNCTIONS)

    def _measured(self, seen: Trace, motion: Motion) -> Measured:
        """The whole graph. A slot watches the last layer that its module's output is made of, and the first reader."""
        watched = {slot: seen.around[name] for slot, name in enumerate(self._slots) if name in seen.around}
        slots = None if self._grower is None else self._grower.slot_config
        return model_arrays(seen, motion, self._meter.parameters, self._optimizer, self._magnitudes, watched, slots)

    def _metrics(self, motion: Motion, loss: float | None, samples: int | None) -> dict[str, float]:
        before = self._losses[-1] if self._losses else math.nan
        self._losses = [*self._losses, math.nan if loss is None else loss][-VOLATILITY_EPOCHS:]
        known = [value for value in self._losses if math.isfinite(value)]
        taken = math.nan if samples is None or motion.steps < 2 else samples * (1.0 - 1.0 / motion.steps)
        return {
            "loss": self._losses[-1],
            "gradient_norm": motion.norm,
            "samples_per_s": taken / motion.seconds if motion.seconds > 0 else math.nan,
            "hook_latency_ms": motion.hook_ms,
            "step_latency_ms": motion.step_ms,
            "loss_delta": self._losses[-1] - before,
            "loss_volatility": float(np.std(known)) if len(known) > 1 else math.nan,
            "grad_var": motion.spread.sum() / motion.sizes.sum() if len(motion.sizes) else math.nan,
            "optimizer_lr": float(self._optimizer.param_groups[0].get("lr", math.nan)),
        }

    # ------------------------------------------------------------------ what grows
    def _growing(self, whole: Measured, part: Measured) -> dict[str, Any]:
        """What a packet says of slots, whose layers are rows of what is sent."""
        grower = self._grower
        if grower is None:
            return {}
        reports, observations = grower.reports(), grower.observe()
        watched = torch.bincount(whole.ends["monitors"][0, :, 0], minlength=len(reports)).tolist()
        seeds = zip(grower.slot_names, grower.seed_ids, reports, monitors_of(part), watched, strict=True)
        return {
            "seeds": tuple(
                _seed_state(name, seed_id, report, monitors, layers / max(whole.layer_count, 1), self._activity(at))
                for at, (name, seed_id, report, monitors, layers) in enumerate(seeds)
            ),
            "internal_levels": grower.slot_config.internal_levels,
            "budgets": Budgets(living_seeds=grower.max_living_seeds, parameters=grower.parameter_budget),
            "observation": tuple(observations["obs"][0].tolist()),
            "blueprint_indices": tuple(observations["blueprint_indices"][0].tolist()),
            "action_mask": tuple(observations["action_mask"][0].tolist()),
        }

    def _live_slots(self) -> list[LiveSlot]:
        growth = getattr(self._model, GROWTH, None)
        return growth.slots() if isinstance(growth, Growth) else []

    def _seed_ids(self) -> list[str | None]:
        """The seed in each slot."""
        return [] if self._grower is None else list(self._grower.seed_ids)

    def _on_first_step(self) -> None:
        """Copy the parameters of the seeds that have been there since the epoch before, by slot."""
        there = zip(self._live_slots(), self._seed_ids(), self._known, strict=False)
        self._seeds = [
            {name: p.detach().clone() for name, p in slot.named().items()} if seed == known else {}
            for slot, seed, known in there
        ]

    def _activity(self, at: int) -> float | None:
        """Norm of the change of a seed's parameters in the epoch, over their norm before; None of a new seed."""
        slots = self._live_slots()
        if at >= len(self._seeds):
            return None
        before, now = self._seeds[at], slots[at].named()
        if not now or {name: p.shape for name, p in before.items()} != {name: p.shape for name, p in now.items()}:
            return None
        changes = torch.cat([(p.detach() - before[name]).flatten().float() for name, p in now.items()])
        norm = torch.cat([values.flatten().float() for values in before.values()]).norm()
        return _finite((changes.norm() / norm).item())


def _seed_state(
    name: str,
    seed_id: str | None,
    report: SeedReport,
    monitors: Monitors | None,
    share: float,
    activity: float | None,
) -> SeedState:
    scope = None if monitors is None else share
    if report.stage not in LIVING_STAGES or report.blueprint is None:
        return SeedState(slot=name, stage=report.stage, monitored_layers=monitors, scope=scope)
    return SeedState(
        slot=name,
        stage=report.stage,
        seed_id=seed_id,
        blueprint=BLUEPRINT_NAMES[report.blueprint],
        alpha=report.alpha,
        alpha_target=report.alpha_target,
        age_epochs=report.epochs_in_stage,
        internal_level=report.internal_level,
        internal_max_level=report.internal_max_level,
        monitored_layers=monitors,
        scope=scope,
        activity_level=activity,
    )


def _finite(value: float | None) -> float | None:
    """A number that a packet takes; None in place of any other."""
    return value if value is not None and abs(value) <= LARGEST_NUMBER else None
