"""Sums, products and matrix products. Where both operands of a product carry content, roles has chosen: one operand
is the coefficient, or each takes half of the product (exact: a b = 1/2 (a) b + 1/2 a (b))."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from omenn_fx.algebra.form import Affine, Bias, Call, Slot
from omenn_fx.algebra.linear import Chain, ComplexDiagonal, Diagonal, Linear, Matrix, Moves, Reduction, Weighted
from omenn_fx.algebra.mass import Even, Mass, Shape, sum_to
from omenn_fx.algebra.ruleset import rule

aten = torch.ops.aten
Tensor = torch.Tensor


# Sums ----------------------------------------------------------------------------------------------------------------


def _sum(call: Call, factors: dict[str, Any]) -> Affine:
    """sum of factor * operand; operands without content are the bias."""
    terms: dict[Slot, Linear] = {}
    for slot in call.content:
        factor = factors[slot.name]
        one = isinstance(factor, (int, float)) and factor == 1
        terms[slot] = Diagonal(None if one else factor, call.shape(slot), call.out.shape)
    constant: Any = None
    for name, factor in factors.items():
        if Slot(name) not in terms:
            one = isinstance(factor, (int, float)) and factor == 1
            value = call[name] if one else call[name] * factor
            constant = value if constant is None else constant + value
    if isinstance(constant, (int, float)) and constant == 0:
        constant = None
    return Affine(terms, None if constant is None else Bias(constant).finite())


@rule(aten.add.Tensor, aten.add.Scalar, content=("self", "other"), passes_gate=True)
def _add(call: Call) -> Affine:
    return _sum(call, {"self": 1, "other": call["alpha"]})


@rule(
    aten.sub.Tensor, aten.sub.Scalar, aten.subtract.Tensor, aten.subtract.Scalar,
    content=("self", "other"), passes_gate=True,
)  # fmt: skip
def _sub(call: Call) -> Affine:
    return _sum(call, {"self": 1, "other": -call["alpha"]})


@rule(aten.rsub.Scalar, aten.rsub.Tensor, content=("self", "other"), passes_gate=True)
def _rsub(call: Call) -> Affine:
    return _sum(call, {"self": -call["alpha"], "other": 1})


@rule(aten.lerp.Scalar, aten.lerp.Tensor, content=("self", "end"))
def _lerp(call: Call) -> Affine:
    return _sum(call, {"self": 1 - call["weight"], "end": call["weight"]})


# Element-wise products -----------------------------------------------------------------------------------------------


def _factors(call: Call, left: str, right: str, scale: Any = 1) -> dict[Slot, Linear]:
    """Each factor with the other as its coefficient, which is shared where both are content."""
    slots = [slot for slot in call.content if slot.name in (left, right)]
    share = scale / len(slots) if slots else 1
    terms: dict[Slot, Linear] = {}
    for slot in slots:
        other = call[right if slot.name == left else left]
        if getattr(other, "dtype", None) is torch.bool:
            other = other.to(call.out.dtype)
        kind = ComplexDiagonal if call.out.dtype.is_complex else Diagonal
        terms[slot] = kind(other if share == 1 else other * share, call.shape(slot), call.out.shape)
    return terms


@rule(
    aten.mul.Tensor, aten.mul.Scalar, aten.multiply.Tensor, aten.multiply.Scalar,
    content=("self", "other"), product=True, passes_gate=True,
)  # fmt: skip
def _mul(call: Call) -> Affine:
    return Affine(_factors(call, "self", "other"))


@rule(
    aten.div.Tensor, aten.div.Scalar, aten.divide.Tensor, aten.divide.Scalar, aten.true_divide.Tensor,
    aten.true_divide.Scalar, passes_gate=True,
)  # fmt: skip
def _div(call: Call) -> Linear:
    """The divisor is always a coefficient."""
    kind = ComplexDiagonal if call.out.dtype.is_complex else Diagonal
    return kind(1 / call["other"], call.shape(), call.out.shape)


def _with_addend(call: Call, terms: dict[Slot, Linear], product: Callable[[], Any], factor: Any = 1) -> Affine:
    """factor * self + a product, either of which may be constant."""
    added = call["self"] if factor == 1 else call["self"] * factor
    if Slot("self") in call.content:
        own = Diagonal(None if factor == 1 else factor, call.shape("self"), call.out.shape)
        return Affine({Slot("self"): own, **terms}, None if terms else Bias(product()))
    row = isinstance(added, (int, float)) is False and len(added.shape) == 1
    return Affine(terms, Bias(added, dim=-1 if row else None).finite())


@rule(aten.addcmul.default, content=("self", "tensor1", "tensor2"), product=("tensor1", "tensor2"))
def _addcmul(call: Call) -> Affine:
    a, b, scale = call["tensor1"], call["tensor2"], call["value"]
    return _with_addend(call, _factors(call, "tensor1", "tensor2", scale), lambda: a * b * scale)


@rule(aten.addcdiv.default, content=("self", "tensor1"))
def _addcdiv(call: Call) -> Affine:
    scale = call["value"] / call["tensor2"]
    slot = Slot("tensor1")
    terms: dict[Slot, Linear] = {}
    if slot in call.content:
        terms[slot] = Diagonal(scale, call.shape(slot), call.out.shape)
    return _with_addend(call, terms, lambda: call["tensor1"] * scale)


# Matrix products -----------------------------------------------------------------------------------------------------


class LeftMatrix(Linear):
    """W u = A u over the second last dimension: A moves tokens. Mass goes where A reads, in proportion to |A|.

    `averages` says that the rows of A are not negative and sum to 1, as those of a softmax do.
    """

    def __init__(self, a: Tensor, operand: Shape, result: Shape, averages: bool = False):
        self.a, self.operand, self.result, self.averages = a, operand, result, averages

    def apply(self, u: Tensor) -> Tensor:
        return torch.matmul(self.a, u)

    def transpose(self, g: Tensor) -> Tensor:
        value = torch.matmul(self.a.transpose(-2, -1), g)
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
        value = torch.matmul(g, self.b.transpose(-2, -1))
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


@rule(aten.matmul.default, content=("self", "other"), product=True, layer="dense")
def _matmul(call: Call) -> Affine:
    return Affine(_product(call, "self", "other"))


@rule(aten.bmm.default, aten.mm.default, content=("self", "mat2"), product=True, layer="dense")
def _bmm(call: Call) -> Affine:
    return Affine(_product(call, "self", "mat2"))


@rule(aten.mv.default, content=("self", "vec"), product=True)
def _mv(call: Call) -> Affine:
    return Affine(_product(call, "self", "vec"))


@rule(aten.addmm.default, content=("self", "mat1", "mat2"), product=("mat1", "mat2"), layer="dense")
def _addmm(call: Call) -> Affine:
    terms = _product(call, "mat1", "mat2", call["alpha"])
    return _with_addend(call, terms, lambda: torch.mm(call["mat1"], call["mat2"]) * call["alpha"], call["beta"])


@rule(aten.baddbmm.default, content=("self", "batch1", "batch2"), product=("batch1", "batch2"))
def _baddbmm(call: Call) -> Affine:
    terms = _product(call, "batch1", "batch2", call["alpha"])
    return _with_addend(call, terms, lambda: torch.bmm(call["batch1"], call["batch2"]) * call["alpha"], call["beta"])


@rule(aten.linear.default, content="input", layer="dense")
def _linear(call: Call) -> tuple[Linear, Bias | None]:
    return Matrix(call["weight"], call.shape()), None if call["bias"] is None else Bias(call["bias"], dim=-1)


# Reductions ----------------------------------------------------------------------------------------------------------


def dims_of(call: Call) -> list[int]:
    """The dimensions that a reduction runs over; all of them where it names none."""
    dims = call.operands.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    return list(dims) if dims else list(range(len(call.shape())))


@rule(aten.sum.dim_IntList, aten.sum.default, passes_gate=True)
def _total(call: Call) -> Linear:
    return Reduction(dims_of(call), call.operands.get("keepdim", False), call.shape())


@rule(aten.mean.dim, aten.mean.default, passes_gate=True)
def _mean(call: Call) -> Linear:
    dims, count = dims_of(call), 1
    for d in dims:
        count = count * call.shape()[d]
    return Reduction(dims, call.operands.get("keepdim", False), call.shape(), 1 / count)


@rule(aten.cumsum.default, passes_gate=True)
def _cumsum(call: Call) -> Linear:
    dim = call["dim"]
    return Weighted(lambda u: u.cumsum(dim), lambda g: g.flip(dim).cumsum(dim).flip(dim), call.shape(), call.out.shape)
