"""One picture per explanation: the input, C_w * X, C_b and their sum C."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from omenn_fx.explanation import Explanation

Tensor = torch.Tensor
Row = int | tuple[int, int]

PERCENTILE = 99.5  # of |values|: where a map's colour scale ends
PANEL = 2.5  # inches, the longer side of a panel
NARROWEST = 2.0  # inches, the least width of a panel
PIXELS = 440  # least pixels of a panel's longer side
GAP, MARGIN, HEADER, TITLE, BAR = 0.34, 0.2, 0.48, 0.46, 0.4  # inches
INK, FAINT = "#1a1a1a", "#666666"
SYMBOLS = {"C_w * X": r"$C_w * X$", "C_b": r"$C_b$", "C": r"$C$"}


def picture(
    image: Any,
    explanation: Explanation,
    row: Row = 0,
    path: str | Path | None = None,
    title: str | None = None,
    class_name: str | None = None,
) -> Figure:
    """Draw one row of an image explanation: the input, C_w * X, C_b and C, each summed over channels.

    Every map has its own symmetric colour scale around 0, which ends at the 99.5th percentile of its absolute values;
    its sum stands above it. With bias="none" there is no C_b: the picture has C_w * X alone.

    Args:
        image: what the model saw, at the size of its input: a PIL image, or an array or tensor [H, W, 3], [H, W] or
            (tensor) [3, H, W]; uint8, or floats in 0..1.
        explanation: of an image model with one explained input [N, C, H, W] or [N, H, W].
        row: which image of the batch; (row, t) where the explanation has T targets.
        path: where to write it (the suffix says the format); None: nowhere.
        title: what is explained, such as the file's name.
        class_name: the name of the explained class.

    Returns:
        A matplotlib Figure that belongs to no pyplot state.

    Raises:
        ValueError: the explained input is no image, or `row` does not select one explained value.
    """
    maps = _maps(explanation, row)
    value = float(explanation.value[row])
    lines = _caption(maps, explanation, row)
    panels = _Panels(maps["C_w * X"].shape, 1 + len(maps), len(lines))
    _draw_input(panels, image)
    for i, (name, values) in enumerate(maps.items(), start=1):
        total = f"sum = {_signed(float(values.sum()))}"
        _draw_map(panels, i, values, name, f"{total},  logit = {_signed(value)}" if name == "C" else total)
    if len(maps) == 3:
        panels.sign(2, "+")
        panels.sign(3, "=")
    _write_header(panels, explanation, row, title, class_name)
    for i, line in enumerate(reversed(lines)):
        panels.text(MARGIN, 0.14 + 0.15 * i, line, 7, color=FAINT)
    if path is not None:
        panels.figure.savefig(path)
    return panels.figure


def number(value: float) -> str:
    """A number as tables and pictures show it: five figures, more only where it is tiny or huge."""
    return f"{value:.4f}" if value == 0 or 1e-2 <= abs(value) < 1e5 else f"{value:.3e}"


def percent(value: float) -> str:
    """A share as a percentage; a dash for NaN."""
    return "-" if value != value else f"{100 * value:.1f} %"


def bias_share(explanation: Explanation, row: Row = 0) -> float:
    """The part of the explained value that the biases make: above 1 where C_w * X is negative; NaN of a value of 0."""
    value = float(explanation.value[row])
    return float(explanation.bias.total[row]) / value if value else float("nan")


def _maps(explanation: Explanation, row: Row) -> dict[str, np.ndarray]:
    """name -> [H, W], summed over channels in float64."""
    if isinstance(row, int) != (explanation.value.ndim == 1):
        wanted = "an int" if explanation.value.ndim == 1 else "(row, target)"
        raise ValueError(f"row={row!r}: this explanation has values {tuple(explanation.value.shape)}, give {wanted}")
    C, C_b = explanation.C[row], explanation.C_b
    if C.ndim not in (2, 3):
        raise ValueError(
            f"the explained input of a row has shape {tuple(C.shape)}: a picture needs [C, H, W] or [H, W]"
        )
    if C_b is None:
        return {"C_w * X": _summed(C)}
    X = explanation.X[row if isinstance(row, int) else row[0]]
    return {"C_w * X": _summed(explanation.C_w[row] * X), "C_b": _summed(C_b[row]), "C": _summed(C)}


def _summed(values: Tensor) -> np.ndarray:
    values = values.detach().double().cpu()
    return (values.sum(0) if values.ndim == 3 else values).numpy()


def _signed(value: float) -> str:
    return number(value).replace("-", "\N{MINUS SIGN}")


class _Panels:
    """A row of equal panels, placed in inches, whose pixels are whole multiples of the map's (no resampling)."""

    def __init__(self, shape: tuple[int, ...], count: int, lines: int):
        self.shape = height, width = shape
        longer = max(height, width)
        # A narrow map stands in the middle of a panel that is wide enough for its title.
        self.height, self.width = PANEL * height / longer, max(NARROWEST, PANEL * width / longer)
        self.bottom = BAR + 0.2 + 0.15 * lines
        self.size = (2 * MARGIN + count * self.width + (count - 1) * GAP, HEADER + TITLE + self.height + self.bottom)
        multiple = max(1, -(-PIXELS // longer)) if longer < 2 * PIXELS else 2 * PIXELS / longer
        self.figure = Figure(figsize=self.size, dpi=multiple * longer / PANEL, facecolor="white")

    def left(self, index: int) -> float:
        return MARGIN + index * (self.width + GAP)

    def axes(self, index: int, name: str, below: str) -> Axes:
        """A panel under its two lines of title."""
        axes = self._add(self.left(index), self.bottom, self.width, self.height)
        axes.set_title(name, fontsize=11, color=INK, pad=20)
        axes.annotate(below, (0.5, 1), (0, 6), "axes fraction", "offset points", ha="center", fontsize=8.5, color=INK)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(color="#cccccc", linewidth=0.5)
        return axes

    def bar(self, index: int) -> Axes:
        inset = 0.12 * self.width
        return self._add(self.left(index) + inset, self.bottom - 0.17, self.width - 2 * inset, 0.07)

    def sign(self, index: int, text: str) -> None:
        """An operator in the gap before a panel."""
        self.text(self.left(index) - GAP / 2, self.bottom + self.height / 2, text, 17, ha="center", va="center")

    def text(self, x: float, y: float, text: str, size: float, **style: Any) -> None:
        style = {"color": INK, **style}
        self.figure.text(x / self.size[0], y / self.size[1], text, fontsize=size, **style)

    def _add(self, left: float, bottom: float, width: float, height: float) -> Axes:
        across, up = self.size
        return self.figure.add_axes((left / across, bottom / up, width / across, height / up))


def _draw_input(panels: _Panels, image: Any) -> None:
    pixels = _pixels(image)
    height, width = panels.shape
    axes = panels.axes(0, "input", f"{width} \N{MULTIPLICATION SIGN} {height}")
    white = 255 if pixels.dtype == np.uint8 else 1
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=white, interpolation="nearest")


def _pixels(image: Any) -> np.ndarray:
    """[H, W, 3] or [H, W], uint8 or floats in 0..1."""
    pixels = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if pixels.ndim == 3 and isinstance(image, Tensor) and pixels.shape[0] in (1, 3):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (3, 4))):
        raise ValueError(f"the image has shape {pixels.shape}: give [H, W, 3] or [H, W] (a tensor also [3, H, W])")
    return pixels if pixels.dtype == np.uint8 else pixels.astype(np.float64).clip(0, 1)


def _draw_map(panels: _Panels, index: int, values: np.ndarray, name: str, below: str) -> None:
    axes = panels.axes(index, SYMBOLS[name], below)
    largest = float(np.abs(values).max())
    scale = float(np.percentile(np.abs(values), PERCENTILE)) or largest or 1.0
    shown = axes.imshow(values, cmap="RdBu_r", vmin=-scale, vmax=scale, interpolation="nearest")
    beyond = "both" if largest > scale else "neither"
    bar = panels.figure.colorbar(shown, cax=panels.bar(index), orientation="horizontal", extend=beyond)
    ends = f"{scale:#.2g}" if largest else "0"
    bar.set_ticks([-scale, 0, scale], labels=[f"\N{MINUS SIGN}{ends}", "0", f"+{ends}"] if largest else ["", "0", ""])
    bar.ax.tick_params(labelsize=6.5, colors=FAINT, length=2, width=0.5, pad=2)
    for spine in bar.ax.spines.values():
        spine.set_visible(False)


def _write_header(panels: _Panels, explanation: Explanation, row: Row, title: str | None, name: str | None) -> None:
    number = "weighted sum" if explanation.target.is_floating_point() else f"class {int(explanation.target[row])}"
    what = number if name is None else f"{name} ({number})"
    what = what if title is None else f"{title}:  {what}"
    room = int((panels.size[0] - 2 * MARGIN - 3.4) / 0.095)  # letters beside the proof
    y = panels.size[1] - 0.31
    panels.text(MARGIN, y, what if len(what) <= room else f"{what[: room - 1]}…", 11, weight="bold")
    proof = (
        f"bias share {percent(bias_share(explanation, row))},  "
        f"completeness error {float(explanation.completeness_error[row]):.1e}"
    )
    panels.text(panels.size[0] - MARGIN, y, proof, 8, color=FAINT, ha="right")


def _caption(maps: dict[str, np.ndarray], explanation: Explanation, row: Row) -> list[str]:
    channels = "Summed over channels; red raises the logit, blue lowers it."
    if "C_b" in maps:
        return [
            f"{channels} Each map has its own scale, symmetric around 0, ending at the {PERCENTILE}th percentile of "
            "its absolute values."
        ]
    product, bias = float(maps["C_w * X"].sum()), float(explanation.bias.total[row])
    value = _signed(float(explanation.value[row]))
    return [
        f"sum($C_w * X$) + biases, not carried to the input: {_signed(product)} + {_signed(bias)} = "
        f"{_signed(product + bias)},  logit = {value}",
        channels,
        f"The scale is symmetric around 0 and ends at the {PERCENTILE}th percentile of the absolute values.",
    ]
