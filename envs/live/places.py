"""Where a network can grow: which of its modules' outputs are images, sequences or vectors, and how wide."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from envs.batched.activations import IMAGES, SEQUENCES, VECTORS, ActivationLayout
from envs.batched.parameters import count_parameters
from envs.blueprints import blueprints_for
from envs.live.errors import LiveError
from envs.live.examples import Example, batch_size, call, shortened
from envs.live.layouts import Touches
from envs.live.quiet import untouched

LISTED = 20
"""Candidates that an error about a single name lists."""

ENOUGH = 3
"""Samples of an example that are looked at: they and one less show where the batch is."""


@dataclass(frozen=True)
class Kind:
    """A kind of activation.

    Attributes:
        name: In words.
        topology: Of the hosts whose blueprints fit.
        activations: How it lies once the members' axis is in front.
        num_axes: Axes of a batch.
    """

    name: str
    topology: str
    activations: ActivationLayout
    num_axes: int


IMAGE = Kind("image", "cnn", IMAGES, 4)
SEQUENCE = Kind("sequence", "transformer", SEQUENCES, 3)
VECTOR = Kind("vector", "mlp", VECTORS, 2)
KINDS = {kind.name: kind for kind in (IMAGE, SEQUENCE, VECTOR)}
_BY_AXES = {kind.num_axes: kind for kind in (IMAGE, SEQUENCE, VECTOR)}


@dataclass(frozen=True)
class Place:
    """A module on whose output a seed can grow.

    Attributes:
        name: Of the module.
        kind: Of its output.
        width: Channels or features.
        batch_axis: Where the batch is, 0, or 1 in sequences that lead with time.
        places: Pixels or tokens of one sample of the example; 1 for vectors.
        item: Which entry of an output that is a tuple or list; None where the output is a tensor.
        dtype: Of the output, and so of seeds.
    """

    name: str
    kind: Kind
    width: int
    batch_axis: int
    places: int
    item: int | None
    dtype: torch.dtype

    @property
    def key(self) -> str:
        """Name of the slot among the model's submodules, which no attribute can have."""
        return slot_key(self.name)

    def members_first(self, h: Tensor) -> Tensor:
        """The output as one member's activation, ``[1, B, ..., C]``: a view."""
        if self.kind == IMAGE:
            h = h.permute(0, 2, 3, 1)
        return h.movedim(self.batch_axis, 0).unsqueeze(0)

    def members_gone(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`members_first`, a view."""
        h = x.squeeze(0).movedim(0, self.batch_axis)
        return h.permute(0, 3, 1, 2) if self.kind == IMAGE else h

    def activation(self, output: Any) -> Tensor:
        """The tensor of an output that the seed sees.

        Raises:
            LiveError: the output is not what it was when the slot was made.
        """
        h = output if self.item is None else output[self.item]
        axis = 1 if self.kind == IMAGE else -1
        if not isinstance(h, Tensor) or h.is_nested or h.dim() != self.kind.num_axes or h.shape[axis] != self.width:
            raise LiveError(
                f"the slot {self.name!r} was made for {_described(self)}, but its module now gives {_shape_of(h)}: a "
                "slot's kind and width must stay as they are"
            )
        return h


def slot_key(name: str) -> str:
    """Name of a module's slot among the model's submodules."""
    return f"slot/{name.replace('.', '/')}"


def _described(place: Place) -> str:
    article = "an" if place.kind == IMAGE else "a"
    return f"{article} {place.kind.name} of width {place.width}"


def _cheapest(place: Place) -> str:
    """The seed with the fewest parameters there."""
    modules = blueprints_for(place.kind.topology)
    costs = {kind: count_parameters(module.parameters(place.width), level=1) for kind, module in modules.items()}
    kind = min(costs, key=lambda name: costs[name])
    return f"seeds from {costs[kind]:,} parameters ({kind.name.lower()})"


def _shape_of(value: Any) -> str:
    if isinstance(value, Tensor):
        return "a nested tensor" if value.is_nested else f"shape {list(value.shape)}"
    return f"a {type(value).__name__}"


@dataclass(frozen=True)
class _Seen:
    """What matters of a module's output: of its first tensor, if it holds one.

    Attributes:
        item: Where in a tuple or list the tensor is; None where the output is the tensor.
        shape: None if there is no tensor whose shape says anything; ``what`` says what there is.
        dtype: Of the tensor.
        device: Likewise.
        what: In words.
        feature_axis: Of the tensor, as far as torch's layers around it say.
    """

    item: int | None
    shape: tuple[int, ...] | None
    dtype: torch.dtype
    device: torch.device
    what: str
    feature_axis: int | None = None

    @classmethod
    def of(cls, output: Any, touches: Touches, now: int) -> _Seen:
        item = None
        if isinstance(output, tuple | list):
            item = next((place for place, value in enumerate(output) if isinstance(value, Tensor)), None)
            output = output if item is None else output[item]
        if not isinstance(output, Tensor) or output.is_nested:
            return cls(item, None, torch.float32, torch.device("cpu"), _shape_of(output))
        if not output.is_floating_point():
            return cls(item, None, output.dtype, output.device, f"{output.dtype} tensor")
        axis = touches.axis_of(output, now)
        if axis is not None:
            axis %= output.dim()
        return cls(item, tuple(output.shape), output.dtype, output.device, _shape_of(output), axis)


@dataclass(frozen=True)
class _Output:
    """What a module gave in the example, with two batch sizes."""

    order: int
    calls: int
    larger: _Seen
    smaller: _Seen


class Places:
    """Every module of a network as a possible slot, found by running an example with two batch sizes.

    Args:
        model: The network; its weights, buffers, modes and randomness stay as they are.
        example: A batch of at least two samples.
        batch_axis: Axis of the batch in the example's tensors.

    Raises:
        LiveError: an example of fewer than two samples, or one with which the model does not run.
    """

    def __init__(self, model: nn.Module, example: Example, batch_axis: int = 0) -> None:
        self._model = model
        size = batch_size(example, batch_axis)
        if size < 2:
            raise LiveError(
                f"the example must be a batch of at least 2 samples, so that the batch axis shows, got {size}: pass "
                "for instance images[:2]"
            )
        few = min(size, ENOUGH)  # what every module gives is kept for a moment
        batches = [shortened(example, batch_axis, size, kept) for kept in (few, few - 1)]
        self._outputs = _recorded(model, batches)
        names: dict[nn.Module, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            names.setdefault(module, []).append(name)
        self._aliases = {name: own for own in names.values() for name in own}
        self._modules = {name: own for own, found in names.items() for name in found if name}

    def candidates(self) -> list[Place]:
        """All modules that can be slots, in the order in which data passes them."""
        found = []
        for name in self._modules:
            try:
                found.append(self.place(name))
            except LiveError:
                continue
        return sorted(found, key=self._order)

    def chosen(self, wanted: Sequence[str]) -> list[Place]:
        """The slots that names, globs or suffixes say, in the order in which data passes them.

        Raises:
            LiveError: a name that fits no module, a module that cannot be a slot, or slots of several kinds.
        """
        names: list[str] = []
        for pattern in wanted:
            matching = list(self._matching(pattern))
            if not matching:
                raise LiveError(
                    f"no module is called {pattern!r}{self._like(pattern)}; slots can be\n{self.table(LISTED)}"
                )
            names += matching
        places = sorted((self.place(name) for name in dict.fromkeys(names)), key=self._order)
        kinds = {place.kind.name: place.name for place in places}
        if len(kinds) > 1:
            listed = ", ".join(f"{name!r} gives {kind}s" for kind, name in kinds.items())
            raise LiveError(f"all slots must be of one kind, but {listed}: choose slots of one kind")
        return places

    def _matching(self, pattern: str) -> Iterator[str]:
        """A name as it is; else what the glob fits, level by level; else what ends so."""
        if pattern in self._modules:
            yield pattern
        elif any(sign in pattern for sign in "*?["):
            globs = pattern.split(".")
            for name in self._modules:
                levels = name.split(".")
                if len(levels) == len(globs) and all(map(fnmatch.fnmatchcase, levels, globs)):
                    yield name
        else:
            yield from (name for name in self._modules if name.endswith(f".{pattern}"))

    def _like(self, pattern: str) -> str:
        """Names that somebody may have meant, in words; empty where none is close."""
        close = difflib.get_close_matches(pattern, [place.name for place in self.candidates()])
        return f" (close to it: {', '.join(close)})" if close else ""

    def _order(self, place: Place) -> int:
        return self._outputs[place.name].order

    def place(self, name: str) -> Place:
        """One module as a slot.

        Raises:
            LiveError: its output cannot be grown on; the message says why.
        """
        if len(self._aliases[name]) > 1:
            raise LiveError(
                f"{name!r} is one module under several names ({', '.join(self._aliases[name])}): it would grow in all "
                "of them at once; choose another slot"
            )
        output = self._outputs.get(name)
        if output is None:
            raise LiveError(f"{name!r} is never called in the forward of the example: choose a module that is")
        if output.calls > 1:
            raise LiveError(
                f"{name!r} is called {output.calls} times in one forward: its seed would be blended in as often; "
                "choose a module that is called once"
            )
        return self._grown_on(name, output.larger, output.smaller)

    def device(self, place: Place) -> torch.device:
        """Where a slot's output lies."""
        return self._outputs[place.name].larger.device

    def _grown_on(self, name: str, larger: _Seen, smaller: _Seen) -> Place:
        if larger.shape is None or smaller.shape is None:
            raise LiveError(
                f"the output of {name!r} is {larger.what}: a slot needs a floating-point tensor, or a tuple or list "
                "with one"
            )
        shape, kind = list(larger.shape), _BY_AXES.get(len(larger.shape))
        varying = [axis for axis, sizes in enumerate(zip(shape, smaller.shape, strict=False)) if len({*sizes}) > 1]
        batch_axes = (0, 1) if kind == SEQUENCE else (0,)
        if kind is None or len(smaller.shape) != len(shape) or varying not in [[axis] for axis in batch_axes]:
            raise LiveError(
                f"the output of {name!r} has shape {shape}, and axes {varying} follow the batch: a slot needs an image "
                "[B, C, H, W], a sequence [B, L, D] or a vector [B, D]"
            )
        axis = 1 if kind == IMAGE else len(shape) - 1
        if kind != VECTOR:
            self._check_features(name, larger, axis, other=3 if kind == IMAGE else 1)
        places = shape[2] * shape[3] if kind == IMAGE else shape[1 - varying[0]] if kind == SEQUENCE else 1
        return Place(name, kind, shape[axis], varying[0], places, larger.item, larger.dtype)

    def _check_features(self, name: str, seen: _Seen, axis: int, other: int) -> None:
        """Refuse ``[B, H, W, C]`` and ``[B, C, L]``."""
        assert seen.shape is not None
        found = self._guessed_axis(name, seen.shape, axis, other) if seen.feature_axis is None else seen.feature_axis
        if found != axis:
            raise LiveError(
                f"the output of {name!r} has shape {list(seen.shape)} with its features on axis {found}: a slot needs "
                "images [B, C, H, W] or sequences [B, L, D]; choose a module before or after that has them so"
            )

    def _guessed_axis(self, name: str, shape: tuple[int, ...], axis: int, other: int) -> int:
        """Where no layer says it: the axis that has a size in common with parameters of the module.

        These are the module's own, or those of what it is a part of.
        """
        sizes: set[int] = set()
        part: str | None = name
        while part is not None and not sizes:
            own = self._model.get_submodule(part).parameters()
            sizes = {size for parameter in own for size in parameter.shape[:2]}
            part = part.rpartition(".")[0] if part else None
        return other if shape[axis] not in sizes and shape[other] in sizes else axis

    def table(self, most: int | None = None) -> str:
        """The candidates, one line each.

        Args:
            most: So many of them at most, the first ones; all by default.
        """
        found = self.candidates()
        lines = [f"  {place.name}  {_described(place)}, {_cheapest(place)}" for place in found[:most]]
        if len(lines) < len(found):
            lines.append(f"  and {len(found) - len(lines)} more: candidates(model, example) lists all")
        return "\n".join(lines) if lines else "  (none: no module gives an image, a sequence or a vector)"


def _recorded(model: nn.Module, examples: Sequence[Example]) -> dict[str, _Output]:
    """What every module gave for each example, the modules that were called only."""
    records: list[dict[str, list[_Seen]]] = []
    with untouched(model):
        for example in examples:
            with _recording(model) as record:
                try:
                    call(model, example)
                except Exception as error:
                    raise LiveError(
                        f"the model does not run on the example: {type(error).__name__}: {error}; pass a batch as your "
                        "loop passes it (a tensor, a tuple of positional or a dict of named arguments)"
                    ) from error
            records.append(record)
    first = records[0]
    return {
        name: _Output(order, len(values), values[0], records[1][name][0])
        for order, (name, values) in enumerate(first.items())
        if name in records[1]
    }


@contextmanager
def _recording(model: nn.Module) -> Iterator[dict[str, list[_Seen]]]:
    """What every module gives; it is there once the forward is over."""
    outputs: dict[str, list[tuple[Any, int]]] = {}
    record: dict[str, list[_Seen]] = {}
    touches = Touches()

    def takes(module: nn.Module, args: Any, kwargs: Any) -> None:
        touches.taken(module, (*args, *kwargs.values()))

    def gives(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            touches.given(module, output)
            outputs.setdefault(name, []).append((output, touches.now))

        return keep

    handles = []
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(takes, with_kwargs=True))
            handles.append(module.register_forward_hook(gives(name)))
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()
    for name, values in outputs.items():
        record[name] = [_Seen.of(output, touches, now) for output, now in values]


_SLOW_PATH = Lock()
"""Held while attention's fast path, which is the process's, is off: two threads at once would leave it off for good."""


def forward_flops(model: nn.Module, example: Example, batch_axis: int = 0) -> int:
    """FLOPs of one sample's forward, as torch counts them: matrix products, convolutions and attention."""
    counter = FlopCounterMode(display=False)
    with _SLOW_PATH:
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # what it fuses is not counted, and a slot turns it off
        try:
            with untouched(model), counter:
                call(model, example)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops() // batch_size(example, batch_axis))
