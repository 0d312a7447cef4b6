"""DeepLIFT (Shrikumar et al. 2017): what a node changed by against a reference input, shared among its operands.

`call.reference` is the call at the reference x0. With the multipliers W every node is an affine form of both inputs,

    h = W x + b   and   h0 = W x0 + b,

so sum(C) is the logit as in every set, and C_w * (x - x0) sums to f(x) - f(x0) ("summation to delta"). The rules:

* rescale: an element-wise f has W = diag((f(x) - f(x0)) / (x - x0)), its derivative where x = x0;
* max pool: what the maximum rose by goes to the winner at x, what it fell by to the winner at x0, as in Captum;
* products: each factor's change times a mean of the other's two values, a b - a0 b0 = B (a - a0) + A (b - b0);
* what is made of these (softmax, norms, attention, distances) has the form that they leave, in closed formulas: each
  is the Jacobian where x = x0, and none divides by a small difference.

Operators with a W that depends on neither input keep it. Of the others `check` says by name (OMENN106) where the form
of omenn stands in: there the sum is the logit too, but the summation to delta is not exact.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from omenn_fx.algebra.form import Affine, Call, Form, Slot
from omenn_fx.algebra.linear import Centre, Chain, ComplexDiagonal, Diagonal, Linear, Reduction, Sum
from omenn_fx.algebra.mass import Shape
from omenn_fx.algebra.ruleset import Rule, omenn
from omenn_fx.rules.ops import normalization, opaque, pooling, selection, statistics  # noqa: F401  (fill omenn)
from omenn_fx.rules.ops.attention import FromMean, attention_scores, attention_weights
from omenn_fx.rules.ops.bilinear import dims_of
from omenn_fx.rules.ops.elementwise import quotient
from omenn_fx.rules.ops.jacobian import attention_terms, scaled, with_remainder
from omenn_fx.rules.ops.structural import piece
from omenn_fx.rules.sets.gradient import bounded, gradient

aten = torch.ops.aten
Tensor = torch.Tensor

deeplift = omenn.derive(
    "deeplift",
    "DeepLIFT: the rescale rule against a reference input (Shrikumar et al. 2017)",
    reference=0.0,
)


def own(*ops: Any, **traits: Any) -> Callable[[Form], Form]:
    """Decorator: the form of operators of the omenn table; nothing is a gate here."""

    def decorate(form: Form) -> Form:
        for op in ops:
            deeplift.add(replace(omenn.table[op], form=form, **{"gate": False, "complex": False, **traits}))
        return form

    return decorate


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


# Element-wise --------------------------------------------------------------------------------------------------------

# With kinks or jumps, and of bounded rounding errors: the difference is taken as it is, however small.
KINKED = (
    aten.relu.default, aten.relu6.default, aten.leaky_relu.default, aten.rrelu.default, aten.prelu.default,
    aten.elu.default, aten.celu.default, aten.selu.default, aten.hardtanh.default, aten.hardsigmoid.default,
    aten.hardswish.default, aten.clamp.default, aten.clip.default, aten.clamp_min.default, aten.clamp_max.default,
    aten.clamp.Tensor, aten.threshold.default, aten.hardshrink.default, aten.softshrink.default, aten.frac.default,
    aten.abs.default, aten.absolute.default,
)  # fmt: skip
SMOOTH = (
    aten.gelu.default, aten.silu.default, aten.mish.default, aten.softplus.default, aten.log_sigmoid.default,
    aten.erf.default, aten.erfc.default, aten.erfinv.default, aten.sin.default, aten.cos.default, aten.tan.default,
    aten.asin.default, aten.acos.default, aten.atan.default, aten.sinh.default, aten.cosh.default, aten.asinh.default,
    aten.atanh.default, aten.expm1.default, aten.exp2.default, aten.pow.Scalar,
)  # fmt: skip
# Of any scale: what is a small difference depends on x.
POWERS = (
    aten.log.default, aten.log2.default, aten.log10.default, aten.log1p.default, aten.pow.Tensor_Scalar,
    aten.pow.Tensor_Tensor,
)  # fmt: skip


def rescale(call: Call, multiplier: Any) -> Affine:
    """The form of an element-wise function."""
    slot = call.content[0]
    return with_remainder(call, {slot: Diagonal(multiplier, call.shape(slot), call.out.shape)})


def _slope(call: Call) -> Any:
    linear: Any = gradient.table[call.op].affine(call).terms[call.content[0]]
    return linear.d


@own(*KINKED)
def _kinked(call: Call) -> Affine:
    difference = call.x - before(call).x
    same = difference == 0
    ratio = (call.out - before(call).out) / torch.where(same, torch.ones_like(difference), difference)
    return rescale(call, torch.where(same, _slope(call), ratio))


def _close(call: Call, scale: Any) -> Affine:
    """Below the root of the dtype's precision the derivative is nearer than the quotient of two rounded differences."""
    difference = call.x - before(call).x
    near = torch.abs(difference) <= math.sqrt(torch.finfo(call.x.dtype).eps) * scale
    ratio = (call.out - before(call).out) / torch.where(near, torch.ones_like(difference), difference)
    return rescale(call, bounded(torch.where(near, _slope(call), ratio)))


own(*SMOOTH)(lambda call: _close(call, 1.0))
own(*POWERS)(lambda call: _close(call, torch.abs(call.x)))


def secant(*ops: Any, **traits: Any) -> Callable[[Callable[[Call, Call], Any]], None]:
    """Decorator: a function whose multiplier has a formula without a difference in it, of the call at x and at x0."""

    def decorate(formula: Callable[[Call, Call], Any]) -> None:
        own(*ops, dynamic=True, **traits)(lambda call: rescale(call, bounded(formula(call, before(call)))))

    return decorate


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


secant(aten.tanh.default)(lambda c, r: of_tanh(c.out, r.out, c.x - r.x))
secant(aten.sigmoid.default)(lambda c, r: of_sigmoid(c.out, r.out, c.x - r.x))
secant(aten.exp.default)(lambda c, r: of_exp(c.out, r.out, c.x - r.x))
secant(aten.sqrt.default)(lambda c, r: 1 / (c.out + r.out))
secant(aten.rsqrt.default, content=("self",))(lambda c, r: -((c.out * r.out) ** 2) / (c.out + r.out))
secant(aten.reciprocal.default, content=("self",))(lambda c, r: -c.out * r.out)


# Squares -------------------------------------------------------------------------------------------------------------


def _of_order_2(operands: Mapping[str, Any]) -> bool:
    return operands.get("ord", operands.get("p", 2)) in (2, 2.0, None)


def _of_sums(rule: Rule, call: Call) -> Affine:
    """<x, x> - <x0, x0> = <x + x0, x - x0>, and a root divides by its sum: the form of omenn at the sums of both."""
    sums = {Slot(name): call[name] + before(call)[name] for name in rule.content}
    there = replace(exchanged(call, sums), out=call.out + before(call).out)
    return with_remainder(call, replace(rule, accepts=None).affine(there).terms)


for _op in (
    aten.square.default, aten.var.correction, aten.var.dim, aten.std.correction, aten.std.dim,
    aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim, aten.cdist.default, aten._cdist_forward.default,
):  # fmt: skip
    own(_op, accepts=_of_order_2)(partial(_of_sums, omenn.table[_op]))


# Products ------------------------------------------------------------------------------------------------------------


def product(a: Any, a0: Any, b: Any, b0: Any) -> tuple[Any, Any]:
    """B and A of a b - a0 b0 = B (a - a0) + A (b - b0), element by element.

    B = s b + (1 - s) b0 and A = (1 - s) a + s a0 are exact for every s. With s = 1/2 a term may be as large as |a b0|:
    of a norm whose reference is almost 0, b = 1 / sigma, that is without bound. With s = |a b0| / (|a b0| + |a0 b|) no
    term is larger than |a b| + |a0 b0|.
    """
    size, size0 = torch.abs(a * b0), torch.abs(a0 * b)
    share = torch.nan_to_num(size / (size + size0), nan=0.5)
    return share * b + (1 - share) * b0, (1 - share) * a + share * a0


def _of_two(call: Call, **multipliers: Any) -> Affine:
    """The form with a multiplier for each operand that is content."""
    kind = ComplexDiagonal if call.out.dtype.is_complex else Diagonal
    terms = {slot: kind(multipliers[slot.name], call.shape(slot), call.out.shape) for slot in call.content}
    return with_remainder(call, terms)


@own(aten.mul.Tensor, aten.mul.Scalar, aten.multiply.Tensor, aten.multiply.Scalar, complex=True)
def _mul(call: Call) -> Affine:
    if len(call.content) < 2:
        return omenn.table[call.op].affine(call)
    first, second = product(call["self"], before(call)["self"], call["other"], before(call)["other"])
    return _of_two(call, self=first, other=second)


@own(
    aten.div.Tensor, aten.div.Scalar, aten.divide.Tensor, aten.divide.Scalar, aten.true_divide.Tensor,
    aten.true_divide.Scalar,
    content=("self", "other"), product=True, complex=True,
)  # fmt: skip
def _div(call: Call) -> Affine:
    """The product with 1 / b, and 1 / b - 1 / b0 = -(b - b0) / (b b0)."""
    if Slot("other") not in call.content:
        return omenn.table[call.op].affine(call)
    a, a0 = call["self"], (before(call) if Slot("self") in call.content else call)["self"]
    inverse, inverse0 = 1 / call["other"], 1 / before(call)["other"]
    by_content, by_inverse = product(a, a0, inverse, inverse0)
    return _of_two(call, self=by_content, other=-by_inverse * inverse * inverse0)


@own(aten.glu.default)
def _glu(call: Call) -> Affine:
    """a sigmoid(b) for the halves a and b of x."""
    dim, half = call["dim"] % len(call.shape()), call.out.shape[call["dim"]]
    first, second = (piece(call.shape(), dim, start, half) for start in (0, half))
    (a, a0), (b, b0) = ((part.apply(call.x), part.apply(before(call).x)) for part in (first, second))
    gate, gate0 = torch.sigmoid(b), torch.sigmoid(b0)
    by_content, by_gate = product(a, a0, gate, gate0)
    maps = ((by_content, first), (by_gate * of_sigmoid(gate, gate0, b - b0), second))
    halves = (Chain(Diagonal(by, call.out.shape, call.out.shape), part) for by, part in maps)
    return with_remainder(call, {call.content[0]: Sum(*halves)})


def _contraction(rule: Rule, call: Call) -> Affine:
    """Sums of products: the omenn form with the other factor half way; of several, the mean of two orders of change."""
    factors = [slot for slot in call.content if rule.multiplies(slot)]
    if len(factors) < 2:
        return rule.affine(call)
    terms: dict[Slot, Linear] = {}
    for slot in call.content:
        alone = replace(call, content=(slot,))
        others = [f for f in factors if f != slot] if slot in factors else []
        if len(others) < 2:
            terms[slot] = rule.affine(exchanged(alone, {o: mean(call, o) for o in others})).terms[slot]
            continue
        at = factors.index(slot)
        orders = [exchanged(alone, {o: before(call).at(o) for o in some}) for some in (factors[:at], factors[at + 1 :])]
        terms[slot] = Sum(*(scaled(rule.affine(order).terms[slot], 0.5, call) for order in orders))
    return with_remainder(call, terms)


for _op in (
    aten.addcmul.default, aten.matmul.default, aten.bmm.default, aten.mm.default, aten.mv.default, aten.addmm.default,
    aten.baddbmm.default, aten.einsum.default, aten.bilinear.default,
):  # fmt: skip
    own(_op)(partial(_contraction, omenn.table[_op]))


# Norms ---------------------------------------------------------------------------------------------------------------


def _standardise(reference: Tensor, x: Tensor, dims: tuple[int, ...], shape: Shape, eps: float, centre: bool) -> Linear:
    """The product of c = x - mean x and r = 1 / sigma, as if it were written out:

    r - r0 = -(r r0)^2 / (r + r0) (sigma^2 - sigma0^2) and sigma^2 - sigma0^2 = mean((c + c0) (c - c0)).
    """
    x0 = reference.reshape(tuple(shape))
    r, r0 = (normalization.inverse_deviation(v, dims, shape, eps, centre) for v in (x, x0))
    c, c0 = (v - v.mean(dims, keepdim=True) if centre else v for v in (x, x0))
    by_content, by_deviation = product(c, c0, r, r0)
    kept = {d % len(shape) for d in dims}
    small = [1 if d in kept else n for d, n in enumerate(shape)]
    squares = Chain(Reduction(dims, True, shape, 1 / math.prod(shape[d] for d in dims)), Diagonal(c + c0, shape, shape))
    deviation = Chain(Diagonal(-by_deviation * (r * r0) ** 2 / (r + r0), small, shape), squares)
    centred = Centre(dims, shape) if centre else Diagonal(None, shape, shape)
    return Sum(Chain(Diagonal(by_content, shape, shape), centred), deviation)


def _normalises(*ops: Any, form: Callable[..., tuple[Linear, Any]]) -> None:
    def whole(call: Call) -> Affine:
        linear, _ = form(call, standardise=partial(_standardise, before(call).x))
        return with_remainder(call, {call.content[0]: linear})

    own(*ops)(whole)


_normalises(aten.layer_norm.default, aten.native_layer_norm.default, form=normalization.layer_norm)
_normalises(aten.rms_norm.default, aten._fused_rms_norm.default, form=normalization.rms_norm)
_normalises(aten.group_norm.default, form=normalization.group_norm)
_normalises(aten.instance_norm.default, form=normalization.instance_norm)


# Softmax and attention -----------------------------------------------------------------------------------------------


def softmax_change(logs: Tensor, logs0: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
    """M and p of s - s0 = diag(M) (I - 1 p^T) (x - x0), and of log sum e^x - log sum e^x0 = p^T (x - x0).

    `logs` is u = log s: e^u - e^u0 = M (u - u0) by the rule of exp, and u - u0 = (x - x0) - (one number for all). That
    s and s0 have the same sum says which number: p^T (x - x0) with p = M / sum M.
    """
    multiplier = bounded(of_exp(torch.exp(logs), torch.exp(logs0), logs - logs0))
    return multiplier, bounded(multiplier / multiplier.sum(dims, keepdim=True))


def _of_scores(x: Tensor, x0: Tensor, dim: int, shape: Shape) -> Linear:
    multiplier, parts = softmax_change(torch.log_softmax(x, dim), torch.log_softmax(x0, dim), [dim])
    return Chain(Diagonal(multiplier, shape, shape), FromMean(parts, dim, shape))


@own(aten.softmax.int, aten._softmax.default, aten._safe_softmax.default)
def _softmax(call: Call) -> Affine:
    x, x0 = (c.x.to(call.out.dtype) for c in (call, before(call)))
    return with_remainder(call, {call.content[0]: _of_scores(x, x0, call["dim"], call.shape())})


@own(aten.log_softmax.int, aten._log_softmax.default)
def _log_softmax(call: Call) -> Affine:
    _, parts = softmax_change(call.out, before(call).out, [call["dim"]])
    return with_remainder(call, {call.content[0]: FromMean(parts, call["dim"], call.shape())})


@own(aten.logsumexp.default)
def _logsumexp(call: Call) -> Affine:
    dims, shape = dims_of(call), call.shape()
    reduced = Reduction(dims, call["keepdim"], shape)
    logs, logs0 = (c.x - (c.out if call["keepdim"] else reduced.with_dims(c.out)) for c in (call, before(call)))
    _, parts = softmax_change(logs, logs0, dims)
    return with_remainder(call, {call.content[0]: Chain(reduced, Diagonal(parts, shape, shape))})


@own(aten.scaled_dot_product_attention.default, content=("query", "key", "value", "attn_mask"), dynamic=True)
def _attention(call: Call) -> Affine:
    """A V, A = softmax(scale Q K^T + mask): two products with a softmax between them."""
    halfway = exchanged(call, {slot: mean(call, slot) for slot in map(Slot, ("query", "key", "value"))})
    x, x0 = attention_scores(call), attention_scores(before(call))
    weights = bounded(0.5 * (attention_weights(call, x) + torch.softmax(x0, -1)))
    terms = attention_terms(halfway, weights, _of_scores(x, x0, -1, x.shape))
    return with_remainder(call, {slot: terms[slot.name] for slot in call.content})


# Maxima --------------------------------------------------------------------------------------------------------------


def _extreme(rule: Rule, least: bool, call: Call) -> Affine:
    """The winner at x takes the rise to the larger of both maxima, the winner at x0 the fall from it.

    Each changed by no less than that, so the multipliers are between 0 and 1. A winner that is the same value in both
    has 1. Ties share equally.
    """
    slot, reference = call.content[0], before(call)
    selected, selected0 = (rule.affine(c).terms[slot] for c in (call, reference))
    between = (torch.minimum if least else torch.maximum)(call.out, reference.out)
    difference = call.x - reference.x
    same = torch.abs(difference) < 1e3 * torch.finfo(call.x.dtype).tiny
    inverse = (1 - same.to(call.x.dtype)) / torch.where(same, torch.ones_like(difference), difference)
    shape, size = call.shape(), call.out.shape
    parts = (
        (between - reference.out, selected, inverse),
        (call.out - between, selected0, inverse),
        ((call.out == reference.out).to(call.x.dtype), selected, same.to(call.x.dtype)),
    )
    maps = [Chain(Diagonal(change, size, size), m, Diagonal(by, shape, shape)) for change, m, by in parts]
    return with_remainder(call, {slot: Sum(*maps)})


for _op in (
    aten.max.dim, aten.max.default, aten.amax.default, aten.min.dim, aten.min.default, aten.amin.default,
    aten.max_pool1d.default, aten.max_pool1d_with_indices.default, aten.max_pool2d.default,
    aten.max_pool2d_with_indices.default, aten.max_pool3d.default, aten.max_pool3d_with_indices.default,
    aten.adaptive_max_pool1d.default, aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default,
):  # fmt: skip
    _least = _op in (aten.min.dim, aten.min.default, aten.amin.default)
    own(_op)(partial(_extreme, omenn.table[_op], _least))


@own(aten.maximum.default, aten.minimum.default, aten.max.other, aten.min.other, aten.fmax.default, aten.fmin.default)
def _larger(call: Call) -> Affine:
    """Each operand's change with the other as it was and as it is: the mean of both."""
    terms: dict[Slot, Linear] = {}
    for slot, other in itertools.permutations((Slot("self"), Slot("other"))):
        if slot not in call.content:
            continue
        x, x0, total = call.at(slot), before(call).at(slot), torch.zeros_like(call.out)
        for beside in (call.at(other), (before(call) if other in call.content else call).at(other)):
            h, h0 = (call.replay(**{slot.name: v, other.name: beside}) for v in (x, x0))
            slope = (h == x).to(h.dtype) * (1 - 0.5 * (x == beside).to(h.dtype))
            total = total + 0.5 * torch.where(
                x == x0, slope, (h - h0) / torch.where(x == x0, torch.ones_like(x), x - x0)
            )
        terms[slot] = Diagonal(total, call.shape(slot), call.out.shape)
    return with_remainder(call, terms)


# Captured as the operators they are made of, which have exact forms.
deeplift.drop(aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
