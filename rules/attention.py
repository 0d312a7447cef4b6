"""Attention: A = softmax(Q K^T) is frozen and acts on the tokens of V. Softmax itself, where its result is content."""

from __future__ import annotations

import math

import torch

from omenn_fx.linear import Chain, Diagonal, Linear
from omenn_fx.mass import Even, Mass, Shape
from omenn_fx.registry import Bias, Call, rule
from omenn_fx.rules.bilinear import LeftMatrix

aten = torch.ops.aten
Tensor = torch.Tensor


def attention_weights(call: Call) -> Tensor:
    """softmax(scale * Q K^T + mask) of a scaled_dot_product_attention; a row without any key is 0, as in torch."""
    query, key, mask = call["query"], call["key"], call["attn_mask"]
    scale = call["scale"] if call["scale"] is not None else 1 / math.sqrt(query.shape[-1])
    scores = torch.matmul(query * scale, _heads(key, call).transpose(-2, -1))
    if call["is_causal"]:
        rows = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device)
        scores = scores.masked_fill(~torch.tril(rows), -math.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    weights = torch.softmax(scores, -1)
    masked = mask is not None
    return torch.nan_to_num(weights, nan=0.0) if masked else weights


def _heads(value: Tensor, call: Call) -> Tensor:
    """Grouped-query attention: each key and value head serves several query heads."""
    if not call["enable_gqa"]:
        return value
    return torch.repeat_interleave(value, call["query"].shape[-3] // value.shape[-3], -3)


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
    value = list(call.shape())
    if not call["enable_gqa"]:
        return LeftMatrix(attention_weights(call), value, call.out.shape)
    heads = call["query"].shape[-3]
    wide = [*value[:-3], heads, *value[-2:]]
    return Chain(LeftMatrix(attention_weights(call), wide, call.out.shape), GroupedHeads(heads // value[-3], value))


# Softmax as content --------------------------------------------------------------------------------------------------


class BelowMaximum(Linear):
    """W u = u - (the winner of u along `dim`), ties sharing equally: softmax does not see a common shift."""

    def __init__(self, winners: Tensor, dim: int, operand: Shape, sign: float = -1.0):
        self.winners, self.dim, self.operand, self.sign = winners, dim, operand, sign

    def apply(self, u: Tensor) -> Tensor:
        return u + self.sign * (self.winners * u).sum(self.dim, keepdim=True)

    def transpose(self, g: Tensor) -> Tensor:
        return g + self.sign * self.winners * g.sum(self.dim, keepdim=True)

    def carry(self, mass: Mass) -> Mass:
        return mass.moved(self.operand)

    def magnitude(self) -> Linear:
        """A bound: at the winner itself the two parts cancel."""
        return BelowMaximum(self.winners, self.dim, self.operand, sign=1.0)


def _below(call: Call) -> tuple[BelowMaximum, Tensor, Tensor]:
    """The map to u = x - max x, u itself (-inf where x is), and Z = sum e^u."""
    x, dim = call.x, call["dim"]
    top = torch.nan_to_num(x.amax(dim, keepdim=True), neginf=0.0)  # a row without anything but -inf
    wins = (x == top).to(x.dtype)
    wins = torch.nan_to_num(wins / wins.sum(dim, keepdim=True), nan=0.0)
    below = x - top
    return BelowMaximum(wins, dim, call.shape()), below, torch.exp(below).sum(dim, keepdim=True)


def _softmax(call: Call) -> tuple[Linear, Bias]:
    """softmax(x) = e^u / Z with u = x - max x: diag((e^u - 1) / (u Z)) (I - max) x + 1 / Z, Z frozen; masked: 0."""
    centre, u, z = _below(call)
    ratio = torch.nan_to_num(torch.expm1(u) / u, nan=1.0) / z
    shown = 1 - torch.isinf(u).to(u.dtype)
    scale, base = torch.nan_to_num(ratio * shown, posinf=0.0), torch.nan_to_num(shown / z, posinf=0.0)
    return Chain(Diagonal(scale, call.shape(), call.shape()), centre), Bias(base)


def _log_softmax(call: Call) -> tuple[Linear, Bias]:
    """log softmax(x) = u - log Z, Z frozen."""
    centre, _, z = _below(call)
    return centre, Bias(-torch.log(z)).finite()


rule(aten.softmax.int, aten._softmax.default, aten._safe_softmax.default, gate=True)(_softmax)
rule(aten.log_softmax.int, aten._log_softmax.default)(_log_softmax)
