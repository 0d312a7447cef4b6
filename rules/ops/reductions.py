"""Sums and means over dimensions, and running sums."""

from __future__ import annotations

import torch

from omenn_fx.algebra.form import Call
from omenn_fx.algebra.linear import Linear, Reduction, Weighted
from omenn_fx.algebra.rows import along
from omenn_fx.rules.ops.forms import static

aten = torch.ops.aten
Tensor = torch.Tensor


def dims_of(call: Call) -> list[int]:
    """The dimensions that a reduction runs over; all of them where it names none."""
    dims = call.operands.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    return list(dims) if dims else list(range(len(call.shape())))


@static(
    aten.sum.dim_IntList, aten.sum.default, passes_gate=True, complex=True, sign="kept", rows=along("dim")
)  # fmt: skip
def _total(call: Call) -> Linear:
    return Reduction(dims_of(call), call.operands.get("keepdim", False), call.shape())


@static(
    aten.mean.dim, aten.mean.default, passes_gate=True, complex=True, sign="kept", rows=along("dim")
)  # fmt: skip
def _mean(call: Call) -> Linear:
    dims, count = dims_of(call), 1
    for d in dims:
        count = count * call.shape()[d]
    return Reduction(dims, call.operands.get("keepdim", False), call.shape(), 1 / count)


@static(aten.cumsum.default, passes_gate=True, complex=True, rows=along("dim"), kind="running sum")
def _cumsum(call: Call) -> Linear:
    dim = call["dim"]
    return Weighted(lambda u: u.cumsum(dim), lambda g: g.flip(dim).cumsum(dim).flip(dim), call.shape(), call.out.shape)
