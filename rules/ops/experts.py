"""Mixtures of experts: tokens sorted by expert, each group multiplied with its expert's own matrix.

The router has sorted and weighted the tokens before: its choice is a selection, its weights are coefficients.
"""

from __future__ import annotations

import torch

from omenn_fx.algebra.form import Call
from omenn_fx.algebra.linear import Linear
from omenn_fx.algebra.mass import Mass, Shape
from omenn_fx.algebra.rows import summed
from omenn_fx.rules.ops.forms import static

Tensor = torch.Tensor


class GroupedMatrix(Linear):
    """W u = u[start:end] @ weight[i] for each group i of rows. Mass stays at its token."""

    def __init__(self, call: Call, weight: Tensor, operand: Shape):
        self.call, self.weight, self.operand = call, weight, operand

    def apply(self, u: Tensor) -> Tensor:
        return self.call.op(u, self.weight, self.call["offs"])

    def transpose(self, g: Tensor) -> Tensor:
        return self.call.op(g, self.weight.transpose(1, 2), self.call["offs"])

    def carry(self, mass: Mass) -> Mass:
        return Mass((mass.collapsed(-1),), self.operand)

    def magnitude(self) -> Linear:
        return GroupedMatrix(self.call, torch.abs(self.weight), self.operand)


@static("transformers.grouped_mm_fallback.default", content="input", rows=summed(input=-1))
def _grouped(call: Call) -> Linear:
    return GroupedMatrix(call, call["weight"], call.shape())
