"""Parts of a fixed batch: rows that a model takes out of its batch, works on apart, and puts together again.

`x.split(4)`, `for row in x`. Which rows an operator takes is found by letting it take them out of a list of all rows;
the operators on a part are those on a batch of its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from omenn_fx.algebra.mass import Mass
from omenn_fx.capture.nodes import bind, producer, value_of
from omenn_fx.capture.sizes import hint


@dataclass(frozen=True)
class Part:
    """Rows `start` to `start + count` of a batch of `size`; `inner` is their layout as a batch of their own."""

    inner: Any
    start: int
    count: int
    size: int

    def per_sample(self, mass: Mass) -> Any:
        """The sum of a mass over everything but the batch: shape [N], 0 for the rows that are not here."""
        own = self.inner.per_sample(mass)
        return torch.constant_pad_nd(own, [self.start, self.size - self.start - self.count])

    def same(self, other: Any) -> bool:
        """Whether another value holds the same rows."""
        return isinstance(other, Part) and (self.start, self.count) == (other.start, other.count)


def taken(node: fx.Node, dim: int, size: int) -> tuple[int, int] | None:
    """(first, number) of the rows that an operator takes out of a batch along `dim`; None where it takes no such."""
    call, position = producer(node)
    shape, left = ([hint(s) for s in value_of(n).shape] for n in (call.all_input_nodes[0], node))
    if len(left) == len(shape) and left[dim] == shape[dim]:
        return None
    rows = torch.arange(size).reshape([-1 if d == dim else 1 for d in range(len(shape))]).expand(shape)
    target: Any = call.target
    args, kwargs = fx.map_arg((call.args, call.kwargs), lambda n: rows)
    try:
        result = target(*args, **kwargs)
    except (RuntimeError, TypeError):  # of floating-point numbers alone: no operator that only takes rows
        return None
    result = result if position is None else result[position]
    if list(result.shape) != left or not result.numel() or result.ndim not in (len(shape), len(shape) - 1):
        return None
    if result.ndim < len(shape):
        first, count = int(result.flatten()[0]), 1
        wanted = torch.full_like(result, first)
    else:
        first, count = int(result.flatten()[0]), result.shape[dim]
        wanted = torch.arange(first, first + count).reshape([-1 if d == dim else 1 for d in range(len(shape))])
    return (first, count) if torch.equal(result, wanted.expand_as(result)) else None


def joined(node: fx.Node, parts: Sequence[Part]) -> tuple[int, int, int] | None:
    """(dimension, first, number) of the rows where parts of a batch are put together in order; None where not."""
    operands, shape = bind(node), value_of(node).shape
    pieces = next((v for v in operands.values() if isinstance(v, (list, tuple))), ())
    if "dim" not in operands or len(pieces) != len(parts):
        return None
    dim = operands["dim"] % len(shape)
    ends = [p.start + p.count for p in parts]
    in_order = all(end == p.start for end, p in zip(ends, parts[1:], strict=False))
    alike = all(getattr(p.inner, "dim", dim) == dim for p in parts)
    count = ends[-1] - parts[0].start
    return (dim, parts[0].start, count) if in_order and alike and shape[dim] == count else None
