"""Padding: by a constant, whose positions read nothing, or by values from inside."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from omenn_fx.algebra.form import Bias, Call
from omenn_fx.algebra.linear import Linear, Moves
from omenn_fx.algebra.mass import Even, Mass, Shape
from omenn_fx.algebra.rows import APART
from omenn_fx.rules.ops.forms import static
from omenn_fx.rules.ops.structural import between_zeros, zeros

aten = torch.ops.aten
Tensor = torch.Tensor


class Pad(Moves):
    """Padding over the last dimensions. `reads[d]` lists the operand position that each result position reads.

    Constant padding reads nothing there; its bias mass goes to the nearest edge.
    """

    def __init__(self, pad: list[int], mode: str, operand: Shape, device: torch.device):
        self.pad, self.mode, self.operand, self.device = pad, mode, operand, device

    def apply(self, u: Tensor) -> Tensor:
        return F.pad(u, self.pad, self.mode)

    def transpose(self, g: Tensor) -> Tensor:
        if self.mode != "constant":
            return self._fold(g, self.mode)
        sizes = [self.operand[dim] for dim, _, _ in self._ends]
        if min(self.pad) < 0 or not all(isinstance(size, int) for size in sizes):
            return F.pad(g, [-p for p in self.pad])
        for (dim, left, _), size in zip(self._ends, sizes, strict=True):
            g = g.narrow(dim, left, size)
        return g

    @property
    def _ends(self) -> list[tuple[int, int, int]]:
        """The padded dimensions, with the padding on both sides of each."""
        last, pairs = len(self.operand) - 1, zip(self.pad[::2], self.pad[1::2], strict=True)
        return [(last - i, left, right) for i, (left, right) in enumerate(pairs) if left or right]

    def carry(self, mass: Mass) -> Mass:
        mode = "replicate" if self.mode == "constant" else self.mode
        whole = mass.along([dim for dim, _, _ in self._ends])
        return Mass((Even(self._fold(whole.value, mode), whole.even),), self.operand)

    def _fold(self, value: Tensor, mode: str) -> Tensor:
        for dim, left, right in self._ends:
            value = _folded(value, dim, int(self.operand[dim]), left, right, mode)
        return value


def _folded(value: Tensor, dim: int, size: int, left: int, right: int, mode: str) -> Tensor:
    """Along one dimension, each padded value added to the one that it was read from: run by run, without an index."""
    total: Any = None
    for first, at, length, step in _runs(_reads(size, left, right, mode)):
        run = value.narrow(dim, first, length)
        run = run.sum(dim, keepdim=True) if step == 0 and length > 1 else run.flip(dim) if step < 0 else run
        start, wide = (at, 1) if step == 0 else (at - length + 1 if step < 0 else at, length)
        run = between_zeros(run, dim, start, size) if wide < size else run
        total = run if total is None else total + run
    return zeros(value, [*value.shape[:dim], size, *value.shape[dim + 1 :]]) if total is None else total


def _runs(reads: list[int]) -> list[tuple[int, int, int, int]]:
    """Positions that read in steps of 1, 0 or -1: (the first one, what it reads, how many there are, the step)."""
    runs: list[tuple[int, int, int, int]] = []
    for position, read in enumerate(reads):
        if runs:
            first, at, length, step = runs[-1]
            change = read - reads[position - 1]
            if change == step or (length == 1 and abs(change) <= 1):
                runs[-1] = (first, at, length + 1, change)
                continue
        runs.append((position, read, 1, 1))
    return runs


def _reads(size: int, left: int, right: int, mode: str) -> list[int]:
    positions = range(-left, size + right)
    if mode == "circular":
        return [p % size for p in positions]
    if mode == "reflect":
        return [-p if p < 0 else 2 * (size - 1) - p if p >= size else p for p in positions]
    return [min(max(p, 0), size - 1) for p in positions]


@static(aten.pad.default, aten.constant_pad_nd.default, complex=True, rows=APART)
def _pad(call: Call) -> tuple[Linear, Bias | None]:
    pad, mode = list(call["pad"]), call.operands.get("mode", "constant")
    value = call["value"] or 0.0
    linear = Pad(pad, mode, call.shape(), call.x.device)
    if mode != "constant" or value == 0:
        return linear, None
    return linear, Bias(F.pad(torch.zeros_like(call.x), pad, value=value)).finite()
