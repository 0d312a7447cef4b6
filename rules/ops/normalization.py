"""Norms: h = diag(gamma / sigma(x)) (I - mean) x + beta. The mean stays linear, sigma is frozen at this input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from omenn_fx.algebra.form import Bias, Call
from omenn_fx.algebra.linear import Centre, Chain, Diagonal, Linear, Moves
from omenn_fx.algebra.mass import Shape
from omenn_fx.algebra.ruleset import rule

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


rule(aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default, content="input", accepts=_in_eval)(
    _batch_norm
)


def _affine(call: Call, inner: Linear, weight: Any, bias: Bias | None) -> tuple[Linear, Bias | None]:
    if weight is None:
        return inner, bias
    return Chain(Diagonal(weight, call.out.shape, call.out.shape), inner), bias


# x, the dimensions that are normalised together, the shape of x, eps, and whether the mean is taken off.
Standardise = Callable[[Tensor, tuple[int, ...], Shape, float, bool], Linear]


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


@rule(aten.layer_norm.default, aten.native_layer_norm.default, content="input", dynamic=True)
def layer_norm(call: Call, standardise: Standardise = standardise) -> tuple[Linear, Bias | None]:
    """Statistics of the last dimensions."""
    n = len(call["normalized_shape"])
    inner = standardise(call.x, tuple(range(-n, 0)), call.shape(), call["eps"], True)
    bias = None if call["bias"] is None else Bias(call["bias"], -1 if n == 1 else None)
    return _affine(call, inner, call["weight"], bias)


@rule(aten.rms_norm.default, aten._fused_rms_norm.default, content="input", dynamic=True)
def rms_norm(call: Call, standardise: Standardise = standardise) -> tuple[Linear, Bias | None]:
    """The mean square of the last dimensions."""
    n = len(call["normalized_shape"])
    eps = call["eps"] if call["eps"] is not None else torch.finfo(call.x.dtype).eps
    inner = standardise(call.x, tuple(range(-n, 0)), call.shape(), eps, False)
    return _affine(call, inner, call["weight"], None)


@rule(aten.group_norm.default, content="input", dynamic=True)
def group_norm(call: Call, standardise: Standardise = standardise) -> tuple[Linear, Bias | None]:
    """A layer norm over the channels of a group and all positions, on a view that gives groups a dimension."""
    return _grouped(call, call["num_groups"], standardise)


@rule(aten.instance_norm.default, content="input", dynamic=True)
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
