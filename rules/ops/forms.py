"""What forms of all families are made of: calls at a reference, remainders, and the products of differences.

With W = J, the Jacobian of an operator at this input, the bias is the remainder b = h - J x. Against a reference input
x0 (`call.reference`) the multipliers W have h - h0 = W (x - x0), so that h = W x + b and h0 = W x0 + b with one b.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from omenn_fx.algebra.composites import repaired_quotient
from omenn_fx.algebra.form import Affine, Bias, Call, Form, Slot
from omenn_fx.algebra.linear import Chain, ComplexDiagonal, Diagonal, Linear, Sum
from omenn_fx.algebra.ruleset import Rule, Variant, omenn

Tensor = torch.Tensor
static = partial(omenn.register, dynamic=False)  # W and b depend on no content of the operator's
dynamic = partial(omenn.register, dynamic=True)


def with_remainder(call: Call, terms: Mapping[Slot, Linear]) -> Affine:
    """The affine form whose bias is what W x leaves of h. A mask, at -inf, has weight 0."""
    rest = call.out
    for slot, linear in terms.items():
        x = torch.nan_to_num(call.at(slot), posinf=0.0, neginf=0.0).to(call.out.dtype)
        rest = rest - linear.apply(x)
    return Affine(terms, Bias(rest).finite())


def only_term(map_of: Callable[[Call], Linear]) -> Form:
    """The form of an operator with one content operand, of the map that is its Jacobian or its multiplier."""
    return lambda call: with_remainder(call, {call.content[0]: map_of(call)})


def quotient(difference: Tensor, x: Tensor, slope: Any) -> Tensor:
    """difference / x, and `slope` where x is 0."""
    if isinstance(slope, (int, float)):
        return repaired_quotient(difference, x, float(slope))
    return torch.where(x == 0, slope, difference / x)


def bounded(slope: Tensor) -> Tensor:
    """0 where a derivative is infinite."""
    return torch.nan_to_num(slope, nan=0.0, posinf=0.0, neginf=0.0)


def where(condition: Tensor, call: Call, then: Any = 1.0, other: Any = 0.0) -> Tensor:
    """One of two finite values, in the dtype of the result."""
    holds = condition.to(call.out.dtype)
    return other + holds * (then - other)


def real_dtype(call: Call) -> torch.dtype:
    """That of masks and shares: the dtype of the result, of a complex one that of its parts."""
    dtype: torch.dtype = call.out.dtype
    return dtype.to_real() if dtype.is_complex else dtype


def scaled(linear: Linear, by: Any, call: Call) -> Linear:
    """A number times a map to the result of a call."""
    return linear if by == 1 else Chain(Diagonal(by, call.out.shape, call.out.shape), linear)


# Derivatives ---------------------------------------------------------------------------------------------------------


def derivatives(accepts: Any = None, **formulas: Callable[[Call], Any]) -> Variant:
    """The Jacobian of an element-wise operator: for each operand the formula of h's derivative by it."""

    def form(call: Call) -> Affine:
        kind = ComplexDiagonal if call.out.dtype.is_complex else Diagonal
        terms = {s: kind(formulas[s.name](call), call.shape(s), call.out.shape) for s in call.content}
        return with_remainder(call, terms)

    return Variant(form, {"content": tuple(formulas), "accepts": accepts})


def twice(form: Form) -> Variant:
    """The Jacobian of a square whose exact form holds one of its two factors fixed."""
    return Variant(only_term(lambda call: scaled(_linear(form, call), 2.0, call)))


def _linear(form: Form, call: Call) -> Linear:
    linear = form(call)
    assert isinstance(linear, Linear)
    return linear


# Differences ---------------------------------------------------------------------------------------------------------


def before(call: Call) -> Call:
    """The call at the reference."""
    assert call.reference is not None
    return call.reference


def exchanged(call: Call, values: Mapping[Slot, Any]) -> Call:
    """The call with other values of some operands."""
    operands = dict(call.operands)
    for slot, value in values.items():
        if slot.index is None:
            operands[slot.name] = value
        else:
            operands[slot.name] = [value if i == slot.index else v for i, v in enumerate(operands[slot.name])]
    return replace(call, operands=operands)


def mean(call: Call, slot: Slot) -> Any:
    """An operand half way between the reference and the input; one that carries no content, at the input."""
    return 0.5 * (call.at(slot) + before(call).at(slot)) if slot in call.content else call.at(slot)


def product(a: Any, a0: Any, b: Any, b0: Any) -> tuple[Any, Any]:
    """B and A of a b - a0 b0 = B (a - a0) + A (b - b0), element by element.

    B = s b + (1 - s) b0 and A = (1 - s) a + s a0 are exact for every s. With s = 1/2 a term may be as large as |a b0|:
    of a norm whose reference is almost 0, b = 1 / sigma, that is without bound. With s = |a b0| / (|a b0| + |a0 b|) no
    term is larger than |a b| + |a0 b0|.
    """
    size, size0 = torch.abs(a * b0), torch.abs(a0 * b)
    share = torch.nan_to_num(size / (size + size0), nan=0.5)
    return share * b + (1 - share) * b0, (1 - share) * a + share * a0


def at_sums(*content: str, accepts: Any = None) -> Callable[[Form], Variant]:
    """Of squares and their roots: <x, x> - <x0, x0> = <x + x0, x - x0>, and a root divides by the sum of both.

    That is the exact form at the sums of both inputs and of both results.
    """

    def of(form: Form) -> Variant:
        def difference(call: Call) -> Affine:
            sums = {Slot(name): call[name] + before(call)[name] for name in content}
            there = replace(exchanged(call, sums), out=call.out + before(call).out)
            return with_remainder(call, Rule(call.op, form).affine(there).terms)

        return Variant(difference, {"accepts": accepts})

    return of


def halfway(*names: str) -> Callable[[Form], Variant]:
    """Of sums of products: the exact form with the other factor half way; of several, the mean of two orders of change.

    `names` are the operands that multiply each other.
    """

    def of(form: Form) -> Variant:
        return Variant(
            lambda call: _halfway(form, [s for s in call.content if s.name in names], call), {"complex": True}
        )

    return of


def _halfway(form: Form, factors: list[Slot], call: Call) -> Affine:
    exact = Rule(call.op, form).affine
    if len(factors) < 2:
        return exact(call)
    terms: dict[Slot, Linear] = {}
    for slot in call.content:
        alone = replace(call, content=(slot,))
        others = [f for f in factors if f != slot] if slot in factors else []
        if len(others) < 2:
            terms[slot] = exact(exchanged(alone, {o: mean(call, o) for o in others})).terms[slot]
            continue
        at = factors.index(slot)
        orders = [exchanged(alone, {o: before(call).at(o) for o in some}) for some in (factors[:at], factors[at + 1 :])]
        terms[slot] = Sum(*(scaled(exact(order).terms[slot], 0.5, call) for order in orders))
    return with_remainder(call, terms)


def of_tanh(h: Tensor, h0: Tensor, difference: Tensor) -> Tensor:
    """tanh x - tanh x0 = tanh(x - x0) (1 - tanh x tanh x0)."""
    return quotient(torch.tanh(difference), difference, 1.0) * (1 - h * h0)


def of_sigmoid(h: Tensor, h0: Tensor, difference: Tensor) -> Tensor:
    """sigmoid x = (1 + tanh(x / 2)) / 2."""
    return 0.25 * of_tanh(2 * h - 1, 2 * h0 - 1, 0.5 * difference)


def of_exp(h: Tensor, h0: Tensor, difference: Tensor) -> Tensor:
    """(h - h0) / (log h - log h0), the logarithmic mean of two results of exp. Of two that are 0, at -inf, it is 0."""
    size = torch.abs(difference)
    return torch.maximum(h, h0) * quotient(-torch.expm1(-size), size, 1.0)
