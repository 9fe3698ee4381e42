"""One forward of somebody's network, watched: which layers there are, who reads whom, what activation functions do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, count
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle

from envs.live.errors import LiveError
from envs.live.examples import Example, call
from envs.live.quiet import untouched
from envs.live.slot import GROWTH
from esper_ray.live.provenance import Passage, Provenance, Sources, is_opaque, origins, tensors
from esper_ray.live.refusals import compiled_in_place

FLAT_SLOPE = 0.01
"""A function is saturated where its slope is closer to 0."""
_BENT, _CURVED = 1, 5  # FLOPs per number
FUNCTION_FLOPS = MappingProxyType(
    dict.fromkeys(("relu", "relu6", "leaky_relu", "hardtanh", "hardsigmoid", "hardswish", "threshold"), _BENT)
    | dict.fromkeys(("gelu", "silu", "mish", "elu", "selu", "celu", "softplus", "softsign"), _CURVED)
    | dict.fromkeys(("tanh", "sigmoid", "logsigmoid", "tanhshrink"), _CURVED)
)
"""Activation functions that are known, all of them elementwise, and what each costs per number."""
DROPOUTS = frozenset({"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"})
"""Functions that drop what they read; their modules call them."""
_NORMS = ("num_features", "normalized_shape", "num_channels", "embed_dim")
_INPUTS = ("in_channels", "in_features", "num_embeddings", "input_size", *_NORMS)
_OUTPUTS = ("out_channels", "out_features", "embedding_dim", "hidden_size", *_NORMS)
_LAYER, _ACTIVATION = "layer", "activation"
_Alike = tuple[str, str, tuple[int, ...], int | None]
"""Name, function, layers that it reads, and a call's number where it is like no other."""


@dataclass
class LayerSeen:
    """A module with parameters that was called.

    Attributes:
        name: Of the module; of the class in brackets where it has none.
        layer_type: Its class in lower case.
        parameters: Its own, and those of parts of it that are never called by themselves.
        inputs: Channels or features that came in; None where no tensor did.
        outputs: Likewise out.
        reads: Where what it read came from → numbers per sample.
        followed: Whether it was followed where all that came from.
        dropout: Rate of the dropout that reads it, 0 where none does; None where nobody can tell.
    """

    name: str
    layer_type: str
    parameters: tuple[nn.Parameter, ...]
    inputs: int | None
    outputs: int | None
    reads: dict[Node, float] = field(default_factory=dict)
    followed: bool = False
    dropout: float | None = None


@dataclass(frozen=True)
class ActivationCall:
    """A call of an activation function.

    Attributes:
        name: Of its module, or of the function behind that of the module that called it.
        function: Name.
        reads: Where what it read came from.
        sums: What :func:`_sums` says of its numbers.
    """

    name: str
    function: str
    reads: tuple[Node, ...]
    sums: tuple[float, ...]


@dataclass(frozen=True)
class ActivationSeen:
    """All calls of an activation function in one place that read the same layers: in a loop there may be thousands.

    Attributes:
        name: Of its module, or of the function behind that of the module that called it; numbered where that reads
            other layers in other calls.
        function: Name.
        volume: Numbers that it gave per sample.
        saturated: Share of its outputs at which its slope is below :data:`FLAT_SLOPE`.
        active: Share of its outputs that are not 0.
        unexplained: Share of its outputs' variance that a line leaves unexplained; NaN where they do not vary.
    """

    name: str
    function: str
    volume: float
    saturated: float
    active: float
    unexplained: float

    @classmethod
    def of(cls, name: str, calls: Sequence[ActivationCall], samples: int) -> Self:
        """All outputs of some calls together."""
        count, flat, active, x, y, xx, yy, xy = np.array([call.sums for call in calls]).T
        most = max(count.sum(), 1.0)
        x, y = x - (count * x).sum() / most, y - (count * y).sum() / most
        varies = (xx + count * x * x).sum() * (yy + count * y * y).sum()
        together = (xy + count * x * y).sum()
        return cls(
            name,
            calls[0].function,
            float(count.sum() / samples),
            float(flat.sum() / most),
            float(active.sum() / most),
            float(np.clip(1.0 - together**2 / varies, 0.0, 1.0)) if varies > 0 else math.nan,
        )


@dataclass(frozen=True)
class Trace:
    """What a forward showed.

    Attributes:
        layers: In the order in which they were done.
        activations: In the order in which they were first called.
        connects: (source, target) of layers → how the target reads the source.
        feeds: (layer, activation).
        influences: (activation, layer).
        around: Module name → the last of the layers whose outputs its own is made of, and the first that reads it. A
            module of which nobody can tell is left out.
    """

    layers: tuple[LayerSeen, ...]
    activations: tuple[ActivationSeen, ...]
    connects: dict[tuple[int, int], Passage]
    feeds: tuple[tuple[int, int], ...]
    influences: tuple[tuple[int, int], ...]
    around: dict[str, tuple[int, ...]]


def trace(model: nn.Module, inputs: Example, samples: int, places: Iterable[str] = ()) -> Trace:
    """Run a model on some inputs, in mode ``eval``, and leave no trace in it.

    Args:
        model: What somebody trains.
        inputs: As it takes them.
        samples: How many they are.
        places: Modules of which it shall be said which layers they are made of.

    Raises:
        LiveError: the model does not run on them.
    """
    watcher = _Watcher(model, samples, places)
    with untouched(model), torch.enable_grad(), _uncompiled(model), watcher.hooked(), watcher:
        try:
            call(model, _with_gradients(inputs))
        except Exception as error:
            raise LiveError(f"the model does not run on the probe's inputs: {type(error).__name__}: {error}") from error
    return watcher.read()


class _Watcher(TorchFunctionMode):
    """Hooks of all modules, and an eye on activation functions."""

    def __init__(self, model: nn.Module, samples: int, places: Iterable[str]) -> None:
        super().__init__()
        self._samples, self._places = samples, set(places)
        self._names = {module: name for name, module in model.named_modules() if name.partition(".")[0] != GROWTH}
        self._calls: list[tuple[nn.Module, dict[Node, float]]] = []
        self._called: set[nn.Module] = set()
        self._ungrown: list[list[Node]] = []  # one entry for each module whose other hooks run now
        self._layers: dict[nn.Module, int] = {}
        self._seen: list[LayerSeen] = []
        self._activations: list[ActivationCall] = []
        self._provenance = Provenance()
        self._made: dict[str, list[Node]] = {}
        self._dropouts: list[tuple[float, list[Node]]] = []

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """The model with hooks in every module."""
        handles: list[RemovableHandle] = []
        for module in self._names:
            handles.append(module.register_forward_pre_hook(self._begin, with_kwargs=True))
            handles.append(module.register_forward_hook(self._end, prepend=True))
            handles.append(module.register_forward_hook(self._grown))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    # ------------------------------------------------------------------ while it runs
    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._calls.append((module, self._volumes((args, kwargs))))

    def _end(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Before the module's other hooks: what it gave itself."""
        _, reads = self._calls.pop()
        self._called.add(module)
        if next(module.parameters(recurse=False), None) is not None:
            output = _followed(output)
            if module not in self._layers:
                self._layers[module] = len(self._seen)
                self._seen.append(self._layer(module, args, output))
            self._seen[self._layers[module]].reads.update(reads)
            self._provenance.give(output, _LAYER, self._layers[module])
        self._ungrown.append(origins(output))
        return output

    def _grown(self, module: nn.Module, args: Any, output: Any) -> None:
        """After them: what a slot has added belongs to no layer."""
        before = self._ungrown.pop()
        self._provenance.replace(before, output)
        if self._names[module] in self._places:
            self._made[self._names[module]] = before

    def _layer(self, module: nn.Module, args: Any, output: Any) -> LayerSeen:
        parts = [p for p in module.modules() if p is module or (p in self._names and p not in self._called)]
        parameters = dict.fromkeys(p for part in parts for p in part.parameters(recurse=False))
        kind = type(module).__name__
        read, gave = next(tensors(args), None), next(tensors(output), None)
        return LayerSeen(
            self._names[module] or f"({kind})",
            kind.lower(),
            tuple(parameters),
            _width(module, _INPUTS, read),
            _width(module, _OUTPUTS, gave),
        )

    def _volumes(self, value: Any) -> dict[Node, float]:
        """Where tensors came from → numbers per sample."""
        return {t.grad_fn: t.numel() / self._samples for t in tensors(value) if t.grad_fn is not None}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See activation functions and dropout."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").removesuffix("_")
        if self._ungrown or not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
            return func(*args, **kwargs)
        if name in DROPOUTS:
            self._dropouts.append((args[1] if len(args) > 1 else kwargs.get("p", 0.5), origins(args[0])))
        if name not in FUNCTION_FLOPS:
            return func(*args, **kwargs)
        x, reads = args[0].detach().clone(), origins(args[0])
        output = func(*args, **kwargs)
        self._provenance.give(output, _ACTIVATION, len(self._activations))
        y, slope = _value_and_slope(lambda z: func(z, *args[1:], **kwargs), x)
        self._activations.append(ActivationCall(self._name_of(name), name, tuple(reads), _sums(x, y, slope)))
        return output

    def _name_of(self, function: str) -> str:
        module = self._calls[-1][0] if self._calls else None
        where = "" if module is None else self._names[module]
        is_module = type(module).__name__.lower() == function.replace("_", "")
        return where if is_module else f"{where}.{function}" if where else function

    # ------------------------------------------------------------------ afterwards
    def read(self) -> Trace:
        """What there was."""
        connects: dict[tuple[int, int], Passage] = {}
        influences: dict[tuple[int, int], None] = {}
        readers: dict[Node, list[int]] = {}
        layers = Sources(self._provenance, _LAYER)
        alike = self._alike(layers)
        number = {call: at for at, calls in enumerate(alike.values()) for call in calls}
        for target, layer in enumerate(self._seen):
            found, passed = self._provenance.ways(layer.reads, _LAYER)
            connects |= {(source, target): passage for (_, source), passage in found.items()}
            layer.followed = bool(passed) and not any(map(is_opaque, passed))
            for node in passed:
                readers.setdefault(node, []).append(target)
            near, _ = self._provenance.ways(layer.reads, _LAYER, _ACTIVATION)
            influences |= dict.fromkeys((number[call], target) for kind, call in near if kind == _ACTIVATION)
        self._read_dropouts(layers)
        around = {
            name: tuple(dict.fromkeys((*layers.behind(nodes)[-1:], *_first(readers.get(node, []) for node in nodes))))
            for name, nodes in self._made.items()
            if nodes
        }
        feeds = tuple((source, at) for at, (_, _, sources, _) in enumerate(alike) for source in sources)
        return Trace(tuple(self._seen), self._pooled(alike), connects, feeds, tuple(influences), around)

    def _alike(self, layers: Sources) -> dict[_Alike, list[int]]:
        """The calls that say the same of the network, by number; one of which nobody knows what it reads is alone."""
        alike: dict[_Alike, list[int]] = {}
        for at, seen in enumerate(self._activations):
            alone = None if seen.reads else at
            alike.setdefault((seen.name, seen.function, layers.behind(seen.reads), alone), []).append(at)
        return alike

    def _pooled(self, alike: Mapping[_Alike, list[int]]) -> tuple[ActivationSeen, ...]:
        seen: dict[str, ActivationSeen] = {}
        numbers: dict[str, Iterator[int]] = {}
        for (name, *_), calls in alike.items():
            own = name
            while own in seen:
                own = f"{name}:{next(numbers.setdefault(name, count(2)))}"
            seen[own] = ActivationSeen.of(own, [self._activations[at] for at in calls], self._samples)
        return tuple(seen.values())

    def _read_dropouts(self, layers: Sources) -> None:
        """Each layer's dropout; where none reads it there is none, if it is known what all of them read."""
        if all(reads for _, reads in self._dropouts):
            for at in self._provenance.known(_LAYER):
                self._seen[at].dropout = 0.0
        for rate, reads in self._dropouts:
            for source in layers.behind(reads):
                self._seen[source].dropout = rate


def _first(readers: Iterable[Iterable[int]]) -> list[int]:
    """The first of some layers, if there are any."""
    return sorted(chain.from_iterable(readers))[:1]


@contextmanager
def _uncompiled(model: nn.Module) -> Iterator[None]:
    """What was compiled meanwhile runs as it is written, and is not compiled anew for being watched."""
    if not any(compiled_in_place(module) for module in model.modules()):
        yield  # else torch would import its compiler
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _with_gradients(inputs: Example) -> Example:
    """Copies of the inputs that gradients lead back to; not leaves, which could not be written into."""
    if isinstance(inputs, Tensor):
        copied: Tensor = _followed(inputs.detach().clone())
        return copied
    arguments = dict(inputs) if isinstance(inputs, Mapping) else tuple(inputs)
    return tree_map_only(Tensor, lambda tensor: _followed(tensor.detach().clone()), arguments)


def _followed(value: Any) -> Any:
    """A tensor that gradients lead back to, in place of one of floats that they do not where they are wanted."""
    follows = isinstance(value, Tensor) and value.is_floating_point() and not value.is_inference()
    if not follows or value.requires_grad or not torch.is_grad_enabled():
        return value
    return value.detach().requires_grad_().clone()  # detached, since it may be a buffer or a frozen parameter


def _width(module: nn.Module, names: tuple[str, ...], tensor: Tensor | None) -> int | None:
    """Channels or features: what the module says, or else the tensor's, in which they lie as they mostly do."""
    for name in names:
        said = getattr(module, name, None)
        if isinstance(said, tuple) and said:
            said = said[-1]
        if isinstance(said, int):
            return said
    if tensor is None or tensor.dim() < 2:
        return None
    return tensor.shape[1 if tensor.dim() > 3 else -1]


def _value_and_slope(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Of an elementwise function, which may write into what it reads, wherever the model calls it.

    That may be where there are no gradients, or where checkpointing saves nothing for them.
    """

    def as_it_is(saved: Tensor) -> Tensor:
        return saved

    saved_tensors = torch.autograd.graph.saved_tensors_hooks(as_it_is, as_it_is)
    with torch.inference_mode(False), torch.enable_grad(), saved_tensors:
        x = x.clone().requires_grad_()  # a clone, which is no tensor of inference any more
        y = function(x.clone())
        (slope,) = torch.autograd.grad(y.sum(), x)
    return y.detach(), slope


def _sums(x: Tensor, y: Tensor, slope: Tensor) -> tuple[float, ...]:
    """Of what a function read, of what it gave, and of its slope there.

    Returns:
        How many numbers there are, how many of them are flat and are not 0, the means of x and y, and around these the
        sums of x², y² and xy.
    """
    size = y.numel()
    flat, active = (slope.abs() < FLAT_SLOPE).sum().double(), (y != 0.0).sum().double()
    x, y = x.double().flatten(), y.double().flatten()
    means = x.sum() / max(size, 1), y.sum() / max(size, 1)
    x, y = x - means[0], y - means[1]
    return size, *torch.stack([flat, active, *means, x @ x, y @ y, x @ y]).tolist()
