"""A live host: somebody's model in somebody's loop, as the world sees it, with N = 1."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from envs.batched.parameters import count_parameters
from envs.blueprints import blueprints_for
from envs.blueprints.costs import cost_tables, parameters_of
from envs.lifecycle import Lifecycle
from envs.limits import ParameterCosts
from envs.live.errors import LiveError
from envs.live.optimizer import SeedOptimizer
from envs.live.places import Place
from envs.live.planting import GrownSeed, graft, prune_empty
from envs.live.quiet import untouched
from envs.live.slot import GROWTH, Growth
from envs.measurements import SeedGradients
from envs.population.blending import gate_parameters
from envs.slots import SlotConfig
from envs.vocabulary import AlphaAlgorithm, Blueprint, SeedStage

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
Result = tuple[float, float]
"""Loss, and accuracy in percent."""
Looked = TypeVar("Looked")
ROUNDING = 1e-3
"""What a mean of percentages may be above 100."""


class LiveHost:
    """The user's model with slots in it (see :class:`envs.watch.GrowingHosts`, :class:`envs.snapshots.SavedWeights`).

    Of the policy's S slots the first ones are the model's; the others are disabled.

    Args:
        model: Becomes a host: gets the submodule ``growth``, and forward hooks where seeds are.
        optimizer: Trains it.
        places: Where it can grow, in the order in which data passes them.
        devices: Where each of them is.
        slots: The policy's slots.
        evaluate: Loss and accuracy in percent on the user's validation data.
        lr_scale: Share of the optimiser's step that seeds take.
        seed: Of the seeds' initial weights.
        without: Kinds of seed that are not to grow.
        initial_weights: Draws the seeds' initial weights, in place of ``seed``.

    Raises:
        LiveError: an optimiser that cannot be used; the model is as it was then.

    Attributes:
        evaluations: Calls of ``evaluate`` so far.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        places: Sequence[Place],
        devices: Sequence[torch.device],
        slots: SlotConfig,
        evaluate: Callable[[], Result],
        lr_scale: float = 1.0,
        seed: int = 0,
        without: Collection[Blueprint] = (),
        initial_weights: np.random.Generator | None = None,
    ) -> None:
        self.model, self.evaluations = model, 0
        self._evaluate, self._seed, self._births, self._initial_weights = evaluate, seed, 0, initial_weights
        self._born: dict[int, int] = {}
        self._generators: dict[int, np.random.Generator] = {}
        self._given: Result | None = None
        self._costs = _costs(model, places, slots, without)
        self.growth = Growth(places, devices)
        self.slots = self.growth.slots()
        self.optimizer = SeedOptimizer(optimizer, model, self.slots, lr_scale)
        graft(model, self.growth)
        self._saved: dict[str, Tensor] = {}
        self._saved_optimizer: dict[str, dict[str, Any]] = {}

    @property
    def costs(self) -> ParameterCosts:
        """Parameter counts, ``N = 1``."""
        return self._costs

    def release(self) -> None:
        """Be an ordinary module: hooks stay where seeds live, the optimiser keeps the seeds as it has them."""
        self.optimizer.release()
        prune_empty(self.model, self.growth)

    def withdraw(self) -> None:
        """Leave model and optimiser as they were before."""
        for slot in self.slots:
            slot.empty()
        self.optimizer.follow()
        self.release()

    def grown(self) -> list[GrownSeed]:
        """The seeds that the model has."""
        return [GrownSeed.of(slot) for slot in self.slots if slot.seed_kind is not None]

    # ------------------------------------------------------------------ what grows
    def sync(self, lifecycle: Lifecycle) -> None:
        """Hold exactly the seeds that the lifecycle says have weights, in its stages and with its alphas."""
        for at, slot in enumerate(self.slots):
            form = _form(lifecycle, at)
            if slot.seed_kind is not None and (form is None or slot.seed_kind is not form[0]):
                slot.empty()
            if form is not None:
                self._bring(at, *form)
                stage = SeedStage(int(lifecycle.stage[0, at]))
                slot.set_stage(incubating=stage == SeedStage.TRAINING, attached=stage >= SeedStage.HOLDING)
                slot.set_alpha(float(lifecycle.alpha[0, at]))
        self.optimizer.follow()

    def _bring(self, at: int, kind: Blueprint, algorithm: AlphaAlgorithm, level: int) -> None:
        slot = self.slots[at]
        if slot.seed_kind is None:
            slot.plant(kind)
            if self._initial_weights is not None:
                self._generators[at] = copy.deepcopy(self._initial_weights)
            self._born[at] = self._births
            self._births += 1
            slot.set_form(algorithm, level, self._initial_weights or self._generator(at))
        elif (algorithm, level) != (slot.seed_algorithm, slot.seed_level):
            slot.set_form(algorithm, level, self._generator(at))  # what the seed has not had yet was drawn at its birth

    def _generator(self, at: int) -> np.random.Generator:
        """As it was when the seed in a slot was born."""
        if at in self._generators:
            return copy.deepcopy(self._generators[at])
        return np.random.default_rng([self._seed, self._born[at]])

    def check_seeds(self, lifecycle: Lifecycle) -> None:
        """Refuse seeds that came with a state dict behind the lifecycle's back.

        Raises:
            LiveError: the model's seeds are not the lifecycle's.
        """
        for at, slot in enumerate(self.slots):
            held = None if slot.seed_kind is None else (slot.seed_kind, slot.seed_algorithm, slot.seed_level)
            if held != _form(lifecycle, at):
                raise LiveError(
                    f"the seed in {slot.place.name!r} is not the one that grew in this run: a state with other seeds "
                    "was loaded into the model; load the state of the grower that belongs to it first"
                )

    def gradients(self) -> SeedGradients:
        """What the seeds' gradients were like since the last call, ``[1, S]``."""
        fields = {name: np.full((1, self._costs.gate.shape[1]), np.nan) for name in vars(_NOTHING)}
        for slot, health in self.optimizer.read().items():
            for name, values in fields.items():
                values[0, self.slots.index(slot)] = float(getattr(health, name))
        return SeedGradients(**fields)

    # ------------------------------------------------------------------ evaluation
    def give(self, result: Result) -> None:
        """Take this as the result of the model as it is, in place of the next evaluation of it."""
        self._given = result

    def validate(self, hosts: IntArray, alpha: FloatArray, lifecycle: Lifecycle) -> tuple[FloatArray, FloatArray]:
        """See :class:`envs.counterfactuals.Evaluate`.

        Raises:
            LiveError: the user's function raised, or gave something else than two numbers.
        """
        given, self._given = self._given, None
        results = []
        try:
            for row in alpha:
                as_it_is = np.array_equal(row, lifecycle.alpha[0])
                results.append(given if as_it_is and given is not None else self._evaluated(row))
        finally:
            self._show(lifecycle.alpha[0])
        loss, accuracy = np.array(results, np.float64).T
        return loss, accuracy

    def _evaluated(self, alpha: FloatArray) -> Result:
        self._show(alpha)
        self.evaluations += 1
        with untouched(self.model):
            try:
                result = self._evaluate()
            except LiveError:
                raise
            except Exception as error:
                raise LiveError(f"evaluate() raised {type(error).__name__}: {error}") from error
        return checked_result(result, "evaluate() returned")

    def _show(self, alpha: FloatArray) -> None:
        for at, slot in enumerate(self.slots):
            if slot.seed_kind is not None:
                slot.set_alpha(float(alpha[at]))

    def as_committed(self, alpha: FloatArray, lifecycle: Lifecycle, look: Callable[[], Looked]) -> Looked:
        """Look at the model as it is with these amplitudes (``[S]``)."""
        self._show(alpha)
        try:
            return look()
        finally:
            self._show(lifecycle.alpha[0])

    def untrained(self) -> list[str]:
        """Slots with a seed that was in no step of the optimiser since :meth:`gradients` was called last."""
        return [
            slot.place.name
            for slot in self.slots
            if slot.seed_kind is not None and not self.optimizer.has_trained(slot)
        ]

    # ------------------------------------------------------------------ the governor's copies
    def save(self, hosts: IntArray, fossils: BoolArray) -> None:
        """Copy the host, its fossils and their part of the optimiser to the CPU."""
        unsaved = [f"{GROWTH}.{slot.place.key}." for at, slot in enumerate(self.slots) if not fossils[0, at]]
        kept = {name: tensor for name, tensor in self._tensors() if not name.startswith(tuple(unsaved))}
        self._saved = {name: tensor.detach().to("cpu", copy=True) for name, tensor in kept.items()}
        state = self.optimizer.optimizer.state
        self._saved_optimizer = {
            name: {key: _on_cpu(value) for key, value in state[parameter].items()}
            for name, parameter in self.model.named_parameters()
            if name in kept and parameter in state
        }

    def restore(self, hosts: IntArray, lifecycle: Lifecycle) -> None:
        """Bring back what was saved; seeds that were not are gone, from the optimiser too."""
        self.sync(lifecycle)
        with torch.no_grad():
            for name, tensor in self._tensors():
                if name in self._saved:
                    tensor.copy_(self._saved[name])
        state = self.optimizer.optimizer.state
        for name, parameter in self.model.named_parameters():
            if name in self._saved_optimizer:
                _put_back(state[parameter], self._saved_optimizer[name], parameter.device)
            else:
                state.pop(parameter, None)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The model's own, not its state dict's, which hooks may have made copies of, and which lacks some buffers."""
        return chain(self.model.named_parameters(), self.model.named_buffers())

    def forget(self, hosts: IntArray) -> None:
        """Nothing is saved of an earlier episode."""

    # ------------------------------------------------------------------ keeping
    def state_dict(self) -> dict[str, Any]:
        """What a resumed host needs beside the states of model and optimiser: plain numbers, strings and tensors.

        Raises:
            LiveError: the seeds' initial weights come from a generator of the user's.
        """
        if self._initial_weights is not None:
            raise LiveError("a run with initial_weights cannot be kept: leave it out, and seed says them")
        order = [[self.slots.index(slot), name] for slot, name in self.optimizer.order]
        return {
            "births": self._births,
            "born": dict(self._born),
            "evaluations": self.evaluations,
            "order": order,
            "rate": self.optimizer.rate,
            "saved": dict(self._saved),
            "saved_optimizer": copy.deepcopy(self._saved_optimizer),
        }

    def load_state_dict(self, state: Mapping[str, Any], lifecycle: Lifecycle) -> None:
        """Plant the seeds of a lifecycle that was loaded, in the order of their birth; their values come after.

        Raises:
            LiveError: the state of other seeds; nothing has changed then.
        """
        order = [(self.slots[at], name) for at, name in state["order"]]
        needed = {
            (slot, name)
            for at, slot in enumerate(self.slots)
            if (form := _form(lifecycle, at)) is not None
            for name in slot.specs(*form)
        }
        if set(order) != needed:
            raise LiveError("the saved order of the seeds' parameters does not fit the seeds that live: was it edited?")
        births, evaluations, rate, saved = (state[name] for name in ("births", "evaluations", "rate", "saved"))
        self._saved, self._saved_optimizer = dict(saved), copy.deepcopy(state["saved_optimizer"])
        self.sync(lifecycle)
        self.optimizer.reorder(order)
        self.optimizer.set_rate(rate)
        self._births, self.evaluations, self._born = births, evaluations, dict(state["born"])
        self._generators.clear()


def _form(lifecycle: Lifecycle, at: int) -> tuple[Blueprint, AlphaAlgorithm, int] | None:
    """Kind, algorithm and internal level of the seed that a slot is to have; None without one."""
    if not lifecycle.computing[0, at]:
        return None
    kind, algorithm = lifecycle.blueprint[0, at], lifecycle.algorithm[0, at]
    return Blueprint(int(kind)), AlphaAlgorithm(int(algorithm)), int(lifecycle.internal_level[0, at])


_NOTHING = SeedGradients(*[np.empty((1, 0))] * 4)


def checked_result(result: Any, where: str) -> Result:
    """Loss and accuracy of what a user gave; a loss may be anything, for the governor to judge.

    Raises:
        LiveError: not two numbers, or an accuracy that is no percentage.
    """
    wanted = "two numbers are needed, the validation loss and the accuracy in percent"
    if not isinstance(result, tuple | list) or len(result) != 2:
        what = f"{len(result)} values" if isinstance(result, tuple | list) else f"a {type(result).__name__}"
        raise LiveError(f"{where} {what}: {wanted}")
    try:
        loss, accuracy = (float(value) for value in result)
    except (TypeError, ValueError, RuntimeError) as error:
        raise LiveError(f"{where} {result!r}: {wanted}") from error
    if not math.isfinite(accuracy):
        return math.nan, 0.0
    if not 0.0 <= accuracy <= 100.0 + ROUNDING:
        raise LiveError(f"{where} an accuracy of {accuracy:g}: it must be in percent, from 0 to 100")
    return loss, min(accuracy, 100.0)


def _costs(
    model: nn.Module, places: Sequence[Place], slots: SlotConfig, without: Collection[Blueprint]
) -> ParameterCosts:
    modules = blueprints_for(places[0].kind.topology, slots.blueprints)
    own = [place.width for place in places]
    widths = np.array([own + own[-1:] * (slots.num_slots - len(own))])  # of a disabled slot nothing is asked
    seeds, levels = cost_tables(modules, slots.blueprints, widths, parameters_of)
    return ParameterCosts(
        host=np.array([sum(parameter.numel() for parameter in model.parameters())]),
        blueprint=seeds,
        level=levels,
        gate=np.array([[count_parameters(gate_parameters(int(width))) for width in widths[0]]]),
        offered=np.array([kind in modules and kind not in without for kind in slots.blueprints]),
    )


def _on_cpu(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)


def _put_back(state: dict[str, Any], saved: Mapping[str, Any], device: torch.device) -> None:
    """Saved values into an optimiser's state of one parameter; tensors go where they lay (a step count: the CPU)."""
    for key in state.keys() - saved.keys():
        del state[key]
    for key, value in saved.items():
        if isinstance(value, Tensor) and isinstance(state.get(key), Tensor):
            state[key].copy_(value)
        else:
            state[key] = value.to(device) if isinstance(value, Tensor) else copy.deepcopy(value)
