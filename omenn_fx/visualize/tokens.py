"""Contributions of tokens: C summed over the embedding's dimensions, as coloured text in a figure and in HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from omenn_fx.printable import printable
from omenn_fx.visualize.explained import Explained
from omenn_fx.visualize.panels import HEADER, INK, MARGIN, Page, text_width
from omenn_fx.visualize.parts import TIMES, Part, Row, part, proof, signed, titled
from omenn_fx.visualize.pixels import DEEPEST, colours

SPECIAL = re.compile(r"\[.+\]|<.+>")  # [PAD], <pad>, <|endoftext|>
WIDTH, LINE, SIZE, SPACE = 7.2, 0.3, 11.0, 0.07  # inches; of the letters in points; inches between words


@dataclass(frozen=True)
class Run:
    """A token and its position; or a run of padding, shown as one.

    Attributes:
        label: "space", "[PAD] × 19".
        positions: of the input.
    """

    label: str
    positions: slice

    def of(self, values: np.ndarray) -> float:
        """Its contribution, of values [L]."""
        return float(values[self.positions].sum())


def per_token(values: np.ndarray) -> np.ndarray:
    """[L]: summed over the embedding's dimensions. Raises ValueError where the input is no sequence."""
    if values.ndim not in (1, 2):
        raise ValueError(f"the explained input of a row has shape {values.shape}: tokens need [L, D] or [L]")
    return values.sum(1) if values.ndim == 2 else values


def colours_meaning(shown: Part) -> str:
    """For the caption."""
    summed = "summed over the embedding's dimensions" if shown.C.ndim == 2 else "of each value"
    return f"{shown.symbol} {summed}; red raises the {shown.noun}, blue lowers it."


def runs(tokens: Sequence[str] | None, length: int) -> list[Run]:
    """Every token with its position, special ones included; a run of one special token at either end is one.

    Raises:
        ValueError: there are not as many tokens as positions.
    """
    labels = [str(i) for i in range(length)] if tokens is None else [_visible(token) for token in tokens]
    if len(labels) != length:
        raise ValueError(f"{len(labels)} tokens for {length} positions: give them all, special tokens and padding too")
    found: list[Run] = []
    groups = [list(group) for _, group in groupby(range(length), labels.__getitem__)]
    for i, group in enumerate(groups):
        token = labels[group[0]]
        if len(group) > 1 and i in (0, len(groups) - 1) and SPECIAL.fullmatch(token):
            found.append(Run(f"{token} {TIMES} {len(group)}", slice(group[0], group[-1] + 1)))
        else:
            found.extend(Run(token, slice(at, at + 1)) for at in group)
    return found


def _visible(token: str) -> str:
    """On one line, and not blank."""
    return str(token).replace("\n", "↵").replace("\t", "⇥").strip() or "\N{OPEN BOX}"


def token_text(
    tokens: Sequence[str] | None,
    explanation: Explained,
    row: Row = 0,
    path: str | Path | None = None,
    title: str | None = None,
    class_name: str | None = None,
    *,
    input: str | None = None,
) -> Figure:
    """Draw the text, each token on the colour of its contribution. The largest magnitude has the deepest colour.

    Args:
        tokens: of this row, one for each position, special tokens and padding included
            (`tokenizer.convert_ids_to_tokens(ids)`). Padding at an end is shown as one. None: the positions' numbers.
        explanation: of a token input [N, L, D] (an ids input's embeddings) or [N, L].
        row, path, title, class_name, input: as of `picture`.

    Returns:
        A matplotlib Figure that belongs to no pyplot state.

    Raises:
        ValueError: the explained input is no sequence, there are not as many tokens as positions, or `row` or `input`
            does not select one explained value.
    """
    shown = part(explanation, row, input, class_name)
    words = _words(tokens, shown)
    places, lines = _typeset(words)
    page = Page(WIDTH, HEADER + 0.1 + LINE * lines, [shown.balance, colours_meaning(shown)])
    page.header(titled(title, shown.label), proof(explanation, [row]))
    axes = page.axes(0, 0, *page.size)
    axes.set(xlim=(0, page.size[0]), ylim=(0, page.size[1]))
    axes.set_axis_off()
    for word, (x, line) in zip(words, places, strict=True):
        baseline = page.size[1] - HEADER - LINE * (line + 0.75)
        low, height = baseline - 0.055, 0.2
        box = FancyBboxPatch(
            (x + 0.02, low + 0.02), word.width - 0.04, height - 0.04, "round,pad=0.02,rounding_size=0.03"
        )
        box.set(facecolor=word.paper, edgecolor="none")
        axes.add_patch(box)
        axes.text(x + word.width / 2, baseline, word.text, fontsize=SIZE, color=word.ink, ha="center", parse_math=False)
    return page.written(path)


def token_html(
    tokens: Sequence[str] | None,
    explanation: Explained,
    row: Row = 0,
    title: str | None = None,
    class_name: str | None = None,
    *,
    input: str | None = None,
) -> str:
    """The coloured text of `token_text` as HTML: a `<figure>` with its own styles, each token's number in its title.

    Arguments and errors are those of `token_text`.
    """
    shown = part(explanation, row, input, class_name)
    spans = []
    for word in _words(tokens, shown):
        hint, text = _escaped(f"{word.run.label}: {signed(word.value)}"), _escaped(word.text)
        style = f"background:{word.paper};color:{word.ink};padding:0.1em 0.15em;border-radius:0.2em"
        spans.append(f'{"" if word.glued else " "}<span title="{hint}" style="{style}">{text}</span>')
    caption = _escaped(f"{titled(title, shown.label)}. {shown.balance}. {colours_meaning(shown)}")
    return (
        '<figure class="omenn-tokens" style="margin:1em 0">'
        f'<p style="line-height:1.8;margin:0">{"".join(spans).strip()}</p>'
        f'<figcaption style="font-size:0.8em;color:#666">{caption}</figcaption></figure>'
    )


def _escaped(text: str) -> str:
    return html.escape(printable(text))


@dataclass(frozen=True)
class _Word:
    """A run as it is written: its text, whether it continues the word before, its colours."""

    run: Run
    text: str
    glued: bool
    value: float
    paper: str
    ink: str

    @property
    def width(self) -> float:
        return text_width(self.text, SIZE) + 0.08


def _words(tokens: Sequence[str] | None, shown: Part) -> list[_Word]:
    values = per_token(shown.C)
    found = runs(tokens, len(values))
    sums = np.array([run.of(values) for run in found])
    scale = float(np.abs(sums).max(initial=0)) or 1.0
    papers = colours(sums[None], scale / DEEPEST)[0, :, :3]
    return [
        _Word(run, text, glued, float(value), "#{:02x}{:02x}{:02x}".format(*paper), _ink(paper))
        for run, (text, glued), value, paper in zip(found, _texts(found), sums, papers, strict=True)
    ]


def _texts(found: list[Run]) -> list[tuple[str, bool]]:
    """(text, whether it continues the word before), without a tokenizer's marks: ##ing; Ġword and ▁word."""
    marked = any(run.label.startswith(("Ġ", "▁")) for run in found)
    texts = []
    for i, run in enumerate(found):
        special = SPECIAL.match(run.label) is not None
        after_special = i > 0 and SPECIAL.match(found[i - 1].label) is not None
        if run.label.startswith("##"):
            texts.append((run.label[2:], True))
        elif marked and not special:
            starts = run.label.startswith(("Ġ", "▁"))
            texts.append((run.label.lstrip("Ġ▁") or "\N{OPEN BOX}", not starts and i > 0 and not after_special))
        else:
            texts.append((run.label, False))
    return texts


def _typeset(words: list[_Word]) -> tuple[list[tuple[float, int]], int]:
    """(x in inches, line) of each word, and the number of lines."""
    places, x, line = [], MARGIN, 0
    for word in words:
        x += 0 if word.glued or x == MARGIN else SPACE
        if x + word.width > WIDTH - MARGIN and x > MARGIN:
            x, line = MARGIN, line + 1
        places.append((x, line))
        x += word.width
    return places, line + 1


def _ink(paper: np.ndarray) -> str:
    """Black or white letters, whichever have more contrast (relative luminance as of WCAG 2)."""
    luminance = (paper / 255) ** 2.2 @ np.array([0.2126, 0.7152, 0.0722])
    return INK if luminance > 0.18 else "#ffffff"
