"""Residual additions, shared by size: what a shortcut and its branch cancel of each other is not passed on.

The exact form of h = a + b gives each operand all of the adjoint, so that two large values of opposite signs pass on
relevance many times that of their small sum. Here each gets the share |a| / (|a| + |b|) of R = g h (ratio-based
splitting: Otsuki et al. 2024, "Layer-Wise Relevance Propagation with Conservation Property for ResNet"), which is

    W_a = diag(h sign(a) / (|a| + |b|)),      and   W_a a + W_b b = h

as before. An addition of a constant, or of one operand to itself, is no shortcut.
"""

from __future__ import annotations

from typing import Any

import torch

from omenn_fx.algebra.form import Affine, Call, Slot
from omenn_fx.algebra.linear import Diagonal, Linear
from omenn_fx.algebra.ruleset import RuleSet, omenn

aten = torch.ops.aten
ADD = aten.add.Tensor


def split_by_size(rules: RuleSet, name: str, doc: str) -> RuleSet:
    """A rule set with this form for additions of two values that carry content; all else as in `rules`."""
    split = rules.derive(name, doc, *rules.lines, same=rules.same, folds_norms=rules.folds_norms)
    split.change(ADD, form=_split, dynamic=True, complex=False)
    return split


def _split(call: Call) -> Any:
    exact = omenn[ADD].affine(call)
    if len(exact.terms) < 2:
        return exact
    parts = {slot: linear.apply(call.at(slot)) for slot, linear in exact.terms.items()}
    total = torch.stack([torch.abs(part) for part in parts.values()]).sum(0)
    ratio = call.out / torch.where(total == 0, torch.ones_like(total), total)
    terms: dict[Slot, Linear] = {}
    for slot, part in parts.items():
        factor = 1 if slot.name == "self" else call["alpha"]
        terms[slot] = Diagonal(ratio * torch.sign(part) * factor, call.shape(slot), call.out.shape)
    return Affine(terms)
