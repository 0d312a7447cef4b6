"""The three forms of an element-wise function, written once; `elementwise` has a line for each function.

* ratio, the exact one: h = diag((f(x) - f(0)) / x) x + f(0), at x = 0 its limit f'(0);
* derivative: W = diag(f'(x)), the remainder is the bias. A derivative that is infinite counts as 0: all of h is bias;
* change, against a reference x0: W = diag((f(x) - f(x0)) / (x - x0)), the derivative where x = x0.

The difference f(x) - f(0) is written so that it does not cancel near 0 (expm1, half-angle formulas), and the division
is repaired afterwards: one pass less over memory than choosing the argument first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from omenn_fx.algebra.form import Affine, Bias, Call, Form
from omenn_fx.algebra.linear import Diagonal, Linear
from omenn_fx.algebra.rows import APART
from omenn_fx.algebra.ruleset import Variant, omenn
from omenn_fx.rules.ops.forms import before, bounded, derivatives, dynamic, quotient, with_remainder

Tensor = torch.Tensor
Value = float | Callable[[Call], Any]
Formula = Callable[[Call], Any]
Change = Callable[[Call, Call, Formula], Any]  # the call at x, at x0, and the derivative -> (f(x) - f(x0)) / (x - x0)


def function(
    *ops: Any,
    derivative: Formula,
    change: Change | None,
    ratio: Formula | None = None,
    slope: Value = 1.0,
    at0: Value = 0.0,
    rise: Callable[[Tensor], Tensor] | None = None,
    **traits: Any,
) -> None:
    """Register an element-wise function.

    Args:
        *ops: the operators.
        derivative: f'(x).
        change: the multiplier against a reference: KINKED, SMOOTH, SCALED or `secant(formula)`; None: none is known.
        ratio: (f(x) - f(0)) / x by a formula of its own; else it is made of the next three.
        slope: f'(0).
        at0: f(0).
        rise: f(x) - f(0), where subtracting would cancel.
        **traits: other fields of the rule.
    """
    itself = ratio is not None and derivative is ratio  # f(x) = f'(x) x: the exact form is the Jacobian
    form = _ratio(ratio, slope, at0, rise)
    with_form(form, *ops, derivative=derivative, change=change, itself=itself, **traits)


def with_form(
    form: Form, *ops: Any, derivative: Formula, change: Change | None, itself: bool = False, **traits: Any
) -> None:
    """Register an element-wise function whose exact form is written out; `itself`: that form is the Jacobian."""
    jacobian = "form" if itself else derivatives(**{traits.get("content", "self"): derivative})
    difference = None if change is None else changing(change, derivative)
    dynamic(*ops, rows=APART, derivative=jacobian, difference=difference, **traits)(form)


def coefficient(*ops: Any, derivative: Formula, change: Change) -> None:
    """Register a function without a value at 0 to start from: in `omenn` content never passes it."""
    difference = changing(change, derivative, content=("self",), dynamic=True)
    omenn.opaque(*ops, gate=True, rows=APART, derivative=derivatives(self=derivative), difference=difference)


def _ratio(ratio: Formula | None, slope: Value, at0: Value, rise: Callable[[Tensor], Tensor] | None) -> Form:
    if ratio is not None:
        return lambda call: Diagonal(ratio(call), call.shape(), call.out.shape)

    def form(call: Call) -> tuple[Linear, Bias | None]:
        x = call.x
        zero = at0(call) if callable(at0) else at0
        none = isinstance(zero, (int, float)) and zero == 0
        change = call.out if none else call.out - zero if rise is None else rise(x)
        value = quotient(change, x, slope(call) if callable(slope) else slope)
        return Diagonal(value, x.shape, call.out.shape), None if none else Bias(zero)

    return form


def changing(change: Change, derivative: Formula, **traits: Any) -> Variant:
    """The form against a reference, by a multiplier."""

    def form(call: Call) -> Affine:
        slot, multiplier = call.content[0], change(call, before(call), derivative)
        return with_remainder(call, {slot: Diagonal(multiplier, call.shape(slot), call.out.shape)})

    return Variant(form, traits)


# Changes -------------------------------------------------------------------------------------------------------------


def KINKED(call: Call, reference: Call, derivative: Formula) -> Tensor:
    """With kinks or jumps, and of bounded rounding errors: the difference is taken as it is, however small."""
    difference = call.x - reference.x
    same = difference == 0
    ratio = (call.out - reference.out) / torch.where(same, torch.ones_like(difference), difference)
    return torch.where(same, derivative(call), ratio)


def SMOOTH(call: Call, reference: Call, derivative: Formula) -> Tensor:
    """Below the root of the dtype's precision the derivative is nearer than the quotient of two rounded differences."""
    return _close(call, reference, derivative, 1.0)


def SCALED(call: Call, reference: Call, derivative: Formula) -> Tensor:
    """Of any scale, as powers and logarithms are: what is a small difference depends on x."""
    return _close(call, reference, derivative, torch.abs(call.x))


def _close(call: Call, reference: Call, derivative: Formula, scale: Any) -> Tensor:
    difference = call.x - reference.x
    near = torch.abs(difference) <= math.sqrt(torch.finfo(call.x.dtype).eps) * scale
    ratio = (call.out - reference.out) / torch.where(near, torch.ones_like(difference), difference)
    return bounded(torch.where(near, derivative(call), ratio))


def secant(formula: Callable[[Call, Call], Any]) -> Change:
    """A multiplier with a formula without a difference in it, of the call at x and at x0."""
    return lambda call, reference, derivative: bounded(formula(call, reference))
