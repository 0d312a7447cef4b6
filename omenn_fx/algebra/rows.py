"""Rows: along which dimensions of an operand an operator works, so that values there meet in one result.

Samples of a batch must not meet. `omenn_fx.analysis.batch_dim` asks this of every operator on the way from the input to
the output; what a rule does not state is found by trying the operator on two samples.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from omenn_fx.algebra.form import Slot

Operands = Mapping[str, Any]
Along = Callable[[Operands, Slot, int], Collection[int]]


@dataclass(frozen=True)
class Rows:
    """One kind of behaviour.

    Attributes:
        name: what a reader calls it.
        along: (operands by name, which of them, its number of dimensions) -> the dimensions along which it works.
    """

    name: str
    along: Along

    def meet(self, operands: Operands, slot: Slot, dim: int, ndim: int) -> bool:
        """Whether values at different positions of a dimension meet in one result."""
        return dim in self.along(operands, slot, ndim)


APART = Rows("every value by itself", lambda operands, slot, ndim: ())
VIEW = Rows("the same values in another shape", lambda operands, slot, ndim: ())
PERMUTED = Rows("the same values, their dimensions in another order", lambda operands, slot, ndim: ())
REPEATED = Rows("every value several times in a row", lambda operands, slot, ndim: ())
INDEXED = Rows("positions that indices name", lambda operands, slot, ndim: ())  # the indices themselves are looked at


def along(*names: str) -> Rows:
    """Along the dimensions that the first of these operands names which is there; along all where that names none."""

    def dims(operands: Operands, slot: Slot, ndim: int) -> Collection[int]:
        named = next((operands[name] for name in names if name in operands), None)
        listed = [named] if isinstance(named, int) else list(named or range(ndim))
        return {d % max(ndim, 1) for d in listed}

    return Rows(f"along {' or '.join(names)}", dims)


def at(*dims: int) -> Rows:
    """Along dimensions that are always the same; negative ones count from the end."""
    return Rows(f"along {dims}", lambda operands, slot, ndim: {d % max(ndim, 1) for d in dims})


def last(count: int | str) -> Rows:
    """Along the last dimensions: so many, or as many as the operand of that name has entries."""

    def dims(operands: Operands, slot: Slot, ndim: int) -> Collection[int]:
        n = count if isinstance(count, int) else len(operands[count])
        return range(ndim - n, ndim)

    return Rows(f"along the last dimensions ({count})", dims)


def behind(first: int) -> Rows:
    """Along all dimensions but the first ones: those of samples, or of samples and channels."""
    return Rows(f"along all but the first {first}", lambda operands, slot, ndim: range(first, ndim))


def summed(**dims: int) -> Rows:
    """Sums of products: operand -> the dimension that is summed over, from the end; of a vector its only one."""

    def over(operands: Operands, slot: Slot, ndim: int) -> Collection[int]:
        return {max(ndim + dims[slot.name], 0)} if slot.name in dims else ()

    return Rows("sums of products", over)


def _summed_letters(operands: Operands, slot: Slot, ndim: int) -> Collection[int]:
    """The dimensions whose letters an einsum sums over. Letters behind an ellipsis count from the end."""
    equations, arrow, result = str(operands["equation"]).replace(" ", "").partition("->")
    before, ellipsis, after = equations.split(",")[slot.index or 0].partition("...")
    kept = result if arrow else "".join(c for c in equations if equations.count(c) == 1)
    letters = before.ljust(ndim - len(after)) + after if ellipsis else before
    return {d for d, letter in enumerate(letters) if letter.strip() and letter not in kept}


LETTERS = Rows("sums over letters", _summed_letters)
