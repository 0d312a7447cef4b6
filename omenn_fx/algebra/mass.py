"""Bias mass: the part of the explained value that stands at the positions of one node, and is carried to the input.

A mass is kept as a sum of parts that are not multiplied out before someone has to see them. Most biases are one number
per channel, and most operators mix channels, so the sum over channels is all that is ever needed: it costs one read of
the adjoint where the product would cost several passes over memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from omenn_fx.algebra.composites import weighted_sum

Tensor = torch.Tensor
Shape = Sequence[Any]  # ints, or symbolic sizes of a graph that is being traced


def sum_to(value: Tensor, source: Shape, target: Shape) -> Tensor:
    """Sum a value of shape `source` over the dimensions that were broadcast from `target`."""
    extra = len(source) - len(target)
    if extra:
        value = value.sum(tuple(range(extra)))
    ones = tuple(d for d, size in enumerate(target) if is_one(size) and not is_one(source[d + extra]))
    return value.sum(ones, keepdim=True) if ones else value


def spread(value: Tensor, source: Shape, target: Shape) -> Tensor:
    """The totals over all but the leading dimensions both shapes agree in, shared evenly by the target's positions."""
    lead = agree(source, target)
    if lead == len(source) == len(target):
        return value
    count: Any = 1
    for size in target[lead:]:
        count = count * size
    total = value.sum(tuple(range(lead, len(source)))) if lead < len(source) else value
    for _ in target[lead:]:
        total = total.unsqueeze(-1)
    shared: Tensor = total / count
    return shared.expand(tuple(target))


def agree(first: Shape, second: Shape) -> int:
    """How many leading dimensions have the same size; a symbolic size is the same as itself only."""
    for d, (a, b) in enumerate(zip(first, second, strict=False)):
        if a is not b and not (isinstance(a, int) and isinstance(b, int) and a == b):
            return d
    return min(len(first), len(second))


def is_one(size: Any) -> bool:
    """Whether a size is statically 1 (a symbolic batch size never is)."""
    return isinstance(size, int) and size == 1


@dataclass(frozen=True)
class Even:
    """Mass whose dimensions `even` have size 1: the total over each of them, shared evenly by all its positions."""

    value: Tensor
    even: frozenset[int] = frozenset()

    def collapsed(self, dim: int) -> Even:
        if dim in self.even:
            return self
        return Even(self.value.sum(dim, keepdim=True), self.even | {dim})

    def dense(self, shape: Shape) -> Tensor:
        if not self.even:
            return self.value
        count: Any = 1
        for d in self.even:
            count = count * shape[d]
        shared: Tensor = self.value / count
        return shared.expand(tuple(shape))

    def scaled(self, factor: float) -> Even:
        return Even(self.value * factor, self.even)


def reshaped(part: Even, source: Shape, target: Shape) -> Even:
    """A part at positions of shape `source`, in a view of shape `target`: what is even stays so where it is whole."""
    value, even, shape = part.value, [], []
    first: list[Any] = []
    for old, new in _aligned(source, target):
        wide = [d for d in old if not is_one(source[d])]
        if wide and all(d in part.even for d in wide):
            even += list(new)
            shape += [1] * len(new)
        else:
            apart = [d for d in old if d in part.even]
            first += apart
            shape += [target[d] for d in new]
    for d in first:  # even within a group that is not: it has to be seen
        sizes = [source[i] if i == d else -1 for i in range(len(source))]
        value = (value / source[d]).expand(tuple(sizes))
    return Even(value.reshape(tuple(shape)), frozenset(even))


def _aligned(source: Shape, target: Shape) -> list[tuple[range, range]]:
    """Groups of dimensions, in order, that a view maps onto each other; from an unknown size on, one group in front."""
    groups = []
    i, j = len(source), len(target)
    while i and j:
        a, b, m, n = i - 1, j - 1, source[i - 1], target[j - 1]
        while isinstance(m, int) and isinstance(n, int) and m != n and (a if m < n else b):
            if m < n:
                a, m = a - 1, m * source[a - 1] if isinstance(source[a - 1], int) else None
            else:
                b, n = b - 1, n * target[b - 1] if isinstance(target[b - 1], int) else None
        if m is not n and not (isinstance(m, int) and isinstance(n, int) and m == n):
            break
        groups.append((range(a, i), range(b, j)))
        i, j = a, b
    if i or j:
        groups.append((range(i), range(j)))
    return groups[::-1]


@dataclass(frozen=True)
class Product:
    """Mass g * b of a bias b that is a vector along `dim` (None: any tensor that broadcasts to g)."""

    g: Tensor
    b: Tensor
    dim: int | None
    ndim: int
    factor: float = 1.0
    _memo: dict[int, Even] = field(default_factory=dict, repr=False, compare=False)

    def collapsed(self, dim: int) -> Even:
        if dim not in self._memo:
            if dim != self.dim:
                self._memo[dim] = Even(self.dense(()).sum(dim, keepdim=True), frozenset({dim}))
            else:
                total = contract(self.g, self.b, dim, self.ndim)
                total = total if self.factor == 1 else total * self.factor
                self._memo[dim] = Even(total, frozenset({dim}))
        return self._memo[dim]

    def dense(self, shape: Shape) -> Tensor:
        b = self.b
        if self.dim is not None:
            b = b.reshape((-1,) + (1,) * (self.ndim - 1 - self.dim))
        value = self.g * b
        return value if self.factor == 1 else value * self.factor

    def scaled(self, factor: float) -> Product:
        return Product(self.g, self.b, self.dim, self.ndim, self.factor * factor)


def contract(g: Tensor, b: Tensor, dim: int, ndim: int) -> Tensor:
    """Sum g * b over `dim` (kept with size 1) without forming the product."""
    if dim == ndim - 1:
        return torch.matmul(g, b).unsqueeze(-1)
    return weighted_sum(g, b, dim).unsqueeze(dim)


Part = Even | Product


@dataclass(frozen=True)
class Mass:
    """A sum of parts, all at the positions of one value of shape `shape`."""

    parts: tuple[Part, ...]
    shape: Shape

    def __add__(self, other: Mass) -> Mass:
        """Masses that are even over the same dimensions are added at once; products wait."""
        parts = list(self.parts)
        for new in other.parts:
            for i, old in enumerate(parts):
                if isinstance(old, Even) and isinstance(new, Even) and old.even == new.even:
                    parts[i] = Even(old.value + new.value, old.even)
                    break
            else:
                parts.append(new)
        return Mass(tuple(parts), self.shape)

    def scaled(self, factor: float) -> Mass:
        return self if factor == 1 else Mass(tuple(p.scaled(factor) for p in self.parts), self.shape)

    def collapsed(self, dim: int) -> Even:
        """The total over one dimension, of size 1 there; full along every other dimension."""
        dim = dim % len(self.shape)
        total: Tensor | None = None
        even = frozenset.intersection(*(p.collapsed(dim).even for p in self.parts))
        shape = [1 if d == dim else s for d, s in enumerate(self.shape)]
        for part in self.parts:
            piece = part.collapsed(dim)
            value = (
                piece.value
                if piece.even == even
                else Even(piece.value, piece.even - even).dense([1 if d in even else s for d, s in enumerate(shape)])
            )
            total = value if total is None else total + value
        assert total is not None
        return Even(total, even)

    def dense(self) -> Tensor:
        """The mass at every position, as one tensor of the value's shape."""
        total: Tensor | None = None
        for part in self.parts:
            value = part.dense(self.shape)
            total = value if total is None else total + value
        assert total is not None
        return total

    def along(self, dims: Sequence[int]) -> Even:
        """The mass as one part that is whole along some dimensions; even along others where all parts are."""
        alike = (p.even if isinstance(p, Even) else frozenset() for p in self.parts)
        even = frozenset.intersection(*alike) - frozenset(dims)
        shape = [1 if d in even else s for d, s in enumerate(self.shape)]
        total: Tensor | None = None
        for part in self.parts:
            value = Even(part.value, part.even - even).dense(shape) if isinstance(part, Even) else part.dense(shape)
            total = value if total is None else total + value
        assert total is not None
        return Even(total, even)

    def settled(self) -> Mass:
        """One dense part: what a node does before it hands its mass to several operands."""
        if len(self.parts) == 1 and isinstance(self.parts[0], Even):
            return self
        return Mass((Even(self.dense()),), self.shape)

    def moved(self, shape: Shape) -> Mass:
        """The same parts at the positions of an operand of the same rank (element-wise operators)."""
        return Mass(self.parts, shape)
