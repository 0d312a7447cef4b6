"""Figures laid out in inches: a grid of equal panels, titles above and a caption below, free of pyplot's state."""

from __future__ import annotations

import textwrap
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text
from matplotlib.textpath import TextPath

from omenn_fx.printable import printable
from omenn_fx.visualize.parts import MINUS, TIMES
from omenn_fx.visualize.pixels import COLORMAP, overlay, symmetric_scale

PANEL = 2.5  # inches, the longer side of a panel
NARROWEST = 2.0  # inches, the least width of a panel
PIXELS = 440  # least pixels of a panel's longer side
COLUMNS = 4
GAP, MARGIN, HEADER, TITLE, BAR, LINE = 0.34, 0.2, 0.48, 0.46, 0.4, 0.15  # inches
SYMBOLS = {"C_w * X": r"$C_w * X$", "C_b": r"$C_b$", "C": r"$C$"}
INK, FAINT, EDGE = "#1a1a1a", "#666666", "#cccccc"


class Page:
    """A figure whose things are placed in inches from its lower left corner.

    Attributes:
        bottom: where the space above the caption begins.
        figure: the matplotlib Figure.
    """

    def __init__(self, width: float, height: float, caption: list[str], dpi: float = 176):
        """`height` is that of all above the caption, the header included."""
        lines = [line for text in caption for line in _wrapped(text, width - 2 * MARGIN, 7)]
        self.bottom = 0.2 + LINE * len(lines)
        self.size = (width, height + self.bottom)
        self.figure = Figure(figsize=self.size, dpi=dpi, facecolor="white")
        for i, line in enumerate(reversed(lines)):
            self.text(MARGIN, 0.14 + LINE * i, line, 7, color=FAINT)

    def text(self, x: float, y: float, text: str, size: float, **style: Any) -> None:
        style = {"color": INK, "parse_math": False, **style}
        self.figure.text(x / self.size[0], y / self.size[1], text, fontsize=size, **style)

    def header(self, title: str, proof: str) -> None:
        """What is explained, and its proof at the right end of the line, or below where there is no room."""
        top, room = self.size[1], self.size[0] - 2 * MARGIN
        if text_width(title, 11, "bold") + GAP + text_width(proof, 8) <= room:
            self.text(MARGIN, top - 0.31, title, 11, weight="bold")
            self.text(MARGIN + room, top - 0.31, proof, 8, color=FAINT, ha="right")
        else:
            self.text(MARGIN, top - 0.26, shortened(title, room, 11, "bold"), 11, weight="bold")
            self.text(MARGIN, top - 0.43, proof, 8, color=FAINT)

    def written(self, path: str | Path | None) -> Figure:
        """The figure, written to `path` where there is one; an SVG cannot hold control characters, of a name, say."""
        for text in self.figure.findobj(Text):
            text.set_text(printable(text.get_text()))
        if path is not None:
            self.figure.savefig(path)
        return self.figure

    def axes(self, left: float, bottom: float, width: float, height: float) -> Axes:
        across, up = self.size
        return self.figure.add_axes((left / across, bottom / up, width / across, height / up))


class Panels(Page):
    """Equal panels for maps of one shape, whose pixels are whole multiples of the map's (no resampling)."""

    def __init__(self, shape: tuple[int, ...], count: int, caption: list[str]):
        self.shape = height, width = shape
        longer = max(height, width)
        # A narrow map stands in the middle of a panel that is wide enough for its title.
        self.height, self.width = PANEL * height / longer, max(NARROWEST, PANEL * width / longer)
        self.columns = min(count, COLUMNS)
        self.above = HEADER + (-(-count // COLUMNS)) * (TITLE + self.height + BAR)
        multiple = max(1, -(-PIXELS // longer)) if longer < 2 * PIXELS else 2 * PIXELS / longer
        across = 2 * MARGIN + self.columns * self.width + (self.columns - 1) * GAP
        super().__init__(across, self.above, caption, multiple * longer / PANEL)

    def place(self, index: int) -> tuple[float, float]:
        """The lower left corner of a panel."""
        row, column = divmod(index, self.columns)
        down = HEADER + (row + 1) * (TITLE + self.height) + row * BAR
        return MARGIN + column * (self.width + GAP), self.size[1] - down

    def pixels(self, index: int, pixels: np.ndarray, name: str, below: str) -> None:
        """A photograph: uint8, or floats in 0..1."""
        white = 255 if pixels.dtype == np.uint8 else 1
        self._panel(index, name, below).imshow(pixels, cmap="gray", vmin=0, vmax=white, interpolation="nearest")

    def map(self, index: int, values: np.ndarray, name: str, below: str, scale: float | None = None) -> None:
        """A signed map [H, W] and its colour bar, at its own scale where none is given."""
        scale = scale or symmetric_scale(values)
        axes = self._panel(index, name, below)
        shown = axes.imshow(values, cmap=COLORMAP, vmin=-scale, vmax=scale, interpolation="nearest")
        self._bar(index, shown, values, scale)

    def over(self, index: int, image: Any, values: np.ndarray, name: str, below: str) -> None:
        """A signed map over its greyed photograph, and a colour bar of its colours over a middle grey."""
        scale = symmetric_scale(values)
        self._panel(index, name, below).imshow(overlay(image, values, scale), interpolation="nearest")
        ramp = overlay(np.full((1, 255), 0.7), np.linspace(-1, 1, 255)[None], 1)[0] / 255
        self._bar(index, ScalarMappable(Normalize(-scale, scale), ListedColormap(ramp)), values, scale)

    def sign(self, index: int, text: str) -> None:
        """An operator in the gap before a panel."""
        left, bottom = self.place(index)
        self.text(left - GAP / 2, bottom + self.height / 2, text, 17, ha="center", va="center")

    def _panel(self, index: int, name: str, below: str) -> Axes:
        """A panel under its two lines of title."""
        axes = self.axes(*self.place(index), self.width, self.height)
        title = SYMBOLS.get(name) or shortened(name, self.width + GAP / 2, 11)
        axes.set_title(title, fontsize=11, color=INK, pad=20, parse_math=name in SYMBOLS)
        axes.annotate(below, (0.5, 1), (0, 6), "axes fraction", "offset points", ha="center", fontsize=8.5, color=INK)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(color=EDGE, linewidth=0.5)
        return axes

    def _bar(self, index: int, shown: Any, values: np.ndarray, scale: float) -> None:
        left, bottom = self.place(index)
        inset = 0.12 * self.width
        axes = self.axes(left + inset, bottom - 0.17, self.width - 2 * inset, 0.07)
        colour_bar(self.figure, axes, shown, scale, float(np.abs(values).max()))


def colour_bar(figure: Figure, axes: Axes, shown: Any, scale: float, largest: float) -> None:
    """The scale of a map below it; pointed ends where values lie beyond."""
    beyond = "both" if largest > scale else "neither"
    bar = figure.colorbar(shown, cax=axes, orientation="horizontal", extend=beyond)
    ends = f"{scale:#.2g}" if largest else "0"
    bar.set_ticks([-scale, 0, scale], labels=[f"{MINUS}{ends}", "0", f"+{ends}"] if largest else ["", "0", ""])
    bar.ax.tick_params(labelsize=6.5, colors=FAINT, length=2, width=0.5, pad=2)
    for spine in bar.ax.spines.values():
        spine.set_visible(False)


def sized(shape: tuple[int, ...]) -> str:
    """Width and height."""
    return f"{shape[1]} {TIMES} {shape[0]}"


@lru_cache(maxsize=4096)
def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Inches of a line of text in the figures' font, `size` in points."""
    font = FontProperties(size=size, weight=weight)
    outline = TextPath((0, 0), printable(text).replace("$", r"\$"), prop=font).vertices
    return float(outline[:, 0].max(initial=0)) / 72


def shortened(text: str, room: float, size: float, weight: str = "normal") -> str:
    """`text`, or as much of its beginning as fits into `room` inches."""
    if text_width(text, size, weight) <= room:
        return text
    while text and text_width(f"{text}…", size, weight) > room:
        text = text[:-1]
    return f"{text.rstrip()}…"


def _wrapped(text: str, room: float, size: float) -> list[str]:
    """Lines of at most `room` inches."""
    letters = int(room / (text_width(text, size) / len(text))) if text else 1
    return textwrap.wrap(text, max(letters, 20))
