"""Selections: every result position is the value of the winner among several. Ties share equally.

Maxima over dimensions, sorted values, the larger of two tensors, and the choices made by a mask.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from omenn_fx.algebra.form import Affine, Bias, Call, Form, Slot
from omenn_fx.algebra.linear import Chain, Diagonal, Linear, Moves, Reduction, Sum
from omenn_fx.algebra.rows import APART, along, at
from omenn_fx.algebra.ruleset import Rule, Variant
from omenn_fx.rules.ops.forms import before, dynamic, only_term, real_dtype, static, with_remainder
from omenn_fx.rules.ops.reductions import dims_of
from omenn_fx.rules.ops.softmax import softmax_change

aten = torch.ops.aten
Tensor = torch.Tensor

# Over dimensions -----------------------------------------------------------------------------------------------------


def extreme_change(least: bool = False) -> Callable[[Form], Variant]:
    """Against a reference: of the form of a maximum, or of a minimum."""
    return lambda form: Variant(partial(_extreme_change, form, least))


def _extreme_change(form: Form, least: bool, call: Call) -> Affine:
    """The winner at x takes the rise to the larger of both maxima, the winner at x0 the fall from it.

    Each changed by no less than that, so the multipliers are between 0 and 1. A winner that is the same value in both
    has 1. Ties share equally.
    """
    slot, reference = call.content[0], before(call)
    selected, selected0 = (Rule(call.op, form).affine(c).terms[slot] for c in (call, reference))
    between = (torch.minimum if least else torch.maximum)(call.out, reference.out)
    difference = call.x - reference.x
    same = torch.abs(difference) < 1e3 * torch.finfo(call.x.dtype).tiny
    inverse = (1 - same.to(call.x.dtype)) / torch.where(same, torch.ones_like(difference), difference)
    shape, size = call.shape(), call.out.shape
    parts = (
        (between - reference.out, selected, inverse),
        (call.out - between, selected0, inverse),
        ((call.out == reference.out).to(call.x.dtype), selected, same.to(call.x.dtype)),
    )
    maps = [Chain(Diagonal(change, size, size), m, Diagonal(by, shape, shape)) for change, m, by in parts]
    return with_remainder(call, {slot: Sum(*maps)})


def winner(call: Call, top: Tensor, dims: list[int], keepdim: bool) -> Linear:
    """The map to the value `top` (with all dimensions kept) of the operand. Mass is shared evenly over `dims`."""
    shape = call.shape()
    wins = (call.x == top).to(call.x.dtype)
    wins = wins / wins.sum(dims, keepdim=True)
    return Chain(Reduction(dims, keepdim, shape), Diagonal(wins, shape, shape))


_SELECTS: dict[str, Any] = {"passes_gate": True, "rows": along("dim"), "derivative": "form"}


@dynamic(aten.max.dim, aten.max.default, aten.amax.default, difference=extreme_change(), **_SELECTS)
@dynamic(aten.min.dim, aten.min.default, aten.amin.default, difference=extreme_change(least=True), **_SELECTS)
@dynamic(aten.median.dim, aten.kthvalue.default, **_SELECTS)
def _extreme(call: Call) -> Linear:
    dims, keepdim = dims_of(call), bool(call.operands.get("keepdim"))
    top = call.out
    if not keepdim:
        for d in sorted(d % max(len(call.shape()), 1) for d in dims):
            top = top.unsqueeze(d)
    return winner(call, top, dims, keepdim)


def _log_sum_slope(call: Call) -> Linear:
    dims, shape = dims_of(call), call.shape()
    top = call.x.amax(dims, keepdim=True)
    size = torch.exp(call.x - top)
    return Chain(Reduction(dims, call["keepdim"], shape), Diagonal(size / size.sum(dims, keepdim=True), shape, shape))


def _log_sum_change(call: Call) -> Linear:
    dims, shape = dims_of(call), call.shape()
    reduced = Reduction(dims, call["keepdim"], shape)
    logs, logs0 = (c.x - (c.out if call["keepdim"] else reduced.with_dims(c.out)) for c in (call, before(call)))
    _, parts = softmax_change(logs, logs0, dims)
    return Chain(reduced, Diagonal(parts, shape, shape))


@dynamic(
    aten.logsumexp.default,
    rows=along("dim"),
    derivative=Variant(only_term(_log_sum_slope)),
    difference=Variant(only_term(_log_sum_change)),
)
def _logsumexp(call: Call) -> tuple[Linear, Bias]:
    """max x + log Z, Z frozen, as in log_softmax."""
    dims = dims_of(call)
    top = call.x.amax(dims, keepdim=True)
    rest = torch.exp(call.x - top).sum(dims, keepdim=call["keepdim"])
    return winner(call, top, dims, call["keepdim"]), Bias(torch.log(rest))


@dynamic(aten.msort.default, passes_gate=True, rows=at(0), derivative="form")
@dynamic(
    aten.topk.default, aten.sort.default, aten.sort.stable, aten.cummax.default, aten.cummin.default, **_SELECTS
)  # fmt: skip
def _ranked(call: Call) -> Linear:
    """Each result position reads the operand positions of its value, whose mass goes there too."""
    dim = call.operands.get("dim", 0)
    x, out = call.x.transpose(dim, -1), call.out.transpose(dim, -1)
    wins = (out.unsqueeze(-1) == x.unsqueeze(-2)).to(x.dtype)
    if call.op in (aten.cummax.default, aten.cummin.default):
        wins = wins.tril()
    wins = wins / wins.sum(-1, keepdim=True)

    def through(matrix: Tensor, value: Tensor) -> Tensor:
        return torch.matmul(matrix, value.transpose(dim, -1).unsqueeze(-1)).squeeze(-1).transpose(dim, -1)

    return Moves(lambda u: through(wins, u), lambda g: through(wins.transpose(-2, -1), g), call.shape())


# Between two tensors -------------------------------------------------------------------------------------------------


def _chosen(call: Call, wins: dict[str, Any]) -> Affine:
    """The part wins[name] of each operand; where both are content each takes the mass of its own positions."""
    terms: dict[Slot, Linear] = {}
    for slot in call.content:
        own = wins[slot.name]
        terms[slot] = Diagonal(own, call.shape(slot), call.out.shape, carries=own if len(call.content) == 2 else None)
    if len(call.content) == 2:
        return Affine(terms, disjoint=True)
    other = "other" if call.content[0].name == "self" else "self"
    return Affine(terms, Bias(wins[other] * Bias(call[other]).finite().value), disjoint=True)


def _larger_change(call: Call) -> Affine:
    """Each operand's change with the other as it was and as it is: the mean of both."""
    terms: dict[Slot, Linear] = {}
    for slot, other in itertools.permutations((Slot("self"), Slot("other"))):
        if slot not in call.content:
            continue
        x, x0, total = call.at(slot), before(call).at(slot), torch.zeros_like(call.out)
        for beside in (call.at(other), (before(call) if other in call.content else call).at(other)):
            h, h0 = (call.replay(**{slot.name: v, other.name: beside}) for v in (x, x0))
            slope = (h == x).to(h.dtype) * (1 - 0.5 * (x == beside).to(h.dtype))
            total = total + 0.5 * torch.where(
                x == x0, slope, (h - h0) / torch.where(x == x0, torch.ones_like(x), x - x0)
            )
        terms[slot] = Diagonal(total, call.shape(slot), call.out.shape)
    return with_remainder(call, terms)


@dynamic(
    aten.maximum.default, aten.minimum.default, aten.max.other, aten.min.other, aten.fmax.default, aten.fmin.default,
    content=("self", "other"), passes_gate=True, rows=APART, derivative="form", difference=Variant(_larger_change),
)  # fmt: skip
def _larger(call: Call) -> Affine:
    first, second = call["self"], call["other"]
    wins = {"self": (call.out == first).to(call.out.dtype), "other": (call.out == second).to(call.out.dtype)}
    return _chosen(call, {name: win * (1 - 0.5 * (wins["self"] * wins["other"])) for name, win in wins.items()})


@static(
    aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther,
    content=("self", "other"), passes_gate=True, complex=True, rows=APART,
)  # fmt: skip
def _where(call: Call) -> Affine:
    chosen = call["condition"].to(real_dtype(call))
    return _chosen(call, {"self": chosen, "other": 1 - chosen})


@static(aten.masked_fill.Scalar, aten.masked_fill.Tensor, passes_gate=True, complex=True, rows=APART)
def _masked_fill(call: Call) -> tuple[Linear, Bias]:
    masked = call["mask"].to(real_dtype(call))
    return Diagonal(1 - masked, call.shape(), call.out.shape), Bias(masked * Bias(call["value"]).finite().value)
