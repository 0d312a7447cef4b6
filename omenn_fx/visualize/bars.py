"""Bars: the contributions of tokens, and the biases' part by node and by layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from omenn_fx.visualize.explained import Explained, NodeLike
from omenn_fx.visualize.panels import EDGE, FAINT, HEADER, INK, MARGIN, Page, shortened, text_width
from omenn_fx.visualize.parts import (
    MINUS,
    Names,
    Row,
    aligned,
    bias_share,
    part,
    parts_of,
    percent,
    proof,
    rows_of,
    signed,
    titled,
)
from omenn_fx.visualize.pixels import BLUE, RED
from omenn_fx.visualize.tokens import Run, colours_meaning, per_token, runs

LINE, BARS, NUMBERS, GAP = 0.2, 3.2, 0.75, 0.2  # inches: a bar's line; widths
LABELS = 1.1, 4.5  # inches: the least and the greatest width of the labels
NAMES = 0.26  # inches above the bars for the names of several targets


def token_bars(
    tokens: Sequence[str] | None,
    explanation: Explained,
    row: Row = 0,
    path: str | Path | None = None,
    title: str | None = None,
    class_name: Names = None,
    *,
    input: str | None = None,
    most: int = 60,
) -> Figure:
    """Draw the contribution of each token as a bar, in reading order; with T targets T columns at one scale.

    A token's contribution is C summed over the embedding's dimensions; a tick marks C_w * X alone. The bars sum to C.

    Args:
        tokens: of this row, one for each position, special tokens and padding included
            (`tokenizer.convert_ids_to_tokens(ids)`). Padding at an end is one bar. None: the positions' numbers.
        explanation: of a token input [N, L, D] (an ids input's embeddings), or of any [N, L].
        row: which row of the batch; with T targets (row, t) draws one of them.
        path, title, input: as of `picture`.
        class_name: the name of the explained class, or one for each target.
        most: bars; of more tokens the smallest share one bar.

    Returns:
        A matplotlib Figure that belongs to no pyplot state.

    Raises:
        ValueError: the explained input is no sequence, there are not as many tokens as positions, or `row` or `input`
            does not select one of the explained values.
    """
    parts = parts_of(explanation, row, input, class_name)
    found = runs(tokens, len(per_token(parts[0].C)))
    values = _per_run(found, [p.C for p in parts])
    products = [p.product for p in parts if p.product is not None and p.C_b is not None]
    bars = _Bars([run.label for run in found], values, _per_run(found, products) if products else None)
    bars = bars.folded(most, "positions" if tokens is None else "tokens")
    tick = ["The tick is C_w * X alone."] if products else []
    balances = [p.balance if len(parts) == 1 else f"{p.label}: {p.balance}" for p in parts]
    caption = [*balances, colours_meaning(parts[0]), *tick]
    page = _drawn(bars, [p.label for p in parts], caption, title, proof(explanation, rows_of(explanation, row)))
    return page.written(path)


def _per_run(found: list[Run], values: list[np.ndarray]) -> np.ndarray:
    """[T, n] of T inputs [L, D] or [L]."""
    return np.array([[run.of(per_token(v)) for run in found] for v in values])


def bias_bars(
    explanation: Explained,
    row: Row = 0,
    path: str | Path | None = None,
    title: str | None = None,
    class_name: Names = None,
    *,
    most: int = 15,
) -> Figure:
    """Draw each node's share of the value through its bias, the largest first; the bars sum to `bias.total`.

    Args:
        explanation: of any model, with any bias policy.
        row, class_name: as of `token_bars`.
        path, title: as of `picture`.
        most: bars; the last one is the sum of all nodes that are not shown.

    Returns:
        A matplotlib Figure that belongs to no pyplot state.

    Raises:
        ValueError: there are no biases by node, or `row` is out of range.
    """
    labels, values = _biases(explanation, row)
    order = np.argsort(-np.abs(values).max(0), kind="stable")
    bars = _Bars([labels[i] for i in order], values[:, order]).folded(most, "nodes")
    return _bias_page(bars, explanation, row, title, class_name).written(path)


def layer_bars(
    explanation: Explained,
    nodes: Iterable[NodeLike],
    row: Row = 0,
    path: str | Path | None = None,
    title: str | None = None,
    class_name: Names = None,
    *,
    depth: int | None = None,
    most: int = 16,
) -> Figure:
    """Draw the biases' part by layer, in the model's order: node shares summed by module path.

    Args:
        explanation: of any model, with any bias policy.
        nodes: `explainer.nodes` of the explainer that made the explanation.
        row, class_name: as of `token_bars`.
        path, title: as of `picture`.
        depth: names of the module path that make a layer: 1 for "layer1", 2 for "layer1.0". Default: as many as give
            at most `most` bars.
        most: bars; of more layers the smallest share one bar.

    Returns:
        A matplotlib Figure that belongs to no pyplot state.

    Raises:
        ValueError: there are no biases by node, one is not among `nodes`, `depth` is below 1, or `row` is out of range.
    """
    if depth is not None and depth < 1:
        raise ValueError(f"depth={depth}: a layer has at least one name of the module path")
    labels, values = _biases(explanation, row)
    modules = {node.name: node.module for node in nodes}
    unknown = [name for name in labels if name not in modules]
    if unknown:
        raise ValueError(f"no node '{unknown[0]}': give the nodes of the explainer that made this explanation")
    order = {name: i for i, name in enumerate(modules)}
    at = sorted(range(len(labels)), key=lambda i: order[labels[i]])
    paths = [modules[labels[i]] for i in at]
    layers = [_layer(p, depth or _depth(paths, most)) for p in paths]
    names = list(dict.fromkeys(layers))
    members = np.array([[layer == name for name in names] for layer in layers], dtype=np.float64)
    sums = values[:, at] @ members
    bars = _Bars([name or "(no module)" for name in names], sums).folded(most, "layers")
    return _bias_page(bars, explanation, row, title, class_name).written(path)


def _biases(explanation: Explained, row: Row) -> tuple[list[str], np.ndarray]:
    """The names of the biased nodes, and their shares [T, n] in float64."""
    if not explanation.bias:
        raise ValueError(
            "this explanation has no biases by node: the model has none, or a deployed file does not return them "
            '(to_onnx(..., outputs=("logits", "C", "bias")))'
        )
    rows = rows_of(explanation, row)
    for one in rows:
        part(explanation, one, next(iter(explanation.inputs)))  # raises where the row does not exist
    shares = explanation.bias.shares
    assert shares is not None
    return list(explanation.bias), np.stack([shares[r].detach().double().cpu().numpy() for r in rows])


def _layer(path: str, depth: int) -> str:
    return ".".join(path.split(".")[:depth])


def _depth(paths: list[str], most: int) -> int:
    """The deepest cut of the module paths that makes at most `most` layers."""
    fitting = [
        depth
        for depth in range(1, 1 + max(path.count(".") + 1 for path in paths))
        if len({_layer(path, depth) for path in paths}) <= most
    ]
    return max(fitting, default=1)


def _bias_page(bars: _Bars, explanation: Explained, row: Row, title: str | None, class_name: Names) -> Page:
    rows = rows_of(explanation, row)
    parts = parts_of(explanation, row, next(iter(explanation.inputs)), class_name)
    caption = []
    for r, one, drawn in zip(rows, parts, bars.values.sum(1), strict=True):
        total, share = float(explanation.bias.total[r]), percent(bias_share(explanation, r)).replace("-", MINUS)
        sums = f"the bars sum to {signed(float(drawn))},  bias.total = {signed(total)}: {share} of the {one.noun} "
        sums += signed(one.value)
        caption.append(sums.capitalize() if len(rows) == 1 else f"{one.label}: {sums}")
    caption.append(f"Biases as they reach the {parts[0].noun}; red raises it, blue lowers it.")
    return _drawn(bars, [p.label for p in parts], caption, title, proof(explanation, rows))


@dataclass(frozen=True)
class _Bars:
    """Labelled bars of T targets.

    Attributes:
        labels: n of them.
        values: [T, n].
        ticks: [T, n], where a bar has a second number.
        sums: the labels that stand for several things.
    """

    labels: list[str]
    values: np.ndarray
    ticks: np.ndarray | None = None
    sums: frozenset[int] = field(default_factory=frozenset)

    def folded(self, most: int, noun: str) -> _Bars:
        """The largest by magnitude, in their order, and one bar for the sum of all others."""
        if most < 2:
            raise ValueError(f"most={most}: give at least 2 bars, one is for the sum of the others")
        count = len(self.labels)
        if count <= most:
            return self
        kept = np.sort(np.argsort(-np.abs(self.values).max(0), kind="stable")[: most - 1])
        rest = np.setdiff1d(np.arange(count), kept)

        def fold(values: np.ndarray) -> np.ndarray:
            return np.concatenate([values[:, kept], values[:, rest].sum(1, keepdims=True)], 1)

        return _Bars(
            labels=[*(self.labels[i] for i in kept), f"the other {len(rest)} {noun}"],
            values=fold(self.values),
            ticks=None if self.ticks is None else fold(self.ticks),
            sums=frozenset({len(kept)}),
        )


def _drawn(bars: _Bars, names: list[str], caption: list[str], title: str | None, proof: str) -> Page:
    """A page with a column of bars for each target, all at one scale."""
    count = len(bars.labels)
    several = len(names) > 1
    room = float(np.clip(max(text_width(text, 8.5) for text in bars.labels) + 0.1, *LABELS))
    column = BARS + NUMBERS + GAP
    height = HEADER + (NAMES if several else 0) + LINE * count + 0.1
    page = Page(2 * MARGIN + room + GAP + len(names) * column - GAP, height, caption)
    page.header(titled(title, f"{len(names)} targets" if several else names[0]), proof)
    ends = bars.values if bars.ticks is None else np.concatenate([bars.values, bars.ticks])
    low, high = min(0.0, float(ends.min())), max(0.0, float(ends.max()))
    low, high = (low, high) if high > low else (-1.0, 1.0)
    numbers = aligned(bars.values)
    for t, name in enumerate(names):
        left = MARGIN + room + GAP / 2 + t * column
        axes = page.axes(left, page.bottom + 0.05, BARS, LINE * count)
        axes.set(xlim=(low - 0.02 * (high - low), high + 0.02 * (high - low)), ylim=(count - 0.5, -0.5))
        _column(axes, bars, t)
        if several:
            y = page.bottom + 0.05 + LINE * count + 0.09
            page.text(left, y, shortened(name, BARS + NUMBERS, 9, "bold"), 9, weight="bold")
        for i, value in enumerate(numbers[t]):
            style = {"color": FAINT if i in bars.sums else INK, "va": "center_baseline", "ha": "right"}
            y = page.bottom + 0.05 + LINE * (count - i - 0.5)
            page.text(left + BARS + NUMBERS - 0.05, y, value, 8, **style)
            if t == 0:
                text = shortened(bars.labels[i], room, 8.5)
                page.text(MARGIN + room, y, text, 8.5, style="italic" if i in bars.sums else "normal", **style)
    return page


def _column(axes: Axes, bars: _Bars, t: int) -> None:
    values = bars.values[t]
    at = np.arange(len(values))
    drawn = axes.barh(at, values, height=0.72, color=[RED if value > 0 else BLUE for value in values])
    for i in bars.sums:
        drawn[i].set_alpha(0.45)
    if bars.ticks is not None:
        axes.vlines(bars.ticks[t], at - 0.36, at + 0.36, color=INK, linewidth=1.0)
    axes.axvline(0, color=FAINT, linewidth=0.6)
    axes.hlines(at[:-1] + 0.5, 0, 1, transform=axes.get_yaxis_transform(), color=EDGE, linewidth=0.3)
    axes.set_axis_off()
