"""What a user's loop calls after every epoch: it measures, lets the policy decide, and changes the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from envs.action_masks import whole_numbers
from envs.governor import Panic
from envs.limits import LifecycleRules
from envs.live.errors import LiveError
from envs.live.host import LiveHost, checked_result
from envs.live.planting import card_of, prune_empty
from envs.live.slot import GROWTH, Growth
from envs.measurements import SeedGradients
from envs.seed_report import SeedReport
from envs.slots import SlotConfig
from envs.vocabulary import LifecycleOp, SeedStage
from envs.warning import warn_user
from envs.watch import HostWatch
from esper_ray.live.choosing import Choice, Ramp, wait
from esper_ray.live.commitment import choose
from esper_ray.live.policies import Decider
from esper_ray.live.records import Decision, Kept, Report, in_words, slot_state
from esper_ray.live.refusals import refuse_processes
from esper_ray.live.scalars import ScalarWriter, write_scalars
from esper_ray.measuring.course import Course
from policies.bundle import Observations
from policies.player import Player

FORMAT = "esper-ray grower 2"
FRACTION_EPOCHS = 5
"""When it is looked whether accuracies are percentages."""
_HOST, _RUNNING, _ENDING = np.arange(1), np.ones(1, bool), np.zeros(1, bool)


class Chooser(Protocol):
    """Who chooses what a grower does with each epoch."""

    @property
    def name(self) -> str:
        """In words."""
        ...

    def slots_of(self, count: int) -> SlotConfig:
        """Slots that it chooses for in a host of so many, of which the host's are the first, and the enabled ones.

        Raises:
            LiveError: that is too many.
        """
        ...

    def choose(self, grower: Grower, observations: Observations) -> Choice:
        """Choose, as soon as an epoch is measured, and once before the first, when nothing is decided yet.

        Args:
            grower: As it is then, to look at.
            observations: What a policy would read, ``N = 1``.
        """
        ...

    def begun(self, grower: Grower) -> None:
        """Take in that the choice was carried out: the next epoch begins."""
        ...

    def end(self) -> None:
        """Take in that the run is committed: there is nothing to choose any more."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What the next choices depend on: plain numbers, strings and tensors, in dicts and lists."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the one that gave :meth:`state_dict`.

        Raises:
            ValueError: the state of another one; nothing has changed then.
        """
        ...


class PolicyChooser:
    """A policy that chooses; see :class:`Chooser` for the methods.

    Args:
        decider: Which, and for which slots.
        player: Plays it.
    """

    def __init__(self, decider: Decider, player: Player) -> None:
        self._player, self._slots, self.name = player, decider.slots, decider.name

    def slots_of(self, count: int) -> SlotConfig:
        """Those that the policy was made for."""
        return self._slots

    def choose(self, grower: Grower, observations: Observations) -> Choice:
        """Act, until the governor has stopped the run."""
        return Choice() if grower.stopped else Choice(whole_numbers(self._player.act(observations))[0])

    def begun(self, grower: Grower) -> None:
        """Nothing to remember."""

    def end(self) -> None:
        """Nothing to put away."""

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`policies.player.Player.state_dict`."""
        return self._player.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`policies.player.Player.load_state_dict`."""
        self._player.load_state_dict(state)


class Grower:
    """Grows one model; :func:`esper_ray.live.grow` makes it.

    Attributes:
        decision: The latest one.
        max_epochs: Epochs that the model is trained for.
        training_loss: Of the latest epoch, where the loop said it.
        samples: That were trained on in it, likewise.
    """

    def __init__(
        self,
        host: LiveHost,
        chooser: Chooser,
        slots: SlotConfig,
        max_epochs: int,
        rules: LifecycleRules,
        *,
        chance: float | None,
        governor: bool,
        pairs: bool,
        counterfactual_interval: int,
        flops: Callable[[], int],
        host_flops: int,
        writer: ScalarWriter | None,
    ) -> None:
        self._host, self._chooser, self.max_epochs = host, chooser, max_epochs
        self._flops, self._host_flops, self._writer = flops, host_flops, writer
        self._watch = HostWatch(
            1, host, host, slots, rules, chance, counterfactual_interval, pairs=pairs, guarded=governor
        )
        self._course = Course()
        self._panic, self._committed = Panic.NONE, False
        self.training_loss: float | None = None
        self.samples: int | None = None
        self._gradients: SeedGradients | None = None
        self._untrained: list[str] = []
        self._watch.open(_HOST)
        self._course.record(self._watch)
        self.decision = self._decide()

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the slots' modules, in the order in which data passes them."""
        return tuple(slot.place.name for slot in self._host.slots)

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return int(self._watch.steps.epoch[0])

    @property
    def card(self) -> dict[str, Any]:
        """What the model has grown so far, for :func:`esper_ray.live.rebuild`."""
        return card_of(self._host.grown())

    # ------------------------------------------------------------------ an epoch
    def set_gradients_aside(self) -> None:
        """Let nobody see the seeds' gradients until the optimiser's step, which has them back.

        For a loop that clips whatever its optimiser trains: call it between the backward and the clipping, so that the
        host is clipped as it would be without seeds (seeds are clipped one by one in the step).
        """
        self._host.optimizer.set_gradients_aside()

    def end_epoch(
        self,
        loss: float | None = None,
        accuracy: float | None = None,
        *,
        training_loss: float | None = None,
        samples: int | None = None,
    ) -> Decision:
        """End an epoch: measure, decide, and change the model for the next one.

        An epoch is whatever was trained since the last call.

        Args:
            loss: Validation loss of the model as it is, if the loop has just evaluated it.
            accuracy: Likewise in percent.
            training_loss: Mean over the epoch, for a controller or a policy of graphs; others don't read it.
            samples: That were trained on, likewise.

        Returns:
            What was measured and decided; it prints as one line.

        Raises:
            LiveError: all epochs are over, one result without the other, a state with other seeds was loaded into the
                model, or ``evaluate`` failed; nothing has changed then, and the call can be repeated.
        """
        self._check_open()
        self._host.check_seeds(self._watch.lifecycle)
        if self.epoch >= self.max_epochs:
            raise LiveError(f"all {self.max_epochs} epochs are over: call commit()")
        if (loss is None) != (accuracy is None):
            raise LiveError("give end_epoch both the loss and the accuracy in percent, or neither")
        refuse_processes()
        if loss is not None:
            self._host.give(checked_result((loss, accuracy), "end_epoch() was given"))
        self.training_loss, self.samples = training_loss, samples
        self._measure()
        self._course.record(self._watch)
        if self.epoch < self.max_epochs:
            self.decision = self._decide()
        else:
            self.decision = self._decided(wait(), "the last epoch is over: commit() decides what stays")
        if self._writer is not None:
            write_scalars(self._writer, self.decision, self.slots, self._watch)
        return self.decision

    def _measure(self) -> None:
        if self._gradients is None:  # else this is another try, and they are read already
            self._untrained, self._gradients = self._host.untrained(), self._host.gradients()
        watch, before = self._watch, self._watch.arrays()
        try:
            watch.book_gradients(self._gradients)
            watch.steps.tick()
            result = watch.end_epoch(_RUNNING, _ENDING)
        except BaseException:
            watch.set_arrays(before)
            self._host.sync(watch.lifecycle)
            raise
        self._gradients = None
        if result.stopped[0]:
            self._panic = Panic(int(result.panic[0]))
        if self.epoch == FRACTION_EPOCHS and 0.0 < watch.progress.best_accuracy[0] <= 1.0:
            warn_user(f"after {self.epoch} epochs no accuracy was above 1: evaluate() must give percent, no fraction")

    def _decide(self) -> Decision:
        watch = self._watch
        observations = watch.observe(self.max_epochs)
        choice = self._chooser.choose(self, observations)
        executed, wrong, refused = watch.admit(choice.action[None], np.array([self.stopped]))
        self._begin(executed, choice)
        watch.steps.book(executed, ~wrong, _ENDING)
        note = ""
        if self._panic:
            reason = self._panic.name.lower().replace("_", " ")
            note = f"the training broke ({reason}) and was taken back; nothing grows any more"
        elif self._untrained:
            names = ", ".join(self._untrained)
            note = f"the seed in {names} took no part in the optimizer's steps: is its module run with gradients?"
        elif wrong[0]:
            heads = [name for name, at_fault in refused.items() if at_fault[0]]
            note = f"the policy asked for what is not possible now ({', '.join(heads)})"
        self._chooser.begun(self)
        return self._decided(executed[0], "; ".join(filter(None, (choice.note, note))))

    def _begin(self, executed: np.ndarray[Any, np.dtype[np.int64]], choice: Choice) -> None:
        """Carry out an action (``[1, 8]``), and what was chosen beside it."""
        op, slot = LifecycleOp(int(executed[0, 0])), executed[:, 1]
        if choice.seed_rate is not None:
            self._host.optimizer.set_rate(choice.seed_rate)
        if op is LifecycleOp.ADVANCE:  # from here on it may be too late
            self._shape(slot, choice.blending)
        self._watch.begin_epoch(executed)
        if op is LifecycleOp.GERMINATE:
            self._shape(slot, choice.blending)

    def _shape(self, slot: np.ndarray[Any, np.dtype[np.int64]], ramp: Ramp | None) -> None:
        if ramp is not None:
            shape, start, end = np.array([ramp.shape]), np.array([ramp.start]), np.array([ramp.end])
            self._watch.lifecycle.shape_blending(_HOST, slot, shape, start, end)

    def _decided(self, action: np.ndarray[Any, np.dtype[np.int64]], note: str) -> Decision:
        watch, op = self._watch, LifecycleOp(int(action[0]))
        return Decision(
            epoch=self.epoch,
            max_epochs=self.max_epochs,
            loss=self._course.loss[-1],
            accuracy=self._course.accuracy[-1],
            op=op,
            slot=None if op is LifecycleOp.WAIT else self.slots[int(action[1])],
            action=in_words(action, self.slots, watch.lifecycle.alpha_before[0]),
            slots={name: slot_state(watch.lifecycle.report(0, at)) for at, name in enumerate(self.slots)},
            extra_parameters=int(watch.lifecycle.extra_parameters[0]),
            note=note,
        )

    def _check_open(self) -> None:
        if self._committed:
            raise LiveError(
                "this run is committed, and the model is an ordinary module: train it as it is, or grow() a fresh one"
            )

    # ------------------------------------------------------------------ the end
    def commit(self) -> Report:
        """End the growth: what is unfinished stays if the network leans on it, and the model is an ordinary module.

        An unfinished seed is taken out where that costs at most 0.5 points of validation accuracy; the network that is
        left is never worse than with all unfinished seeds, and never worse than without any of them.

        Returns:
            What has grown; it prints as a short table, and has a picture.

        Raises:
            LiveError: the run is committed already, a state with other seeds was loaded into the model, or ``evaluate``
                failed; nothing has changed then.
        """
        self._check_open()
        self._host.check_seeds(self._watch.lifecycle)
        life, number = self._watch.lifecycle, len(self.slots)
        unfinished = (life.living[0] & (life.stage[0] != SeedStage.FOSSILIZED)).copy()
        names = {at: slot.place.name for at, slot in enumerate(self._host.slots)}
        chosen = choose(self._validate, life.alpha[0].copy(), unfinished)
        flops = self._host.as_committed(np.where(chosen.kept | ~unfinished, life.alpha[0], 0.0), life, self._flops)
        contribution = np.where(np.isnan(chosen.cost), self._watch.measurements.contribution[0], chosen.cost)
        life.settle(_HOST, chosen.kept[None])
        self._host.sync(life)
        parameters = life.seed_costs(life.costs)[0]
        kept = tuple(
            Kept(seed, int(parameters[at]), float(contribution[at]), not unfinished[at])
            for at, seed in zip(np.flatnonzero(life.living[0]), self._host.grown(), strict=True)
        )
        removed = tuple(names[at] for at in range(number) if unfinished[at] and not chosen.kept[at])
        slots, extra = self.slots, int(life.extra_parameters[0])
        self._host.release()
        self._chooser.end()
        self._committed = True
        return Report(
            kept=kept,
            removed=removed,
            policy=self._chooser.name,
            epochs=self.epoch,
            evaluations=self._host.evaluations,
            loss=chosen.loss,
            accuracy=chosen.accuracy,
            start_accuracy=self._course.accuracy[0],
            host_parameters=int(life.costs.host[0]),
            parameters=int(life.costs.host[0]) + extra,
            host_flops=self._host_flops,
            flops=flops,
            slots=slots,
            course=self._course,
        )

    def _validate(self, alpha: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
        loss, accuracy = self._host.validate(_HOST, alpha[None], self._watch.lifecycle)
        return float(loss[0]), float(accuracy[0])

    # ------------------------------------------------------------------ looking
    def observe(self) -> Observations:
        """What a policy would read now, ``N = 1``; nothing is changed by it."""
        return self._watch.observe(self.max_epochs)

    @property
    def stopped(self) -> bool:
        """Whether the governor took the training back, after which nothing grows any more."""
        return self._panic is not Panic.NONE

    @property
    def result(self) -> tuple[float, float]:
        """Validation loss, and accuracy in percent, of the latest epoch that is over."""
        return self._course.loss[-1], self._course.accuracy[-1]

    @property
    def max_living_seeds(self) -> int:
        """Seeds that may live at a time."""
        return min(self._watch.lifecycle.max_living, len(self.slots))

    @property
    def parameter_budget(self) -> int:
        """Parameters that living seeds may have together."""
        return int(self._watch.lifecycle.parameter_budget[0])

    @property
    def slot_config(self) -> SlotConfig:
        """The policy's slots, of which the first ones are the model's."""
        return self._watch.slots

    @property
    def slot_names(self) -> tuple[str, ...]:
        """Names of all of the policy's slots: of the model's its modules', of the others their ids."""
        return self.slots + self._watch.slots.slot_ids[len(self.slots) :]

    @property
    def seed_ids(self) -> tuple[str | None, ...]:
        """The seed that lives in each of them, by a name that no other one of the run has; None where none does."""
        numbers = self._watch.lifecycle.seed_number[0]
        return tuple(f"{name}#{at}" if at else None for name, at in zip(self.slot_names, numbers, strict=True))

    def reports(self) -> list[SeedReport]:
        """What each of the policy's slots is doing."""
        return [self._watch.lifecycle.report(0, at) for at in range(self._watch.slots.num_slots)]

    # ------------------------------------------------------------------ copies
    def mirror(self, copied: nn.Module) -> None:
        """Let a copy of the model (an average of its weights, say) have the same seeds; call it after each epoch.

        A seed that is new to the copy starts with the model's weights; one that is there keeps the copy's own.

        Args:
            copied: A copy that was made after ``grow()``, or what holds one as ``module``.

        Raises:
            LiveError: it has no growth, or other slots.
        """
        inner = copied if isinstance(getattr(copied, GROWTH, None), Growth) else getattr(copied, "module", copied)
        theirs = getattr(inner, GROWTH, None)
        if not isinstance(theirs, Growth):
            if self._committed and not self._host.growth.slots():
                return  # it was mirrored before: where nothing has grown a copy has no slots either
            raise LiveError("the copy has no slots: copy the model after grow(), not before")
        try:
            theirs.follow(self._host.growth)
        except ValueError as error:
            raise LiveError(f"this is no copy of the model: {error}") from error
        if self._committed:
            prune_empty(inner, theirs)

    # ------------------------------------------------------------------ keeping
    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the states of model and optimiser: plain numbers, strings and tensors.

        Load it first, then the model's state, then the optimiser's.
        """
        self._check_open()
        return {
            "format": FORMAT,
            "slots": self._described(),
            "policy": self._chooser.name,
            "max_epochs": self.max_epochs,
            "panic": int(self._panic),
            "watch": {part: _tensors(arrays) for part, arrays in self._watch.arrays().items()},
            "chooser": self._chooser.state_dict(),
            "host": self._host.state_dict(),
            "course": {name: torch.from_numpy(np.array(rows)) for name, rows in vars(self._course).items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the grower that gave :meth:`state_dict`; the model has its seeds then, and waits for its own state.

        Raises:
            LiveError: the state of another model, policy or length; nothing has changed then.
        """
        self._check_open()
        if not isinstance(state, Mapping) or state.get("format") != FORMAT:
            raise LiveError(f"this is no state of a grower: it lacks the format {FORMAT!r}")
        own = {"slots": self._described(), "policy": self._chooser.name, "max_epochs": self.max_epochs}
        for name, value in own.items():
            if state[name] != value:
                raise LiveError(f"the state is of another run: its {name} are {state[name]}, here {value}")
        before = self._watch.arrays(), self._chooser.state_dict()
        try:
            self._watch.set_arrays({part: _arrays(tensors) for part, tensors in state["watch"].items()})
            self._chooser.load_state_dict(state["chooser"])
            self._host.load_state_dict(state["host"], self._watch.lifecycle)
        except (ValueError, KeyError) as error:
            self._watch.set_arrays(before[0])
            self._chooser.load_state_dict(before[1])
            raise LiveError(f"the state does not fit: {error}") from error
        self._panic, self._gradients = Panic(state["panic"]), None
        rows = _arrays(state["course"])
        self._course = Course(**{name: list(values) for name, values in rows.items()})
        self.decision = self._decided(self._watch.steps.last_actions[0], "resumed")

    def _described(self) -> list[str]:
        places = [slot.place for slot in self._host.slots]
        return [f"{place.name}: {place.kind.name} of width {place.width}" for place in places] + [
            f"{self._host.costs.host[0]} parameters"
        ]


def _tensors(arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: tensor.cpu().numpy().copy() for name, tensor in tensors.items()}
