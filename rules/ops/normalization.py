"""Norms: h = diag(gamma / sigma(x)) (I - mean) x + beta. The mean stays linear, sigma is frozen at this input."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from omenn_fx.algebra.form import Bias, Call
from omenn_fx.algebra.linear import Centre, Chain, Diagonal, Linear, Moves, Reduction, Sum
from omenn_fx.algebra.mass import Mass, Shape
from omenn_fx.algebra.rows import APART, Rows, behind, last
from omenn_fx.algebra.ruleset import Variant
from omenn_fx.rules.ops.forms import before, dynamic, only_term, product, static

aten = torch.ops.aten
Tensor = torch.Tensor


def _channelwise(vector: Tensor, ndim: int) -> Tensor:
    """[C] -> [C, 1, ...], to broadcast along dimension 1."""
    return vector.reshape((-1,) + (1,) * (ndim - 2))


def _batch_norm(call: Call) -> tuple[Linear, Bias | None]:
    """In eval mode a fixed affine map of each channel."""
    shape = call.shape()
    scale = torch.rsqrt(call["running_var"] + call["eps"])
    if call["weight"] is not None:
        scale = scale * call["weight"]
    shift = -call["running_mean"] * scale
    if call["bias"] is not None:
        shift = shift + call["bias"]
    return Diagonal(_channelwise(scale, len(shape)), shape, call.out.shape), Bias(shift, dim=1)


def _in_eval(operands: Mapping[str, Any]) -> bool:
    """Statistics of the batch would mix its samples."""
    return not operands.get("training", False)


OF_THE_BATCH = (
    "it normalises with the statistics of the batch, so that the samples of a batch reach each other: use running "
    "statistics (track_running_stats=True, training=False), or a norm of each sample"
)
static(
    aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default,
    content="input", accepts=_in_eval, refuses=OF_THE_BATCH, rows=APART,
)(_batch_norm)  # fmt: skip


def _affine(call: Call, inner: Linear, weight: Any, bias: Bias | None) -> tuple[Linear, Bias | None]:
    if weight is None:
        return inner, bias
    return Chain(Diagonal(weight, call.out.shape, call.out.shape), inner), bias


# x, the dimensions that are normalised together, the shape of x, eps, and whether the mean is taken off.
Standardise = Callable[[Tensor, tuple[int, ...], Shape, float, bool], Linear]
Norm = Callable[..., tuple[Linear, Bias | None]]  # of a call, and how to standardise


def inverse_deviation(x: Tensor, dims: tuple[int, ...], shape: Shape, eps: float, centre: bool) -> Tensor:
    """1 / sigma over `dims`, which are kept; of an RMS norm where the mean is not taken off."""
    if not centre:
        return torch.rsqrt((x * x).mean(dims, keepdim=True) + eps)
    trailing = [int(shape[d]) for d in dims]
    # as the fused norm computes it: many times faster than torch.var
    return torch.native_layer_norm(x, trailing, None, None, eps)[2].to(x.dtype)


def standardise(x: Tensor, dims: tuple[int, ...], shape: Shape, eps: float, centre: bool) -> Linear:
    """(I - mean) / sigma over `dims`, sigma frozen."""
    scale = Diagonal(inverse_deviation(x, dims, shape, eps, centre), shape, shape)
    return Chain(scale, Centre(dims, shape)) if centre else scale


# The same norm with another map in the place of (I - mean) / sigma ---------------------------------------------------


class OfNorm(Linear):
    """J = (I - mean - y y^T / n) / sigma over `dims`, symmetric, with y = (x - mean) / sigma.

    `centre=False` leaves the mean out, as an RMS norm does. Mass stays where it is.
    """

    def __init__(self, y: Tensor, scale: Tensor, dims: Sequence[int], operand: Shape, centre: bool, sign: float = -1.0):
        self.y, self.scale, self.dims, self.operand = y, scale, tuple(dims), operand
        self.centre, self.sign = centre, sign

    def apply(self, u: Tensor) -> Tensor:
        along = self.y * (self.y * u).mean(self.dims, keepdim=True)
        if self.centre:
            along = along + u.mean(self.dims, keepdim=True)
        return self.scale * (u + self.sign * along)

    def transpose(self, g: Tensor) -> Tensor:
        return self.apply(g)

    def carry(self, mass: Mass) -> Mass:
        return mass.moved(self.operand)

    def magnitude(self) -> Linear:
        """A bound: the terms of the sum one by one."""
        return OfNorm(torch.abs(self.y), self.scale, self.dims, self.operand, self.centre, sign=1.0)


def _of_norm(x: Tensor, dims: tuple[int, ...], shape: Shape, eps: float, centre: bool) -> Linear:
    scale = inverse_deviation(x, dims, shape, eps, centre)
    y = scale * (x - x.mean(dims, keepdim=True) if centre else x)
    return OfNorm(y, scale, dims, shape, centre)


def _against(reference: Tensor, x: Tensor, dims: tuple[int, ...], shape: Shape, eps: float, centre: bool) -> Linear:
    """The product of c = x - mean x and r = 1 / sigma, as if it were written out:

    r - r0 = -(r r0)^2 / (r + r0) (sigma^2 - sigma0^2) and sigma^2 - sigma0^2 = mean((c + c0) (c - c0)).
    """
    x0 = reference.reshape(tuple(shape))
    r, r0 = (inverse_deviation(v, dims, shape, eps, centre) for v in (x, x0))
    c, c0 = (v - v.mean(dims, keepdim=True) if centre else v for v in (x, x0))
    by_content, by_deviation = product(c, c0, r, r0)
    kept = {d % len(shape) for d in dims}
    small = [1 if d in kept else n for d, n in enumerate(shape)]
    squares = Chain(Reduction(dims, True, shape, 1 / math.prod(shape[d] for d in dims)), Diagonal(c + c0, shape, shape))
    deviation = Chain(Diagonal(-by_deviation * (r * r0) ** 2 / (r + r0), small, shape), squares)
    centred = Centre(dims, shape) if centre else Diagonal(None, shape, shape)
    return Sum(Chain(Diagonal(by_content, shape, shape), centred), deviation)


def _jacobian(form: Norm) -> Variant:
    return Variant(only_term(lambda call: form(call, standardise=_of_norm)[0]), {"content": ("input",)})


def _change(form: Norm) -> Variant:
    return Variant(only_term(lambda call: form(call, standardise=partial(_against, before(call).x))[0]))


def _norm(*ops: Any, rows: Rows) -> Callable[[Norm], Norm]:
    """Register a norm in its three forms."""
    return dynamic(*ops, content="input", kind="norm", rows=rows, derivative=_jacobian, difference=_change)


# The operators -------------------------------------------------------------------------------------------------------


@_norm(aten.layer_norm.default, aten.native_layer_norm.default, rows=last("normalized_shape"))
def layer_norm(call: Call, standardise: Standardise = standardise) -> tuple[Linear, Bias | None]:
    """Statistics of the last dimensions."""
    n = len(call["normalized_shape"])
    inner = standardise(call.x, tuple(range(-n, 0)), call.shape(), call["eps"], True)
    bias = None if call["bias"] is None else Bias(call["bias"], -1 if n == 1 else None)
    return _affine(call, inner, call["weight"], bias)


@_norm(aten.rms_norm.default, aten._fused_rms_norm.default, rows=last("normalized_shape"))
def rms_norm(call: Call, standardise: Standardise = standardise) -> tuple[Linear, Bias | None]:
    """The mean square of the last dimensions."""
    n = len(call["normalized_shape"])
    eps = call["eps"] if call["eps"] is not None else torch.finfo(call.x.dtype).eps
    inner = standardise(call.x, tuple(range(-n, 0)), call.shape(), eps, False)
    return _affine(call, inner, call["weight"], None)


@_norm(aten.group_norm.default, rows=behind(1))
def group_norm(call: Call, standardise: Standardise = standardise) -> tuple[Linear, Bias | None]:
    """A layer norm over the channels of a group and all positions, on a view that gives groups a dimension."""
    return _grouped(call, call["num_groups"], standardise)


@_norm(aten.instance_norm.default, rows=behind(2))
def instance_norm(call: Call, standardise: Standardise = standardise) -> tuple[Linear, Bias | None]:
    """Statistics of each channel of each sample, or the running ones."""
    if not call["use_input_stats"]:
        return _batch_norm(call)
    return _grouped(call, call.shape()[1], standardise)


def _grouped(call: Call, groups: int, standardise: Standardise) -> tuple[Linear, Bias | None]:
    shape, weight, bias = call.shape(), call["weight"], call["bias"]
    wide = (shape[0], groups, shape[1] // groups, *shape[2:])
    grouped = call.x.reshape(wide)
    norm = standardise(grouped, tuple(range(2, len(wide))), wide, call["eps"], True)
    split = Moves(lambda u: u.reshape(wide), lambda g: g.reshape(tuple(shape)), shape)
    join = Moves(lambda u: u.reshape(tuple(shape)), lambda g: g.reshape(wide), wide)
    scale = None if weight is None else _channelwise(weight, len(shape))
    return _affine(call, Chain(join, norm, split), scale, None if bias is None else Bias(bias, dim=1))
