"""Lookups of integer ids. What is looked up is the explained value itself, so that it has no affine form here.

A bag of embeddings is a lookup and a reduction: capture takes it apart, so that each token's embedding is explained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from omenn_fx.algebra.rows import APART
from omenn_fx.algebra.ruleset import omenn

aten = torch.ops.aten
Tensor = torch.Tensor

omenn.opaque(aten.embedding.default, source="indices", rows=APART)
omenn.opaque(aten.one_hot.default, kind="one hot")


def _bag(operands: Mapping[str, Any]) -> Tensor:
    """The sum, mean or maximum of each bag; an empty one is zero, as in torch."""
    ids, width = operands["indices"], operands["width"]
    shape = ids.shape if width is None else (-1, width)
    each = F.embedding(ids.reshape(shape), operands["weight"])
    weights, counted = operands["per_sample_weights"], _counted(operands)
    weights, counted = (None if v is None else v.reshape(shape).unsqueeze(-1) for v in (weights, counted))
    bags = None if width is not None else _bags(operands)
    mode = ("sum", "mean", "max")[operands["mode"]]
    if mode == "max":
        return _largest(each, counted, bags)
    if counted is not None:
        each = each * counted
    total = _sum(each if weights is None else each * weights, bags)
    if mode == "sum":
        return total
    if counted is None and bags is None:
        return total / width
    return total / _sum(torch.ones_like(each[..., :1]) if counted is None else counted, bags).clamp(min=1)


def _counted(operands: Mapping[str, Any]) -> Tensor | None:
    """1 for each id that is no padding; None where there is none."""
    padding, weight = operands.get("padding_idx"), operands["weight"]
    if padding is None or padding < 0:  # of the operator below the public one
        return None
    return (operands["indices"] != padding).to(weight.dtype)


def _bags(operands: Mapping[str, Any]) -> tuple[Tensor, Any]:
    """The bag of every id, and how many there are: so many begin at it or before it. Some may be empty."""
    ids, offsets = operands["indices"], operands["offsets"]
    if operands["include_last_offset"]:
        offsets = offsets[:-1]
    begun = torch.index_add(F.pad(torch.zeros_like(ids), (0, 1)), 0, offsets, torch.ones_like(offsets))
    return begun[:-1].cumsum(0) - 1, offsets.shape[0]


def _sum(value: Tensor, bags: tuple[Tensor, Any] | None) -> Tensor:
    if bags is None:
        return value.sum(1)
    at, count = bags
    return torch.index_add(value.new_zeros(count, value.shape[-1]), 0, at, value)


def _largest(each: Tensor, counted: Tensor | None, bags: tuple[Tensor, Any] | None) -> Tensor:
    if counted is not None:
        each = each.masked_fill(counted == 0, -torch.inf)
    if bags is None:
        top = each.amax(1)
    else:
        at, count = bags
        zeros = each.new_zeros(count, each.shape[-1])
        top = torch.scatter_reduce(zeros, 0, at[:, None].expand_as(each), each, "amax", include_self=False)
    return top if counted is None else top.masked_fill(_sum(counted, bags) == 0, 0.0)


def _padded_bag(operands: Mapping[str, Any]) -> Tensor:
    """A padding that counts from the end."""
    padding = operands["padding_idx"]
    return _bag({**operands, "padding_idx": None if padding is None else padding % operands["weight"].shape[0]})


omenn.opaque(aten.embedding_bag.padding_idx, source="indices", parts=_padded_bag)
omenn.opaque(
    aten.embedding_bag.default, aten._embedding_bag.default, aten._embedding_bag_forward_only.default,
    source="indices", parts=_bag,
)  # fmt: skip
