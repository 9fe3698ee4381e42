"""The compiled kernels as torch operators, namespace ``esper``: on the CPU, in float32, where a compiler is at hand.

Activations are contiguous, ``[M, U, ..., C]``: members, units (a sample of images, a token, a vector), the unit's
places, channels. A list of them is read as one, its members one after the other. Profilers and dispatch modes see each
operator as one call, and torch's FLOP counter counts the convolutions as it counts its own.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from envs.batched.groups import group_sizes
from envs.batched.kernels.library import library
from envs.batched.parameters import packed, unpacked

_OPERATORS = torch.library.Library("esper", "DEF")
_POINTER, _COUNT, _REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float

_SIGNATURES = {
    "conv_forward": [_POINTER, _COUNT, *[_POINTER] * 3, *[_COUNT] * 8],
    "conv_backward_input": [*[_POINTER] * 3, *[_COUNT] * 6],
    "conv_backward_weight": [*[_POINTER] * 4, *[_COUNT] * 6],
    "depthwise": [*[_POINTER] * 3, *[_COUNT] * 6],
    "depthwise_backward_weight": [*[_POINTER] * 3, *[_COUNT] * 5],
    "group_norm_forward": [*[_POINTER] * 7, *[_COUNT] * 4, _REAL],
    "group_norm_backward": [*[_POINTER] * 10, *[_COUNT] * 4],
    "batch_norm_forward": [*[_POINTER] * 7, *[_COUNT] * 7, _REAL, _REAL],
    "batch_norm_backward": [*[_POINTER] * 8, *[_COUNT] * 7],
    "graft_forward": [*[_POINTER] * 10, *[_COUNT] * 3, _REAL],
    "graft_backward": [*[_POINTER] * 15, *[_COUNT] * 3],
    "product": [*[_POINTER] * 4, *[_COUNT] * 4],
    "attention": [*[_POINTER] * 12, *[_COUNT] * 6, _REAL],
    "normed_sums": [*[_POINTER] * 6, _COUNT, _COUNT, _REAL],
    "sgd_step": [*[_POINTER] * 4, _COUNT, *[_POINTER] * 8, _COUNT, _COUNT, _REAL, _REAL],
}
"""Arguments of the kernels; those over members have a range of them at the end (see ``_over_members``)."""


@cache
def _kernels() -> SimpleNamespace | None:
    """The kernels as functions of numbers and addresses."""
    kernels = library()
    if kernels is None:
        return None
    ranges = {name: [] if name == "sgd_step" else [_COUNT, _COUNT] for name in _SIGNATURES}
    types = {name: ctypes.CFUNCTYPE(None, *_SIGNATURES[name], *ranges[name]) for name in _SIGNATURES}
    return SimpleNamespace(**{name: function((name, kernels)) for name, function in types.items()})


def _library() -> SimpleNamespace:
    kernels = _kernels()
    assert kernels is not None, "compiled() says whether there are kernels"
    return kernels


@cache
def _helpers(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "esper-kernels")


def _over_members(name: str, members: int, *arguments: float | ctypes.Array[Any] | None) -> None:
    """Run a kernel over all members, in equal parts on as many threads as torch has.

    What is computed for a member does not depend on how they are shared out.
    """
    kernel = getattr(_library(), name)
    threads = min(torch.get_num_threads(), members)
    if threads <= 1:
        kernel(*arguments, 0, members)
        return
    cuts = [members * part // threads for part in range(threads + 1)]
    others = [
        _helpers(threads - 1).submit(partial(kernel, *arguments, begin, end))
        for begin, end in itertools.pairwise(cuts[1:])
    ]
    kernel(*arguments, 0, cuts[1])
    for other in others:
        other.result()


_torch_alone = 0


class TorchAlone:
    """A context in which torch's own operators compute, for what torch itself is to compile or to export.

    A class and one plain number, no generator: torch.compile follows that.
    """

    def __enter__(self) -> None:
        global _torch_alone
        _torch_alone += 1

    def __exit__(self, *error: object) -> None:
        global _torch_alone
        _torch_alone -= 1


def compiled(x: Tensor) -> bool:
    """Whether the kernels take this activation."""
    in_reach = not _torch_alone and x.device.type == "cpu" and x.dtype == torch.float32
    return in_reach and _kernels() is not None


def _pointers(*values: Tensor | None) -> list[int | None]:
    return [None if value is None else value.data_ptr() for value in values]


def _places(x: Tensor) -> tuple[int, int, int]:
    """Units, places and channels."""
    return x.shape[1], math.prod(x.shape[2:-1]), x.shape[-1]


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, pool: bool) -> Tensor:
    members, outputs, inputs, k, _ = weight.shape
    units, rows, columns, _ = x.shape[-4:]
    of_member = x[0].numel() if x.dim() == 5 else 0
    lying, bias = packed(weight).contiguous(), None if bias is None else bias.contiguous()
    y = x.new_empty(members, units, *((rows // 2, columns // 2) if pool else (rows, columns)), outputs)
    sizes = (units, rows, columns, k, inputs, outputs)
    _over_members("conv_forward", members, x.data_ptr(), of_member, *_pointers(lying, bias, y), *sizes, relu, pool)
    return y


def _conv_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, to_input: bool, to_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    members, outputs, inputs, k, _ = weight.shape
    sizes = (*x.shape[1:4], k, inputs, outputs)
    to_x = torch.empty_like(x) if to_input else x.new_empty(0)
    if to_input:
        lying = packed(weight).contiguous()
        _over_members("conv_backward_input", members, *_pointers(gradient, lying, to_x), *sizes)
    to_weight = x.new_empty(members, k, k, inputs, outputs)
    biases = x.new_empty(members, outputs) if to_bias else None
    _over_members("conv_backward_weight", members, *_pointers(x, gradient, to_weight, biases), *sizes)
    return to_x, unpacked(to_weight), x.new_empty(0) if biases is None else biases


def _depthwise(x: Tensor, weight: Tensor) -> Tensor:
    lying, y = packed(weight).contiguous(), torch.empty_like(x)
    sizes = (*x.shape[1:4], weight.shape[-1], x.shape[4])
    _over_members("depthwise", len(x), *_pointers(x, lying, y), *sizes, False)
    return y


def _depthwise_backward(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    lying, to_x = packed(weight).contiguous(), torch.empty_like(x)
    to_weight = torch.empty_like(lying)
    sizes = (*x.shape[1:4], weight.shape[-1], x.shape[4])
    _over_members("depthwise", len(x), *_pointers(gradient, lying, to_x), *sizes, True)
    _over_members("depthwise_backward_weight", len(x), *_pointers(x, gradient, to_weight), *sizes)
    return to_x, unpacked(to_weight)


def _rows(values: Tensor | None, start: int) -> int | None:
    """Where the rows of the members from ``start`` on lie."""
    return None if values is None else values.data_ptr() + start * values.stride(0) * values.element_size()


def _group_norm(
    x: list[Tensor], weight: Tensor, bias: Tensor, present: Tensor | None, relu: bool, eps: float
) -> tuple[Tensor, Tensor]:
    units, places, channels = _places(x[0])
    y = x[0].new_empty(len(weight), *x[0].shape[1:])
    moments = weight.new_empty(len(weight), units, 2, channels)
    sizes = group_sizes(channels, weight.device).data_ptr()
    start = 0
    for piece in x:
        _over_members(
            *("group_norm_forward", len(piece), piece.data_ptr()),
            *(_rows(values, start) for values in (y, weight, bias, present, moments)),
            *(sizes, units, places, channels, relu, eps),
        )
        start += len(piece)
    return y, moments


def _group_norm_backward(
    gradient: Tensor,
    x: list[Tensor],
    weight: Tensor,
    bias: Tensor,
    present: Tensor | None,
    moments: Tensor,
    relu: bool,
) -> tuple[list[Tensor], Tensor, Tensor]:
    units, places, channels = _places(gradient)
    to_weight, to_bias = torch.empty_like(weight), torch.empty_like(bias)
    to_x = [torch.empty_like(piece) for piece in x]
    sizes = group_sizes(channels, weight.device).data_ptr()
    start = 0
    for piece, to_piece in zip(x, to_x, strict=True):
        _over_members(
            *("group_norm_backward", len(piece), _rows(gradient, start), piece.data_ptr(), to_piece.data_ptr()),
            *(_rows(values, start) for values in (weight, bias, present, moments, to_weight, to_bias)),
            *(sizes, units, places, channels, relu),
        )
        start += len(piece)
    return to_x, to_weight, to_bias


def _batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    relu: bool,
    pool: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    members, units, rows, columns, channels = x.shape
    y = x.new_empty(members, units, *((rows // 2, columns // 2) if pool else (rows, columns)), channels)
    moments = weight.new_empty(2, members, channels)
    _over_members(
        "batch_norm_forward",
        members,
        *_pointers(x, y, weight, bias, mean, var, moments),
        *x.shape,
        relu,
        pool,
        momentum,
        eps,
    )
    return y, moments


def _batch_norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, moments: Tensor, relu: bool, pool: bool
) -> tuple[Tensor, Tensor, Tensor]:
    to_x, to_weight, to_bias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
    _over_members(
        "batch_norm_backward",
        len(x),
        *_pointers(gradient, x, to_x, weight, bias, moments, to_weight, to_bias),
        *x.shape,
        relu,
        pool,
    )
    return to_x, to_weight, to_bias


def _graft(
    h: Tensor,
    deltas: list[Tensor],
    members: Tensor,
    alpha: Tensor,
    multiplies: Tensor,
    gated: Tensor,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    units, places, channels = _places(h)
    y = h.clone()
    statistics = h.new_empty(len(members), units, 3)
    start = 0
    for delta in deltas:
        _over_members(
            *("graft_forward", len(delta)),
            *_pointers(h, delta, y),
            *(_rows(values, start) for values in (members, alpha, multiplies, gated, gate_weight, gate_bias)),
            *(_rows(statistics, start), units, places, channels, eps),
        )
        start += len(delta)
    return y, statistics


def _graft_backward(
    gradient: Tensor,
    h: Tensor,
    deltas: list[Tensor],
    members: Tensor,
    strength: Tensor,
    multiplies: Tensor,
    incubating: Tensor,
    attached: Tensor,
    gated: Tensor,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    statistics: Tensor,
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    units, places, channels = _places(h)
    to_h = gradient.clone()
    to_deltas = [torch.empty_like(delta) for delta in deltas]
    nothing = h.new_empty(0)
    to_weight = nothing if gate_weight is None else torch.zeros_like(gate_weight)
    to_bias = nothing if gate_bias is None else torch.zeros_like(gate_bias)
    to_gates = (to_weight, to_bias)
    start = 0
    for delta, to_delta in zip(deltas, to_deltas, strict=True):
        _over_members(
            *("graft_backward", len(delta)),
            *_pointers(gradient, h, delta, to_h, to_delta),
            *(_rows(values, start) for values in (members, strength, multiplies, incubating, attached, gated)),
            *(_rows(gate_weight, start), _rows(statistics, start)),
            *(_rows(values, start) if len(values) else None for values in to_gates),
            *(units, places, channels),
        )
        start += len(delta)
    return to_h, to_deltas, *to_gates


PANEL = 1024
"""Columns of a product that a thread computes at a time."""


def _products(x: list[Tensor], weights: list[Tensor], wanted: Tensor) -> Tensor:
    counts = [len(rows) * weight.shape[1] for rows, weight in zip(x, weights, strict=True)]
    y = x[0].new_empty(sum(counts), weights[0].shape[2])
    row = role = 0
    for rows, weight, count in zip(x, weights, counts, strict=True):
        inputs, roles, width = weight.shape
        pointers = (*_pointers(rows.contiguous(), weight.contiguous()), _rows(wanted, role), _rows(y, row))
        _over_members("product", -(-roles * width // PANEL), *pointers, len(rows), inputs, roles * width, width)
        row, role = row + count, role + roles
    return y


def _attention(
    messages: Tensor,
    source: list[Tensor],
    target: Tensor,
    along: Tensor,
    message: Tensor,
    first: Tensor,
    relation: Tensor,
    edge: Tensor,
    attributes: Tensor,
    origins: list[int],
    slope: float,
) -> Tensor:
    width, (attributes_of, relations, heads) = len(source[0]), along.shape
    types, roles = origins[::2], origins[1::2]
    starts = [
        source[of].data_ptr() + role * heads * source[of].element_size() for of, role in zip(types, roles, strict=True)
    ]
    strides = [source[of].stride(0) for of in types]
    y, scores = messages.new_empty(len(first), width), messages.new_empty(len(message), heads)
    _over_members(
        *("attention", len(first), messages.data_ptr()),
        *((_POINTER * relations)(*starts), (_COUNT * relations)(*strides)),
        *_pointers(target, along, message, first, relation, edge, attributes.contiguous(), scores, y),
        *(len(first), len(message), relations, attributes_of, heads, width, slope),
    )
    return y


def _normed_sums(
    x: Tensor, counts: Tensor, bias: list[Tensor], gain: list[Tensor], shift: list[Tensor], nodes: list[int], eps: float
) -> Tensor:
    y = x.new_empty(sum(nodes), x.shape[1])
    row = node = 0
    for count, *of_roles in zip(nodes, bias, gain, shift, strict=True):
        pointers = (_rows(x, row), _rows(counts, row), *_pointers(*of_roles), _rows(y, node))
        _over_members("normed_sums", count, *pointers, *of_roles[0].shape, eps)
        row, node = row + count * len(of_roles[0]), node + count
    return y


def _sgd_step(
    flat: Tensor,
    momentum: Tensor,
    squares: Tensor,
    moving_squares: Tensor,
    totals: Tensor,
    gradients: list[Tensor],
    lengths: Tensor,
    owners: Tensor,
    cells: Tensor,
    held: Tensor | None,
    rates: Tensor,
    clip: float,
    decay: float,
) -> None:
    addresses = (_POINTER * len(gradients))(*(gradient.data_ptr() for gradient in gradients))
    sizes = (_COUNT * len(gradients))(*(gradient.numel() for gradient in gradients))
    _library().sgd_step(
        *(flat.data_ptr(), momentum.data_ptr(), addresses, sizes, len(gradients)),
        *_pointers(lengths, owners, cells, held, squares, moving_squares, totals, rates),
        *(len(rates), len(lengths), clip, decay),
    )


for _schema, _implementation in {
    "conv(Tensor x, Tensor weight, Tensor? bias, bool relu, bool pool) -> Tensor": _conv,
    "conv_backward(Tensor gradient, Tensor x, Tensor weight, bool to_input, bool to_bias)"
    " -> (Tensor, Tensor, Tensor)": _conv_backward,
    "depthwise(Tensor x, Tensor weight) -> Tensor": _depthwise,
    "depthwise_backward(Tensor gradient, Tensor x, Tensor weight) -> (Tensor, Tensor)": _depthwise_backward,
    "group_norm(Tensor[] x, Tensor weight, Tensor bias, Tensor? present, bool relu, float eps)"
    " -> (Tensor, Tensor)": _group_norm,
    "group_norm_backward(Tensor gradient, Tensor[] x, Tensor weight, Tensor bias, Tensor? present, Tensor moments,"
    " bool relu) -> (Tensor[], Tensor, Tensor)": _group_norm_backward,
    "batch_norm(Tensor x, Tensor weight, Tensor bias, Tensor(a!) mean, Tensor(b!) var, bool relu, bool pool,"
    " float momentum, float eps) -> (Tensor, Tensor)": _batch_norm,
    "batch_norm_backward(Tensor gradient, Tensor x, Tensor weight, Tensor bias, Tensor moments, bool relu, bool pool)"
    " -> (Tensor, Tensor, Tensor)": _batch_norm_backward,
    "graft(Tensor h, Tensor[] deltas, Tensor members, Tensor alpha, Tensor multiplies, Tensor gated,"
    " Tensor? gate_weight, Tensor? gate_bias, float eps) -> (Tensor, Tensor)": _graft,
    "graft_backward(Tensor gradient, Tensor h, Tensor[] deltas, Tensor members, Tensor strength, Tensor multiplies,"
    " Tensor incubating, Tensor attached, Tensor gated, Tensor? gate_weight, Tensor? gate_bias, Tensor statistics)"
    " -> (Tensor, Tensor[], Tensor, Tensor)": _graft_backward,
    "products(Tensor[] x, Tensor[] weights, Tensor wanted) -> Tensor": _products,
    "attention(Tensor messages, Tensor[] source, Tensor target, Tensor along, Tensor message, Tensor first,"
    " Tensor relation, Tensor edge, Tensor attributes, int[] origins, float slope) -> Tensor": _attention,
    "normed_sums(Tensor x, Tensor counts, Tensor[] bias, Tensor[] gain, Tensor[] shift, int[] nodes, float eps)"
    " -> Tensor": _normed_sums,
    "sgd_step(Tensor(a!) flat, Tensor(b!) momentum, Tensor(c!) squares, Tensor(d!) moving_squares, Tensor(e!) totals,"
    " Tensor[] gradients, Tensor lengths, Tensor owners, Tensor cells, Tensor? held, Tensor rates, float clip,"
    " float decay) -> ()": _sgd_step,
}.items():
    _OPERATORS.define(_schema)
    _OPERATORS.impl(_schema.partition("(")[0], _implementation, "CPU")


def _kernel_flops(x: torch.Size, weight: torch.Size) -> int:
    pixels = math.prod(x[-4:-1])
    return 2 * pixels * math.prod(weight)


@register_flop_formula(torch.ops.esper.conv)
def _conv_flops(x: torch.Size, weight: torch.Size, *args: object, **kwargs: object) -> int:
    return _kernel_flops(x, weight)


@register_flop_formula(torch.ops.esper.conv_backward)
def _conv_backward_flops(
    gradient: torch.Size, x: torch.Size, weight: torch.Size, to_input: bool, *args: object, **kwargs: object
) -> int:
    return (1 + to_input) * _kernel_flops(x, weight)


@register_flop_formula(torch.ops.esper.depthwise)
def _depthwise_flops(x: torch.Size, weight: torch.Size, **kwargs: object) -> int:
    return _kernel_flops(x, weight)


@register_flop_formula(torch.ops.esper.depthwise_backward)
def _depthwise_backward_flops(gradient: torch.Size, x: torch.Size, weight: torch.Size, **kwargs: object) -> int:
    return 2 * _kernel_flops(x, weight)


@register_flop_formula(torch.ops.esper.products)
def _products_flops(x: list[torch.Size], weights: list[torch.Size], *args: object, **kwargs: object) -> int:
    return sum(2 * rows[0] * math.prod(weight) for rows, weight in zip(x, weights, strict=True))
