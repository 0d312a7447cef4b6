"""Element-wise functions, a line each: the exact form, the derivative, and the change against a reference."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from omenn_fx.algebra.composites import gelu_ratio, relu_mask
from omenn_fx.algebra.form import Bias, Call
from omenn_fx.algebra.linear import Diagonal, Linear
from omenn_fx.algebra.rows import APART
from omenn_fx.algebra.ruleset import omenn
from omenn_fx.rules.ops.complex_parts import modulus
from omenn_fx.rules.ops.forms import (
    bounded,
    derivatives,
    dynamic,
    of_exp,
    of_sigmoid,
    of_tanh,
    quotient,
    static,
    where,
)
from omenn_fx.rules.ops.functions import KINKED, SCALED, SMOOTH, changing, coefficient, function, secant, with_form

aten = torch.ops.aten
Tensor = torch.Tensor
ROOT_PI = math.sqrt(math.pi)
LN2, LN10 = math.log(2.0), math.log(10.0)
SELU, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772  # aten's own constants

# Through the origin --------------------------------------------------------------------------------------------------


def _passes(call: Call) -> Tensor:
    """1 where a ReLU passes its operand, 0 elsewhere."""
    return relu_mask(call.out)


function(aten.relu.default, ratio=_passes, derivative=_passes, change=KINKED, sign="rectified", kind="activation")


def _abs(call: Call) -> Linear:
    return modulus(call) if call.x.dtype.is_complex else Diagonal(torch.sign(call.x), call.shape(), call.out.shape)


with_form(
    _abs, aten.abs.default, derivative=lambda c: torch.sign(c.x), change=KINKED, itself=True, sign="positive",
    complex=True,
)  # fmt: skip
function(
    aten.square.default, ratio=lambda c: c.x, derivative=lambda c: 2 * c.x, change=secant(lambda c, r: c.x + r.x),
    sign="positive",
)  # fmt: skip


@static(aten.neg.default, passes_gate=True, complex=True, rows=APART)
def _neg(call: Call) -> Linear:
    return Diagonal(-1.0, call.shape(), call.out.shape)


function(
    aten.tanh.default, derivative=lambda c: 1 - c.out * c.out, kind="activation",
    change=secant(lambda c, r: of_tanh(c.out, r.out, c.x - r.x)),
)  # fmt: skip
function(aten.erf.default, slope=2 / ROOT_PI, derivative=lambda c: 2 / ROOT_PI * torch.exp(-c.x * c.x), change=SMOOTH)
function(
    aten.erfinv.default, slope=ROOT_PI / 2, derivative=lambda c: bounded(ROOT_PI / 2 * torch.exp(c.out * c.out)),
    change=SMOOTH,
)  # fmt: skip
function(aten.sin.default, derivative=lambda c: torch.cos(c.x), change=SMOOTH)
function(aten.tan.default, derivative=lambda c: 1 + c.out * c.out, change=SMOOTH)
function(aten.asin.default, derivative=lambda c: bounded(torch.rsqrt(1 - c.x * c.x)), change=SMOOTH)
function(aten.atan.default, derivative=lambda c: 1 / (1 + c.x * c.x), change=SMOOTH)
function(aten.sinh.default, derivative=lambda c: torch.cosh(c.x), change=SMOOTH)
function(aten.asinh.default, derivative=lambda c: torch.rsqrt(1 + c.x * c.x), change=SMOOTH)
function(aten.atanh.default, derivative=lambda c: bounded(1 / (1 - c.x * c.x)), change=SMOOTH)
function(aten.log1p.default, derivative=lambda c: bounded(1 / (1 + c.x)), change=SCALED)
function(aten.expm1.default, derivative=lambda c: c.out + 1, change=SMOOTH)
function(aten.frac.default, derivative=lambda c: torch.ones_like(c.x), change=KINKED)
function(
    aten.sqrt.default, slope=0.0, derivative=lambda c: bounded(0.5 / c.out), gate=True, sign="positive",
    change=secant(lambda c, r: 1 / (c.out + r.out)),
)  # fmt: skip

# ReLU and its like ---------------------------------------------------------------------------------------------------

function(
    aten.leaky_relu.default, derivative=lambda c: where(c.x > 0, c, other=c["negative_slope"]), change=KINKED,
    kind="activation",
)  # fmt: skip
function(  # in inference a leaky ReLU
    aten.rrelu.default, derivative=lambda c: where(c.x > 0, c, other=0.5 * (c["lower"] + c["upper"])), change=KINKED,
)  # fmt: skip
function(aten.hardshrink.default, slope=0.0, derivative=lambda c: where(c.out != 0, c), change=KINKED)
function(aten.softshrink.default, slope=0.0, derivative=lambda c: where(c.out != 0, c), change=KINKED)
function(
    aten.celu.default, derivative=lambda c: where(c.x > 0, c, other=c.out / c["alpha"] + 1), change=KINKED,
    kind="activation",
)  # fmt: skip
function(
    aten.selu.default, slope=SELU, derivative=lambda c: where(c.x > 0, c, SELU, c.out + SELU * SELU_ALPHA),
    change=KINKED, kind="activation",
)  # fmt: skip


def _elu(call: Call) -> Tensor:
    below = (call.out + call["alpha"] * call["scale"]) * call["input_scale"]
    return where(call.x > 0, call, float(call["scale"]), below)


function(
    aten.elu.default, slope=lambda c: float(c["scale"]), derivative=_elu, change=KINKED, kind="activation"
)  # fmt: skip


def _prelu(call: Call) -> Tensor:
    weight = call["weight"]
    below = weight.reshape((-1,) + (1,) * (len(call.shape()) - 2)) if len(call.shape()) > 1 else weight
    return where(call.x > 0, call, other=below)


function(aten.prelu.default, derivative=_prelu, change=KINKED, kind="activation")

# x times a gate: the gate is the ratio -------------------------------------------------------------------------------


def _silu(call: Call) -> Tensor:
    gate = torch.sigmoid(call.x)
    return gate + call.out * (1 - gate)


def _mish(call: Call) -> Tensor:
    gate = torch.tanh(F.softplus(call.x))
    return gate + call.x * (1 - gate * gate) * torch.sigmoid(call.x)


def _hardswish(call: Call) -> Tensor:
    inside = where((call.x > -3) & (call.x < 3), call)
    return where(call.x >= 3, call) + inside * (call.x / 3 + 0.5)


def _gelu(call: Call) -> Tensor:
    """The ratio f(x) / x and x times its derivative."""
    x = call.x
    if call["approximate"] == "tanh":
        rate = math.sqrt(2 / math.pi)
        t = torch.tanh(rate * (x + 0.044715 * x * x * x))
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * rate * (1 + 3 * 0.044715 * x * x)
    density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return gelu_ratio(x, "none") + x * density


function(
    aten.silu.default, ratio=lambda c: torch.sigmoid(c.x), derivative=_silu, change=SMOOTH, kind="activation"
)  # fmt: skip
function(
    aten.mish.default, ratio=lambda c: torch.tanh(F.softplus(c.x)), derivative=_mish, change=SMOOTH, kind="activation"
)  # fmt: skip
function(
    aten.hardswish.default, ratio=lambda c: F.hardsigmoid(c.x), derivative=_hardswish, change=KINKED, kind="activation"
)  # fmt: skip
function(
    aten.gelu.default,
    ratio=lambda c: gelu_ratio(c.x, c["approximate"]),
    derivative=_gelu,
    change=SMOOTH,
    kind="activation",
)

# Not through the origin ----------------------------------------------------------------------------------------------

function(
    aten.sigmoid.default, slope=0.25, at0=0.5, rise=lambda x: 0.5 * torch.tanh(0.5 * x), gate=True,
    derivative=lambda c: c.out * (1 - c.out), change=secant(lambda c, r: of_sigmoid(c.out, r.out, c.x - r.x)),
    sign="positive", kind="activation", squashes=True,
)  # fmt: skip
function(
    aten.hardsigmoid.default, slope=1 / 6, at0=0.5, rise=lambda x: torch.clamp(x / 6, -0.5, 0.5), gate=True,
    derivative=lambda c: where((c.x > -3) & (c.x < 3), c, 1 / 6), change=KINKED,
    sign="positive", kind="activation", squashes=True,
)  # fmt: skip
function(  # a decay or a softmax without its sum: a gate. At a mask's -inf it is 0 whatever x is near 0
    aten.exp.default, at0=lambda c: 1 - torch.isinf(c.x).to(c.x.dtype), rise=torch.expm1, gate=True,
    derivative=lambda c: c.out, change=secant(lambda c, r: of_exp(c.out, r.out, c.x - r.x)),
    sign="positive", kind="exponential",
)  # fmt: skip
function(
    aten.exp2.default, slope=LN2, at0=1.0, rise=lambda x: torch.expm1(LN2 * x), derivative=lambda c: LN2 * c.out,
    change=SMOOTH, sign="positive",
)  # fmt: skip
function(
    aten.cos.default, slope=0.0, at0=1.0, rise=lambda x: -2 * torch.sin(0.5 * x) ** 2,
    derivative=lambda c: -torch.sin(c.x), change=SMOOTH,
)  # fmt: skip
function(
    aten.cosh.default, slope=0.0, at0=1.0, rise=lambda x: 2 * torch.sinh(0.5 * x) ** 2,
    derivative=lambda c: torch.sinh(c.x), change=SMOOTH,
)  # fmt: skip
function(
    aten.acos.default, slope=-1.0, at0=math.pi / 2, rise=lambda x: -torch.asin(x),
    derivative=lambda c: bounded(-torch.rsqrt(1 - c.x * c.x)), change=SMOOTH,
)  # fmt: skip
function(
    aten.erfc.default, slope=-2 / ROOT_PI, at0=1.0, rise=lambda x: -torch.erf(x),
    derivative=lambda c: -2 / ROOT_PI * torch.exp(-c.x * c.x), change=SMOOTH,
)  # fmt: skip
function(
    aten.log_sigmoid.default, slope=0.5, at0=-LN2,
    rise=lambda x: torch.clamp(x, max=0.0) - torch.log1p(0.5 * torch.expm1(-torch.abs(x))),
    derivative=lambda c: torch.sigmoid(-c.x), change=SMOOTH, squashes=True,
)  # fmt: skip


def _softplus(call: Call) -> tuple[Linear, Bias]:
    """log(1 + e^(beta x)) / beta, near 0 as max(x, 0) + log((1 + e^(-|beta x|)) / 2) / beta + f(0)."""
    x, beta = call.x, float(call["beta"])
    zero = LN2 / beta
    near = torch.clamp(x, min=0.0) + torch.log1p(0.5 * torch.expm1(-beta * torch.abs(x))) / beta
    rise = torch.where(torch.abs(beta * x) < 1, near, call.out - zero)
    return Diagonal(quotient(rise, x, 0.5), x.shape, call.out.shape), Bias(zero)


def _softplus_slope(call: Call) -> Tensor:
    return where(call.x * call["beta"] > call["threshold"], call, other=torch.sigmoid(call.x * call["beta"]))


with_form(
    _softplus, aten.softplus.default, derivative=_softplus_slope, change=SMOOTH, sign="positive", kind="activation"
)  # fmt: skip

# Powers and logarithms -----------------------------------------------------------------------------------------------


def _itself_over_x(call: Call) -> tuple[Linear, Bias]:
    """f(x) / x, 0 at 0. Next to 0, where that is beyond the largest number, f(x) is a bias."""
    beyond = torch.isinf(call.out / call.x)
    rest = torch.where(beyond, call.out, torch.zeros_like(call.out))
    return Diagonal(quotient(call.out, call.x, 0.0), call.shape(), call.out.shape), Bias(rest).finite()


with_form(_itself_over_x, aten.log.default, derivative=lambda c: bounded(1 / c.x), change=SCALED)
with_form(_itself_over_x, aten.log2.default, derivative=lambda c: bounded(1 / (LN2 * c.x)), change=SCALED)
with_form(_itself_over_x, aten.log10.default, derivative=lambda c: bounded(1 / (LN10 * c.x)), change=SCALED)


def _exponential(call: Call) -> tuple[Linear, Bias]:
    """c^x = e^(x log c)."""
    x, rate = call.x, math.log(call["self"])
    return Diagonal(quotient(torch.expm1(rate * x), x, rate), x.shape, call.out.shape), Bias(1.0)


with_form(
    _exponential, aten.pow.Scalar, content="exponent", change=SMOOTH,
    derivative=lambda c: c.out * (math.log(c["self"]) if c["self"] else 0.0),
)  # fmt: skip


def _power(call: Call) -> tuple[Linear, Bias | None]:
    x, exponent = call.x, call["exponent"]
    if exponent == 0:
        return Diagonal(0.0, x.shape, call.out.shape), Bias(1.0)
    if exponent < 0.5:
        return _itself_over_x(call)
    if exponent == 2:
        slope = x
    else:
        slope = torch.pow(x, exponent - 1) if exponent >= 1 else quotient(call.out, x, 0.0)
    return Diagonal(slope, x.shape, call.out.shape), None


def _power_slope(call: Call) -> Tensor:
    """n x^(n - 1)."""
    exponent = call["exponent"]
    if isinstance(exponent, (int, float)) and exponent == 0:
        return torch.zeros_like(call.x)
    return bounded(exponent * torch.pow(call.x, exponent - 1))


with_form(_power, aten.pow.Tensor_Scalar, derivative=_power_slope, change=SCALED)


@dynamic(
    aten.pow.Tensor_Tensor,
    rows=APART,
    derivative=derivatives(self=_power_slope, exponent=lambda c: bounded(c.out * torch.log(c["self"]))),
    difference=changing(SCALED, _power_slope),
)
def _powers(call: Call) -> Linear:
    linear = (call["exponent"] == 1).to(call.out.dtype)
    return Diagonal(quotient(call.out, call.x, linear), call.shape(), call.out.shape)


coefficient(
    aten.rsqrt.default, derivative=lambda c: bounded(-0.5 * c.out / c.x),
    change=secant(lambda c, r: -((c.out * r.out) ** 2) / (c.out + r.out)),
)  # fmt: skip
coefficient(
    aten.reciprocal.default, derivative=lambda c: bounded(-c.out * c.out), change=secant(lambda c, r: -c.out * r.out)
)  # fmt: skip

# Others -------------------------------------------------------------------------------------------------------------


@static(aten.nan_to_num.default, rows=APART)
def _finite(call: Call) -> tuple[Linear, Bias]:
    """The identity, and a constant where x is not finite."""
    kept = call.x == call.out
    return (
        Diagonal(kept.to(call.out.dtype), call.shape(), call.out.shape),
        Bias(torch.where(kept, torch.zeros_like(call.out), call.out)),
    )


# The rest of a division: constant between jumps, so that in `omenn` content never passes it ------------------------

omenn.opaque(
    aten.remainder.Tensor, aten.remainder.Scalar, aten.fmod.Tensor, aten.fmod.Scalar,
    rows=APART,
    derivative=derivatives(
        self=lambda c: torch.ones_like(c["self"]), other=lambda c: -torch.round((c["self"] - c.out) / c["other"])
    ),
)  # fmt: skip
