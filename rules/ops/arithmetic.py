"""Sums, products and quotients, element by element. Where both operands of a product carry content, roles has chosen:
one operand is the coefficient, or each takes half of the product (exact: a b = 1/2 (a) b + 1/2 a (b))."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from omenn_fx.algebra.form import Affine, Bias, Call, Slot
from omenn_fx.algebra.linear import ComplexDiagonal, Diagonal, Linear
from omenn_fx.algebra.rows import APART
from omenn_fx.algebra.ruleset import Variant
from omenn_fx.rules.ops.forms import before, derivatives, halfway, product, static, with_remainder

aten = torch.ops.aten
Tensor = torch.Tensor


def _kind(call: Call) -> type[Diagonal]:
    """Of the diagonals of a call."""
    return ComplexDiagonal if call.out.dtype.is_complex else Diagonal


# Sums ----------------------------------------------------------------------------------------------------------------


def _sum(call: Call, factors: dict[str, Any]) -> Affine:
    """sum of factor * operand; operands without content are the bias."""
    terms: dict[Slot, Linear] = {}
    for slot in call.content:
        factor = factors[slot.name]
        one = isinstance(factor, (int, float)) and factor == 1
        terms[slot] = _kind(call)(None if one else factor, call.shape(slot), call.out.shape)
    constant: Any = None
    for name, factor in factors.items():
        if Slot(name) not in terms:
            one = isinstance(factor, (int, float)) and factor == 1
            value = call[name] if one else call.number(name) * factor
            constant = value if constant is None else constant + value
    if isinstance(constant, (int, float)) and constant == 0:
        constant = None
    return Affine(terms, None if constant is None else Bias(constant).finite())


def _sign_of_sum(operands: Mapping[str, Any]) -> str | None:
    """A constant that is added might be negative, and so might the factor."""
    return "kept" if operands["alpha"] == 1 and not isinstance(operands["other"], (int, float)) else None


def _sign_of_product(operands: Mapping[str, Any]) -> str | None:
    """A number may be negative."""
    other = operands["other"]
    return "kept" if not isinstance(other, (int, float)) or other >= 0 else None


@static(
    aten.add.Tensor, aten.add.Scalar,
    content=("self", "other"), passes_gate=True, complex=True, sign=_sign_of_sum, rows=APART,
)  # fmt: skip
def _add(call: Call) -> Affine:
    return _sum(call, {"self": 1, "other": call["alpha"]})


@static(
    aten.sub.Tensor, aten.sub.Scalar, content=("self", "other"), passes_gate=True, complex=True, rows=APART
)  # fmt: skip
def _sub(call: Call) -> Affine:
    return _sum(call, {"self": 1, "other": -call["alpha"]})


@static(aten.rsub.Scalar, aten.rsub.Tensor, content=("self", "other"), passes_gate=True, complex=True, rows=APART)
def _rsub(call: Call) -> Affine:
    return _sum(call, {"self": -call["alpha"], "other": 1})


@static(aten.lerp.Scalar, aten.lerp.Tensor, content=("self", "end"), complex=True, rows=APART)
def _lerp(call: Call) -> Affine:
    weight = call.number("weight")
    return _sum(call, {"self": 1 - weight, "end": weight})


# Element-wise products -----------------------------------------------------------------------------------------------


def _factors(call: Call, left: str, right: str, scale: Any = 1) -> dict[Slot, Linear]:
    """Each factor with the other as its coefficient, which is shared where both are content."""
    slots = [slot for slot in call.content if slot.name in (left, right)]
    share = scale / len(slots) if slots else 1
    terms: dict[Slot, Linear] = {}
    for slot in slots:
        other = call.number(right if slot.name == left else left)
        terms[slot] = _kind(call)(other if share == 1 else other * share, call.shape(slot), call.out.shape)
    return terms


def _mul_change(call: Call) -> Affine:
    if len(call.content) < 2:
        return _mul(call)
    first, second = product(call["self"], before(call)["self"], call["other"], before(call)["other"])
    return _multiplied(call, self=first, other=second)


def _multiplied(call: Call, **multipliers: Any) -> Affine:
    """The form with a multiplier for each operand that is content."""
    terms = {slot: _kind(call)(multipliers[slot.name], call.shape(slot), call.out.shape) for slot in call.content}
    return with_remainder(call, terms)


@static(
    aten.mul.Tensor, aten.mul.Scalar,
    content=("self", "other"), product=True, passes_gate=True, complex=True, sign=_sign_of_product, kind="product",
    rows=APART, difference=Variant(_mul_change, {"complex": True}),
)  # fmt: skip
def _mul(call: Call) -> Affine:
    return Affine(_factors(call, "self", "other"))


def _div_change(call: Call) -> Affine | Linear:
    """The product with 1 / b, and 1 / b - 1 / b0 = -(b - b0) / (b b0)."""
    if Slot("other") not in call.content:
        return _div(call)
    a, a0 = (c.number("self") for c in (call, before(call) if Slot("self") in call.content else call))
    inverse, inverse0 = 1 / call["other"], 1 / before(call)["other"]
    by_content, by_inverse = product(a, a0, inverse, inverse0)
    return _multiplied(call, self=by_content, other=-by_inverse * inverse * inverse0)


@static(
    aten.div.Tensor, aten.div.Scalar,
    passes_gate=True, complex=True, kind="quotient", rows=APART,
    derivative=derivatives(self=lambda c: 1 / c.number("other"), other=lambda c: -c.out / c["other"]),
    difference=Variant(_div_change, {"content": ("self", "other"), "product": True, "complex": True}),
)  # fmt: skip
def _div(call: Call) -> Linear:
    """The divisor is always a coefficient."""
    return _kind(call)(1 / call.number("other"), call.shape(), call.out.shape)


def with_addend(call: Call, terms: dict[Slot, Linear], product: Callable[[], Any], factor: Any = 1) -> Affine:
    """factor * self + a product, either of which may be constant."""
    added = call["self"] if factor == 1 else call.number("self") * factor
    if Slot("self") in call.content:
        own = _kind(call)(None if factor == 1 else factor, call.shape("self"), call.out.shape)
        return Affine({Slot("self"): own, **terms}, None if terms else Bias(product()))
    row = isinstance(added, (int, float)) is False and len(added.shape) == 1
    return Affine(terms, Bias(added, dim=-1 if row else None).finite())


@static(
    aten.addcmul.default,
    content=("self", "tensor1", "tensor2"), product=("tensor1", "tensor2"), complex=True, kind="product", rows=APART,
    difference=halfway("tensor1", "tensor2"),
)  # fmt: skip
def _addcmul(call: Call) -> Affine:
    a, b, scale = call.number("tensor1"), call.number("tensor2"), call["value"]
    return with_addend(call, _factors(call, "tensor1", "tensor2", scale), lambda: a * b * scale)


@static(aten.addcdiv.default, content=("self", "tensor1"), complex=True, rows=APART)
def _addcdiv(call: Call) -> Affine:
    scale = call["value"] / call.number("tensor2")
    slot = Slot("tensor1")
    terms: dict[Slot, Linear] = {}
    if slot in call.content:
        terms[slot] = _kind(call)(scale, call.shape(slot), call.out.shape)
    return with_addend(call, terms, lambda: call.number("tensor1") * scale)
