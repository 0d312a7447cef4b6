"""What a rule takes and returns: a `Call` (an operator with its operands bound, at one input), and its `Affine` form.

h = sum of W_u h_u over the content operands u, plus b.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch

from omenn_fx.algebra.linear import Linear
from omenn_fx.algebra.mass import Even, Mass, Product, Shape

Tensor = torch.Tensor
Op = Any  # torch._ops.OpOverload, its name ("library.name.overload"), or a function of the operator module


@dataclass(frozen=True)
class Slot:
    """One operand of a call: the schema's name, and the position in it where that operand is a list of tensors."""

    name: str
    index: int | None = None


@dataclass(frozen=True)
class Call:
    """An operator with its operands bound by their schema names, at one input."""

    op: Op
    operands: Mapping[str, Any]
    out: Any  # the value of the result that is meant
    content: tuple[Slot, ...]
    output: int | None = None  # its position, where the operator returns several
    reference: Call | None = None  # the same call at the reference input, in a rule of a set that has one

    def __getitem__(self, name: str) -> Any:
        return self.operands[name]

    def at(self, slot: Slot) -> Any:
        value = self.operands[slot.name]
        return value if slot.index is None else value[slot.index]

    def shape(self, slot: Slot | str | None = None) -> Shape:
        """Shape of an operand; of the first content operand where none is named."""
        slot = self.content[0] if slot is None else Slot(slot) if isinstance(slot, str) else slot
        shape: Shape = self.at(slot).shape
        return shape

    @property
    def x(self) -> Any:
        """The value of the first content operand: the only one of most operators."""
        return self.at(self.content[0])

    def number(self, name: str) -> Any:
        """An operand that takes part in arithmetic: integers and booleans in the dtype of the result.

        1 / 3 of an integer would be a float32 whatever the result is.
        """
        value = self.operands[name]
        dtype = dtype_of(value)
        exact = dtype is None or dtype.is_floating_point or dtype.is_complex
        return value if exact else value.to(self.out.dtype)

    def replay(self, /, **changed: Any) -> Any:
        """Call the operator again with some operands exchanged: a linear operator is its own W."""
        positional, named = [], {}
        for argument in self.op._schema.arguments:
            value = changed.get(argument.name, self.operands[argument.name])
            if argument.kwarg_only:
                named[argument.name] = value
            else:
                positional.append(value)
        result = self.op(*positional, **named)
        return result if self.output is None else result[self.output]


def dtype_of(value: Any) -> torch.dtype | None:
    """The dtype of a tensor, or of a value of a graph that is built; None of anything else."""
    dtype = getattr(value, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else None


def in_one_precision(call: Call, unread: tuple[str, ...] = ()) -> Call:
    """A call of several floating-point dtypes with all of them, and the result, in the widest: W is computed in that.

    Real values stay real, integers as they are, and so do the operands in `unread`.
    """
    read = [value for name, value in call.operands.items() if name not in unread]
    flat = [v for value in read for v in (value if isinstance(value, (list, tuple)) else [value])]
    dtypes = {d for v in (call.out, *flat) if (d := dtype_of(v)) and (d.is_floating_point or d.is_complex)}
    if len({_precision(d) for d in dtypes}) < 2:
        return call
    real = reduce(torch.promote_types, map(_precision, dtypes))

    def wide(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [wide(v) for v in value]
        dtype = dtype_of(value)
        if dtype is None or not (dtype.is_floating_point or dtype.is_complex):
            return value
        target = real.to_complex() if dtype.is_complex else real
        return value if dtype == target else value.to(target)

    operands = {name: v if name in unread else wide(v) for name, v in call.operands.items()}
    reference = None if call.reference is None else in_one_precision(call.reference, unread)
    return replace(call, operands=operands, out=wide(call.out), reference=reference)


def _precision(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the real part."""
    return dtype.to_real() if dtype.is_complex else dtype


@dataclass(frozen=True)
class Bias:
    """b of an affine form: a vector along dimension `dim` of the result, or (dim None) any tensor or number."""

    value: Any
    dim: int | None = None
    relevance: bool = False  # not the model's own: what a layer passes on by position alone, with every bias policy

    def finite(self) -> Bias:
        """Infinite constants (masks) hold nothing: whatever reads them has weight 0 there."""
        if isinstance(self.value, (int, float)):
            return self if math.isfinite(self.value) else Bias(0.0)
        if isinstance(getattr(self.value, "fake", None), torch.SymFloat):  # a number taken out of a tensor
            return self
        return Bias(torch.nan_to_num(self.value, nan=0.0, posinf=0.0, neginf=0.0), self.dim)

    def mass(self, g: Tensor, shape: Shape, complex: bool = False) -> Mass:
        """beta = g * b at the node's own positions; of complex values Re(conj(g) b)."""
        if complex:
            return Mass((Even(torch.real(torch.conj_physical(g) * self.value)),), shape)
        if self.dim is None:
            return Mass((Even(g * self.value),), shape)
        dim = self.dim % len(shape)
        return Mass((Product(g, self.value, dim, len(shape)),), shape)

    def broadcast(self, ndim: int) -> Any:
        """b in a shape that broadcasts to a result of so many dimensions."""
        return self.value if self.dim is None else self.value.reshape((-1,) + (1,) * (ndim - 1 - self.dim % ndim))

    def dense(self, like: Tensor) -> Tensor:
        """b at every position of the result, of its shape and dtype."""
        dense: Tensor = torch.zeros_like(like) + self.broadcast(like.ndim)
        return dense


@dataclass(frozen=True)
class Affine:
    """h = sum of terms[slot] h_slot + bias.

    `disjoint`: every position of the result reads one term only (cat, where, maximum), and each term's `carry` takes
    the mass of its own positions; otherwise all terms overlap (an addition) and share it.
    """

    terms: Mapping[Slot, Linear]
    bias: Bias | None = None
    disjoint: bool = False


Form = Callable[[Call], Affine | Linear | tuple[Linear, Bias | None]]
