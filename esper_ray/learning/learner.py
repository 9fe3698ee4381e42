"""RLlib's learner with a per-head loss and what is watched: the part that all algorithms share."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from ray.rllib.utils.schedules.scheduler import Scheduler
from torch import Tensor

from esper_ray.config import LearnerConfig
from esper_ray.learning.diagnostics import SATURATED_CLIPPING, alarms, lstm_diagnostics, minibatch_diagnostics, read
from esper_ray.learning.loss import LossTerms, Minibatch, entropy_weights
from esper_ray.ray_internals import OpenLearner
from policies.policy_network import PolicyNetwork
from policies.results import ActorCriticResult
from policies.rl_module import FORWARD_RESULT, STATE_NORMS

REDUCED_TO = {"ratio_min": "min", "ratio_max": "max", "joint_ratio_max": "max", "replay_error": "max"}
"""How minibatches and learners make one number where it is not their mean."""

Gradients = dict[Any, Tensor]
"""RLlib's gradients: parameter → gradient."""


def mean_over_learners(values: Tensor) -> Tensor:
    """Average of a tensor over all learner processes; the tensor itself if there is only this one."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return values
    total = values.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


@dataclass
class _UpdateRecord:
    """What has happened so far in one update (all epochs over one rollout)."""

    stopped: bool = False
    """The policy has strayed from the rollout's: no further step."""
    finite: bool = True
    """The latest gradient was finite."""
    offered: int = 0
    """Minibatches that RLlib came with."""
    computed: int = 0
    """Minibatches with a gradient."""
    clipped: int = 0
    """Gradients that were above the clip."""
    applied: int = 0
    """Steps of the optimiser."""
    entropy_weights: dict[str, Tensor] = field(default_factory=dict)
    """Of every module's heads in this update, ``[H]``."""
    watched: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Numbers of every module in the present minibatch, not read yet."""
    began: float = field(default_factory=time.perf_counter)
    """When the update started, on the performance counter."""
    last_result: Any = None
    """What RLlib got for the latest minibatch with a gradient."""


class FactoredLearner(OpenLearner, TorchLearner):
    """What all algorithms share; comes before RLlib's learner of the algorithm.

    A step whose gradient is not finite is left out.

    Metrics (``learners/default_policy/...``) are means over the minibatches of an update, ratio extremes are
    extremes, and ``alarm/...`` are counts. Their names are explained where they are computed
    (:mod:`esper_ray.learning.diagnostics`), but for ``gradient_norm/...`` (before clipping: per head, of the rest, and
    ``all``), ``alarm/non_finite`` (gradients that were not), ``alarm/no_step`` (1 if the update made none),
    ``alarm/clip_saturated``, ``gradient_clipped_share``, ``applied_share`` (share of the minibatches that made a step),
    ``replay_error`` and ``alarm/replay`` (PPO only: largest difference between stored and recomputed log-probabilities
    of the rollout before the first step, and whether it is above
    :data:`esper_ray.learning.diagnostics.REPLAY_LIMIT`), ``lr`` (after the update), ``entropy_coeff``,
    ``return_scale`` (of every world, where there are several) and ``update_seconds``.

    A minibatch's numbers are read once, after its backward pass: that is the one time that it waits for a GPU, to
    know whether to make its step.

    Attributes:
        stays_with_rollout: Whether an update begins with the policy that played and must end close to it.
    """

    stays_with_rollout: ClassVar[bool]

    def build(self) -> None:
        """Set up as RLlib does. A second call does nothing."""
        if self.is_built:
            return
        self.settings: LearnerConfig = self.config.settings
        self._record = _UpdateRecord()
        self._entropy_share = 1.0
        self._entropy_schedule = Scheduler(self.config.falling(1.0, self.settings.entropy_final))
        super().build()

    def optimizers_restored(self) -> None:
        """Keep Adam's moments, but not the settings of the run that saved them: this config may have others."""
        settings = {"eps": self.settings.adam_epsilon}
        if isinstance(self.config.lr, float):  # a schedule's value at that time is part of the state
            settings["lr"] = self.config.lr
        for module_id in self.module.keys():  # noqa: SIM118 (RLlib's module is no mapping)
            for _, optimizer in self.get_optimizers_for_module(module_id):
                for group in optimizer.param_groups:
                    group.update(settings)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Around an update, which changes the networks' normalisers as a whole or not at all."""
        with ExitStack() as stack:
            for _, module in self.module.items():
                stack.enter_context(module.unwrapped().network.normalisers.transaction())
            yield

    @abstractmethod
    def minibatch(self, network: PolicyNetwork, batch: dict[str, Any], output: ActorCriticResult) -> Minibatch:
        """The learning signals of RLlib's minibatch, given the network's pass over it.

        The network's normalisers have collected its observations and returns, here or before, and commit the returns
        here, before these are scaled.
        """

    @abstractmethod
    def loss(self, output: ActorCriticResult, minibatch: Minibatch, weights: Tensor) -> LossTerms:
        """The loss, given the weights of the heads' entropies ``[H]``."""

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Adam with this config's epsilon."""
        parameters = self.get_parameters(self.module[module_id])
        self.register_optimizer(
            module_id=module_id,
            optimizer=torch.optim.Adam(parameters, eps=config.settings.adam_epsilon),
            params=parameters,
            lr_or_lr_schedule=config.lr,
        )

    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Start a new update: nothing stopped, nothing counted."""
        super().before_gradient_based_update(timesteps=timesteps)
        self._record = _UpdateRecord()
        self._entropy_share = self._entropy_schedule.update(timesteps[NUM_ENV_STEPS_SAMPLED_LIFETIME])
        for module_id, module in self.module.items():
            weights = torch.tensor(entropy_weights(self.settings, module.unwrapped().network.head_specs))
            self._record.entropy_weights[module_id] = (weights * self._entropy_share).to(self.device)

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        """Loss of one minibatch; keeps what is watched until it is read."""
        output = fwd_out[FORWARD_RESULT]
        network = self.module[module_id].unwrapped().network
        minibatch = self.minibatch(network, batch, output)
        terms = self.loss(output, minibatch, self._record.entropy_weights[module_id])
        numbers = minibatch_diagnostics(network.head_specs, output, minibatch, terms, self.settings.clip)
        self._record.watched[module_id] = numbers | lstm_diagnostics(batch[STATE_NORMS], minibatch.real)
        return terms.total

    def postprocess_gradients_for_module(
        self, *, module_id: str, config: Any = None, module_gradients_dict: Gradients
    ) -> Gradients:
        """Clip by the global norm, read and log what is watched, and decide whether the update stops here."""
        norms = self._gradient_norms(module_id, module_gradients_dict)
        total = torch.stack(list(norms.values())).norm()
        numbers = read(self._record.watched[module_id] | norms | {"gradient_norm/all": total})
        self._record.finite = math.isfinite(numbers["gradient_norm/all"])
        # The divergence is the learners' average, so that all of them stop at the same minibatch.
        limit = self.settings.kl_stop
        self._record.stopped = self.stays_with_rollout and limit is not None and numbers["kl"] > limit
        clipped = numbers["gradient_norm/all"] > self.settings.grad_clip
        self._record.computed += 1
        self._record.clipped += int(clipped)
        self._log(module_id, numbers | {"gradient_clipped_share": float(clipped)})
        self._count(module_id, alarms(numbers) | {"alarm/non_finite": int(not self._record.finite)})
        torch.nn.utils.clip_grads_with_norm_(module_gradients_dict, self.settings.grad_clip, total)
        return module_gradients_dict

    def _gradient_norms(self, module_id: str, gradients: Gradients) -> dict[str, Tensor]:
        """Of every head and of the other parts of the network, under their metrics' names."""
        groups: dict[str, list[Tensor]] = {}
        for name, parameter in self.module[module_id].unwrapped().network.named_parameters():
            if not parameter.requires_grad:
                continue
            parts = name.split(".")
            group = parts[1] if parts[0] == "heads" else parts[0]
            groups.setdefault(f"gradient_norm/{group}", []).append(gradients[self.get_param_ref(parameter)])
        return {name: torch.nn.utils.get_total_norm(group) for name, group in groups.items()}

    def apply_gradients(self, gradients_dict: Gradients) -> None:
        """Step the optimiser, unless the policy has strayed or the gradient is not finite."""
        if self._record.finite and not self._record.stopped:
            super().apply_gradients(gradients_dict)
            self._record.applied += 1

    def update_minibatch(self, batch: dict[str, Any], **kwargs: Any) -> Any:
        """One minibatch, or nothing once the update has stopped."""
        if not self._record.stopped:
            self._record.last_result = super().update_minibatch(batch, **kwargs)
        self._record.offered += 1
        return self._record.last_result

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Log what concerns the update as a whole.

        Raises:
            FloatingPointError: no gradient of the whole update was finite, so that learning is at an end.
        """
        super().after_gradient_based_update(timesteps=timesteps)
        record = self._record
        if record.applied == 0 and not record.finite:
            raise FloatingPointError(
                f"none of the {record.computed} gradients of this update was finite, the weights are unchanged: "
                "resume from an earlier checkpoint with a smaller lr or grad_clip, and look at "
                "alarm/non_finite and gradient_norm/* for when it began"
            )
        saturated = int(record.clipped > SATURATED_CLIPPING * record.computed)
        for module_id, module in self.module.items():
            scales = module.unwrapped().network.return_scale.value.flatten().tolist()
            names = [f"return_scale/{world}" for world in self.config.worlds] or ["return_scale"]
            numbers = {"applied_share": record.applied / record.offered, **dict(zip(names, scales, strict=True))}
            numbers |= {"lr": self.get_optimizer(module_id).param_groups[0]["lr"]}
            numbers |= {"entropy_coeff": self._entropy_share * self.settings.entropy_coeff}
            self._log(module_id, numbers | {"update_seconds": time.perf_counter() - record.began})
            self._count(module_id, {"alarm/clip_saturated": saturated, "alarm/no_step": int(record.applied == 0)})

    def _log(self, module_id: str, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            if math.isnan(value):
                continue
            reduce = REDUCED_TO.get(name.split("/")[0], "mean")
            self.metrics.log_value((module_id, name), value, reduce=reduce, window=None)

    def _count(self, module_id: str, counts: dict[str, int]) -> None:
        for name, count in counts.items():
            self.metrics.log_value((module_id, name), count, reduce="sum", window=None)
