"""Every error a user can meet, and the one way a place in the user's code is written in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Where a node of the graph comes from: operator, node name, module path and the user's own source line."""

    node: str
    op: str
    module: str
    source: str  # "file:line in function: code", or ""

    @property
    def file(self) -> str:
        """The user's file, "" where it is not known."""
        return self.source.partition(" in ")[0].rpartition(":")[0]

    @property
    def line(self) -> int:
        """The line in it, 0 where it is not known."""
        number = self.source.partition(" in ")[0].rpartition(":")[2]
        return int(number) if number.isdigit() else 0

    def __str__(self) -> str:
        where = f" in module '{self.module}'" if self.module else ""
        line = f"\n      at {self.source}" if self.source else ""
        return f"{self.op} (node '{self.node}'){where}{line}"


class OmennError(Exception):
    """Base of all errors raised by omenn-fx. `places`: the nodes it is about; `fix`: what to change."""

    places: tuple[Place, ...] = ()
    fix: str = ""


class CaptureError(OmennError):
    """torch.export could not turn the model into a graph."""

    def __init__(self, message: str, place: Place | None = None, fix: str = ""):
        self.places, self.fix = (place,) if place is not None else (), fix
        at = f"\n  at {place.source}" if place is not None else ""
        super().__init__(f"{message}{at}" + (f"\n  What to change: {fix}." if fix else ""))


class ModeError(OmennError):
    """The model is in train mode, so dropout or batch statistics would make the explanation random."""


class InputError(OmennError, ValueError):
    """The inputs do not fit the captured model, or hold values no explanation exists for."""


class TargetError(OmennError, ValueError):
    """The target does not select a value of the model's output."""


class OutputError(OmennError, ValueError):
    """The model's output has no tensor of the wanted name, or none with a batch dimension."""


class NoContentError(OmennError):
    """No explained input reaches the explained output through operators that carry content."""

    def __init__(self, message: str, place: Place | None = None):
        self.places = (place,) if place is not None else ()
        super().__init__(message)


class SizeError(OmennError, ValueError):
    """A dense matrix of the asked-for map would be larger than the stated limit."""


class ExportError(OmennError):
    """An explainer cannot be written, or a written one cannot be read."""


class ParityError(ExportError):
    """The exported explainer does not compute what the explainer does. Names the first node that differs."""


class MixedBatchError(OmennError):
    """The samples of a batch reach each other, so that none has an explanation of its own."""

    fix = (
        "where the inputs are one sample (a graph, a pair of image and text), transform with batched=False; else "
        "explain one sample at a time"
    )

    def __init__(self, where: Place | str):
        self.places = (where,) if isinstance(where, Place) else ()
        super().__init__(
            f"the samples of a batch reach each other, so that none has an explanation of its own: {where}\n"
            f"  What to change: {self.fix}."
        )


class UnsupportedOpError(OmennError):
    """Operators on the way from the explained input to the output have no rule. `places` lists them all."""

    def __init__(self, places: Sequence[Place], rule_set: str):
        self.places = tuple(places)
        self.rule_set = rule_set
        count = f"{len(places)} operator call{'s' if len(places) != 1 else ''}"
        lines = "\n".join(f"  - {p}" for p in places)
        super().__init__(
            f"the rule set '{rule_set}' has no rule for {count} between the explained input and the output:\n{lines}\n"
            "  Either register a rule (omenn_fx.rule), rewrite the line with supported operators, or hold the "
            'value fixed with roles={"<node name>": "coefficient"}. Nothing falls back to the plain gradient.'
        )
