"""Attention: A = softmax(Q K^T) is frozen and acts on the tokens of V."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from omenn_fx.algebra import composites
from omenn_fx.algebra.form import Affine, Call, Slot
from omenn_fx.algebra.linear import Chain, Diagonal, Linear
from omenn_fx.algebra.mass import Even, Mass, Shape
from omenn_fx.algebra.rows import last
from omenn_fx.algebra.ruleset import Variant
from omenn_fx.rules.ops.forms import before, bounded, exchanged, mean, static, with_remainder
from omenn_fx.rules.ops.matrices import LeftMatrix, RightMatrix
from omenn_fx.rules.ops.softmax import of_scores, of_softmax
from omenn_fx.rules.ops.structural import Permute

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


def _jacobian(call: Call) -> Affine:
    terms = of_attention(call)
    return with_remainder(call, {slot: terms[slot.name] for slot in call.content})


def _change(call: Call) -> Affine:
    """A V, A = softmax(scale Q K^T + mask): two products with a softmax between them."""
    halfway = exchanged(call, {slot: mean(call, slot) for slot in map(Slot, ("query", "key", "value"))})
    x, x0 = attention_scores(call), attention_scores(before(call))
    weights = bounded(0.5 * (attention_weights(call, x) + torch.softmax(x0, -1)))
    terms = attention_terms(halfway, weights, of_scores(x, x0, -1, x.shape))
    return with_remainder(call, {slot: terms[slot.name] for slot in call.content})


def draws_nothing(operands: Mapping[str, Any]) -> bool:
    """Dropped at random, attention has no fixed weights."""
    return operands["dropout_p"] == 0


OPERANDS = ("query", "key", "value", "attn_mask")


@static(
    aten.scaled_dot_product_attention.default,
    content="value",
    accepts=draws_nothing,
    kind="attention",
    rows=last(2),
    derivative=Variant(_jacobian, {"content": OPERANDS, "accepts": draws_nothing}),
    difference=Variant(_change, {"content": OPERANDS, "dynamic": True}),
)
def _attention(call: Call) -> Linear:
    value, groups = list(call.shape()), groups_of(call)
    averages = call["attn_mask"] is None  # behind a mask a row may read no key at all
    if groups == 1:
        return LeftMatrix(attention_weights(call), value, call.out.shape, averages)
    wide = [*value[:-3], value[-3] * groups, *value[-2:]]
    return Chain(LeftMatrix(attention_weights(call), wide, call.out.shape, averages), GroupedHeads(groups, value))
