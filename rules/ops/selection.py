"""Selections: every result position is the value of the winner among several. Ties share equally.

Maxima over dimensions, sorted values, the larger of two tensors, and the choices made by a mask.
"""

from __future__ import annotations

from typing import Any

import torch

from omenn_fx.algebra.form import Affine, Bias, Call, Slot
from omenn_fx.algebra.linear import Chain, Diagonal, Linear, Moves, Reduction
from omenn_fx.algebra.ruleset import rule
from omenn_fx.rules.ops.bilinear import dims_of

aten = torch.ops.aten
Tensor = torch.Tensor

# Over dimensions -----------------------------------------------------------------------------------------------------


def winner(call: Call, top: Tensor, dims: list[int], keepdim: bool) -> Linear:
    """The map to the value `top` (with all dimensions kept) of the operand. Mass is shared evenly over `dims`."""
    shape = call.shape()
    wins = (call.x == top).to(call.x.dtype)
    wins = wins / wins.sum(dims, keepdim=True)
    return Chain(Reduction(dims, keepdim, shape), Diagonal(wins, shape, shape))


@rule(
    aten.max.dim,
    aten.min.dim,
    aten.max.default,
    aten.min.default,
    aten.amax.default,
    aten.amin.default,
    aten.median.dim,
    aten.kthvalue.default,
    dynamic=True,
    passes_gate=True,
)
def _extreme(call: Call) -> Linear:
    dims, keepdim = dims_of(call), bool(call.operands.get("keepdim"))
    top = call.out
    if not keepdim:
        for d in sorted(d % max(len(call.shape()), 1) for d in dims):
            top = top.unsqueeze(d)
    return winner(call, top, dims, keepdim)


@rule(aten.logsumexp.default, dynamic=True)
def _logsumexp(call: Call) -> tuple[Linear, Bias]:
    """max x + log Z, Z frozen, as in log_softmax."""
    dims = dims_of(call)
    top = call.x.amax(dims, keepdim=True)
    rest = torch.exp(call.x - top).sum(dims, keepdim=call["keepdim"])
    return winner(call, top, dims, call["keepdim"]), Bias(torch.log(rest))


@rule(
    aten.topk.default,
    aten.sort.default,
    aten.sort.stable,
    aten.msort.default,
    aten.cummax.default,
    aten.cummin.default,
    dynamic=True,
    passes_gate=True,
)
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


@rule(
    aten.maximum.default,
    aten.minimum.default,
    aten.max.other,
    aten.min.other,
    aten.fmax.default,
    aten.fmin.default,
    content=("self", "other"),
    dynamic=True,
    passes_gate=True,
)
def _larger(call: Call) -> Affine:
    first, second = call["self"], call["other"]
    wins = {"self": (call.out == first).to(call.out.dtype), "other": (call.out == second).to(call.out.dtype)}
    return _chosen(call, {name: win * (1 - 0.5 * (wins["self"] * wins["other"])) for name, win in wins.items()})


@rule(aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther, content=("self", "other"), passes_gate=True)
def _where(call: Call) -> Affine:
    chosen = call["condition"].to(call.out.dtype)
    return _chosen(call, {"self": chosen, "other": 1 - chosen})


@rule(aten.masked_fill.Scalar, aten.masked_fill.Tensor, passes_gate=True)
def _masked_fill(call: Call) -> tuple[Linear, Bias]:
    masked = call["mask"].to(call.out.dtype)
    return Diagonal(1 - masked, call.shape(), call.out.shape), Bias(masked * Bias(call["value"]).finite().value)
