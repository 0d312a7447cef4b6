"""Derivatives as linear maps: softmax, norms and attention, and the bias that makes an affine form of a derivative.

With W = J, the Jacobian of an operator at this input, the bias is the remainder b = h - J x.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from omenn_fx.algebra.form import Affine, Bias, Call, Slot
from omenn_fx.algebra.linear import Chain, Diagonal, Linear
from omenn_fx.algebra.mass import Mass, Shape
from omenn_fx.rules.ops.attention import FromMean, GroupedHeads, attention_weights, groups_of, scale_of
from omenn_fx.rules.ops.bilinear import LeftMatrix, RightMatrix
from omenn_fx.rules.ops.structural import Permute

Tensor = torch.Tensor


def with_remainder(call: Call, terms: Mapping[Slot, Linear]) -> Affine:
    """The affine form whose bias is what W x leaves of h. A mask, at -inf, has weight 0."""
    rest = call.out
    for slot, linear in terms.items():
        x = torch.nan_to_num(call.at(slot), posinf=0.0, neginf=0.0).to(call.out.dtype)
        rest = rest - linear.apply(x)
    return Affine(terms, Bias(rest).finite())


def of_softmax(s: Tensor, dim: int, shape: Shape) -> Linear:
    """J = diag(s) - s s^T along `dim`, of s = softmax(x)."""
    return Chain(Diagonal(s, shape, shape), FromMean(s, dim, shape))


class OfNorm(Linear):
    """J = (I - mean - y y^T / n) / sigma over `dims`, symmetric, with y = (x - mean) / sigma.

    `centre=False` leaves the mean out, as an RMS norm does. Mass stays where it is.
    """

    def __init__(self, y: Tensor, scale: Tensor, dims: Sequence[int], operand: Shape, centre: bool, sign: float = -1.0):
        self.y, self.scale, self.dims, self.operand = y, scale, tuple(dims), operand
        self.centre, self.sign = centre, sign

    def apply(self, u: Tensor) -> Tensor:
        along = self.y * (self.y * u).mean(self.dims, keepdim=True)
        if self.centre:
            along = along + u.mean(self.dims, keepdim=True)
        return self.scale * (u + self.sign * along)

    def transpose(self, g: Tensor) -> Tensor:
        return self.apply(g)

    def carry(self, mass: Mass) -> Mass:
        return mass.moved(self.operand)

    def magnitude(self) -> Linear:
        """A bound: the terms of the sum one by one."""
        return OfNorm(torch.abs(self.y), self.scale, self.dims, self.operand, self.centre, sign=1.0)


def attention_terms(call: Call, weights: Tensor, of_scores: Linear) -> dict[str, Linear]:
    """W of softmax(scale Q K^T + mask) V towards query, key, value and mask.

    `weights` are what acts on the values, `of_scores` is W of the softmax.
    """
    query, key, value, mask = (call[name] for name in ("query", "key", "value", "attn_mask"))
    groups, scale, size = groups_of(call), scale_of(call), call.out.shape
    read = {name: [GroupedHeads(groups, call.shape(name))] if groups > 1 else [] for name in ("key", "value")}
    keys = read["key"][0].apply(key) if groups > 1 else key
    values = read["value"][0].apply(value) if groups > 1 else value
    turned = [*keys.shape[:-2], keys.shape[-1], keys.shape[-2]]
    swap = [*range(len(turned) - 2), len(turned) - 1, len(turned) - 2]
    scores: Shape = weights.shape
    attended = [RightMatrix(values, scores, size), of_scores]  # from the scores on
    terms: dict[str, Linear] = {
        "query": Chain(*attended, RightMatrix(scale * keys.transpose(-2, -1), query.shape, scores)),
        "key": Chain(*attended, LeftMatrix(scale * query, turned, scores), Permute(swap, keys.shape), *read["key"]),
        "value": Chain(LeftMatrix(weights, values.shape, size), *read["value"]),
    }
    if mask is not None:
        terms["attn_mask"] = Chain(*attended, Diagonal(None, mask.shape, scores))
    return terms


def of_attention(call: Call) -> dict[str, Linear]:
    """The derivatives of softmax(scale Q K^T + mask) V towards query, key, value and mask."""
    weights = attention_weights(call)
    return attention_terms(call, weights, of_softmax(weights, -1, weights.shape))


def scaled(linear: Linear, by: Any, call: Call) -> Linear:
    """A number times a map to the result of a call."""
    return linear if by == 1 else Chain(Diagonal(by, call.out.shape, call.out.shape), linear)
