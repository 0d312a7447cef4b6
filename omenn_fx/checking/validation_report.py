"""The report of a validation: a table to read, JSON for machines, a plot of where errors grow."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omenn_fx._version import __version__
from omenn_fx.errors import Place
from omenn_fx.printable import Fitted, Printable

if TYPE_CHECKING:  # imported where a report is shown: importing omenn_fx should cost little
    from matplotlib.figure import Figure

AT_NODES = ("node", "linear", "transpose", "mass")
MEANING = {
    "forward": "the twin's outputs are the model's",
    "node": "W h + b is the node's value",
    "linear": "W acts linearly",
    "transpose": "<W u, v> is <u, W^T v>",
    "completeness": "sum(C) is the explained value",
    "mass": "bias mass is carried without gain or loss",
}


def largest(errors: Iterable[float]) -> float:
    """The largest error. NaN, which `max` passes over or not by its place, is larger than any number."""
    return max(errors, key=_rank, default=0.0)


def _rank(error: float) -> float:
    return math.inf if math.isnan(error) else error


@dataclass(frozen=True)
class NodeErrors:
    """One content node: its place and how far its rule is from exact, relative to what is added up.

    Attributes:
        dtype: the least precise of those that it computes in.
        allowed: invariant -> the largest error that holds in that dtype; None: as of the whole.
    """

    name: str
    place: Place
    node: float
    linear: float
    transpose: float
    mass: float
    dtype: str = ""
    allowed: Mapping[str, float] | None = None

    @property
    def worst(self) -> float:
        """The largest of its errors."""
        return largest(getattr(self, name) for name in AT_NODES)


@dataclass(frozen=True)
class ValidationReport:
    """What `explainer.validate` measured. `print` shows it; `ok` is whether every invariant holds.

    Attributes:
        nodes: the errors of every content node, in the graph's order.
        whole: forward, completeness and mass of the whole explanation.
        tolerances: invariant -> the largest error that holds, of the whole, in its least precise dtype.
        dtype: of the outputs; where content is computed in others too, the least precise of those in front.
        against_float64: how far "outputs" and "C" are from the model's in float64, relative to the largest; None where
            that was not asked for.
    """

    nodes: list[NodeErrors]
    whole: dict[str, float]
    tolerances: dict[str, float]
    dtype: str
    against_float64: dict[str, float] | None = None

    @property
    def ok(self) -> bool:
        """Whether every invariant holds everywhere."""
        return not any(True for _ in self._failures())

    @property
    def failures(self) -> list[str]:
        """Each invariant that does not hold, with the node, its module and the user's line."""
        return list(self._failures())

    def _failures(self) -> Iterator[str]:
        for name, error in self.whole.items():
            if not error <= self.tolerances[name]:
                yield f"{name} {error:.1e} > {self.tolerances[name]:.0e}: not so that {MEANING[name]}"
        for entry in self.nodes:
            for name in AT_NODES:
                error, limit = getattr(entry, name), self.limit(name, entry)
                if not error <= limit:
                    yield f"{name} {error:.1e} > {limit:.0e}, not so that {MEANING[name]}: {entry.place}"

    def limit(self, invariant: str, entry: NodeErrors | None = None) -> float:
        """The largest error of an invariant that holds, of the whole or at a node."""
        own = None if entry is None else entry.allowed
        return (self.tolerances if own is None else own)[invariant]

    def worst(self, invariant: str = "node") -> NodeErrors | None:
        """The node where an invariant is the furthest from what holds there; None without content nodes."""
        return max(self.nodes, key=lambda n: _rank(getattr(n, invariant)) / self.limit(invariant, n), default=None)

    def error(self, invariant: str) -> float:
        """The largest error of an invariant, at any node and of the whole explanation; NaN where one is."""
        at_nodes = [getattr(n, invariant) for n in self.nodes] if invariant in AT_NODES else []
        return largest([*at_nodes, self.whole.get(invariant, 0.0)])

    def _shown(self, invariant: str) -> tuple[NodeErrors | None, float]:
        """Where an invariant is the furthest from what holds: at a node, or (None) of the whole; and its error."""
        worst, whole = self.worst(invariant) if invariant in AT_NODES else None, self.whole.get(invariant, 0.0)
        if worst is None:
            return None, whole
        error = getattr(worst, invariant)
        less = _rank(error) / self.limit(invariant, worst) < _rank(whole) / self.limit(invariant)
        return (None, whole) if less else (worst, error)

    # For people ------------------------------------------------------------------------------------------------------

    def __rich__(self) -> Printable:
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        state = Text("valid", style="green") if self.ok else Text("NOT VALID", style="bold red")
        head = Text.assemble(state, f": {len(self.nodes)} nodes in {self.dtype}")
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("invariant", "worst\nerror", "allowed", "where"):
            number = column in ("worst\nerror", "allowed")
            table.add_column(column, justify="right" if number else "left", no_wrap=number, overflow="fold")
        for name, meaning in MEANING.items():
            worst, error = self._shown(name)
            limit = self.limit(name, worst)
            where = f"{worst.place.op} '{worst.name}' {worst.place.module}" if worst is not None and error else ""
            style = "" if error <= limit else "bold red"
            table.add_row(meaning, Text(f"{error:.1e}", style=style), f"{limit:.0e}", Text(where))
        apart = self.against_float64
        if apart is not None:
            differ = f"{apart['outputs']:.1e}, C by {apart['C']:.1e}"
            head.append(f"; in float64 the outputs differ by {differ} of the largest")
        lines = [Text.assemble(("failed: ", "bold red"), f) for f in self.failures[:20]]
        more = len(self.failures) - 20
        return Printable(Group(head, Fitted(table), *lines, *([Text(f"and {more} more")] if more > 0 else [])))

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=120, color_system=None).print(self)
        return text.getvalue().rstrip()

    def plot(self, path: str | Path | None = None) -> Figure:
        """The errors of all nodes in the graph's order, on a logarithmic scale; written to `path` if one is given.

        A cross on the upper edge is NaN.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.6), layout="constrained")
        axes = figure.subplots()
        for name, colour in zip(AT_NODES, ("#4c78a8", "#b8b0d0", "#72b7b2", "#f58518"), strict=True):
            errors = [max(getattr(n, name), 1e-18) for n in self.nodes]
            axes.semilogy(range(len(errors)), errors, ".", markersize=4, color=colour, label=MEANING[name])
            lost = [i for i, error in enumerate(errors) if math.isnan(error)]
            axes.plot(lost, [1] * len(lost), "x", color=colour, transform=axes.get_xaxis_transform(), clip_on=False)
            axes.axhline(self.tolerances[name], color=colour, linewidth=0.6, linestyle=":")
        axes.set_xlabel("content node, in the order of the graph")
        axes.set_ylabel("relative error")
        axes.set_title(f"{'valid' if self.ok else 'NOT VALID'} in {self.dtype}", loc="left", fontsize=10)
        axes.legend(fontsize=7, frameon=False, ncols=2)
        axes.spines[["top", "right"]].set_visible(False)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    # For machines ----------------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """All of the report as JSON."""
        nodes: list[dict[str, Any]] = [
            {
                "name": n.name,
                "op": n.place.op,
                "module": n.place.module,
                "file": n.place.file,
                "line": n.place.line,
                "dtype": n.dtype,
            }
            | {name: _number(getattr(n, name)) for name in AT_NODES}
            for n in self.nodes
        ]
        whole = {name: _number(error) for name, error in self.whole.items()}
        head: dict[str, Any] = {
            "tool": {"name": "omenn-fx", "version": __version__},
            "ok": self.ok,
            "dtype": self.dtype,
        }
        head["against_float64"] = self.against_float64
        rest = {"tolerances": self.tolerances, "whole": whole, "failures": self.failures, "nodes": nodes}
        return json.dumps(head | rest, indent=1)


def _number(value: float) -> float | str:
    """JSON has no other numbers than finite ones."""
    return value if abs(value) < float("inf") else str(value)
