"""Several operands side by side: concatenation and stacking. What carries no content among them is a bias."""

from __future__ import annotations

from typing import Any

import torch

from omenn_fx.algebra.form import Affine, Bias, Call
from omenn_fx.algebra.linear import Linear, Moves
from omenn_fx.algebra.mass import Even, Mass, Shape
from omenn_fx.algebra.rows import APART
from omenn_fx.rules.ops.forms import static
from omenn_fx.rules.ops.structural import zeros

aten = torch.ops.aten
Tensor = torch.Tensor


class Piece(Moves):
    """One operand of a concatenation: positions start .. start + length of dimension `dim`.

    The mass of the constants in a cat has no operand: all operands' positions along `dim` share it evenly.
    """

    def __init__(
        self, dim: int, start: int, operand: Shape, result: Shape, constant: list[tuple[int, int]], total: int
    ):
        self.dim, self.start, self.operand, self.result = dim, start, operand, result
        self.constant, self.total = constant, total

    def apply(self, u: Tensor) -> Tensor:
        return torch.slice_scatter(zeros(u, self.result), u, self.dim, self.start, self._end, 1)

    @property
    def _end(self) -> int:
        return self.start + self.operand[self.dim]

    def transpose(self, g: Tensor) -> Tensor:
        return g.narrow(self.dim, self.start, self.operand[self.dim])

    def carry(self, mass: Mass) -> Mass:
        parts, rest = [], []
        for part in mass.parts:
            if isinstance(part, Even) and self.dim in part.even:  # each operand takes as much as it has positions
                parts.append(Even(part.value * self.operand[self.dim] / self.total, part.even))
            else:
                rest.append(part)
        if rest:
            whole = Mass(tuple(rest), mass.shape).along([self.dim])
            own = self.transpose(whole.value)
            for start, length in self.constant:
                own = own + whole.value.narrow(self.dim, start, length).sum(self.dim, keepdim=True) / self.total
            parts.append(Even(own, whole.even))
        return Mass(tuple(parts), self.operand)


@static(aten.cat.default, content="tensors", rows=APART, complex=True, sign="kept")
def _cat(call: Call) -> Affine:
    tensors, ndim = call["tensors"], len(call.out.shape)
    dim = call["dim"] % ndim
    content = {slot.index for slot in call.content}
    starts, constant, at = {}, [], 0
    for i, t in enumerate(tensors):
        size = t.shape[dim] if len(t.shape) == ndim else 0  # cat skips the legacy empty tensor of one dimension
        starts[i] = at
        if i not in content and size:
            constant.append((at, size))
        at = at + size
    total = sum(tensors[i].shape[dim] for i in content if i is not None)
    terms = {
        slot: Piece(dim, starts[slot.index], call.shape(slot), call.out.shape, constant, total)
        for slot in call.content
        if slot.index is not None
    }
    bias = None
    if constant:
        kept = [t if i not in content else torch.zeros_like(t) for i, t in enumerate(tensors)]
        bias = Bias(torch.cat(kept, dim))
    return Affine(terms, bias, disjoint=True)


@static(aten.stack.default, content="tensors", rows=APART, complex=True, sign="kept")
def _stack(call: Call) -> Affine:
    """A cat of operands with a new dimension."""
    dim = call["dim"] % len(call.out.shape)
    content = {slot.index for slot in call.content}
    constant = [(i, 1) for i in range(len(call["tensors"])) if i not in content]
    terms: dict[Any, Linear] = {}
    for slot in call.content:
        assert slot.index is not None
        wide = list(call.shape(slot))
        wide.insert(dim, 1)
        terms[slot] = _Stacked(Piece(dim, slot.index, wide, call.out.shape, constant, len(content)), call.shape(slot))
    bias = None
    if constant:
        kept = [t if i not in content else torch.zeros_like(t) for i, t in enumerate(call["tensors"])]
        bias = Bias(torch.stack(kept, dim))
    return Affine(terms, bias, disjoint=True)


class _Stacked(Moves):
    def __init__(self, piece: Piece, operand: Shape):
        self.piece, self.operand = piece, operand

    def apply(self, u: Tensor) -> Tensor:
        return self.piece.apply(u.unsqueeze(self.piece.dim))

    def transpose(self, g: Tensor) -> Tensor:
        return self.piece.transpose(g).squeeze(self.piece.dim)

    def carry(self, mass: Mass) -> Mass:
        inner = self.piece.carry(mass)
        return Mass((Even(inner.dense().squeeze(self.piece.dim)),), self.operand)
