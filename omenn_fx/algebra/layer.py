"""Layers, and the conditions by which a composite rule set tells them apart."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from omenn_fx.algebra.form import Affine, Call


@dataclass(frozen=True)
class Layer:
    """A node with constant weights, as a composite sees it.

    Attributes:
        kind: "convolution" or "dense" (any product with a constant matrix).
        name, module: of the node, and the path of its module in the model.
        first, last: no layer comes before it on any way from the explained inputs (behind it on any to the output).
        depth: where it stands on the longest way, 0 to 1.
        positive: its operand is known to have no negative values, as behind a ReLU.
        rectified: only ReLUs read its result: where that is negative, the adjoint is 0.
    """

    kind: str
    name: str
    module: str
    first: bool
    last: bool
    depth: float
    positive: bool
    rectified: bool


@dataclass(frozen=True)
class Where:
    """A condition on layers; what is None holds for all. `a & b` is both.

    Attributes:
        kind, first, last: as of `Layer`.
        module: a pattern (fnmatch) of module paths: "features.*".
        depth: from (included) and to (not included), of 0 to 1.
    """

    kind: str | None = None
    first: bool | None = None
    last: bool | None = None
    module: str | None = None
    depth: tuple[float, float] | None = None

    def __call__(self, layer: Layer) -> bool:
        """Whether a layer meets it."""
        same = all(getattr(self, f) in (None, getattr(layer, f)) for f in ("kind", "first", "last"))
        at = self.depth is None or self.depth[0] <= layer.depth < self.depth[1]
        return same and at and (self.module is None or fnmatch.fnmatch(layer.module, self.module))

    def __and__(self, other: Where) -> Where:
        """Raises ValueError where both say something of the same."""
        said = {f.name: v for f in fields(other) if (v := getattr(other, f.name)) is not None}
        twice = [name for name in said if getattr(self, name) is not None]
        if twice:
            raise ValueError(f"{self} and {other} both say which {twice[0]}")
        return replace(self, **said)

    def __str__(self) -> str:
        said = [f"{f.name} {v}" for f in fields(self) if (v := getattr(self, f.name)) is not None]
        return ", ".join(said) or "every layer"


EVERY = Where()
CONVOLUTION = Where(kind="convolution")
DENSE = Where(kind="dense")
FIRST = Where(first=True)
LAST = Where(last=True)

Treatment = Callable[[Call, Affine, Layer], Affine]
Line = tuple[Where, Treatment]


@dataclass(frozen=True)
class Treated:
    """A layer with its treatment: the affine form that the rule table has for it -> the composite's own."""

    treatment: Treatment
    layer: Layer

    def __call__(self, call: Call, form: Affine) -> Affine:
        return self.treatment(call, form, self.layer)
