"""The tables of the guide, from benchmarks/results/*.json: what each benchmark shows of its file, as Markdown.

python docs/tables.py    # every table, below a comment with its name; docs/hooks.py puts them where a page asks
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))
import check  # noqa: E402  (the benchmarks import each other by these names)
import coverage  # noqa: E402
import faithfulness  # noqa: E402
import funnybirds  # noqa: E402
import fuzz  # noqa: E402
import growth  # noqa: E402
import parity  # noqa: E402
import versions  # noqa: E402
from judge.bootstrap import difference  # noqa: E402
from zoo import rule_sets  # noqa: E402

Result = dict[str, Any]
OURS = ("omenn", "omenn gamma")  # the default set, and the one made for these questions


class Sheet:
    """Takes what a benchmark prints to its console, and keeps it as Markdown."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.notes: list[str] = []
        self.lead: Callable[[str], str] = lambda title: ""  # what is said between a table's title and the table

    def print(self, shown: Any, markup: bool = True, **_: Any) -> None:
        """A table, or a line: the lines below a table fold away."""
        if isinstance(shown, Table):
            self._fold()
            title = plain(shown.title)
            self.parts += [f"### {title}" if title else "", self.lead(title), of(shown)]
        elif isinstance(shown, str):
            self.notes.append(plain(shown) if markup else shown)

    def _fold(self) -> None:
        if self.notes:
            lines = "\n".join(f"    * {escaped(note.strip())}" for note in self.notes)
            self.parts.append(f'??? note "Remarks"\n\n{lines}')
            self.notes = []

    def __str__(self) -> str:
        self._fold()
        return "\n\n".join(part for part in self.parts if part)


def plain(text: Any) -> str:
    """Without rich's markup."""
    return Text.from_markup(text).plain if isinstance(text, str) else str(text or "")


def escaped(text: str) -> str:
    """Signs that mean something to Markdown, as themselves."""
    return re.sub(r"([\\`*_|])", r"\\\1", text.replace("<", "&lt;"))


def of(table: Table) -> str:
    """A rich table as Markdown: names to the left, numbers to the right, a name bold where its row is."""
    rows = zip(*(column.cells for column in table.columns), strict=True)
    marks = ("--" if column.justify == "left" else "-:" for column in table.columns)
    lines = [_line(escaped(plain(column.header)) for column in table.columns), _line(marks)]
    for row, cells in zip(table.rows, rows, strict=True):
        name, *values = (escaped(plain(cell)) for cell in cells)
        bold = "bold" in str(row.style or "") or str(cells[0]).startswith("[bold]")
        lines.append(_line([f"**{name}**" if bold else name, *values]))
    return "\n".join(lines)


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def measured(path: Path, setting: Result) -> str:
    """With what a file was measured, and the file."""
    facts = ", ".join(f"{name} {value}" for name, value in setting.items())
    return f"*Measured with {facts}: [{path.name}](../benchmarks/results/{path.name}).*"


# What each benchmark shows -------------------------------------------------------------------------------------------


def show_coverage(results: Result, sheet: Sheet) -> None:
    """Also of timm.json, which has the same form."""
    coverage.show(results["models"], sheet)


def show_rule_sets(results: Result, sheet: Sheet) -> None:
    """What every set does with the sample, and where its base's forms stand in."""
    rule_sets.show(results["models"], sheet)


def show_speed(results: Result, sheet: Sheet) -> None:
    """A table for each batch size and number of threads."""
    from race import tables

    tables.show(results, sheet)


def show_trained(results: Result, sheet: Sheet) -> None:
    """Its table has no title."""
    import trained

    sheet.lead = lambda title: (
        "Exported explainers of trained models over all their data, their sum against their logit: "
        f'rules="{results["setting"]["rules"]}".'
    )
    trained.show(results["models"], sheet)


def show_growth(results: Result, sheet: Sheet) -> None:
    """Against batch, tokens, depth and targets."""
    growth.show(results["axes"], sheet)


def show_faithfulness(results: Result, sheet: Sheet) -> None:
    """With a sentence that says who is first, and by how much."""

    def lead(title: str) -> str:
        rows = results["models"].get(title.partition(":")[0], {"methods": {}})["methods"]
        gains = {m: r["scores"][faithfulness.ORDER] for m, r in rows.items() if "scores" in r and m != "random"}
        order = sorted(gains, key=lambda m: -sum(gains[m]))
        return places(order, lambda m: f"{difference(gains[order[0]], gains[m])} of {faithfulness.ORDER}")

    sheet.lead = lead
    faithfulness.show(results, sheet)


def show_funnybirds(results: Result, sheet: Sheet) -> None:
    """The same; the oracle and noise are the ends of the scale, not methods."""

    def lead(title: str) -> str:
        rows = results["models"].get(title.partition(":")[0], {"methods": {}})["methods"]
        ends = (funnybirds.ORACLE, funnybirds.RANDOM)
        means = {m: row["mean"][0] or 0.0 for m, row in rows.items() if "mean" in row and m not in ends}
        order = sorted(means, key=lambda m: -means[m])
        return places(order, lambda m: f"{means[order[0]] - means[m]:.3f} of the mean")

    sheet.lead = lead
    kept, funnybirds.console = funnybirds.console, sheet  # where it prints
    funnybirds.show(results)
    funnybirds.console = kept


def show_fuzz(results: Result, sheet: Sheet) -> None:
    """Networks of random layers, and what fails."""
    fuzz.show({int(seed): record for seed, record in results["seeds"].items()}, sheet)


def places(order: list[str], behind: Callable[[str], str]) -> str:
    """Who is first of all methods, and where ours stand."""
    if not order:
        return ""
    ours = [m for m in order if m in OURS and m != order[0]]
    said = "; ".join(f"{m} is number {order.index(m) + 1}, {behind(m)} behind it" for m in ours)
    return f"First of {len(order)} methods: **{order[0]}**." + (f" {said}." if said else "")


def show_parity(results: Result, sheet: Sheet) -> None:
    """One file in every runtime, and its size."""
    parity.show(results["models"], sheet)


SHOWN: dict[str, Callable[[Result, Sheet], None]] = {
    "coverage": show_coverage,
    "timm": show_coverage,
    "rule_sets": show_rule_sets,
    "speed": show_speed,
    "trained": show_trained,
    "growth": show_growth,
    "check": check.show,
    "versions": versions.show,
    "fuzz": show_fuzz,
    "parity": show_parity,
    "faithfulness": show_faithfulness,
    "funnybirds": show_funnybirds,
}


def main() -> None:
    """Print the tables of every result file that is there."""
    for name, show in SHOWN.items():
        print(f"<!-- results: {name} -->")
        found = (BENCHMARKS / "results").glob(f"{name}*.json")  # speed.json, and one for each GPU
        for path in sorted(found, key=lambda path: path.stem):
            results = json.loads(path.read_text(encoding="utf-8"))
            sheet = Sheet()
            show(results, sheet)
            print(f"{sheet}\n\n{measured(path, results['setting'])}\n")


if __name__ == "__main__":
    main()
