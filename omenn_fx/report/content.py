"""What a report says of one image: its classes, their maps and sums, the biases by node, the invariants."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from omenn_fx.checking.validation_report import MEANING, ValidationReport
from omenn_fx.errors import TargetError
from omenn_fx.explanation import Explanation
from omenn_fx.program import NodeInfo
from omenn_fx.target import Target, resolve
from omenn_fx.visualize import Display, colours, overlay, symmetric_scale
from omenn_fx.visualize.display import resolved
from omenn_fx.visualize.parts import Part, part, signed

Tensor = torch.Tensor

NODES = 8  # with a bar of their own; all others share one


@dataclass(frozen=True)
class Map:
    """One picture of one class, and what is seen on it."""

    kind: str  # overlay, C, C_w * X or C_b
    shown: str  # what the colours are of: the kind itself, or what the overlay shows
    pixels: np.ndarray  # uint8 [H, W, 3]
    alt: str
    positive: float  # the sum of the explanation's positive values
    negative: float  # that of its negative ones
    scale: float  # where the colours end


@dataclass(frozen=True)
class Bar:
    """The bias share of one node, or of all the others; its bar from `left`, `width` wide, in percent."""

    name: str
    op: str
    share: float
    left: float
    width: float


@dataclass(frozen=True)
class Explained:
    """One explained class: its logit, the terms that add up to it, its maps and biases."""

    name: str
    index: str  # where the name does not say it
    logit: float
    terms: dict[str, float]
    total: float
    error: float
    maps: list[Map]
    bars: list[Bar]


@dataclass(frozen=True)
class Invariant:
    """One line of a validation: the worst error in the whole graph."""

    meaning: str
    error: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether it is small enough (NaN is not)."""
        return self.error <= self.allowed


@dataclass(frozen=True)
class Subject:
    """One image. Its classes: the user's own first where there is one, then by logit."""

    name: str
    image: np.ndarray  # uint8 [H, W, 3] or [H, W]
    drawn: str  # what is done to the maps before they are drawn; "" where nothing is
    classes: list[Explained]
    validation: ValidationReport
    invariants: list[Invariant]


def subject(
    name: str,
    image: np.ndarray,
    explanation: Explanation,
    validation: ValidationReport,
    nodes: Sequence[NodeInfo],
    classes: Sequence[str] | None = None,
    display: Display | None = None,
) -> Subject:
    """All that a page says of one image.

    Args:
        name: of the image.
        image: what the model saw, uint8 [H, W, 3] or [H, W].
        explanation: of a batch of one with T targets: values [1, T].
        validation: of the same input.
        nodes: those of the explainer.
        classes: a name for every output.
        display: how the maps are drawn; None: by the default of pictures.
    """
    display = resolved(display, image.shape[:2])
    names = [class_name(classes, explanation, index) for index in explanation.target[0].tolist()]
    parts = [part(explanation, (0, t), class_name=known) for t, known in enumerate(names)]
    values = [_values(p) for p in parts]
    drawn = [{kind: display(v) for kind, v in one.items()} for one in values]
    scales = {kind: symmetric_scale(np.stack([d[kind] for d in drawn])) for kind in drawn[0]}
    places = {node.name: node for node in nodes}
    explained = [
        Explained(
            name=known or p.label,
            index=str(int(explanation.target[0, t])) if known else "",
            logit=p.value,
            terms=_terms(p),
            total=float(explanation.sum[0, t]),
            error=float(explanation.completeness_error[0, t]),
            maps=_maps(values[t], drawn[t], scales, image, name, p),
            bars=_bars(explanation, t, places),
        )
        for t, (known, p) in enumerate(zip(names, parts, strict=True))
    ]
    return Subject(name, image, display.caption, explained, validation, _invariants(validation))


# Classes -------------------------------------------------------------------------------------------------------------


def top_classes(count: int, target: Target = None) -> Target:
    """The target that explains the largest `count` outputs at once; the user's own, if any, comes first.

    An explainer raises TargetError for it where the user's own is no single output.
    """

    def chosen(outputs: Tensor) -> Tensor:
        rows = outputs.reshape(len(outputs), -1)
        top = rows.topk(min(count, rows.shape[1])).indices
        if target is None:
            return top
        own = resolve(target, outputs).target
        if own.is_floating_point() or own.ndim != 1:
            raise TargetError("a report shows single outputs: give one class, or one position of a larger output")
        return torch.cat([own[:, None], top[:, top[0] != own[0]]], 1)

    return chosen


def class_name(classes: Sequence[str] | None, explanation: Explanation, index: int) -> str | None:
    """The first name of a class ("tabby" of "tabby, tabby cat"); None where there is none for it."""
    if not classes or explanation.outputs.ndim != 2 or index >= len(classes):
        return None
    return classes[index].partition(",")[0]


# Maps and sums -------------------------------------------------------------------------------------------------------


def _values(one: Part) -> dict[str, np.ndarray]:
    """kind -> [H, W], summed over channels; what the overlay shows comes first."""
    kinds = {one.symbol: one.C, "C_w * X": one.product, "C_b": one.C_b}
    return {kind: v.sum(0) if v.ndim == 3 else v for kind, v in kinds.items() if v is not None}


def _maps(
    values: Mapping[str, np.ndarray],
    drawn: Mapping[str, np.ndarray],
    scales: Mapping[str, float],
    image: np.ndarray,
    name: str,
    one: Part,
) -> list[Map]:
    """The maps of one class: the first of them over the image, then each by itself.

    The colours are of what is drawn, the sums of the explanation's own values. A kind of map has one scale for all
    classes of an image, so that they compare.
    """
    maps = []
    for kind in ("overlay", *values):
        shown = next(iter(values)) if kind == "overlay" else kind
        v, d, scale = values[shown], drawn[shown], scales[shown]
        pixels = overlay(image, d, scale) if kind == "overlay" else colours(d, scale)[..., :3]
        where = f"over {name} in grey" if kind == "overlay" else f"in {name}"
        alt = f"{shown} of {one.label} {where}: sum {signed(float(v.sum()))}, {one.noun} {signed(one.value)}"
        maps.append(Map(kind, shown, pixels, alt, float(v.clip(0).sum()), float(v.clip(None, 0).sum()), scale))
    return maps


def _terms(one: Part) -> dict[str, float]:
    """What adds up to the logit."""
    known = {"C_w * X": one.product, "C_b": one.C_b}
    terms = {kind: float(v.sum()) for kind, v in known.items() if v is not None}
    return (terms or {one.symbol: float(one.C.sum())}) | one.beyond


# Biases and invariants -----------------------------------------------------------------------------------------------


def _bars(explanation: Explanation, t: int, places: Mapping[str, NodeInfo]) -> list[Bar]:
    """The largest bias shares of nodes, and the sum of the others."""
    shares = {name: float(share[0, t]) for name, share in explanation.bias.items()}
    largest = sorted((name for name in shares if shares[name]), key=lambda name: -abs(shares[name]))[:NODES]
    rest = [share for name, share in shares.items() if share and name not in largest]
    found = [(places[n].module or n, places[n].op.removeprefix("aten.").partition(".")[0], shares[n]) for n in largest]
    if rest:
        found.append((f"{len(rest)} other node{'s' if len(rest) > 1 else ''}", "", math.fsum(rest)))
    low = min([0.0, *(share for *_, share in found)])
    room = max([0.0, *(share for *_, share in found)]) - low
    return [
        Bar(name, op, share, 100 * (min(share, 0) - low) / room, 100 * abs(share) / room) for name, op, share in found
    ]


def _invariants(validation: ValidationReport) -> list[Invariant]:
    return [
        Invariant(meaning, validation.error(name), validation.tolerances[name]) for name, meaning in MEANING.items()
    ]
