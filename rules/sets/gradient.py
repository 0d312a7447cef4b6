"""Gradient x input and its remainder: W is the Jacobian J of every operator at this input, b = h - J x.

C_w is autograd's gradient, C_w * X gradient x input (Simonyan et al. 2014; Shrikumar et al. 2016), and the shares of
the remainders make its sum the logit. Three kinds of rules, and nothing else is in the table:

* static: an omenn rule whose W depends on nothing held fixed is the Jacobian already. So are its selections of winners;
* products: every factor gets its full coefficient, not a part, so b = (1 - n) h;
* derivatives: a formula for each dynamic operator, below. A derivative that is infinite counts as 0: all of h is b.

No operand is held fixed silently: a call where content reaches an operand that has no derivative here has no rule. As
in autograd, nothing flows through a detach or a comparison; a block under `torch.no_grad` leaves no trace in what
torch.export captures, so what runs in it counts. LSTM, GRU and RNN are captured as the operators they are made of.
Where winners tie they share equally; autograd gives all to the first, of max pools and `max(dim)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from omenn_fx.algebra.composites import gelu_ratio
from omenn_fx.algebra.form import Affine, Call, Form
from omenn_fx.algebra.linear import Chain, ComplexDiagonal, Diagonal, Linear, Reduction, Sum
from omenn_fx.algebra.mass import Shape
from omenn_fx.algebra.ruleset import Rule, RuleSet, name_set, omenn
from omenn_fx.rules.ops import normalization
from omenn_fx.rules.ops.attention import FromMean
from omenn_fx.rules.ops.bilinear import dims_of
from omenn_fx.rules.ops.elementwise import limits
from omenn_fx.rules.ops.jacobian import OfNorm, of_attention, of_softmax, scaled, with_remainder
from omenn_fx.rules.ops.structural import piece

aten = torch.ops.aten
Tensor = torch.Tensor

SELU, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772

gradient = RuleSet("gradient", "gradient x input and its remainder: the Jacobian of every operator")


# Element-wise --------------------------------------------------------------------------------------------------------


def derivative(*ops: Any, **formulas: Callable[[Call], Any]) -> None:
    """Register an element-wise function: for each operand the formula of h's derivative by it."""

    def form(call: Call) -> Affine:
        kind = ComplexDiagonal if call.out.dtype.is_complex else Diagonal
        terms = {s: kind(formulas[s.name](call), call.shape(s), call.out.shape) for s in call.content}
        return with_remainder(call, terms)

    gradient.register(*ops, content=tuple(formulas), dynamic=True, total=True)(form)


def bounded(slope: Tensor) -> Tensor:
    """0 where a derivative is infinite."""
    return torch.nan_to_num(slope, nan=0.0, posinf=0.0, neginf=0.0)


def where(condition: Tensor, call: Call, then: Any = 1.0, other: Any = 0.0) -> Tensor:
    """One of two finite values, in the dtype of the result."""
    holds = condition.to(call.out.dtype)
    return other + holds * (then - other)


derivative(aten.square.default, self=lambda c: 2 * c.x)
derivative(aten.sqrt.default, self=lambda c: bounded(0.5 / c.out))
derivative(aten.rsqrt.default, self=lambda c: bounded(-0.5 * c.out / c.x))
derivative(aten.reciprocal.default, self=lambda c: bounded(-c.out * c.out))
derivative(aten.exp.default, self=lambda c: c.out)
derivative(aten.exp2.default, self=lambda c: math.log(2.0) * c.out)
derivative(aten.expm1.default, self=lambda c: c.out + 1)
derivative(aten.log.default, self=lambda c: bounded(1 / c.x))
derivative(aten.log2.default, self=lambda c: bounded(1 / (math.log(2.0) * c.x)))
derivative(aten.log10.default, self=lambda c: bounded(1 / (math.log(10.0) * c.x)))
derivative(aten.log1p.default, self=lambda c: bounded(1 / (1 + c.x)))
derivative(aten.sin.default, self=lambda c: torch.cos(c.x))
derivative(aten.cos.default, self=lambda c: -torch.sin(c.x))
derivative(aten.tan.default, self=lambda c: 1 + c.out * c.out)
derivative(aten.asin.default, self=lambda c: bounded(torch.rsqrt(1 - c.x * c.x)))
derivative(aten.acos.default, self=lambda c: bounded(-torch.rsqrt(1 - c.x * c.x)))
derivative(aten.atan.default, self=lambda c: 1 / (1 + c.x * c.x))
derivative(aten.sinh.default, self=lambda c: torch.cosh(c.x))
derivative(aten.cosh.default, self=lambda c: torch.sinh(c.x))
derivative(aten.tanh.default, self=lambda c: 1 - c.out * c.out)
derivative(aten.asinh.default, self=lambda c: torch.rsqrt(1 + c.x * c.x))
derivative(aten.atanh.default, self=lambda c: bounded(1 / (1 - c.x * c.x)))
derivative(aten.erf.default, self=lambda c: 2 / math.sqrt(math.pi) * torch.exp(-c.x * c.x))
derivative(aten.erfc.default, self=lambda c: -2 / math.sqrt(math.pi) * torch.exp(-c.x * c.x))
derivative(aten.erfinv.default, self=lambda c: bounded(math.sqrt(math.pi) / 2 * torch.exp(c.out * c.out)))
derivative(aten.frac.default, self=lambda c: torch.ones_like(c.x))

derivative(aten.sigmoid.default, self=lambda c: c.out * (1 - c.out))
derivative(aten.log_sigmoid.default, self=lambda c: torch.sigmoid(-c.x))
derivative(aten.hardsigmoid.default, self=lambda c: where((c.x > -3) & (c.x < 3), c, 1 / 6))
derivative(aten.threshold.default, self=lambda c: where(c.x > c["threshold"], c))
derivative(aten.hardshrink.default, aten.softshrink.default, self=lambda c: where(c.out != 0, c))
derivative(aten.leaky_relu.default, self=lambda c: where(c.x > 0, c, other=c["negative_slope"]))
derivative(aten.rrelu.default, self=lambda c: where(c.x > 0, c, other=0.5 * (c["lower"] + c["upper"])))
derivative(aten.celu.default, self=lambda c: where(c.x > 0, c, other=c.out / c["alpha"] + 1))
derivative(aten.elu.default, self=lambda c: where(
    c.x > 0, c, float(c["scale"]), (c.out + c["alpha"] * c["scale"]) * c["input_scale"]
))  # fmt: skip
derivative(aten.selu.default, self=lambda c: where(c.x > 0, c, SELU, c.out + SELU * SELU_ALPHA))
derivative(aten.softplus.default, self=lambda c: where(
    c.x * c["beta"] > c["threshold"], c, other=torch.sigmoid(c.x * c["beta"])
))  # fmt: skip
derivative(aten.hardtanh.default, aten.relu6.default, self=lambda c: where(
    (c.x > limits(c)[0]) & (c.x < limits(c)[1]), c
))  # fmt: skip
derivative(
    aten.clamp.default, aten.clip.default, aten.clamp_min.default, aten.clamp_max.default,
    self=lambda c: where((c.x >= limits(c)[0]) & (c.x <= limits(c)[1]), c),
)  # fmt: skip
derivative(aten.clamp.Tensor, self=lambda c: where(c.x == c.out, c))


def _prelu(call: Call) -> Tensor:
    weight = call["weight"]
    below = weight.reshape((-1,) + (1,) * (len(call.shape()) - 2)) if len(call.shape()) > 1 else weight
    return where(call.x > 0, call, other=below)


def _gelu(call: Call) -> Tensor:
    """The ratio f(x) / x and x times its derivative."""
    x = call.x
    if call["approximate"] == "tanh":
        rate = math.sqrt(2 / math.pi)
        t = torch.tanh(rate * (x + 0.044715 * x * x * x))
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * rate * (1 + 3 * 0.044715 * x * x)
    density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return gelu_ratio(x, "none") + x * density


def _silu(call: Call) -> Tensor:
    gate = torch.sigmoid(call.x)
    return gate + call.out * (1 - gate)


def _mish(call: Call) -> Tensor:
    gate = torch.tanh(F.softplus(call.x))
    return gate + call.x * (1 - gate * gate) * torch.sigmoid(call.x)


def _hardswish(call: Call) -> Tensor:
    inside = where((call.x > -3) & (call.x < 3), call)
    return where(call.x >= 3, call) + inside * (call.x / 3 + 0.5)


derivative(aten.prelu.default, self=_prelu)
derivative(aten.gelu.default, self=_gelu)
derivative(aten.silu.default, self=_silu)
derivative(aten.mish.default, self=_mish)
derivative(aten.hardswish.default, self=_hardswish)


def _power(call: Call) -> Tensor:
    """n x^(n - 1)."""
    exponent = call["exponent"]
    if isinstance(exponent, (int, float)):
        return torch.zeros_like(call.x) if exponent == 0 else bounded(exponent * torch.pow(call.x, exponent - 1))
    return bounded(exponent * torch.pow(call.x, exponent - 1))


derivative(aten.pow.Tensor_Scalar, self=_power)
derivative(aten.pow.Tensor_Tensor, self=_power, exponent=lambda c: bounded(c.out * torch.log(c["self"])))
derivative(aten.pow.Scalar, exponent=lambda c: c.out * (math.log(c["self"]) if c["self"] else 0.0))

derivative(
    aten.div.Tensor, aten.div.Scalar, aten.divide.Tensor, aten.divide.Scalar, aten.true_divide.Tensor,
    aten.true_divide.Scalar,
    self=lambda c: 1 / c["other"], other=lambda c: -c.out / c["other"],
)  # fmt: skip
derivative(
    aten.remainder.Tensor, aten.remainder.Scalar, aten.fmod.Tensor, aten.fmod.Scalar,
    self=lambda c: torch.ones_like(c["self"]), other=lambda c: -torch.round((c["self"] - c.out) / c["other"]),
)  # fmt: skip


@gradient.register(aten.glu.default, dynamic=True, total=True)
def _glu(call: Call) -> Affine:
    """a sigmoid(b) for the halves a and b of x."""
    dim, half = call["dim"] % len(call.shape()), call.out.shape[call["dim"]]
    first, second = (piece(call.shape(), dim, start, half) for start in (0, half))
    gate = torch.sigmoid(second.apply(call.x))
    by_gate = Diagonal(call.out * (1 - gate), call.out.shape, call.out.shape)
    halves = Sum(Chain(Diagonal(gate, call.out.shape, call.out.shape), first), Chain(by_gate, second))
    return with_remainder(call, {call.content[0]: halves})


# Norms, softmax, attention -------------------------------------------------------------------------------------------


def _of_norm(x: Tensor, dims: tuple[int, ...], shape: Shape, eps: float, centre: bool) -> Linear:
    scale = normalization.inverse_deviation(x, dims, shape, eps, centre)
    y = scale * (x - x.mean(dims, keepdim=True) if centre else x)
    return OfNorm(y, scale, dims, shape, centre)


def _normalises(*ops: Any, form: Callable[..., tuple[Linear, Any]]) -> None:
    def whole(call: Call) -> Affine:
        linear, _ = form(call, standardise=_of_norm)
        return with_remainder(call, {call.content[0]: linear})

    gradient.register(*ops, content="input", dynamic=True, total=True)(whole)


_normalises(aten.layer_norm.default, aten.native_layer_norm.default, form=normalization.layer_norm)
_normalises(aten.rms_norm.default, aten._fused_rms_norm.default, form=normalization.rms_norm)
_normalises(aten.group_norm.default, form=normalization.group_norm)
_normalises(aten.instance_norm.default, form=normalization.instance_norm)


def _towards(map_of: Callable[[Call], Linear], *ops: Any, **traits: Any) -> None:
    """Register operators of one operand by the map that is their Jacobian."""
    gradient.register(*ops, dynamic=True, total=True, **traits)(
        lambda call: with_remainder(call, {call.content[0]: map_of(call)})
    )


def _of_log_sum(call: Call) -> Linear:
    dims, shape = dims_of(call), call.shape()
    top = call.x.amax(dims, keepdim=True)
    size = torch.exp(call.x - top)
    return Chain(Reduction(dims, call["keepdim"], shape), Diagonal(size / size.sum(dims, keepdim=True), shape, shape))


_towards(
    lambda call: of_softmax(call.out, call["dim"], call.shape()),
    aten.softmax.int, aten._softmax.default, aten._safe_softmax.default,
)  # fmt: skip
_towards(
    lambda call: FromMean(torch.exp(call.out), call["dim"], call.shape()),
    aten.log_softmax.int, aten._log_softmax.default,
)  # fmt: skip
_towards(_of_log_sum, aten.logsumexp.default)


@gradient.register(
    aten.scaled_dot_product_attention.default,
    content=("query", "key", "value", "attn_mask"),
    dynamic=True,
    total=True,
    accepts=omenn.table[aten.scaled_dot_product_attention.default].accepts,
)
def _attention(call: Call) -> Affine:
    terms = of_attention(call)
    return with_remainder(call, {slot: terms[slot.name] for slot in call.content})


# From the omenn table ------------------------------------------------------------------------------------------------

# Dynamic, but the Jacobian as they stand: winners, and what grows in proportion to x along its own direction.
_JACOBIANS = (
    aten.relu.default, aten.abs.default, aten.absolute.default, aten.max.dim, aten.min.dim, aten.max.default,
    aten.min.default, aten.amax.default, aten.amin.default, aten.median.dim, aten.kthvalue.default, aten.topk.default,
    aten.sort.default, aten.sort.stable, aten.msort.default, aten.cummax.default, aten.cummin.default,
    aten.maximum.default, aten.minimum.default, aten.max.other, aten.min.other, aten.fmax.default, aten.fmin.default,
    aten.scatter_reduce.two, aten.max_pool1d.default, aten.max_pool1d_with_indices.default, aten.max_pool2d.default,
    aten.max_pool2d_with_indices.default, aten.max_pool3d.default, aten.max_pool3d_with_indices.default,
    aten.adaptive_max_pool1d.default, aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default,
    aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim, aten.std.correction, aten.std.dim,
    aten.cdist.default, aten._cdist_forward.default,
)  # fmt: skip
_SQUARES = (aten.var.correction, aten.var.dim)  # <(x - mean) / n, x - mean>, the first half frozen


def _of_factors(form: Form, call: Call) -> Affine:
    """The whole product to each factor: the omenn form with that one as its content."""
    affine: Any = {slot: form(replace(call, content=(slot,))) for slot in call.content}
    return with_remainder(call, {slot: affine[slot].terms[slot] for slot in call.content})


def _twice(form: Form, call: Call) -> Affine:
    linear: Any = form(call)
    return with_remainder(call, {call.content[0]: scaled(linear, 2.0, call)})


def _is_rounded(operands: Mapping[str, Any]) -> bool:
    """A division without a rounding mode is one, and not constant between jumps."""
    return operands.get("rounding_mode", "") is not None


def _derived(rule: Rule) -> Rule | None:
    """The rule of an omenn rule, where it or its form serves here."""
    if rule.form is None:
        return replace(rule, gate=False, total=rule.source, accepts=_is_rounded)
    if rule.product:
        return replace(rule, form=partial(_of_factors, rule.form), product=False, dynamic=True, total=True)
    if rule.op in _SQUARES:
        return replace(rule, form=partial(_twice, rule.form), gate=False, total=True)
    if rule.op in _JACOBIANS:
        return replace(rule, gate=False, total=True)
    return None if rule.dynamic or rule.gate else replace(rule, total=True)


def fill() -> None:
    """Complete the table from that of omenn, when that is full."""
    for rule in omenn:
        if rule.op in gradient:
            gradient.mark(rule.op, complex=rule.complex)
        elif rule.op is not aten.sgn.default and (found := _derived(rule)) is not None:
            gradient.add(found)
    name_set(gradient)


gradient.opaque(aten.detach.default)
# Opaque in omenn, but with a derivative that has no formula here. Torch decomposes `sgn`, and fails at this one.
gradient.opaque(aten.affine_grid_generator.default, accepts=lambda operands: False)
