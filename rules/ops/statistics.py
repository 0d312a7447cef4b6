"""Norms, distances and variances. In a product or a division they are the coefficient; where one is added, or is itself
the result, it is linear too with its direction frozen: |x| = <x / |x|, x>, var x = <(x - mean) / n, x - mean>."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from omenn_fx.algebra.form import Affine, Bias, Call, Slot
from omenn_fx.algebra.linear import Centre, Chain, Diagonal, Linear, Reduction
from omenn_fx.algebra.rows import along, summed
from omenn_fx.rules.ops.contraction import contract
from omenn_fx.rules.ops.forms import at_sums, bounded, dynamic, twice
from omenn_fx.rules.ops.reductions import dims_of

aten = torch.ops.aten
Tensor = torch.Tensor


def direction(x: Tensor, norm: Tensor, p: float) -> Tensor:
    """d with <d, x> = norm, the p-norm of x: sign(x) |x / norm|^(p - 1).

    It is 0 where the norm is 0: so is that of an x whose square underflows.
    """
    if p == 2:
        return bounded(x / norm)
    if p == 1:
        return torch.sign(x)
    return torch.sign(x) * torch.nan_to_num(torch.pow(torch.abs(x) / norm, p - 1), nan=0.0, posinf=0.0)


def _order(operands: Mapping[str, Any]) -> float:
    order = operands.get("ord", operands.get("p"))
    return 2.0 if order is None else float(order)


def _is_norm(operands: Mapping[str, Any]) -> bool:
    """Positive orders; the others are no norms and have no direction at 0."""
    return 0 < _order(operands) < math.inf


def _is_euclidean(operands: Mapping[str, Any]) -> bool:
    return operands.get("ord", operands.get("p", 2)) in (2, 2.0, None)


@dynamic(
    aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim,
    gate=True, accepts=_is_norm, rows=along("dim"), derivative="form",
    difference=at_sums("self", accepts=_is_euclidean),
)  # fmt: skip
def _norm(call: Call) -> Linear:
    dims, shape = dims_of(call), call.shape()
    reduced = Reduction(dims, call["keepdim"], shape)
    norm = call.out if call["keepdim"] else reduced.with_dims(call.out)
    return Chain(reduced, Diagonal(direction(call.x, norm, _order(call.operands)), shape, shape))


@dynamic(
    aten.cdist.default, aten._cdist_forward.default,
    content=("x1", "x2"), accepts=_is_norm, rows=summed(x1=-1, x2=-1), derivative="form",
    difference=at_sums("x1", "x2", accepts=_is_euclidean),
)  # fmt: skip
def _distance(call: Call) -> Affine:
    """|x_i - y_j| for all pairs."""
    difference = call["x1"].unsqueeze(-2) - call["x2"].unsqueeze(-3)
    towards = direction(difference, call.out.unsqueeze(-1), float(call["p"]))
    lead = "abcdefgh"[: len(call.out.shape) - 2]
    terms: dict[Slot, Linear] = {}
    bias = None
    for name, letter, sign in (("x1", "i", 1.0), ("x2", "j", -1.0)):
        shape = call.shape(name)
        own = lead[len(lead) - (len(shape) - 2) :]
        others = [(f"{lead}ijk", towards * sign)]
        linear = contract(f"{own}{letter}k", shape, others, f"{lead}ij", call.out.shape)
        if Slot(name) in call.content:
            terms[Slot(name)] = linear
        else:
            bias = Bias(linear.apply(call[name]))
    return Affine(terms, bias)


def _spread_of(call: Call, root: bool) -> Linear:
    """Variance, or (root) standard deviation: its square root over itself."""
    dims, shape = dims_of(call), call.shape()
    count: Any = 1
    for d in dims:
        count = count * shape[d]
    correction = call.operands.get("correction", 1 if call.operands.get("unbiased", True) else 0)
    centred = Centre([d % len(shape) for d in dims], shape)
    reduced = Reduction(dims, call["keepdim"], shape, 1 / (count - (1 if correction is None else correction)))
    away = centred.apply(call.x)
    if root:
        std = call.out if call["keepdim"] else reduced.with_dims(call.out)
        away = bounded(away / std)
    return Chain(reduced, Diagonal(away, shape, shape), centred)


_SPREAD: dict[str, Any] = {"gate": True, "rows": along("dim"), "difference": at_sums("self")}
# var is <(x - mean) / n, x - mean>, of which the form holds the first half fixed
dynamic(aten.var.correction, aten.var.dim, derivative=twice, **_SPREAD)(partial(_spread_of, root=False))
dynamic(aten.std.correction, aten.std.dim, derivative="form", **_SPREAD)(partial(_spread_of, root=True))
