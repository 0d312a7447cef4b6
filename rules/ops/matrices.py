"""Matrix products, with constants and between two values of the input. Where both factors carry content, roles has
chosen: one is the coefficient, or each takes half of the product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from omenn_fx.algebra.form import Affine, Bias, Call, Slot
from omenn_fx.algebra.linear import Chain, Linear, Matrix, Moves, conjugate
from omenn_fx.algebra.mass import Even, Mass, Shape, sum_to
from omenn_fx.algebra.rows import summed
from omenn_fx.rules.ops.arithmetic import with_addend
from omenn_fx.rules.ops.forms import halfway, static

aten = torch.ops.aten
Tensor = torch.Tensor


class LeftMatrix(Linear):
    """W u = A u over the second last dimension: A moves tokens. Mass goes where A reads, in proportion to |A|.

    `averages` says that the rows of A are not negative and sum to 1, as those of a softmax do.
    """

    def __init__(self, a: Tensor, operand: Shape, result: Shape, averages: bool = False):
        self.a, self.operand, self.result, self.averages = a, operand, result, averages

    def apply(self, u: Tensor) -> Tensor:
        return torch.matmul(self.a, u)

    def transpose(self, g: Tensor) -> Tensor:
        value = torch.matmul(conjugate(self.a).transpose(-2, -1), g)
        return sum_to(value, [*self.result[:-2], *self.operand[-2:]], self.operand)

    def carry(self, mass: Mass) -> Mass:
        part, last = mass.parts[0], len(self.result) - 1
        even = len(mass.parts) == 1 and isinstance(part, Even) and part.even == {last}
        value = part.value if even and isinstance(part, Even) else mass.dense()  # tokens move without being spread
        moved = torch.matmul(self._shares().transpose(-2, -1), value)
        width = 1 if even else self.operand[-1]
        moved = sum_to(moved, [*self.result[:-2], self.operand[-2], width], [*self.operand[:-1], width])
        return Mass((Even(moved, frozenset({len(self.operand) - 1} if even else ())),), self.operand)

    def _shares(self) -> Tensor:
        if self.averages:
            return self.a
        weight = torch.abs(self.a)
        total = weight.sum(-1, keepdim=True)
        empty = (total == 0).to(total.dtype)  # a row of zeros reads nothing: its mass goes to all tokens alike
        return (weight + empty) / (total + empty * self.operand[-2])

    def magnitude(self) -> Linear:
        return self.weighted(torch.abs)

    def weighted(self, change: Callable[[Tensor], Tensor]) -> Linear:
        return LeftMatrix(change(self.a), self.operand, self.result)


class RightMatrix(Linear):
    """W u = u B over the last dimension, B possibly different for each batch entry. Mass stays at its token."""

    def __init__(self, b: Tensor, operand: Shape, result: Shape):
        self.b, self.operand, self.result = b, operand, result

    def apply(self, u: Tensor) -> Tensor:
        return torch.matmul(u, self.b)

    def transpose(self, g: Tensor) -> Tensor:
        value = torch.matmul(g, conjugate(self.b).transpose(-2, -1))
        return sum_to(value, [*self.result[:-1], self.operand[-1]], self.operand)

    def carry(self, mass: Mass) -> Mass:
        total = mass.collapsed(-1)
        last = len(self.result) - 1
        if total.even != {last} or len(self.operand) != len(self.result):
            value = Even(total.value, total.even - {last}).dense([*self.result[:-1], 1])
        else:
            value = total.value
        value = sum_to(value, [*self.result[:-1], 1], [*self.operand[:-1], 1])
        return Mass((Even(value, frozenset({len(self.operand) - 1})),), self.operand)

    def magnitude(self) -> Linear:
        return self.weighted(torch.abs)

    def weighted(self, change: Callable[[Tensor], Tensor]) -> Linear:
        return RightMatrix(change(self.b), self.operand, self.result)


def _product(call: Call, left: str, right: str, scale: Any = 1) -> dict[Slot, Linear]:
    """Each matrix with the other as its coefficient; a vector is a matrix of one row or column, as in torch.matmul."""
    vectors = [len(call[name].shape) == 1 for name in (left, right)]
    result = list(call.out.shape)
    wide = [*result, 1] if vectors[1] else result
    wide = [*wide[:-1], 1, wide[-1]] if vectors[0] else wide
    slots = [slot for slot in call.content if slot.name in (left, right)]
    share = scale / len(slots) if slots else 1
    terms: dict[Slot, Linear] = {}
    for slot in slots:
        first = slot.name == left
        other, at = call[right if first else left], -1 if first else -2
        other = other.unsqueeze(at) if vectors[first] else other
        other = other if share == 1 else other * share
        shape = list(call.shape(slot))
        operand = [1, *shape] if first and vectors[0] else [*shape, 1] if vectors[1] and not first else shape
        linear: Linear = (RightMatrix if first else LeftMatrix)(other, operand, wide)
        if len(operand) > len(shape):
            linear = Chain(linear, _reshaped(shape, operand))
        terms[slot] = Chain(_reshaped(wide, result), linear) if len(wide) > len(result) else linear
    return terms


def _reshaped(source: Shape, target: Shape) -> Linear:
    return Moves(lambda u: u.reshape(tuple(target)), lambda g: g.reshape(tuple(source)), source)


@static(
    aten.matmul.default,
    content=("self", "other"), product=True, complex=True, layer="dense", kind="product",
    rows=summed(self=-1, other=-2),
    difference=halfway("self", "other"),
)  # fmt: skip
def _matmul(call: Call) -> Affine:
    return Affine(_product(call, "self", "other"))


@static(
    aten.bmm.default, aten.mm.default,
    content=("self", "mat2"), product=True, complex=True, layer="dense", kind="product", rows=summed(self=-1, mat2=-2),
    difference=halfway("self", "mat2"),
)  # fmt: skip
def _bmm(call: Call) -> Affine:
    return Affine(_product(call, "self", "mat2"))


@static(
    aten.mv.default,
    content=("self", "vec"), product=True, complex=True, kind="product", rows=summed(self=-1, vec=-2),
    difference=halfway("self", "vec"),
)  # fmt: skip
def _mv(call: Call) -> Affine:
    return Affine(_product(call, "self", "vec"))


@static(
    aten.addmm.default,
    content=("self", "mat1", "mat2"), product=("mat1", "mat2"), complex=True, layer="dense", kind="product",
    rows=summed(mat1=-1, mat2=-2), difference=halfway("mat1", "mat2"),
)  # fmt: skip
def _addmm(call: Call) -> Affine:
    terms = _product(call, "mat1", "mat2", call["alpha"])
    return with_addend(call, terms, lambda: torch.mm(call["mat1"], call["mat2"]) * call["alpha"], call["beta"])


@static(
    aten.baddbmm.default,
    content=("self", "batch1", "batch2"), product=("batch1", "batch2"), complex=True, kind="product",
    rows=summed(batch1=-1, batch2=-2), difference=halfway("batch1", "batch2"),
)  # fmt: skip
def _baddbmm(call: Call) -> Affine:
    terms = _product(call, "batch1", "batch2", call["alpha"])
    return with_addend(call, terms, lambda: torch.bmm(call["batch1"], call["batch2"]) * call["alpha"], call["beta"])


@static(aten.linear.default, content="input", layer="dense", complex=True, rows=summed(input=-1))
def _linear(call: Call) -> tuple[Linear, Bias | None]:
    return Matrix(call["weight"], call.shape()), None if call["bias"] is None else Bias(call["bias"], dim=-1)
