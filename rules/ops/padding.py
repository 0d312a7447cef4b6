"""Padding: by a constant, whose positions read nothing, or by values from inside."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from omenn_fx.algebra.form import Bias, Call
from omenn_fx.algebra.linear import Linear, Moves
from omenn_fx.algebra.mass import Even, Mass, Shape
from omenn_fx.algebra.rows import APART
from omenn_fx.rules.ops.forms import static
from omenn_fx.rules.ops.structural import zeros

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
        if self.mode == "constant":
            return F.pad(g, [-p for p in self.pad])
        return self._fold(g, self.mode)

    def carry(self, mass: Mass) -> Mass:
        mode = "replicate" if self.mode == "constant" else self.mode
        return Mass((Even(self._fold(mass.dense(), mode)),), self.operand)

    def _fold(self, value: Tensor, mode: str) -> Tensor:
        shape = list(self.operand)
        ends = [(len(shape) - 1 - i, self.pad[2 * i], self.pad[2 * i + 1]) for i in range(len(self.pad) // 2)]
        for dim, left, right in ends:
            shape[dim] = shape[dim] + left + right
        for dim, left, right in ends:
            if left or right:
                size = self.operand[dim]
                index = torch.tensor(_reads(size, left, right, mode), device=self.device)
                shape[dim] = size
                value = torch.index_add(zeros(value, shape), dim, index, value)
        return value


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
