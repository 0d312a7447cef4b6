"""Part importances against what removing the part does: the FunnyBirds protocol (Hesse et al., ICCV 2023).

    python benchmarks/funnybirds.py                                # all methods, all models with trained weights
    python benchmarks/funnybirds.py --model vgg --method omenn --method "captum DeepLift" --again
    python benchmarks/funnybirds.py --images 500                   # all test birds instead of five of each class
    python benchmarks/funnybirds.py --held-out                     # birds that no parameter was chosen on
    python benchmarks/funnybirds.py --rescore                      # the scores anew from kept importances
    python benchmarks/funnybirds.py --show                         # the tables of the result file alone

The result file is written after every method and model; the same command goes on where it was stopped.
`benchmarks/train_funnybirds.py` trains the models. `oracle` (true single deletions) and `random` (noise) are the ends
of the scale.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

sys.path.append(str(Path(__file__).resolve().parent))
import zoo.preload  # noqa: F401  (torchvision beside a CPU build of torch)
from birds import measure, models, protocol
from birds.data import Birds
from contest import device_name
from judge.methods import METHODS, NotApplicable

RESULTS = Path(__file__).resolve().parent / "results" / "funnybirds.json"
HELD_OUT = RESULTS.with_name("funnybirds-held-out.json")
ORACLE, RANDOM = "oracle", "random"
Row = dict[str, Any]
console = Console(width=150)


def interval(values: np.ndarray, resampled: np.ndarray) -> list[float | None]:
    """Value, and the ends of its 95 % bootstrap interval; None where no image counts."""
    if np.isnan(values[0]):
        return [None, None, None]
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return [round(float(v), 4) for v in (values[0], low, high)]


def with_intervals(scores: Any, images: int) -> Row:
    """What a function of weights says of all images, and of 1000 resamples of them."""
    plain, resampled = scores(np.ones((1, images))), scores(protocol.resamples(images))
    return {name: interval(plain[name], resampled[name]) for name in plain}


class Model:
    """A trained classifier on the test birds: what it answers, and what methods say of it."""

    def __init__(self, name: str, birds: Birds, device: str, progress: Progress):
        self.birds, self.device, self.progress = birds, device, progress
        self.classifier = models.load(name, device)
        bar = progress.add_task(f"{name}: interventions", total=len(birds))
        self.answers = measure.answers(self.classifier, birds, device, partial(progress.advance, bar))
        progress.remove_task(bar)
        self.classes = protocol.questions(birds, self.answers)

    def about(self) -> Row:
        own = with_intervals(lambda w: protocol.of_model(self.birds, self.answers, w), len(self.birds))
        kind = "held-out" if self.birds.held_out else "test"
        asked = int(protocol.contrasting(self.birds, self.answers).sum())
        return {
            **self.classifier.about,
            **own,
            "images": len(self.birds),
            "birds": kind,
            "images_of_target_sensitivity": asked,
        }

    def judge(self, method: str, batch: int, rescore: bool) -> Row:
        """One row of the table; {"not_applicable": reason} or {"failed": ...} where there is none."""
        try:
            found, seconds = self._importances(method, batch, rescore)
        except NotApplicable as reason:
            return {"not_applicable": str(reason)}
        except Exception as error:  # an hour of other methods goes on
            traceback.print_exc()
            return {"failed": f"{type(error).__name__}: {error}"}
        metrics = protocol.per_image(self.birds, self.answers, found)
        row = with_intervals(lambda w: protocol.scores(metrics, w), len(self.birds))
        return {**row, "images": len(self.birds), "processor_seconds": seconds and round(seconds, 1)}

    def _importances(self, method: str, batch: int, rescore: bool) -> tuple[protocol.Importances, float | None]:
        """What the method says, and the processor seconds that it took to say so (the oracle: none)."""
        if method == ORACLE:
            return protocol.oracle(self.birds, self.answers), None
        path = measure.kept(self.classifier, self.birds, method)
        if rescore and path.exists():
            with np.load(path) as arrays:
                kept = dict(arrays)
            seconds = float(kept.pop("seconds"))
            return protocol.Importances(**kept), seconds
        start = time.process_time()
        attribute = measure.noise() if method == RANDOM else METHODS[method].make(self.classifier.model)
        bar = self.progress.add_task(f"{self.classifier.name}: {method}", total=measure.maps(self.classes))
        step = partial(self.progress.advance, bar)
        try:
            found = measure.importances(attribute, self.birds, self.classes, self.device, batch, step)
        finally:
            self.progress.remove_task(bar)
        seconds = time.process_time() - start
        np.savez_compressed(path, **vars(found), seconds=seconds)
        return found, seconds


def cell(value: list[float | None], spread: bool) -> str:
    middle, low, high = value
    if middle is None:
        return "-"
    return f"{middle:.3f} ±{(high - low) / 2:.3f}" if spread else f"{middle:.2f}"  # type: ignore[operator]


def show(results: dict[str, Any]) -> None:
    """One table per model, the best mean first."""
    for name, entry in results["models"].items():
        about, rows = entry["about"], entry["methods"]
        birds = f"{about['images']} {about['birds']} birds"
        scored = {m: row for m, row in rows.items() if "mean" in row}
        table = Table(
            title=f"{name}: accuracy {about['accuracy'][0]:.1%}, background independence "
            f"{about['background_independence'][0]:.1%}, {birds}; ± half the 95 % interval"
        )
        table.add_column("method", no_wrap=True)
        for title in ("mean", "completeness", "correctness", "contrastivity", "CSDC", "PC", "DC", "D", "seconds"):
            table.add_column(title, justify="right", no_wrap=True)
        for method, row in sorted(scored.items(), key=lambda item: -(item[1]["mean"][0] or 0)):
            wide = [cell(row[key], True) for key in ("mean", *protocol.DIMENSIONS[:3])]
            narrow = [cell(row[key], False) for key in protocol.METRICS[:4]]
            seconds = row["processor_seconds"]
            ours = "bold" if method.startswith("omenn") else "dim" if method in (ORACLE, RANDOM) else None
            table.add_row(method, *wide, *narrow, "-" if seconds is None else f"{seconds:.0f}", style=ours)
        console.print(table)
        for method, row in rows.items():
            reason = row.get("not_applicable") or row.get("failed")
            if reason:
                console.print(f"  {method}: {reason}", highlight=False, markup=False)


def trained() -> list[str]:
    """The models whose weights are there."""
    found = []
    for name in models.ARCHITECTURES:
        try:
            models.load(name)
            found.append(name)
        except FileNotFoundError as error:
            console.print(f"left out: {error}", highlight=False)
    return found


def finished(row: Row | None, images: int) -> bool:
    return row is not None and "failed" not in row and row.get("images", images) == images


def main(
    model: Annotated[list[str] | None, typer.Option(help=" ".join(models.ARCHITECTURES))] = None,
    method: Annotated[list[str] | None, typer.Option(help="oracle, random, or one of judge/methods.py")] = None,
    images: Annotated[int, typer.Option(help="of the 500 test birds, evenly from all classes")] = 250,
    batch: int = 16,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    again: Annotated[bool, typer.Option(help="also what the result file has")] = False,
    rescore: Annotated[bool, typer.Option(help="also what it has, from kept importances where there are any")] = False,
    held_out: Annotated[bool, typer.Option(help="other birds: five of each class none of which the rest sees")] = False,
    out: Annotated[Path | None, typer.Option(help="where the results are")] = None,
    show_only: Annotated[bool, typer.Option("--show", help="print the result file's tables")] = False,
) -> None:
    """Judge attribution methods by the FunnyBirds protocol."""
    out = out or (HELD_OUT if held_out else RESULTS)
    results: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"models": {}}
    if show_only:
        show(results)
        return
    methods = method or [ORACLE, RANDOM, *(m for m in METHODS if m != RANDOM)]
    unknown = sorted(set(methods) - {ORACLE, RANDOM, *METHODS})
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: known are {', '.join([ORACLE, RANDOM, *METHODS])}")
    birds = Birds(images, held_out=held_out)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        for name in model or trained():
            rows = results["models"].get(name, {}).get("methods", {})
            to_do = [m for m in methods if again or rescore or not finished(rows.get(m), images)]
            if not to_do:
                continue
            judged = Model(name, birds, device, progress)
            results["models"][name] = {"about": judged.about(), "methods": rows}
            bar = progress.add_task(name, total=len(to_do))
            for each in to_do:
                rows[each] = judged.judge(each, batch, rescore)
                progress.advance(bar)
                results["setting"] = {"torch": torch.__version__, "device": device_name(device)}
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    show(results)


if __name__ == "__main__":
    typer.run(main)
