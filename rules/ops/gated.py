"""Gated linear units: a sigmoid(b) for the halves a and b of x."""

from __future__ import annotations

import torch

from omenn_fx.algebra.form import Call
from omenn_fx.algebra.linear import Chain, Diagonal, Linear, Sum
from omenn_fx.algebra.rows import along
from omenn_fx.algebra.ruleset import Variant
from omenn_fx.rules.ops.forms import before, dynamic, of_sigmoid, only_term, product
from omenn_fx.rules.ops.structural import piece

aten = torch.ops.aten


def halves_of(call: Call) -> tuple[Linear, Linear]:
    """The maps to a and to b."""
    dim, half = call["dim"] % len(call.shape()), call.out.shape[call["dim"]]
    first, second = (piece(call.shape(), dim, start, half) for start in (0, half))
    return first, second


def _slope(call: Call) -> Linear:
    first, second = halves_of(call)
    gate = torch.sigmoid(second.apply(call.x))
    by_gate = Diagonal(call.out * (1 - gate), call.out.shape, call.out.shape)
    return Sum(Chain(Diagonal(gate, call.out.shape, call.out.shape), first), Chain(by_gate, second))


def _change(call: Call) -> Linear:
    first, second = halves_of(call)
    (a, a0), (b, b0) = ((part.apply(call.x), part.apply(before(call).x)) for part in (first, second))
    gate, gate0 = torch.sigmoid(b), torch.sigmoid(b0)
    by_content, by_gate = product(a, a0, gate, gate0)
    maps = ((by_content, first), (by_gate * of_sigmoid(gate, gate0, b - b0), second))
    return Sum(*(Chain(Diagonal(by, call.out.shape, call.out.shape), part) for by, part in maps))


@dynamic(
    aten.glu.default,
    kind="gated",
    rows=along("dim"),
    derivative=Variant(only_term(_slope)),
    difference=Variant(only_term(_change)),
)
def _glu(call: Call) -> Linear:
    """The gate is the coefficient."""
    dim = call["dim"] % len(call.shape())
    half = call.out.shape[dim]
    gate = torch.sigmoid(call.x.narrow(dim, half, half))
    return Chain(Diagonal(gate, call.out.shape, call.out.shape), piece(call.shape(), dim, 0, half))
