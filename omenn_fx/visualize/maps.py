"""Pictures of image explanations: the maps of one value, a map over the photograph, several targets, two contrasted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from omenn_fx.visualize.display import Display, resolved
from omenn_fx.visualize.explained import Explained
from omenn_fx.visualize.panels import Panels, sized
from omenn_fx.visualize.parts import (
    Names,
    Part,
    Row,
    class_names,
    difference,
    part,
    parts_of,
    proof,
    rows_of,
    signed,
    titled,
)
from omenn_fx.visualize.pixels import PERCENTILE, as_pixels, symmetric_scale

ENDS = f"symmetric around 0, ending at the {PERCENTILE}th percentile of the absolute values drawn."


def picture(
    image: Any,
    explanation: Explained,
    row: Row = 0,
    path: str | Path | None = None,
    title: str | None = None,
    class_name: str | None = None,
    *,
    input: str | None = None,
    display: Display | None = None,
) -> Figure:
    """Draw one row of an image explanation: the input, C_w * X, C_b and C, each summed over channels.

    Every map has its own symmetric colour scale around 0, which ends at the 99.5th percentile of the absolute values
    drawn; its sum stands above it. With bias="none" there is no C_b: the picture has C_w * X alone; of a deployed file
    that returns C alone it has C.

    Args:
        image: what the model saw, at the size of its input: a PIL image, or an array or tensor [H, W, 3], [H, W] or
            (tensor) [3, H, W]; uint8, or floats in 0..1. None: the explained input itself, stretched to 0..1.
        explanation: of an image input [N, C, H, W] or [N, H, W].
        row: which image of the batch; (row, t) where the explanation has T targets.
        path: where to write it (the suffix says the format); None: nowhere.
        title: what is explained, such as the file's name.
        class_name: the name of the explained class.
        input: the name of the input, where several are explained.
        display: how the maps are drawn; the numbers are those of the explanation. None: outliers cut and finely
            smoothed (`Display.default`); `Display()`: as they are.

    Returns:
        A matplotlib Figure that belongs to no pyplot state.

    Raises:
        ValueError: the explained input is no image, `image` has another size, or `row` or `input` does not select one
            explained value.
    """
    shown = part(explanation, row, input, class_name)
    named = {"C_w * X": shown.product, "C_b": shown.C_b, shown.symbol: shown.C}
    maps = {name: flat(values) for name, values in named.items() if values is not None}
    own = "Each map has its own scale," if len(maps) > 1 else "The scale is"
    display = resolved(display, maps[shown.symbol].shape)
    panels = _panels(image, [shown], 1 + len(maps), f"{own} {ENDS}", display)
    for i, (name, values) in enumerate(maps.items(), start=1):
        total = _total(shown) if name == "C" else f"sum = {signed(float(values.sum()))}"
        panels.map(i, display(values), name, total)
    if len(maps) == 3:
        panels.sign(2, "+")
        panels.sign(3, "=")
    panels.header(titled(title, shown.label), proof(explanation, [row]))
    return panels.written(path)


def overlay_picture(
    image: Any,
    explanation: Explained,
    row: Row = 0,
    path: str | Path | None = None,
    title: str | None = None,
    class_name: str | None = None,
    *,
    input: str | None = None,
    display: Display | None = None,
) -> Figure:
    """Draw the input, C, and C over the greyed photograph, at one symmetric colour scale.

    Arguments, result and errors are those of `picture`.
    """
    shown = part(explanation, row, input, class_name)
    C = flat(shown.C)
    display = resolved(display, C.shape)
    values = display(C)
    panels = _panels(image, [shown], 3, f"The scale is {ENDS}", display)
    panels.map(1, values, shown.symbol, _total(shown))
    panels.over(2, _seen(image, shown), values, shown.symbol, "over the greyed input")
    panels.header(titled(title, shown.label), proof(explanation, [row]))
    return panels.written(path)


def targets_picture(
    image: Any,
    explanation: Explained,
    row: int = 0,
    path: str | Path | None = None,
    title: str | None = None,
    class_name: Names = None,
    *,
    input: str | None = None,
    display: Display | None = None,
) -> Figure:
    """Draw the input and C of each target of a row, all at one symmetric colour scale.

    Args:
        image, path, title, input, display: as of `picture`.
        explanation: of an image input and T targets, C [N, T, C, H, W].
        row: which image of the batch.
        class_name: the names of the T classes.

    Raises:
        ValueError: as of `picture`, or there are not as many names as targets.
    """
    parts = parts_of(explanation, row, input, class_name)
    maps = [flat(p.C) for p in parts]
    display = resolved(display, maps[0].shape)
    drawn = [display(values) for values in maps]
    panels = _panels(image, parts, 1 + len(parts), f"The maps share a scale, {ENDS}", display)
    scale = symmetric_scale(np.stack(drawn))
    for i, (shown, values) in enumerate(zip(parts, drawn, strict=True), start=1):
        panels.map(i, values, shown.label, _total(shown), scale)
    panels.header(titled(title, f"{len(parts)} targets"), proof(explanation, rows_of(explanation, row)))
    return panels.written(path)


def contrast_picture(
    image: Any,
    explanation: Explained,
    row: int = 0,
    path: str | Path | None = None,
    title: str | None = None,
    class_name: Names = None,
    *,
    pair: tuple[int, int] = (0, 1),
    input: str | None = None,
    display: Display | None = None,
) -> Figure:
    """Draw why one target rather than another: C of both and their difference, which sums to that of the logits.

    Args:
        image, path, title, input, display: as of `picture`.
        explanation: of an image input and T targets, such as `target=torch.tensor([[281, 285]])`.
        row: which image of the batch.
        class_name: the names of the two classes.
        pair: which two of the T targets, the first minus the second.

    Raises:
        ValueError: as of `picture`, or the explanation has fewer than two targets.
    """
    if explanation.value.ndim != 2 or explanation.value.shape[1] < 2:
        raise ValueError("a contrast needs two targets in one explanation: target=torch.tensor([[a, b]])")
    rows: list[Row] = [(row, t) for t in pair]
    names = class_names(class_name, 2)
    a, b = (part(explanation, r, input, name) for r, name in zip(rows, names, strict=True))
    gap = difference(a, b)
    maps = [flat(p.C) for p in (a, b, gap)]
    display = resolved(display, maps[0].shape)
    drawn = [display(values) for values in maps]
    scales = f"The two targets share a scale, their difference has its own, {ENDS} "
    scales += f"{gap.noun}: the difference of the two {a.noun}s, which the difference of the maps sums to."
    panels = _panels(image, [gap], 4, scales, display)
    scale = symmetric_scale(np.stack(drawn[:2]))
    panels.map(1, drawn[0], a.label, _total(a), scale)
    panels.map(2, drawn[1], b.label, _total(b), scale)
    panels.map(3, drawn[2], "difference", _total(gap))
    panels.sign(2, "\N{MINUS SIGN}")
    panels.sign(3, "=")
    panels.header(titled(title, f"{a.label} rather than {b.label}"), proof(explanation, rows))
    return panels.written(path)


def flat(values: np.ndarray) -> np.ndarray:
    """[H, W]: summed over channels. Raises ValueError where the input is no image."""
    if values.ndim not in (2, 3):
        raise ValueError(f"the explained input of a row has shape {values.shape}: a picture needs [C, H, W] or [H, W]")
    return values.sum(0) if values.ndim == 3 else values


def _panels(image: Any, parts: Sequence[Part], count: int, scale: str, display: Display) -> Panels:
    """The panels with the input in the first. Below, how the sums make the values, where a panel's title cannot say."""
    size = flat(parts[0].C).shape
    pixels = as_pixels(_seen(image, parts[0]))
    if pixels.shape[:2] != size:
        raise ValueError(
            f"the image is {sized(pixels.shape)} and the explained input {sized(size)}: give what the model saw"
        )
    balances = [p.balance if len(parts) == 1 else f"{p.label}: {p.balance}" for p in parts if p.beyond]
    colours = f"Summed over channels; red raises the {parts[0].noun.removeprefix('Δ ')}, blue lowers it. {scale}"
    panels = Panels(size, count, [*balances, colours, *([display.caption] if display.caption else [])])
    panels.pixels(0, pixels, "input", sized(size))
    return panels


def _seen(image: Any, shown: Part) -> Any:
    """The image, or the explained input stretched to 0..1 (its channels' mean where they are no colours)."""
    if image is not None:
        return image
    X = shown.X - shown.X.min()
    X = X / (X.max() or 1)
    if X.ndim == 2:
        return X
    return X.transpose(1, 2, 0) if len(X) == 3 else X.mean(0)


def _total(shown: Part) -> str:
    """Both sums, where they are the same."""
    total = f"sum = {signed(float(shown.C.sum()))}"
    return total if shown.beyond else f"{total},  {shown.explained}"
