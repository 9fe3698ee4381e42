"""Autograd through the compiled kernels, for contiguous activations ``[M, U, ..., C]`` (see ``operators``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ops = torch.ops.esper


class Conv(torch.autograd.Function):
    """One convolution per member, stride 1, same size.

    Args (of ``apply``): images ``[M, B, H, W, C_in]``, weight ``[M, C_out, C_in, k, k]``, bias ``[M, C_out]`` or None.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return _ops.conv(x, weight, bias, False, False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[0]
        to_x, to_weight, to_bias = _ops.conv_backward(grads[0].contiguous(), x, weight, wanted, ctx.biased)
        return to_x if wanted else None, to_weight, to_bias if ctx.biased else None


class ConvRelu(torch.autograd.Function):
    """The same, with a bias, then ReLU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = x.contiguous()
        y = _ops.conv(x, weight, bias, True, False)
        ctx.save_for_backward(x, weight, y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight, y = ctx.saved_tensors
        wanted = ctx.needs_input_grad[0]
        gradient = torch.ops.aten.threshold_backward(grads[0].contiguous(), y, 0)
        to_x, to_weight, to_bias = _ops.conv_backward(gradient, x, weight, wanted, True)
        return to_x if wanted else None, to_weight, to_bias


class Depthwise(torch.autograd.Function):
    """One kernel per channel: images ``[M, B, H, W, C]``, weight ``[M, C, 1, k, k]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        return _ops.depthwise(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return _ops.depthwise_backward(grads[0].contiguous(), x, weight)


class BatchNorm(torch.autograd.Function):
    """Batch norm in training mode, then ReLU and a 2×2 mean where asked.

    Args (of ``apply``): images, weight and bias ``[M, C]``, running mean and variance (updated), relu, pool, momentum,
    eps.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        var: Tensor,
        relu: bool,
        pool: bool,
        momentum: float,
        eps: float,
    ) -> Tensor:
        x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
        y, moments = _ops.batch_norm(x, weight, bias, mean, var, relu, pool, momentum, eps)
        ctx.save_for_backward(x, weight, bias, moments)
        ctx.relu, ctx.pool = relu, pool
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, weight, bias, moments = ctx.saved_tensors
        gradient = grads[0].contiguous()
        return *_ops.batch_norm_backward(gradient, x, weight, bias, moments, ctx.relu, ctx.pool), *[None] * 6


class GroupNorm(torch.autograd.Function):
    """Group norm over present channels, then ReLU where asked, of several pieces as one.

    Args (of ``apply``): weight and bias ``[M, C]``, present ``[M]`` or None, relu, eps, images of M members in all.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor, present: Tensor | None, relu: bool, eps: float, *pieces: Tensor
    ) -> Tensor:
        weight, bias, x = weight.contiguous(), bias.contiguous(), [piece.contiguous() for piece in pieces]
        y, moments = _ops.group_norm(x, weight, bias, present, relu, eps)
        ctx.save_for_backward(weight, bias, present, moments, *x)
        ctx.relu = relu
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        weight, bias, present, moments, *x = ctx.saved_tensors
        to_x, to_weight, to_bias = _ops.group_norm_backward(
            grads[0].contiguous(), x, weight, bias, present, moments, ctx.relu
        )
        return to_weight, to_bias, None, None, None, *to_x
