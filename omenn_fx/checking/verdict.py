"""The data of a check: what a node is to an explanation, and what there is to say of a model."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from omenn_fx.errors import Place

NOWHERE = Place()


class Verdict(str, Enum):
    """What a node is to an explanation."""

    AFFINE = "affine"  # W is constant
    DYNAMIC = "dynamic"  # W depends on the input
    POLICY = "policy"  # exact, but a policy chose which operand is content
    OPAQUE = "opaque"  # adds an input-dependent bias
    SOURCE = "source"  # explained
    COEFFICIENT = "coefficient"  # depends on the input and is held fixed: part of the W of its readers
    CONSTANT = "constant"  # no explained input reaches it
    UNSUPPORTED = "unsupported"  # no rule


COLOURS = {
    Verdict.AFFINE: "#4c78a8",
    Verdict.DYNAMIC: "#72b7b2",
    Verdict.POLICY: "#eeca3b",
    Verdict.OPAQUE: "#f58518",
    Verdict.SOURCE: "#54a24b",
    Verdict.COEFFICIENT: "#b8b0d0",
    Verdict.CONSTANT: "#d8d8d8",
    Verdict.UNSUPPORTED: "#e45756",
}


@dataclass(frozen=True)
class NodeVerdict:
    """One node of the captured graph: operator, module path, verdict with its reason, the user's file and line."""

    name: str
    op: str
    module: str
    verdict: Verdict
    reason: str
    file: str
    line: int


@dataclass(frozen=True)
class Kind:
    """A kind of finding: its code in SARIF and in tables, and what it means."""

    code: str
    title: str


CAPTURE = Kind("OMENN001", "torch.export cannot capture the model")
TRAIN_MODE = Kind("OMENN002", "the model is in train mode")
INPUTS = Kind("OMENN003", "the inputs do not fit the model")
OUTPUT = Kind("OMENN004", "there is no such output to explain")
NO_CONTENT = Kind("OMENN005", "no input reaches the output through content")
NO_RULE = Kind("OMENN006", "an operator has no rule")
MIXED_BATCH = Kind("OMENN007", "the samples of a batch reach each other")
OTHER = Kind("OMENN009", "the model cannot be explained")

GATE_OUTPUT = Kind("OMENN101", "a softmax or sigmoid is explained instead of the logits")
RANDOM = Kind("OMENN102", "the model draws random numbers in eval mode")
MUTATION = Kind("OMENN103", "forward changes a parameter or a buffer")
DETACHED = Kind("OMENN104", "the explanation passes a detach")
NORMALISES = Kind("OMENN105", "the input is normalised inside of the model")
STANDS_IN = Kind("OMENN106", "a composite rule set says nothing of an operator")
SILENT = Kind("OMENN107", "an input has no part of its own")
REACHED = Kind("OMENN108", "samples of a batch reach each other through coefficients")
UNTRIED = Kind("OMENN110", "whether the samples of a batch meet was not tried")

PROBLEMS = (CAPTURE, TRAIN_MODE, INPUTS, OUTPUT, NO_CONTENT, NO_RULE, MIXED_BATCH, OTHER)
WARNINGS = (GATE_OUTPUT, RANDOM, MUTATION, DETACHED, NORMALISES, STANDS_IN, SILENT, REACHED, UNTRIED)


@dataclass(frozen=True)
class Finding:
    """One finding: its kind, where it is, why, and what to change."""

    kind: Kind
    place: Place
    reason: str
    fix: str

    def __str__(self) -> str:
        where = f"\n    {self.place}" if self.place != NOWHERE else ""
        return f"{self.kind.code} {self.kind.title}: {self.reason}{where}\n    What to change: {self.fix}."
