"""The small algebra of linear maps: every primitive knows how to apply, transpose and carry, side by side.

A primitive is the W of one node towards one of its content operands, with every coefficient already frozen:

* `apply(u)`      W u,   from the operand's shape to the node's;
* `transpose(g)`  W^T g, from the node's shape to the operand's, in forward operators only;
* `carry(m)`      a bias mass moved from the node's positions to the operand's, its sum unchanged;
* `magnitude()`   the primitive with |W|, for sharing mass in proportion to contributions.

The methods are plain torch: run on tensors they compute, run on the values of a graph being traced they build it.
The names follow JAX's transpose rules and PyLops' matvec/rmatvec pairs; the primitives of one family of operators
(convolutions, pools, attention, recurrences) stand beside their rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from omenn_fx.algebra.mass import Even, Mass, Shape, is_one, spread, sum_to

Tensor = torch.Tensor


def conjugate(value: Any) -> Any:
    """What stands in W^T, for the inner product Re <u, v>, in the place of a coefficient of W."""
    if isinstance(value, (int, float, complex)):
        return value.conjugate()
    return torch.conj_physical(value) if value.dtype.is_complex else value


class Linear:
    """A linear map with frozen coefficients. Subclasses define the four methods."""

    converts = False  # whether W itself takes the operand's dtype to the node's (real to complex)

    def apply(self, u: Tensor) -> Tensor:
        raise NotImplementedError

    def transpose(self, g: Tensor) -> Tensor:
        raise NotImplementedError

    def carry(self, mass: Mass) -> Mass:
        raise NotImplementedError

    def magnitude(self) -> Linear:
        raise NotImplementedError

    def weighted(self, change: Callable[[Tensor], Tensor]) -> Linear:
        """The map with its weights w replaced by change(w); one without weights of its own stays as it is."""
        return self


class Diagonal(Linear):
    """W = diag(d), d of the node's shape or a shape that broadcasts to it; d = None is the identity.

    The operand may itself be broadcast to the node's shape; the transpose then sums over what was broadcast.
    `carries`: the part of each position's mass that goes this way, where several operands take turns (where, maximum).
    """

    def __init__(self, d: Any, operand: Shape, result: Shape, carries: Tensor | None = None):
        self.d, self.operand, self.result, self.carries = d, operand, result, carries
        self.broadcast = len(operand) != len(result) or any(
            is_one(i) and not is_one(o) for i, o in zip(operand, result, strict=False)
        )

    def apply(self, u: Tensor) -> Tensor:
        u = u.expand(tuple(self.result)) if self.broadcast else u
        return u if self.d is None else u * self.d

    def transpose(self, g: Tensor) -> Tensor:
        g = g if self.d is None else g * self.d
        return sum_to(g, self.result, self.operand) if self.broadcast else g

    def carry(self, mass: Mass) -> Mass:
        if self.carries is not None:
            mass = Mass((Even(mass.dense() * self.carries),), mass.shape)
        if not self.broadcast:
            return mass.moved(self.operand)
        return Mass((Even(sum_to(mass.dense(), self.result, self.operand)),), self.operand)

    def magnitude(self) -> Linear:
        size = (
            None if self.d is None else abs(self.d) if isinstance(self.d, (int, float, complex)) else torch.abs(self.d)
        )
        return Diagonal(size, self.operand, self.result, self.carries)


class ComplexDiagonal(Diagonal):
    """W = diag(d) on complex values, d complex: W^T is the conjugate, for the inner product Re <u, v>."""

    def transpose(self, g: Tensor) -> Tensor:
        g = g if self.d is None else g * conjugate(self.d)
        return sum_to(g, self.result, self.operand) if self.broadcast else g


class Cast(Linear):
    """The identity between two dtypes."""

    def __init__(self, operand: Shape, source: torch.dtype, result: torch.dtype):
        self.operand, self.source, self.result = operand, source, result

    def apply(self, u: Tensor) -> Tensor:
        return u.to(self.result)

    def transpose(self, g: Tensor) -> Tensor:
        g = torch.real(g) if self.result.is_complex and not self.source.is_complex else g
        return g.to(self.source)

    def carry(self, mass: Mass) -> Mass:
        if self.result.is_complex or self.source.is_complex:
            return mass.moved(self.operand)  # mass is real
        parts = (p if isinstance(p, Even) else Even(p.dense(mass.shape)) for p in mass.parts)
        return Mass(tuple(Even(p.value.to(self.source), p.even) for p in parts), self.operand)

    def magnitude(self) -> Linear:
        complex_ = self.result.is_complex or self.source.is_complex
        return Diagonal(None, self.operand, self.operand) if complex_ else self


class Moves(Linear):
    """W of zeros and ones: every position of the node reads one position of the operand, or none.

    The mass goes with the positions, by the same transpose. Where some positions of the node read nothing
    (padding, the constants of a cat), `carry` must say where their mass goes.
    """

    def __init__(
        self,
        apply: Callable[[Tensor], Tensor],
        transpose: Callable[[Tensor], Tensor],
        operand: Shape,
        carry: Callable[[Tensor], Tensor] | None = None,
    ):
        self._apply, self._transpose, self._carry = apply, transpose, carry or transpose
        self.operand = operand

    def apply(self, u: Tensor) -> Tensor:
        return self._apply(u)

    def transpose(self, g: Tensor) -> Tensor:
        return self._transpose(g)

    def carry(self, mass: Mass) -> Mass:
        return Mass((Even(self._carry(mass.dense())),), self.operand)

    def magnitude(self) -> Linear:
        return self


class Weighted(Linear):
    """W given by its two functions. Mass is shared in proportion to |W|; what a row of zeros holds is spread evenly.

    `absolute` makes the same with |W|, where W has negative entries.
    """

    def __init__(
        self,
        apply: Callable[[Tensor], Tensor],
        transpose: Callable[[Tensor], Tensor],
        operand: Shape,
        result: Shape,
        absolute: Callable[[], Weighted] | None = None,
    ):
        self._apply, self._transpose, self._absolute = apply, transpose, absolute
        self.operand, self.result = operand, result

    def apply(self, u: Tensor) -> Tensor:
        return self._apply(u)

    def transpose(self, g: Tensor) -> Tensor:
        return self._transpose(g)

    def carry(self, mass: Mass) -> Mass:
        size, value = self.magnitude(), mass.dense()
        total = size.apply(value.new_ones(tuple(self.operand)))
        empty = (total == 0).to(value.dtype)
        moved = size.transpose(value * (1 - empty) / (total + empty))
        return Mass((Even(moved + spread(value * empty, self.result, self.operand)),), self.operand)

    def magnitude(self) -> Linear:
        return self if self._absolute is None else self._absolute()


class Matrix(Linear):
    """W u = u @ weight^T over the last dimension, the same for every token. A bias stays at its token."""

    def __init__(self, weight: Tensor, operand: Shape):
        self.weight, self.operand = weight, operand

    def apply(self, u: Tensor) -> Tensor:
        return torch.matmul(u, self.weight.t())

    def transpose(self, g: Tensor) -> Tensor:
        return torch.matmul(g, conjugate(self.weight))

    def carry(self, mass: Mass) -> Mass:
        return Mass((mass.collapsed(-1),), self.operand)

    def magnitude(self) -> Linear:
        return self.weighted(torch.abs)

    def weighted(self, change: Callable[[Tensor], Tensor]) -> Linear:
        return Matrix(change(self.weight), self.operand)


class Reduction(Linear):
    """The sum over `dims` times `scale`. Mass is shared evenly over the positions that were summed."""

    def __init__(self, dims: Sequence[int], keepdim: bool, operand: Shape, scale: Any = 1):
        self.dims = tuple(sorted(d % len(operand) for d in dims)) if len(operand) else ()
        self.keepdim, self.operand, self.scale = keepdim, operand, scale

    def with_dims(self, value: Tensor) -> Tensor:
        """A result with the summed dimensions kept."""
        if not self.keepdim:
            for d in self.dims:
                value = value.unsqueeze(d)
        return value

    def apply(self, u: Tensor) -> Tensor:
        summed = u.sum(self.dims, keepdim=self.keepdim) if self.dims else u
        scaled: Tensor = summed * self.scale
        return scaled

    def transpose(self, g: Tensor) -> Tensor:
        return self.with_dims(g * self.scale).expand(tuple(self.operand))

    def carry(self, mass: Mass) -> Mass:
        even = Even(self.with_dims(mass.dense()), frozenset(self.dims))
        return Mass((even,), self.operand)

    def magnitude(self) -> Linear:
        return self


class Centre(Linear):
    """W = I - mean over `dims`: the linear part of a norm, its statistics frozen. Mass stays where it is."""

    def __init__(self, dims: Sequence[int], operand: Shape, sign: float = -1.0):
        self.dims, self.operand, self.sign = tuple(dims), operand, sign

    def apply(self, u: Tensor) -> Tensor:
        mean = u.mean(self.dims, keepdim=True)
        return u - mean if self.sign == -1 else u * self._rest() + mean

    def _rest(self) -> Any:
        count: Any = 1
        for d in self.dims:
            count = count * self.operand[d]
        return 1 - 2 / count  # |I - mean| has 1 - 1/n on the diagonal and 1/n elsewhere

    def transpose(self, g: Tensor) -> Tensor:
        return self.apply(g)  # both forms are symmetric

    def carry(self, mass: Mass) -> Mass:
        return mass.moved(self.operand)

    def magnitude(self) -> Linear:
        return Centre(self.dims, self.operand, sign=1.0)


class Chain(Linear):
    """The product of maps, outermost first: Chain(A, B) is W = A B."""

    def __init__(self, *maps: Linear):
        self.maps = maps

    def apply(self, u: Tensor) -> Tensor:
        for m in reversed(self.maps):
            u = m.apply(u)
        return u

    def transpose(self, g: Tensor) -> Tensor:
        for m in self.maps:
            g = m.transpose(g)
        return g

    def carry(self, mass: Mass) -> Mass:
        for m in self.maps:
            mass = m.carry(mass)
        return mass

    def magnitude(self) -> Linear:
        return Chain(*(m.magnitude() for m in self.maps))

    def weighted(self, change: Callable[[Tensor], Tensor]) -> Linear:
        return Chain(*(m.weighted(change) for m in self.maps))


class Sum(Linear):
    """The sum of maps of one operand. Mass goes the first one's way: all have the same positions."""

    def __init__(self, *maps: Linear):
        self.maps = maps

    def apply(self, u: Tensor) -> Tensor:
        return added([m.apply(u) for m in self.maps])

    def transpose(self, g: Tensor) -> Tensor:
        return added([m.transpose(g) for m in self.maps])

    def carry(self, mass: Mass) -> Mass:
        return self.maps[0].carry(mass)

    def magnitude(self) -> Linear:
        return Sum(*(m.magnitude() for m in self.maps))


def added(values: Sequence[Tensor]) -> Tensor:
    """The sum of tensors of one shape."""
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total
