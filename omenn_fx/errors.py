"""Every error a user can meet, and the one way a place in the user's code is written in all of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omenn_fx.printable import printable


@dataclass(frozen=True)
class Place:
    """Where a node of the graph comes from: operator, node name, module path and the user's own source line.

    Attributes:
        file, line, function, code: of that line; "" and 0 where they are not known.
    """

    node: str = ""
    op: str = ""
    module: str = ""
    file: str = ""
    line: int = 0
    function: str = ""
    code: str = ""

    @property
    def source(self) -> str:
        """ "file:line in function: code", or ""."""
        return f"{self.file}:{self.line} in {self.function}: {self.code}" if self.file else ""

    @property
    def label(self) -> str:
        """Operator, node and module, without the line."""
        where = f" in module '{self.module}'" if self.module else ""
        return f"{self.op} (node '{self.node}'){where}"

    def __str__(self) -> str:
        return self.label + (f"\n      at {self.source}" if self.source else "")


_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # objects print theirs, another one at every run


class OmennError(Exception):
    """Base of all errors raised by omenn-fx.

    Attributes:
        reason: what is wrong.
        places: the nodes that it is about.
        fix: what to change, "" where the reason says it.
    """

    reason: str = ""
    places: tuple[Place, ...] = ()
    fix: str = ""

    def __init__(self, reason: str = "", places: Sequence[Place] = (), fix: str = ""):
        reason = _ADDRESS.sub("", reason)
        super().__init__(reason)
        self.reason, self.places, self.fix = reason, tuple(places), fix or self.fix

    def __str__(self) -> str:
        return printable(self.reason + (f"\n  What to change: {self.fix}." if self.fix else ""))

    def __reduce__(self) -> tuple[Any, ...]:
        """By its fields: worker processes send errors, whatever their constructors take."""
        return _restored, (type(self), self.args, dict(self.__dict__))


def _restored(kind: type[OmennError], args: tuple[Any, ...], fields: dict[str, Any]) -> OmennError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


class IncompleteWarning(UserWarning):
    """An explanation does not add up: sum(C) is not the explained value. Names the first node that is not exact."""


class CaptureError(OmennError):
    """torch.export could not turn the model into a graph."""

    def __init__(self, reason: str, place: Place | None = None, fix: str = ""):
        super().__init__(reason, (place,) if place is not None else (), fix)

    def __str__(self) -> str:
        at = "".join(
            f"\n  at {place.source}" if place.source else f"\n  in module '{place.module}'"
            for place in self.places
            if place.source or place.module
        )
        return printable(self.reason + at + (f"\n  What to change: {self.fix}." if self.fix else ""))


class NodeError(OmennError):
    """A rule that raises at one node of the user's model; what it raised is the cause."""

    def __init__(self, place: Place, error: Exception):
        super().__init__(f"{type(error).__name__} in the rule of {place}: {error}", (place,))


class ModeError(OmennError):
    """The model is in train mode, so dropout or batch statistics would make the explanation random."""


class InputError(OmennError, ValueError):
    """The inputs do not fit the captured model, or hold values no explanation exists for."""


class StructureError(InputError, CaptureError):
    """The inputs have another structure than the captured ones, at which the model cannot be captured either."""


class TargetError(OmennError, ValueError):
    """The target does not select a value of the model's output."""


class OutputError(OmennError, ValueError):
    """The model's output has no tensor of the wanted name, or none with a batch dimension."""


class NoContentError(OmennError):
    """No explained input reaches the explained output through operators that carry content."""

    def __init__(self, reason: str, place: Place | None = None):
        super().__init__(reason, (place,) if place is not None else ())


class SizeError(OmennError, ValueError):
    """A dense matrix of the asked-for map would be larger than the stated limit."""


class ExportError(OmennError):
    """An explainer cannot be written, or a written one cannot be read."""


class FileError(CaptureError, ExportError):
    """A file is damaged, or holds what could run code or exhaust the memory where it is loaded."""


class ParityError(ExportError):
    """The exported explainer does not compute what the explainer does. Names the first node that differs."""


class MixedBatchError(OmennError):
    """The samples of a batch reach each other, so that none has an explanation of its own."""

    what = "the samples of a batch reach each other"
    fix = (
        "where the batch is another dimension than the first ([steps, N, ...]), wrap the model in one that takes "
        "[N, steps, ...] and transposes; where all inputs are one sample (a graph, a pair of image and text), "
        "transform with batched=False"
    )

    def __init__(self, where: Place):
        super().__init__(f"{self.what}, so that none has an explanation of its own: {where}", (where,))


class FoldedBatchError(MixedBatchError):
    """The batch lies in the channels of a grouped convolution. Its groups keep the samples apart, C_b would not."""

    what = "the batch is folded into the groups of a convolution, with weights for each sample"
    fix = "explain one sample at a time: inputs with a batch of one"

    def __init__(self, where: Place):
        OmennError.__init__(self, f"{self.what}, which is explained for one sample alone: {where}", (where,))


class UnsupportedOpError(OmennError):
    """Operators on the way from the explained input to the output have no rule.

    Attributes:
        places: all of them.
        why: node name -> why a rule that the operator has does not hold for this call.
    """

    def __init__(self, places: Sequence[Place], rule_set: str, why: Mapping[str, str] | None = None):
        self.rule_set, self.why = rule_set, dict(why or {})
        count = f"{len(places)} operator call{'s' if len(places) != 1 else ''}"
        lines = "\n".join(f"  - {p}" + (f"\n      {self.why[p.node]}" if p.node in self.why else "") for p in places)
        super().__init__(
            f"the rule set '{rule_set}' has no rule for {count} between the explained input and the output:\n{lines}\n"
            "  Either register a rule (omenn_fx.rule), rewrite the line with supported operators, or hold the "
            'value fixed with roles={"<node name>": "coefficient"}. Nothing falls back to the plain gradient.',
            places,
        )


def said(error: BaseException) -> str:
    """What an error of another library says, on one line: its type, and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
