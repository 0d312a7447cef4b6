"""Are explanations faithful? Attribution methods side by side on trained models, by the metrics of the field.

    python benchmarks/faithfulness.py                                        # all models and methods
    python benchmarks/faithfulness.py --model "SqueezeNet 1.0" --method omenn --method random
    python benchmarks/faithfulness.py --device cuda
    python benchmarks/faithfulness.py --show                                 # the tables of the result file alone

The result file is written after every method of every model, and the same command goes on where it was stopped.
`judge/metrics.py` says what each score is, `judge/methods.py` what each method is.
"""

from __future__ import annotations

import json
import platform
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

sys.path.append(str(Path(__file__).resolve().parent))
import zoo.preload  # noqa: F401  (torchvision beside a CPU build of torch)
from judge import metrics, sanity
from judge.bootstrap import Interval, difference, interval
from judge.methods import METHODS, Method, NotApplicable
from judge.models import ASSETS, MODELS, Judged, forward, randomised

RESULTS = Path(__file__).resolve().parent / "results" / "faithfulness.json"
CACHE = Path(tempfile.gettempdir()) / "omenn-fx-faithfulness"
ORDER = "symmetric relevance gain"  # the methods stand by this one, best first
COLUMNS = {
    "MoRF-LeRF gap": "gap",
    "insertion": "insertion",
    "deletion": "deletion ↓",
    "pixel flipping": "flipping ↓",
    "faithfulness correlation, elements": "FC elements",
    "faithfulness correlation, pixels": "FC pixels",
    "faithfulness correlation, patches": "FC patches",
    "max-sensitivity": "sensitivity ↓",
}
REFERENCE = "omenn"  # the others' differences are to this one
SUBSET = 10  # images for max-sensitivity and for the randomised model
Row = dict[str, Any]


def batch_size(judged: Judged) -> int:
    return 50 if judged.x.shape[-1] <= 64 else 8


def prepared(name: str, images: int, device: str, progress: Progress) -> metrics.Scene:
    """The model's own answers, kept in a folder for temporary files, so that a run that goes on does not ask again."""
    judged = MODELS[name](images)
    judged = Judged(judged.model.to(device), judged.x.to(device), judged.labels.to(device), judged.patch)
    logits = forward(judged.model, judged.x)
    file = CACHE / f"{name} {images} {device}.pt"
    if file.exists():
        kept = torch.load(file, weights_only=True)
        return metrics.Scene(judged, logits, *(kept[k] for k in ("target", "full", "empty", "drops")))
    bar = progress.add_task(f"{name}: random subsets", total=images)
    scene = metrics.scene(judged, logits, lambda: progress.advance(bar))
    progress.remove_task(bar)
    CACHE.mkdir(exist_ok=True)
    kept = {"target": scene.target, "full": scene.full, "empty": scene.empty, "drops": scene.drops}
    torch.save(kept, file)
    return scene


def judge(scene: metrics.Scene, method: Method, progress: Progress, label: str) -> Row:
    """One method on one model: all scores of all images."""
    judged, size = scene.judged, batch_size(scene.judged)
    bar = progress.add_task(label, total=len(judged.x))
    found: dict[str, list[float]] = {}
    seconds = 0.0
    try:
        attribute = method.make(judged.model)
        for start in range(0, len(judged.x), size):
            x, target = judged.x[start : start + size], scene.target[start : start + size]
            began = time.process_time()
            maps = attribute(x, target)
            seconds += time.process_time() - began
            for i, values in enumerate(maps, start):
                for name, value in metrics.scores(scene, i, values).items():
                    found.setdefault(name, []).append(value)
                progress.advance(bar)
        few = slice(0, SUBSET)
        found["max-sensitivity"] = sanity.max_sensitivity(attribute, judged.x[few], scene.target[few])
    finally:
        progress.remove_task(bar)
    return {"images": len(judged.x), "seconds per image": seconds / len(judged.x), "scores": found}


def about(scene: metrics.Scene) -> Row:
    """The model, and whether shuffling its weights changes what omenn says (Adebayo et al. 2018)."""
    judged = scene.judged
    few = min(2 * SUBSET, len(judged.x))
    learned, shuffled = (
        sanity.maps_of(METHODS[REFERENCE].make(m), judged, scene.target, few)
        for m in (judged.model, randomised(judged.model))
    )
    span = scene.full - scene.empty
    return {
        "accuracy": float((scene.target == judged.labels).float().mean()),
        "patch": judged.patch,
        "mean logit": {"image": float(scene.full.mean()), "replaced": float(scene.empty.mean())},
        "images with a lower logit than when replaced": int((span <= 0).sum()),
        "randomised": sanity.rank_correlations(learned, shuffled),
    }


# The result file ----------------------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {"models": {}}


def write(path: Path, results: dict[str, Any]) -> None:
    """Numbers with four digits, and a line for each list of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rounded(results), indent=1, ensure_ascii=False)
    temporary = path.with_suffix(".part")
    temporary.write_text(re.sub(r"\[[^][{}]*\]", lambda m: re.sub(r"\s+", " ", m[0]), text) + "\n")
    temporary.replace(path)


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


# Tables -------------------------------------------------------------------------------------------------------------


def show(results: dict[str, Any], console: Console) -> None:
    """A table for each model, the best method first, and what the sanity checks say."""
    for name, model in results["models"].items():
        console.print(table_of(name, model))
        for method, row in model["methods"].items():
            for state in ("not applicable", "failed"):
                if state in row:
                    console.print(f"  [bold]{method}[/] {state}: {row[state]}", highlight=False)
    console.print(held_out_table(results))
    console.print(sanity_table(results))


def table_of(name: str, model: Row) -> Table:
    scored = {m: row for m, row in model["methods"].items() if "scores" in row}
    images = max((row["images"] for row in scored.values()), default=0)
    table = Table(title=f"{name}: {images} images, {model['accuracy']:.1%} right, patches of {model['patch']} pixels")
    table.add_column("method, * on a copy", no_wrap=True)
    for heading in ("relevance gain", f"less {REFERENCE}", *COLUMNS.values(), "s/image"):
        table.add_column(heading, justify="right", overflow="fold")
    means = {m: interval(row["scores"][ORDER]) for m, row in scored.items()}
    for method in sorted(scored, key=lambda m: -means[m].mean):
        row = scored[method]
        other = scored.get(REFERENCE)
        less = str(difference(row["scores"][ORDER], other["scores"][ORDER])) if other and method != REFERENCE else ""
        cells = [f"{interval(row['scores'][column]).mean:.3f}" for column in COLUMNS]
        style = "bold" if method.startswith("omenn") else None
        mark = " *" if method in METHODS and METHODS[method].copy else ""
        table.add_row(method + mark, str(means[method]), less, *cells, f"{row['seconds per image']:.3f}", style=style)
    return table


def held_out_table(results: dict[str, Any]) -> Table:
    """On the half of the images that no parameter of omenn_gamma was chosen on: every second one."""
    table = Table(title=f"held-out half of the images: {ORDER}")
    names = list(results["models"])
    for heading in ("method", *names):
        table.add_column(heading, no_wrap=heading == "method")
    gains = {
        method: [_held_out(results["models"][name]["methods"].get(method, {})) for name in names] for method in METHODS
    }
    first = [max((g.mean for row in gains.values() if (g := row[i])), default=0.0) for i in range(len(names))]
    for method, row in sorted(gains.items(), key=lambda item: -sum(g.mean for g in item[1] if g)):
        cells = [f"{g}{' (first)' if g.mean == best else ''}" if g else "-" for g, best in zip(row, first, strict=True)]
        table.add_row(method, *cells, style="bold" if method.startswith("omenn") else None)
    return table


def _held_out(row: Row) -> Interval | None:
    return interval(row["scores"][ORDER][1::2]) if "scores" in row else None


def sanity_table(results: dict[str, Any]) -> Table:
    """A random map scores about 0, and omenn's map is another one when the weights are shuffled."""
    table = Table(title="sanity: what should be near 0")
    names = list(results["models"])
    for heading in ("", *names):
        table.add_column(heading)
    random = [results["models"][n]["methods"].get("random", {}).get("scores") for n in names]
    for score in (ORDER, "MoRF-LeRF gap", *(c for c in COLUMNS if c.startswith("faith"))):
        table.add_row(f"random map: {score}", *(str(interval(r[score])) if r else "-" for r in random))
    for kind in ("signed", "absolute"):
        cells = [str(interval(results["models"][n]["randomised"][kind])) for n in names]
        table.add_row(f"{REFERENCE}, rank correlation with shuffled weights, {kind} values", *cells)
    return table


def main(
    images: int = 200,
    model: Annotated[list[str] | None, typer.Option(help=", ".join(MODELS))] = None,
    method: Annotated[list[str] | None, typer.Option(help="names as in judge/methods.py")] = None,
    device: str = "cpu",
    threads: int = 1,
    out: Path = RESULTS,
    again: Annotated[bool, typer.Option("--again", help="also what the result file has")] = False,
    only_show: Annotated[bool, typer.Option("--show", help="run nothing")] = False,
) -> None:
    """Judge every method on every model and write the result as JSON."""
    console = Console(width=200 if not sys.stdout.isatty() else None)
    for given, known in ((model or [], MODELS), (method or [], METHODS)):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise typer.BadParameter(f"{', '.join(unknown)}: there are {', '.join(known)}")
    if not only_show:
        if not ASSETS.exists():
            raise typer.BadParameter("the trained models are not here (shared/assets beside the repository)")
        torch.set_num_threads(threads)
        torch.backends.cudnn.allow_tf32 = False  # float32 on a GPU too
        run(list(model or MODELS), list(method or METHODS), images, device, out, again, console)
    show(read(out), console)


def run(
    models: list[str], methods: list[str], images: int, device: str, out: Path, again: bool, console: Console
) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        everything = progress.add_task("all", total=len(models) * len(methods))
        for name in models:
            rows = read(out)["models"].get(name, {"methods": {}})["methods"]
            waiting = [m for m in methods if again or not finished(rows.get(m), images)]
            progress.advance(everything, len(methods) - len(waiting))
            if not waiting:
                continue
            scene = prepared(name, images, device, progress)
            facts = about(scene)
            for each in waiting:
                row = outcome(scene, METHODS[each], progress, f"{name}: {each}")
                results = read(out)
                kept = results["models"].get(name, {}).get("methods", {})
                described = {"source": METHODS[each].source, "settings": METHODS[each].settings}
                results["setting"] = {"torch": torch.__version__, "device": device, "machine": platform.machine()}
                results["models"][name] = {**facts, "methods": {**kept, each: {**described, **row}}}
                write(out, results)
                progress.advance(everything)


def finished(row: Row | None, images: int) -> bool:
    return row is not None and ("not applicable" in row or row.get("images") == images)


def outcome(scene: metrics.Scene, method: Method, progress: Progress, label: str) -> Row:
    try:
        return judge(scene, method, progress, label)
    except NotApplicable as reason:
        return {"not applicable": str(reason)}
    except Exception as error:  # a peer's own failure is a result; the next run tries again
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}


if __name__ == "__main__":
    typer.run(main)
