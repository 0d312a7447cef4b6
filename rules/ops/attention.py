"""Attention: A = softmax(Q K^T) is frozen and acts on the tokens of V. Softmax itself, where its result is content."""

from __future__ import annotations

import math

import torch

from omenn_fx.algebra import composites
from omenn_fx.algebra.form import Bias, Call
from omenn_fx.algebra.linear import Chain, Diagonal, Linear
from omenn_fx.algebra.mass import Even, Mass, Shape
from omenn_fx.algebra.ruleset import rule
from omenn_fx.rules.ops.bilinear import LeftMatrix

aten = torch.ops.aten
Tensor = torch.Tensor


def scale_of(call: Call) -> float:
    """The scale of the scores of a scaled_dot_product_attention."""
    return call["scale"] if call["scale"] is not None else 1 / math.sqrt(call["query"].shape[-1])


def groups_of(call: Call) -> int:
    """How many query heads each key and value head serves (grouped-query attention)."""
    return call["query"].shape[-3] // call["key"].shape[-3] if call["enable_gqa"] else 1


def attention_scores(call: Call) -> Tensor:
    """scale * Q K^T + mask."""
    query, key, mask, groups = call["query"], call["key"], call["attn_mask"], groups_of(call)
    keys = torch.repeat_interleave(key, groups, -3) if groups > 1 else key
    scores = torch.matmul(query * scale_of(call), keys.transpose(-2, -1))
    if call["is_causal"]:
        rows = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device)
        scores = scores.masked_fill(~torch.tril(rows), -math.inf)
    if mask is None:
        return scores
    return scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask


def attention_weights(call: Call, scores: Tensor | None = None) -> Tensor:
    """softmax(scale * Q K^T + mask), of these scores where they are made; a row without any key is 0, as in torch."""
    scores = attention_scores(call) if scores is None else scores
    query, key, mask = call["query"], call["key"], call["attn_mask"]
    return composites.attention_weights(scores, query, key, mask, call["is_causal"], scale_of(call))


class GroupedHeads(Linear):
    """One value head read by several query heads."""

    def __init__(self, repeats: int, operand: Shape):
        self.repeats, self.operand = repeats, operand

    def apply(self, u: Tensor) -> Tensor:
        return torch.repeat_interleave(u, self.repeats, -3)

    def transpose(self, g: Tensor) -> Tensor:
        *lead, heads, tokens, width = self.operand
        return g.reshape((*lead, heads, self.repeats, tokens, width)).sum(-3)

    def carry(self, mass: Mass) -> Mass:
        return Mass((Even(self.transpose(mass.dense())),), self.operand)

    def magnitude(self) -> Linear:
        return self


@rule(
    aten.scaled_dot_product_attention.default,
    content="value",
    accepts=lambda operands: operands["dropout_p"] == 0,  # dropped at random it has no fixed weights
)
def _attention(call: Call) -> Linear:
    value, groups = list(call.shape()), groups_of(call)
    averages = call["attn_mask"] is None  # behind a mask a row may read no key at all
    if groups == 1:
        return LeftMatrix(attention_weights(call), value, call.out.shape, averages)
    wide = [*value[:-3], value[-3] * groups, *value[-2:]]
    return Chain(LeftMatrix(attention_weights(call), wide, call.out.shape, averages), GroupedHeads(groups, value))


# Softmax as content --------------------------------------------------------------------------------------------------


class FromMean(Linear):
    """W u = u - (the mean of u along `dim`, over what is not masked): softmax does not see a common shift."""

    def __init__(self, weights: Tensor, dim: int, operand: Shape):
        self.weights, self.dim, self.operand = weights, dim, operand

    def apply(self, u: Tensor) -> Tensor:
        return u - (self.weights * u).sum(self.dim, keepdim=True)

    def transpose(self, g: Tensor) -> Tensor:
        return g - self.weights * g.sum(self.dim, keepdim=True)

    def carry(self, mass: Mass) -> Mass:
        return mass.moved(self.operand)

    def magnitude(self) -> Linear:
        return AbsoluteFromMean(self.weights, self.dim, self.operand)


class AbsoluteFromMean(FromMean):
    """|W|: 1 - w where a position reads itself, w elsewhere."""

    def apply(self, u: Tensor) -> Tensor:
        own = self.weights * u
        return (u - own) + (own.sum(self.dim, keepdim=True) - own)

    def transpose(self, g: Tensor) -> Tensor:
        return (1 - self.weights) * g + self.weights * (g.sum(self.dim, keepdim=True) - g)


def _from_mean(call: Call) -> tuple[FromMean, Tensor, Tensor, Tensor]:
    """The map to u = x - mean x; u (0 at -inf); which positions count (1, or 0 where e^u vanishes); log sum e^u.

    The mean is over what counts: a mask, at -inf or at a large negative number, is no part of it.
    """
    x, dim = call.x, call["dim"]
    infinite = torch.isinf(x)
    known = torch.where(infinite, torch.zeros_like(x), x)
    counts = torch.nan_to_num(torch.softmax(x, dim), nan=0.0) > 0  # a row may be masked altogether
    shown = counts.to(x.dtype)
    weights = torch.nan_to_num(shown / shown.sum(dim, keepdim=True), nan=0.0)
    u = torch.where(infinite, known, known - (weights * known).sum(dim, keepdim=True))
    size = torch.logsumexp(torch.where(counts, u, torch.full_like(u, -math.inf)), dim, keepdim=True)
    return FromMean(weights, dim, call.shape()), u, shown, torch.nan_to_num(size, neginf=0.0)


def _softmax(call: Call) -> tuple[Linear, Bias]:
    """softmax(x) = e^u / Z with u = x - mean x: diag((e^u - 1) / (u Z)) (I - mean) x + 1 / Z, Z frozen; masked: 0.

    Anchored at the mean, the top class has weights as all others have; at the maximum it would be all bias.
    """
    centre, u, shown, size = _from_mean(call)
    base = torch.exp(-size)  # 1 / Z <= 1 / n
    near = torch.clamp(u, -1.0, 1.0)
    close = base * torch.nan_to_num(torch.expm1(near) / near, nan=1.0)
    far = (torch.exp(u - size) - base) / torch.where(near == u, torch.ones_like(u), u)
    ratio = torch.where(near == u, close, far)
    return Chain(Diagonal(ratio * shown, call.shape(), call.shape()), centre), Bias(base * shown)


def _log_softmax(call: Call) -> tuple[Linear, Bias]:
    """log softmax(x) = u - log Z with u = x - mean x, Z frozen."""
    centre, _, _, size = _from_mean(call)
    return centre, Bias(-size * (1 - torch.isinf(call.x).to(size.dtype)))


rule(aten.softmax.int, aten._softmax.default, aten._safe_softmax.default, gate=True, dynamic=True)(_softmax)
rule(aten.log_softmax.int, aten._log_softmax.default, dynamic=True)(_log_softmax)
