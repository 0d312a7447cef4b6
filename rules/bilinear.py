"""Sums, products and matrix products. Where both operands of a product carry content, roles has chosen: one operand
is the coefficient, or each takes half of the product (exact: a b = 1/2 (a) b + 1/2 a (b))."""

from __future__ import annotations

from typing import Any

import torch

from omenn_fx.linear import Diagonal, Linear, Matrix, Reduction
from omenn_fx.mass import Even, Mass, Shape, sum_to
from omenn_fx.registry import Affine, Bias, Call, Slot, rule

aten = torch.ops.aten
Tensor = torch.Tensor


# Sums ----------------------------------------------------------------------------------------------------------------


def _sum(call: Call, factors: dict[str, Any]) -> Affine:
    """sum of factor * operand; operands without content are the bias."""
    terms: dict[Slot, Linear] = {}
    for slot in call.content:
        factor = factors[slot.name]
        terms[slot] = Diagonal(None if factor == 1 else factor, call.shape(slot), call.out.shape)
    constant: Any = None
    for name, factor in factors.items():
        if Slot(name) not in terms:
            value = call[name] if factor == 1 else call[name] * factor
            constant = value if constant is None else constant + value
    if isinstance(constant, (int, float)) and constant == 0:
        constant = None
    return Affine(terms, None if constant is None else Bias(constant))


@rule(aten.add.Tensor, aten.add.Scalar, content=("self", "other"), passes_gate=True)
def _add(call: Call) -> Affine:
    return _sum(call, {"self": 1, "other": call["alpha"]})


@rule(aten.sub.Tensor, aten.sub.Scalar, content=("self", "other"), passes_gate=True)
def _sub(call: Call) -> Affine:
    return _sum(call, {"self": 1, "other": -call["alpha"]})


@rule(aten.rsub.Scalar, aten.rsub.Tensor, content=("self", "other"), passes_gate=True)
def _rsub(call: Call) -> Affine:
    return _sum(call, {"self": -call["alpha"], "other": 1})


# Element-wise products -----------------------------------------------------------------------------------------------


@rule(
    aten.mul.Tensor, aten.mul.Scalar, aten.multiply.Tensor, content=("self", "other"), product=True, passes_gate=True
)
def _mul(call: Call) -> Affine:
    terms: dict[Slot, Linear] = {}
    for slot in call.content:
        other = call["other" if slot.name == "self" else "self"]
        coefficient = other if len(call.content) == 1 else other * 0.5
        terms[slot] = Diagonal(coefficient, call.shape(slot), call.out.shape)
    return Affine(terms)


@rule(aten.div.Tensor, aten.div.Scalar, content="self", passes_gate=True)
def _div(call: Call) -> Linear:
    """The divisor is always a coefficient."""
    return Diagonal(1 / call["other"], call.shape(), call.out.shape)


# Matrix products -------------------------------------------------------------------------------------------------------


class LeftMatrix(Linear):
    """W u = A u over the second last dimension: A moves tokens. Mass goes where A reads, in proportion to |A|."""

    def __init__(self, a: Tensor, operand: Shape, result: Shape):
        self.a, self.operand, self.result = a, operand, result

    def apply(self, u: Tensor) -> Tensor:
        return torch.matmul(self.a, u)

    def transpose(self, g: Tensor) -> Tensor:
        value = torch.matmul(self.a.transpose(-2, -1), g)
        return sum_to(value, [*self.result[:-2], *self.operand[-2:]], self.operand)

    def carry(self, mass: Mass) -> Mass:
        even = frozenset(d for d in mass.parts[0].even if d == len(self.result) - 1) if _is_even(mass) else frozenset()
        value = mass.parts[0].value if even else mass.dense()
        weight = torch.abs(self.a)
        total = weight.sum(-1, keepdim=True)
        empty = (total == 0).to(total.dtype)  # a row of zeros reads nothing: its mass goes to all tokens alike
        share = (weight + empty) / (total + empty * self.operand[-2])
        moved = torch.matmul(share.transpose(-2, -1), value)
        moved = sum_to(moved, [*self.result[:-2], self.operand[-2], 1 if even else self.operand[-1]],
                       [*self.operand[:-1], 1 if even else self.operand[-1]])  # fmt: skip
        return Mass((Even(moved, frozenset({len(self.operand) - 1}) if even else frozenset()),), self.operand)

    def magnitude(self) -> Linear:
        return LeftMatrix(torch.abs(self.a), self.operand, self.result)


def _is_even(mass: Mass) -> bool:
    """A single part that is even over the last dimension only, so that tokens can be moved without spreading it."""
    part = mass.parts[0]
    return len(mass.parts) == 1 and isinstance(part, Even) and part.even == {len(mass.shape) - 1}


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
        return RightMatrix(torch.abs(self.b), self.operand, self.result)


def _product(call: Call, left: str, right: str, factor: Any = 1) -> dict[Slot, Linear]:
    terms: dict[Slot, Linear] = {}
    for slot in call.content:
        other = call[right if slot.name == left else left]
        share = factor / len(call.content)
        other = other if share == 1 else other * share
        kind = RightMatrix if slot.name == left else LeftMatrix
        terms[slot] = kind(other, call.shape(slot), call.out.shape)
    return terms


@rule(aten.matmul.default, aten.mm.default, content=("self", "other"), product=True)
def _matmul(call: Call) -> Affine:
    return Affine(_product(call, "self", "other"))


@rule(aten.bmm.default, content=("self", "mat2"), product=True)
def _bmm(call: Call) -> Affine:
    return Affine(_product(call, "self", "mat2"))


@rule(aten.addmm.default, content=("mat1", "mat2"), product=True)
def _addmm(call: Call) -> Affine:
    added = call["self"] if call["beta"] == 1 else call["self"] * call["beta"]
    vector = len(call["self"].shape) == 1
    return Affine(_product(call, "mat1", "mat2", call["alpha"]), Bias(added, dim=-1 if vector else None))


@rule(aten.linear.default, content="input")
def _linear(call: Call) -> tuple[Linear, Bias | None]:
    return Matrix(call["weight"], call.shape()), None if call["bias"] is None else Bias(call["bias"], dim=-1)


# Reductions ------------------------------------------------------------------------------------------------------------


def _dims(call: Call) -> list[int]:
    dims = call.operands.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    return list(dims) if dims else list(range(len(call.shape())))


@rule(aten.sum.dim_IntList, aten.sum.default, passes_gate=True)
def _total(call: Call) -> Linear:
    return Reduction(_dims(call), call.operands.get("keepdim", False), call.shape())


@rule(aten.mean.dim, aten.mean.default, passes_gate=True)
def _mean(call: Call) -> Linear:
    dims, count = _dims(call), 1
    for d in dims:
        count = count * call.shape()[d]
    return Reduction(dims, call.operands.get("keepdim", False), call.shape(), 1 / count)
