"""What a picture shows: one explained value of one input as arrays, and how its names and numbers are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from omenn_fx.visualize.explained import Explained

Row = int | tuple[int, int]
Names = str | Sequence[str] | None  # of the explained class, or one for each target

MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Part:
    """One explained value of one input; the arrays are float64 and have the input's shape without batch and targets.

    Attributes:
        X: the explained input; zeros where a deployed file does not return it (the embeddings of ids).
        product: C_w * X; None where C alone is known (a deployed file may return nothing else).
        C_b: the biases' part; None with bias="none", and where C alone is known.
        C: their sum, all there is at the input's positions.
        value: the explained value.
        beyond: name -> what the value has beyond sum(C): other inputs, biases that were not carried.
        label: what is explained, such as "tabby (class 281)".
        noun: "logit"; "value" where a weighted sum is explained, "Δ logit" where two are contrasted.
    """

    X: np.ndarray
    product: np.ndarray | None
    C_b: np.ndarray | None
    C: np.ndarray
    value: float
    beyond: dict[str, float]
    label: str
    noun: str

    @property
    def symbol(self) -> str:
        """The name of `C`."""
        return "C_w * X" if self.C_b is None and self.product is not None else "C"

    @property
    def explained(self) -> str:
        """The explained value: "logit = 1.5000"."""
        return f"{self.noun} = {signed(self.value)}"

    @property
    def balance(self) -> str:
        """What makes the value: "sum(C) = 1.5000,  logit = 1.5000", "sum(C_w * X) + biases = 1.2 + 0.3 = 1.5, ..."."""
        terms = {f"sum({self.symbol})": float(self.C.sum()), **self.beyond}
        total = f" = {signed(sum(terms.values()))}" if len(terms) > 1 else ""
        return f"{' + '.join(terms)} = {' + '.join(map(signed, terms.values()))}{total},  {self.explained}"


def part(explanation: Explained, row: Row = 0, input: str | None = None, class_name: str | None = None) -> Part:
    """One explained value of one input.

    Args:
        explanation: of any model.
        row: which row of the batch; (row, t) where the explanation has T targets.
        input: the name of the input; may be None where only one is explained.
        class_name: the name of the explained class.

    Raises:
        ValueError: `row` does not select one explained value, or `input` names none of the explained inputs.
    """
    at = _index(explanation, row)
    name = input_name(explanation, input)
    one = explanation.inputs[name]
    split = one if one.split else None
    beyond = {f"sum of input '{n}'": float(_array(i.C[at]).sum()) for n, i in explanation.inputs.items() if n != name}
    if explanation.bias.kept:
        beyond["biases (not carried to the input)"] = float(explanation.bias.remainder[at])
    return Part(
        X=_array(one.X[at[0]] if len(one.X) else torch.zeros_like(one.C[at])),
        product=None if split is None else _array(split.product[at]),
        C_b=None if split is None or split.C_b is None else _array(split.C_b[at]),
        C=_array(one.C[at]),
        value=float(explanation.value[at]),
        beyond=beyond,
        label=label(explanation, row, class_name),
        noun="value" if explanation.target.is_floating_point() else "logit",
    )


def difference(a: Part, b: Part) -> Part:
    """a - b of the same input: its C sums to the difference of the values."""
    return Part(
        X=a.X,
        product=None if a.product is None or b.product is None else a.product - b.product,
        C_b=None if a.C_b is None or b.C_b is None else a.C_b - b.C_b,
        C=a.C - b.C,
        value=a.value - b.value,
        beyond={name: value - b.beyond[name] for name, value in a.beyond.items()},
        label=f"{a.label} {MINUS} {b.label}",
        noun=f"Δ {a.noun}",
    )


def parts_of(explanation: Explained, row: Row, input: str | None, class_name: Names) -> list[Part]:
    """The part of a row, or those of its T targets.

    Raises:
        ValueError: as of `part`, or there are not as many names as explained values.
    """
    rows = rows_of(explanation, row)
    names = class_names(class_name, len(rows))
    return [part(explanation, r, input, name) for r, name in zip(rows, names, strict=True)]


def rows_of(explanation: Explained, row: Row) -> list[Row]:
    """`row` itself, or a row's T targets: (row, 0) ... (row, T - 1)."""
    if isinstance(row, int) and explanation.value.ndim == 2:
        return [(row, t) for t in range(explanation.value.shape[1])]
    return [row]


def input_name(explanation: Explained, input: str | None) -> str:
    """The name of the input that is shown. Raises ValueError where it is not clear or none of them."""
    if input is None and len(explanation.inputs) == 1:
        return next(iter(explanation.inputs))
    if input is None or input not in explanation.inputs:
        raise ValueError(f"input={input!r}: name one of the explained inputs, {', '.join(explanation.inputs)}")
    return input


def class_names(names: Names, count: int) -> list[str | None]:
    """A name for each of `count` targets. Raises ValueError for another number of names."""
    if names is None:
        return [None] * count
    given = [names] if isinstance(names, str) else list(names)
    if len(given) != count:
        raise ValueError(f"class_name={names!r}: give one name for each of the {count} targets")
    return list(given)


def label(explanation: Explained, row: Row, class_name: str | None = None) -> str:
    """What is explained: "tabby (class 281)", "output (3, 207)" where a row has several dimensions, "weighted sum"."""
    shape = tuple(explanation.outputs.shape[1:])
    if explanation.target.is_floating_point():
        place = "weighted sum"
    elif len(shape) <= 1:
        place = f"class {int(explanation.target[_index(explanation, row)])}"
    else:
        flat = int(explanation.target[_index(explanation, row)])
        place = f"output ({', '.join(str(int(i)) for i in np.unravel_index(flat, shape))})"
    return place if class_name is None else f"{class_name} ({place})"


def titled(title: str | None, what: str) -> str:
    """The header of a picture: "cat.png:  tabby (class 281)"."""
    return what if title is None else f"{title}:  {what}"


def proof(explanation: Explained, rows: Sequence[Row]) -> str:
    """The right end of a picture's header."""
    errors = [float(explanation.completeness_error[row]) for row in rows]
    error = f"completeness error {np.max(errors):.1e}"
    if len(rows) > 1 or not explanation.bias:
        return error
    return f"bias share {percent(bias_share(explanation, rows[0])).replace('-', MINUS)},  {error}"


def number(value: float) -> str:
    """A number as tables and pictures show it: five figures, more only where it is tiny or huge."""
    return f"{value:.4f}" if value == 0 or 1e-2 <= abs(value) < 1e5 else f"{value:.3e}"


def signed(value: float) -> str:
    """`number` with a proper minus."""
    return number(value).replace("-", MINUS)


def aligned(values: np.ndarray) -> list[list[str]]:
    """A table of numbers [T, n] with equally many decimals: four figures of the largest."""
    largest = float(np.abs(values).max(initial=0))
    decimals = 4 if largest == 0 else 3 - math.floor(math.log10(largest))
    if not 0 <= decimals <= 8:
        return [[signed(float(v)) for v in column] for column in values]
    return [[f"{float(v):z.{decimals}f}".replace("-", MINUS) for v in column] for column in values]


def percent(value: float) -> str:
    """A share as a percentage; a dash for NaN."""
    return "-" if value != value else f"{100 * value:z.1f} %"


def bias_share(explanation: Explained, row: Row = 0) -> float:
    """The part of the explained value that the biases make: above 1 where C_w * X is negative.

    NaN of a value of 0, and where a deployed file does not return the biases.
    """
    value = float(explanation.value[row])
    return float(explanation.bias.total[row]) / value if value else float("nan")


def _index(explanation: Explained, row: Row) -> tuple[int, ...]:
    at = (row,) if isinstance(row, int) else tuple(row)
    shape = tuple(explanation.value.shape)
    if len(at) != len(shape):
        wanted = "an int" if len(shape) == 1 else "(row, target)"
        raise ValueError(f"row={row!r}: this explanation has values {shape}, give {wanted}")
    if not all(-size <= i < size for i, size in zip(at, shape, strict=True)):
        raise ValueError(f"row={row!r} is out of range: this explanation has values {shape}")
    return at


def _array(values: torch.Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()
