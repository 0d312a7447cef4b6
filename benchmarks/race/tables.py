"""The result file as tables: for the terminal, and in Markdown for the documentation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from .contestants import CONTESTANTS
from .models import MODELS

Races = dict[str, dict[str, Any]]  # model -> method -> row


@dataclass(frozen=True)
class Course:
    """The races at one batch size, with so many threads, on one device; of rule sets, or all others."""

    batch: int
    threads: int
    device: str
    sets: bool
    races: Races

    @property
    def title(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{'rule sets, ' if self.sets else ''}batch {self.batch}, {threads}, {self.device}"


def courses(results: dict[str, Any], sets: bool | None = None) -> Iterator[Course]:
    """Those of rule sets last; with `sets` these or the others alone."""
    for kind in (False, True) if sets is None else (sets,):
        races = [race for race in results["races"].values() if race.get("sets", False) == kind]
        for threads, batch, device in sorted({_where(race) for race in races}):
            found = {r["model"]: r["rows"] for r in races if _where(r) == (threads, batch, device)}
            yield Course(batch, threads, device, kind, {name: found[name] for name in MODELS if name in found})


def _where(race: dict[str, Any]) -> tuple[int, int, str]:
    return race["threads"], race["batch"], race["device"]


def cell(row: dict[str, Any] | None) -> str:
    """Milliseconds and the ratio to the forward; of a rule set also that to the omenn explainer."""
    if not row or "median" not in row:
        return "" if not row else "failed" if "failed" in row else "–"
    ratio = "" if row["ratio"] == 1 else f" ({row['ratio']:.2f})"
    beside = f", {row['times_omenn']:.2f} x omenn" if "times_omenn" in row else ""
    return f"{milliseconds(row['median'])}{ratio}{beside}"


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.0f}" if seconds >= 0.01 else f"{1e3 * seconds:.1f}"


def show(results: dict[str, Any], console: Console) -> None:
    """Times with ratios, peak memory, and the reasons where a method did not run."""
    for course in courses(results):
        for heading, each in (("milliseconds (ratio to the forward)", cell), ("peak memory, MiB", _peak)):
            table = Table(title=f"{course.title}: {heading}")
            table.add_column("")
            for name in course.races:
                table.add_column(MODELS[name][0], justify="right")
            for method in methods_of(course.races):
                table.add_row(method, *(each(rows.get(method)) for rows in course.races.values()))
            console.print(table)
    for (method, reason), models in reasons(results).items():
        console.print(f"  [bold]{method}[/] on {', '.join(models)}: {reason}", highlight=False)
    console.print(results.get("setting", {}), highlight=False)


def _peak(row: dict[str, Any] | None) -> str:
    return f"{row['peak'] / 2**20:.0f}" if row and row.get("peak") is not None else ""


def methods_of(races: Races) -> list[str]:
    return [method for method in CONTESTANTS if any(method in rows for rows in races.values())]


def reasons(results: dict[str, Any]) -> dict[tuple[str, str], list[str]]:
    """Method and reason -> the models that it did not run on."""
    found: dict[tuple[str, str], list[str]] = {}
    for race in results["races"].values():
        for method, row in race["rows"].items():
            for state in ("not applicable", "failed"):
                models = found.setdefault((method, row[state]), []) if state in row else []
                if MODELS[race["model"]][0] not in models:
                    models.append(MODELS[race["model"]][0])
    return found


def markdown(results: dict[str, Any]) -> str:
    """Times with ratios, a table for each course."""
    parts = []
    for course in courses(results):
        head = [f"| {course.title} | {' | '.join(MODELS[name][0] for name in course.races)} |"]
        head.append("|---" + "|--:" * len(course.races) + "|")
        body = (
            f"| {method} | {' | '.join(cell(rows.get(method)) for rows in course.races.values())} |"
            for method in methods_of(course.races)
        )
        parts.append("\n".join([*head, *body]))
    return "\n\n".join(parts)


def deployed(results: dict[str, Any]) -> str:
    """What an exported explainer costs, at batch 1 with one thread."""
    lines = [
        "| | forward | explainer | explainer / forward | faster than InputXGradient in torch "
        "| than IntegratedGradients (50 steps) in torch | on |",
        "|---|---|---|---|---|---|---|",
    ]
    for course in courses(results, sets=False):
        if (course.batch, course.threads) != (1, 1):
            continue
        for name, rows in course.races.items():
            own = rows.get("onnxruntime explainer", {})
            if "median" not in own:
                continue
            faster = [rows[f"captum {m}"]["median"] / own["median"] for m in ("InputXGradient", "IntegratedGradients")]
            times = " | ".join(f"{milliseconds(r['median'])} ms" for r in (rows["onnxruntime forward"], own))
            cells = f"{times} | {own['ratio']:.2f} | {faster[0]:.2f} x | {faster[1]:.0f} x | {course.device}"
            lines.append(f"| {MODELS[name][0]} | {cells} |")
    return "\n".join(lines)
