"""Averaging pools. Each is separable: one small matrix per dimension."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from omenn_fx.algebra.form import Call
from omenn_fx.algebra.linear import Linear, Reduction
from omenn_fx.algebra.mass import Even, Mass, Shape
from omenn_fx.algebra.rows import last
from omenn_fx.rules.ops.forms import static
from omenn_fx.rules.ops.windows import wide

aten = torch.ops.aten
Tensor = torch.Tensor


class Separable(Linear):
    """W = P_1 x ... x P_n over the last n dimensions, P_d of shape [out_d, in_d]. Mass goes in proportion to |P|."""

    def __init__(self, matrices: list[Tensor], operand: Shape):
        self.matrices, self.operand = matrices, operand
        self.first = len(operand) - len(matrices)

    def _through(self, value: Tensor, matrices: list[Tensor]) -> Tensor:
        """Multiply dimension first + d by matrices[d]."""
        for d, matrix in enumerate(matrices):
            axis = d - len(matrices)
            if axis == -1:
                value = torch.matmul(value, matrix.t())
            elif axis == -2:
                value = torch.matmul(matrix, value)
            else:
                value = torch.matmul(value.transpose(axis, -1), matrix.t()).transpose(axis, -1)
        return value

    def apply(self, u: Tensor) -> Tensor:
        return self._through(u, self.matrices)

    def transpose(self, g: Tensor) -> Tensor:
        return self._through(g, [m.t() for m in self.matrices])

    def carry(self, mass: Mass) -> Mass:
        shares = [_shares(m).t() for m in self.matrices]
        parts = mass.parts
        if len(parts) == 1 and isinstance(parts[0], Even) and all(d < self.first for d in parts[0].even):
            return Mass((Even(self._through(parts[0].value, shares), parts[0].even),), self.operand)
        return Mass((Even(self._through(mass.dense(), shares)),), self.operand)

    def magnitude(self) -> Linear:
        return Separable([m.abs() for m in self.matrices], self.operand)


def _shares(matrix: Tensor) -> Tensor:
    """Rows of |P| that sum to 1; a row of zeros (a window of padding) reads all positions alike."""
    size = matrix.abs()
    size = torch.where(size.sum(1, keepdim=True) == 0, torch.ones_like(size), size)
    return size / size.sum(1, keepdim=True)


# Averages ------------------------------------------------------------------------------------------------------------


def unit_vectors(size: Any, like: Tensor) -> Tensor:
    """The identity matrix, float64; of a free size in the dtype of a value of the graph that is built."""
    if isinstance(size, int):
        return torch.eye(size, dtype=torch.float64)
    at = like.new_ones((size,)).cumsum(0)
    return (at.unsqueeze(1) == at).to(like.dtype)


def matrix_of(kernel: Callable[[Tensor], Tensor], size: Any, like: Tensor) -> Tensor:
    """P [out, size] of a linear map along one dimension: what it makes of the unit vectors, samples [size, 1, size]."""
    matrix = kernel(unit_vectors(size, like).unsqueeze(1)).squeeze(1).t()
    return matrix.contiguous().to(dtype=like.dtype, device=like.device)


def adaptive_windows(size: int, out: int) -> list[tuple[int, int]]:
    """Where the windows of an adaptive pool start and end."""
    return [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]


def _avg_pool(call: Call, n: int) -> Linear:
    shape = call.shape()
    kernel, padding = wide(call["kernel_size"], n), wide(call["padding"], n)
    stride = wide(call["stride"], n) if call["stride"] else kernel
    how = call["ceil_mode"], call["count_include_pad"]
    matrices = [
        matrix_of(lambda unit, k=k, s=s, p=p: aten.avg_pool1d.default(unit, [k], [s], [p], *how), size, call.x)  # type: ignore[misc]
        for size, k, s, p in zip(shape[-n:], kernel, stride, padding, strict=True)
    ]
    if call.operands.get("divisor_override"):
        matrices = [(m != 0).to(m.dtype) for m in matrices]
        matrices[0] = matrices[0] / call["divisor_override"]
    return Separable(matrices, shape)


static(aten.avg_pool1d.default, sign="kept", rows=last("kernel_size"))(partial(_avg_pool, n=1))
static(aten.avg_pool2d.default, sign="kept", rows=last("kernel_size"))(partial(_avg_pool, n=2))
static(aten.avg_pool3d.default, sign="kept", rows=last("kernel_size"))(partial(_avg_pool, n=3))


@static(
    aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default,
    sign="kept", rows=last("output_size"),
)  # fmt: skip
def _adaptive_avg_pool(call: Call) -> Linear:
    shape, n = call.shape(), len(call["output_size"])
    sizes, outs = shape[-n:], call.out.shape[-n:]
    if all(isinstance(o, int) and o == 1 for o in outs):
        dims = range(len(shape) - n, len(shape))
        return Reduction(list(dims), True, shape, 1 / math.prod(sizes))
    pool = aten.adaptive_avg_pool1d.default
    return Separable(
        [matrix_of(lambda unit, o=o: pool(unit, [int(o)]), int(s), call.x) for s, o in zip(sizes, outs, strict=True)],  # type: ignore[misc]
        shape,
    )
