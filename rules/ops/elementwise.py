"""Element-wise functions: h = diag((f(x) - f(0)) / x) x + f(0), the ratio at x = 0 its limit f'(0).

One line each. The difference f(x) - f(0) is written so that it does not cancel near 0 (expm1, half-angle formulas),
and the division is repaired afterwards: one pass less over memory than choosing the argument first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from omenn_fx.algebra.composites import gelu_ratio, relu_mask, repaired_quotient, saturation
from omenn_fx.algebra.form import Bias, Call
from omenn_fx.algebra.linear import Chain, Diagonal, Linear
from omenn_fx.algebra.ruleset import rule
from omenn_fx.rules.ops.parts import modulus
from omenn_fx.rules.ops.structural import piece

aten = torch.ops.aten
Tensor = torch.Tensor
Value = float | Callable[[Call], Any]


def quotient(difference: Tensor, x: Tensor, slope: Any) -> Tensor:
    """difference / x, and `slope` where x is 0."""
    if isinstance(slope, (int, float)):
        return repaired_quotient(difference, x, float(slope))
    return torch.where(x == 0, slope, difference / x)


def function(
    *ops: Any,
    slope: Value = 1.0,
    at0: Value = 0.0,
    difference: Callable[[Tensor], Tensor] | None = None,
    gate: bool = False,
    passes_gate: bool = False,
) -> None:
    """Register f with f(0) = at0 and f'(0) = slope; `difference(x)` is f(x) - f(0) where subtracting would cancel."""

    def form(call: Call) -> tuple[Linear, Bias | None]:
        x = call.x
        zero = at0(call) if callable(at0) else at0
        none = isinstance(zero, (int, float)) and zero == 0
        rise = call.out if none else call.out - zero if difference is None else difference(x)
        ratio = quotient(rise, x, slope(call) if callable(slope) else slope)
        return Diagonal(ratio, x.shape, call.out.shape), None if none else Bias(zero)

    rule(*ops, dynamic=True, gate=gate, passes_gate=passes_gate)(form)


def ratio(*ops: Any) -> Callable[[Callable[[Call], Any]], Callable[[Call], Any]]:
    """Decorator for f with f(0) = 0 whose ratio f(x) / x has a formula of its own."""

    def decorate(formula: Callable[[Call], Any]) -> Callable[[Call], Any]:
        rule(*ops, dynamic=True)(lambda call: Diagonal(formula(call), call.shape(), call.out.shape))
        return formula

    return decorate


# Through the origin --------------------------------------------------------------------------------------------------

ratio(aten.relu.default)(lambda call: relu_mask(call.out))


@rule(aten.abs.default, aten.absolute.default, dynamic=True)
def _abs(call: Call) -> Linear:
    return modulus(call) if call.x.dtype.is_complex else Diagonal(torch.sign(call.x), call.shape(), call.out.shape)


ratio(aten.square.default)(lambda call: call.x)
rule(aten.neg.default, aten.negative.default, passes_gate=True)(
    lambda call: Diagonal(-1.0, call.shape(), call.out.shape)
)

# x times a gate: the gate is the ratio
ratio(aten.silu.default)(lambda call: torch.sigmoid(call.x))
ratio(aten.hardswish.default)(lambda call: F.hardsigmoid(call.x))
ratio(aten.mish.default)(lambda call: torch.tanh(F.softplus(call.x)))
ratio(aten.gelu.default)(lambda call: gelu_ratio(call.x, call["approximate"]))

function(aten.tanh.default)
function(aten.erf.default, slope=2 / math.sqrt(math.pi))
function(aten.erfinv.default, slope=math.sqrt(math.pi) / 2)
function(aten.sin.default)
function(aten.tan.default)
function(aten.asin.default)
function(aten.atan.default)
function(aten.sinh.default)
function(aten.asinh.default)
function(aten.atanh.default)
function(aten.log1p.default)
function(aten.expm1.default)
function(aten.frac.default)
function(aten.leaky_relu.default)
function(aten.rrelu.default)  # in inference a leaky ReLU
function(aten.prelu.default)
function(aten.hardshrink.default, slope=0.0)
function(aten.softshrink.default, slope=0.0)
function(aten.elu.default, slope=lambda call: float(call["scale"]))
function(aten.celu.default)
function(aten.selu.default, slope=1.0507009873554805)
function(aten.sqrt.default, slope=0.0, gate=True)

# Not through the origin ----------------------------------------------------------------------------------------------

function(aten.sigmoid.default, slope=0.25, at0=0.5, difference=lambda x: 0.5 * torch.tanh(0.5 * x), gate=True)
function(aten.hardsigmoid.default, slope=1 / 6, at0=0.5, difference=lambda x: torch.clamp(x / 6, -0.5, 0.5), gate=True)
# A decay or a softmax without its sum: a gate. At a mask's -inf it is 0 whatever x is near 0.
function(aten.exp.default, at0=lambda call: 1 - torch.isinf(call.x).to(call.x.dtype), difference=torch.expm1, gate=True)
function(aten.exp2.default, slope=math.log(2.0), at0=1.0, difference=lambda x: torch.expm1(math.log(2.0) * x))
function(aten.cos.default, slope=0.0, at0=1.0, difference=lambda x: -2 * torch.sin(0.5 * x) ** 2)
function(aten.cosh.default, slope=0.0, at0=1.0, difference=lambda x: 2 * torch.sinh(0.5 * x) ** 2)
function(aten.acos.default, slope=-1.0, at0=math.pi / 2, difference=lambda x: -torch.asin(x))
function(aten.erfc.default, slope=-2 / math.sqrt(math.pi), at0=1.0, difference=lambda x: -torch.erf(x))
function(
    aten.log_sigmoid.default,
    slope=0.5,
    at0=-math.log(2.0),
    difference=lambda x: torch.clamp(x, max=0.0) - torch.log1p(0.5 * torch.expm1(-torch.abs(x))),
)


@rule(aten.softplus.default, dynamic=True)
def _softplus(call: Call) -> tuple[Linear, Bias]:
    """log(1 + e^(beta x)) / beta, near 0 as max(x, 0) + log((1 + e^(-|beta x|)) / 2) / beta + f(0)."""
    x, beta = call.x, float(call["beta"])
    zero = math.log(2.0) / beta
    near = torch.clamp(x, min=0.0) + torch.log1p(0.5 * torch.expm1(-beta * torch.abs(x))) / beta
    rise = torch.where(torch.abs(beta * x) < 1, near, call.out - zero)
    return Diagonal(quotient(rise, x, 0.5), x.shape, call.out.shape), Bias(zero)


@rule(aten.log.default, aten.log2.default, aten.log10.default, dynamic=True)
def _logarithm(call: Call) -> Linear:
    """log has no value at 0 to start from; log(x) / x is its ratio, 0 at 0."""
    return Diagonal(quotient(call.out, call.x, 0.0), call.shape(), call.out.shape)


@rule(aten.pow.Scalar, content="exponent", dynamic=True)
def _exponential(call: Call) -> tuple[Linear, Bias]:
    """c^x = e^(x log c)."""
    x, rate = call.x, math.log(call["self"])
    return Diagonal(quotient(torch.expm1(rate * x), x, rate), x.shape, call.out.shape), Bias(1.0)


@rule(aten.pow.Tensor_Scalar, dynamic=True)
def _power(call: Call) -> tuple[Linear, Bias | None]:
    x, exponent = call.x, call["exponent"]
    if exponent == 0:
        return Diagonal(0.0, x.shape, call.out.shape), Bias(1.0)
    if exponent == 2:
        slope = x
    else:
        slope = torch.pow(x, exponent - 1) if exponent >= 1 else quotient(call.out, x, 0.0)
    return Diagonal(slope, x.shape, call.out.shape), None


@ratio(aten.pow.Tensor_Tensor)
def _powers(call: Call) -> Tensor:
    linear = (call["exponent"] == 1).to(call.out.dtype)
    return quotient(call.out, call.x, linear)


# Bounds --------------------------------------------------------------------------------------------------------------


def limits(call: Call) -> tuple[float, float]:
    """The bounds of a clamp of any kind."""
    low = call.operands.get("min", call.operands.get("min_val"))
    high = call.operands.get("max", call.operands.get("max_val"))
    if call.op is aten.relu6.default:
        return 0.0, 6.0
    return -math.inf if low is None else float(low), math.inf if high is None else float(high)


def _clamped_zero(call: Call) -> float:
    low, high = limits(call)
    return min(max(0.0, low), high)


def _clamped_slope(call: Call) -> float:
    """As for ReLU, the slope at a bound of 0 is 0."""
    low, high = limits(call)
    return 1.0 if low < 0.0 < high else 0.0


@rule(
    aten.clamp.default, aten.clip.default, aten.clamp_min.default, aten.clamp_max.default, aten.hardtanh.default,
    aten.relu6.default,
    dynamic=True, passes_gate=True,
)  # fmt: skip
def _clamp(call: Call) -> tuple[Linear, Bias | None]:
    x, zero, (low, high) = call.x, _clamped_zero(call), limits(call)
    if low == 0 < high and x.dtype in (torch.float32, torch.float64):
        ratio = saturation(call.out, x, high)  # ReLU6: at and below 0 it is 0
    else:
        ratio = quotient(call.out - zero if zero else call.out, x, _clamped_slope(call))
    return Diagonal(ratio, x.shape, call.out.shape), Bias(zero) if zero else None


@rule(aten.clamp.Tensor, dynamic=True, passes_gate=True)
def _clamp_between(call: Call) -> tuple[Linear, Bias]:
    """Bounds of each position, held fixed."""
    zero = torch.clamp(torch.zeros_like(call.x), call["min"], call["max"])
    step = torch.finfo(call.out.dtype).tiny
    inside = torch.clamp(zero + step, call["min"], call["max"]) - torch.clamp(zero - step, call["min"], call["max"])
    slope = (inside > step).to(call.out.dtype)
    return Diagonal(quotient(call.out - zero, call.x, slope), call.shape(), call.out.shape), Bias(zero)


function(
    aten.threshold.default,
    slope=lambda call: 1.0 if call["threshold"] < 0 else 0.0,
    at0=lambda call: 0.0 if call["threshold"] < 0 else float(call["value"]),
)


@rule(aten.nan_to_num.default)
def _finite(call: Call) -> tuple[Linear, Bias]:
    """The identity, and a constant where x is not finite."""
    kept = call.x == call.out
    return (
        Diagonal(kept.to(call.out.dtype), call.shape(), call.out.shape),
        Bias(torch.where(kept, torch.zeros_like(call.out), call.out)),
    )


# Gated ---------------------------------------------------------------------------------------------------------------


@rule(aten.glu.default, dynamic=True)
def _glu(call: Call) -> Linear:
    """a * sigmoid(b) for the halves a and b of x: the gate is the coefficient."""
    dim = call["dim"] % len(call.shape())
    half = call.out.shape[dim]
    gate = torch.sigmoid(call.x.narrow(dim, half, half))
    return Chain(Diagonal(gate, call.out.shape, call.out.shape), piece(call.shape(), dim, 0, half))
