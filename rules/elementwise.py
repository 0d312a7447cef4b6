"""Element-wise functions: h = diag((f(x) - f(0)) / x) x + f(0), the ratio at x = 0 its limit f'(0).

One line each. The difference f(x) - f(0) is written so that it does not cancel near 0 (expm1, half-angle formulas),
and the division is repaired afterwards: one pass less over memory than choosing the argument first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from omenn_fx.linear import Diagonal, Linear
from omenn_fx.registry import Affine, Bias, Call, omenn, rule

aten = torch.ops.aten
Tensor = torch.Tensor


def quotient(difference: Tensor, x: Tensor, slope: float) -> Tensor:
    """difference / x, and `slope` where both are 0."""
    return torch.nan_to_num(difference / x, nan=slope)


def function(
    *ops: Any,
    slope: float | Callable[[Call], float] = 1.0,
    at0: float | Callable[[Call], float] = 0.0,
    difference: Callable[[Tensor], Tensor] | None = None,
    gate: bool = False,
) -> None:
    """Register f with f(0) = at0 and f'(0) = slope; `difference(x)` is f(x) - f(0) where subtracting would cancel."""

    def form(call: Call) -> tuple[Linear, Bias | None]:
        x = call.x
        zero = at0(call) if callable(at0) else at0
        if difference is not None:
            rise = difference(x)
        else:
            rise = call.out - zero if zero else call.out
        ratio = quotient(rise, x, slope(call) if callable(slope) else slope)
        return Diagonal(ratio, x.shape, call.out.shape), Bias(zero) if zero else None

    rule(*ops, gate=gate)(form)


def ratio(*ops: Any, gate: bool = False) -> Callable[[Callable[[Call], Any]], Callable[[Call], Any]]:
    """Decorator for f with f(0) = 0 whose ratio f(x) / x has a formula of its own."""

    def decorate(formula: Callable[[Call], Any]) -> Callable[[Call], Any]:
        rule(*ops, gate=gate)(lambda call: Diagonal(formula(call), call.shape(), call.out.shape))
        return formula

    return decorate


ratio(aten.relu.default)(lambda call: torch.sign(call.out))
ratio(aten.abs.default)(lambda call: torch.sign(call.x))
ratio(aten.square.default)(lambda call: call.x)
rule(aten.neg.default, passes_gate=True)(lambda call: Diagonal(-1.0, call.shape(), call.out.shape))

function(aten.gelu.default, slope=0.5)
function(aten.silu.default, slope=0.5)
function(aten.hardswish.default, slope=0.5)
function(aten.mish.default, slope=math.tanh(math.log(2.0)))
function(aten.tanh.default)
function(aten.erf.default, slope=2 / math.sqrt(math.pi))
function(aten.sin.default)
function(aten.asinh.default)
function(aten.atan.default)
function(aten.log1p.default)
function(aten.expm1.default)
function(aten.leaky_relu.default)
function(aten.elu.default, slope=lambda call: float(call["scale"]))
function(aten.celu.default)
function(aten.selu.default, slope=1.0507009873554805)
function(aten.sqrt.default, slope=0.0, gate=True)
function(aten.log.default, slope=0.0)

function(aten.sigmoid.default, slope=0.25, at0=0.5, difference=lambda x: 0.5 * torch.tanh(0.5 * x), gate=True)
function(
    aten.hardsigmoid.default, slope=1 / 6, at0=0.5, difference=lambda x: torch.clamp(x / 6, -0.5, 0.5), gate=True
)
function(aten.exp.default, at0=1.0, difference=torch.expm1)
function(aten.cos.default, slope=0.0, at0=1.0, difference=lambda x: -2 * torch.sin(0.5 * x) ** 2)
function(aten.log_sigmoid.default, slope=0.5, at0=-math.log(2.0))
function(aten.softplus.default, slope=0.5, at0=lambda call: math.log(2.0) / float(call["beta"]))


def _limits(call: Call) -> tuple[float, float]:
    low = call.operands.get("min", call.operands.get("min_val"))
    high = call.operands.get("max", call.operands.get("max_val"))
    return -math.inf if low is None else float(low), math.inf if high is None else float(high)


def _clamped_zero(call: Call) -> float:
    low, high = _limits(call)
    return min(max(0.0, low), high)


def _clamped_slope(call: Call) -> float:
    low, high = _limits(call)
    return 1.0 if low <= 0.0 <= high else 0.0


function(
    aten.clamp.default,
    aten.clamp_min.default,
    aten.clamp_max.default,
    aten.hardtanh.default,
    aten.relu6.default,
    slope=_clamped_slope,
    at0=_clamped_zero,
)


@ratio(aten.pow.Tensor_Scalar)
def _power(call: Call) -> Tensor:
    exponent = call["exponent"]
    if exponent == 2:
        return call.x
    return torch.pow(call.x, exponent - 1) if exponent >= 1 else quotient(call.out, call.x, 0.0)


@rule(aten.prelu.default)
def _prelu(call: Call) -> Linear:
    return Diagonal(quotient(call.out, call.x, 1.0), call.shape(), call.out.shape)


@rule(aten.maximum.default, aten.minimum.default, content=("self", "other"))
def _larger(call: Call) -> Affine:
    """Selection of the winner; ties share equally."""
    first, second = call["self"], call["other"]
    half_tie = 0.5 * (first == second)
    wins = {"self": (call.out == first) - half_tie, "other": (call.out == second) - half_tie}
    terms, bias = {}, None
    for slot in call.content:
        own = wins[slot.name] if len(call.content) == 2 else None
        terms[slot] = Diagonal(wins[slot.name], call.shape(slot), call.out.shape, carries=own)
    if len(call.content) == 1:
        other = "other" if call.content[0].name == "self" else "self"
        bias = Bias(wins[other] * call[other])
    return Affine(terms, bias, disjoint=True)


@rule(aten.where.self, content=("self", "other"))
def _where(call: Call) -> Affine:
    """Each position reads one of two operands."""
    chosen = call["condition"].to(call.out.dtype)
    wins = {"self": chosen, "other": 1 - chosen}
    terms, bias = {}, None
    for slot in call.content:
        own = wins[slot.name] if len(call.content) == 2 else None
        terms[slot] = Diagonal(wins[slot.name], call.shape(slot), call.out.shape, carries=own)
    if len(call.content) == 1:
        other = "other" if call.content[0].name == "self" else "self"
        bias = Bias(torch.nan_to_num(wins[other] * call[other], nan=0.0, posinf=0.0, neginf=0.0))
    return Affine(terms, bias, disjoint=True)


@rule(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _masked_fill(call: Call) -> tuple[Linear, Bias]:
    masked = call["mask"].to(call.out.dtype)
    return Diagonal(1 - masked, call.shape(), call.out.shape), Bias(masked * call["value"])
