"""Every architecture of the zoo under the invariants: what omenn-fx explains, how exactly, and how long it takes.

    python benchmarks/coverage.py                                       # all 578; skips what the result file has
    python benchmarks/coverage.py --group plain --group huggingface
    python benchmarks/coverage.py --model timm/resnet18 --again
    python benchmarks/coverage.py --timm-below 30 --out benchmarks/results/timm.json   # beyond the census
    python benchmarks/coverage.py --checks                              # what `check` says of the finished ones
    python benchmarks/coverage.py --onnx                                # the finished ones exported, in onnxruntime
    python benchmarks/coverage.py --verdicts                            # the finished ones again, for another verdict
    python benchmarks/coverage.py --rules                               # every rule set, on a sample of forty models
    python benchmarks/coverage.py --show                                # the table of the result file alone

Each model runs in a process of its own, in float64 and in float32; the result file is written after every model.
"""

from __future__ import annotations

import json
import platform
import resource
import signal
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

sys.path.append(str(Path(__file__).resolve().parent))
import zoo
from zoo import pool, rule_sets
from zoo.sample import SAMPLE

RESULTS = Path(__file__).resolve().parent / "results"
LARGE = 250_000_000  # parameters: such a model runs alone, it needs the machine's memory
DTYPES = ("float64", "float32")
Results = dict[str, dict[str, Any]]


def task(name: str, send: Callable[[str, Any], None]) -> None:
    """One model, in its own process: the time of torch.export, then both dtypes."""
    from zoo.check import check, export_seconds

    send("export_seconds", export_seconds(name))
    for dtype in DTYPES:
        send(dtype, check(name, dtype))
    used = resource.getrusage(resource.RUSAGE_SELF)
    send("peak_gib", round(used.ru_maxrss / 2**20, 2))
    send("processor_seconds", round(used.ru_utime + used.ru_stime, 1))


def task_of_check(name: str, send: Callable[[str, Any], None]) -> None:
    """What `check` says of one model, in its own process."""
    from zoo.soundness import checked

    send("check", checked(name))


def task_of_export(name: str, send: Callable[[str, Any], None]) -> None:
    """One model as an ONNX file in onnxruntime, in its own process."""
    from zoo.parity import exported

    send("onnx", exported(name))


def task_of_verdict(name: str, send: Callable[[str, Any], None]) -> None:
    """One model in float32 alone, in its own process: half the time, and a verdict does not depend on the precision."""
    from zoo.check import check

    send("verdict", check(name, "float32"))


def exported_record(record: dict[str, Any], outcome: pool.Outcome) -> dict[str, Any]:
    """The line of the result file with what became of the ONNX file."""
    return record | {"onnx": outcome.sent.get("onnx", {"status": "failed", "error": outcome.ended or "sent nothing"})}


VERDICT = ("status", "dynamic_batch", "decisions", "nodes", "content", "opaque", "empty")


def verdict_record(record: dict[str, Any], outcome: pool.Outcome) -> dict[str, Any]:
    """The line of the result file with what a later version said, less its times: they are not those of a quiet run."""
    said = outcome.sent.get("verdict", {"status": "failed", "reasons": [outcome.ended or "sent no result"]})
    kept = {key: said[key] for key in (*VERDICT, "reasons", "completeness") if key in said}
    return record | {"verdict": {"day": date.today().isoformat(), **kept}}


def changed(record: dict[str, Any]) -> dict[str, list[Any]]:
    """What a later version said otherwise: before and after."""
    before, after = record["float32"], record.get("verdict", record["float32"])
    return {key: [before.get(key), after.get(key)] for key in VERDICT if before.get(key) != after.get(key)}


def record_of(outcome: pool.Outcome) -> dict[str, Any]:
    """The line of the result file; a dtype that sent nothing failed for the reason that ended the process."""
    lost = {"status": "failed", "reasons": [outcome.ended or "sent no result"]}
    dtypes = {dtype: outcome.sent.get(dtype, lost) for dtype in DTYPES}
    return {
        "seconds": outcome.seconds,
        **{key: outcome.sent.get(key) for key in ("processor_seconds", "peak_gib", "export_seconds")},
        **dtypes,
    }


def checked_record(record: dict[str, Any], outcome: pool.Outcome) -> dict[str, Any]:
    """The line of the result file with what `check` said."""
    return record | {"check": outcome.sent.get("check", {"supported": None, "problems": [outcome.ended]})}


# The result file ---------------------------------------------------------------------------------------------------


def read(path: Path) -> Results:
    return json.loads(path.read_text(encoding="utf-8"))["models"] if path.exists() else {}


def write(path: Path, results: Results) -> None:
    """One model a line, in the order of the zoo; the old file stays until the new one is whole."""
    import torch

    from omenn_fx import __version__

    setting = {"omenn_fx": __version__, "torch": torch.__version__, "machine": platform.machine()}
    known = list(zoo.census())
    order = sorted(results, key=lambda n: (known.index(n) if n in known else len(known), n))
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(results[name])}" for name in order)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(
        f'{{\n "setting": {json.dumps(setting)},\n "models": {{\n{lines}\n }}\n}}\n', encoding="utf-8"
    )
    unfinished.replace(path)


def wanted(groups: list[str], models: list[str]) -> list[str]:
    """The names to run: those given, or those of the groups, small models first."""
    unknown = [g for g in groups if g not in zoo.GROUPS] + [
        m for m in models if m not in zoo.census() and not m.startswith("timm/")
    ]
    if unknown:
        raise typer.BadParameter(
            f"{', '.join(unknown)}: groups are {', '.join(zoo.GROUPS)}; names.json lists the models"
        )
    names = models or [n for n in zoo.census() if not groups or n.partition("/")[0] in groups]
    return sorted(names, key=lambda n: (list(zoo.GROUPS).index(n.partition("/")[0]), size(n)))


def every_timm(millions: float, console: Console) -> list[str]:
    """Every name of timm's below a number of parameters, small models first."""
    import zoo.preload  # noqa: F401  (timm beside a CPU build of torchvision)
    from zoo.timm_models import below

    with console.status("building every model of timm's without memory, to count its parameters"):
        sizes = below(int(millions * 1e6))
    return [f"timm/{name}" for name in sorted(sizes, key=sizes.__getitem__)]


def size(name: str) -> int:
    entry = zoo.census().get(name)
    return entry.parameters if entry else 0


def available(names: Iterable[str], console: Console) -> list[str]:
    """The names less the groups whose libraries are not installed, which are named."""
    absent = {group: libraries for group in zoo.GROUPS if (libraries := zoo.missing(group))}
    names = list(names)
    for group, libraries in absent.items():
        if any(n.startswith(f"{group}/") for n in names):
            console.print(f"[yellow]{group} is left out: {', '.join(libraries)} is not installed")
    return [n for n in names if n.partition("/")[0] not in absent]


def sound(record: dict[str, Any]) -> bool:
    """Whether `check` says what `transform` and the invariants do, and the same without weights."""
    said = record["check"]
    return said["supported"] == (record["float64"]["status"] == "passed") and said.get("same_on_meta") is True


# Jobs --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What is done with every model, in a process of its own.

    Attributes:
        work: sends what it finds out.
        record: (the model's line so far, the outcome) -> its new line.
        applies: to a model with this line (empty: it has none yet).
        fine: whether its part of the line is; None where that is not there.
        out: the result file.
        models: those it is done with where none are named; () for all.
    """

    work: Callable[[str, Callable[[str, Any], None]], None]
    record: Callable[[dict[str, Any], pool.Outcome], dict[str, Any]]
    applies: Callable[[dict[str, Any]], bool]
    fine: Callable[[dict[str, Any]], bool | None]
    out: Path = RESULTS / "coverage.json"
    models: tuple[str, ...] = ()

    def finished(self, line: dict[str, Any], again: bool, failed: bool) -> bool:
        """Whether nothing is left to do: with `again` something always is, with `failed` where it went wrong."""
        fine = self.fine(line)
        return not again and fine is not None and (fine or not failed)


JOBS = {
    "models": Job(
        task,
        lambda line, outcome: record_of(outcome),
        applies=lambda line: True,
        fine=lambda line: all(line[d]["status"] != "failed" for d in DTYPES) if line else None,
    ),
    "checks": Job(
        task_of_check,
        checked_record,
        applies=bool,
        fine=lambda line: sound(line) if "check" in line else None,
    ),
    "onnx": Job(
        task_of_export,
        exported_record,
        applies=lambda line: bool(line) and line["float32"]["status"] == "passed",
        fine=lambda line: line["onnx"]["status"] != "failed" if "onnx" in line else None,
    ),
    "verdicts": Job(
        task_of_verdict,
        verdict_record,
        applies=bool,
        fine=lambda line: line["verdict"]["status"] == line["float32"]["status"] if "verdict" in line else None,
    ),
    "rules": Job(
        rule_sets.task,
        lambda line, outcome: rule_sets.line_of(outcome),
        applies=lambda line: True,
        fine=rule_sets.fine,
        out=RESULTS / "rule_sets.json",
        models=SAMPLE,
    ),
}


def run(job: Job, queue: list[str], out: Path, console: Console, workers: int, timeout: float, memory: float) -> bool:
    """Do a job with the models of a queue. Returns whether all of them are done; False: it was stopped."""
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    try:
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("", total=len(queue))
            for outcome in pool.run(job.work, queue, workers, timeout, memory, alone=lambda n: size(n) > LARGE):
                latest = read(out)  # read anew: another run may have added models
                line = job.record(latest.get(outcome.name, {}), outcome)
                write(out, latest | {outcome.name: line})
                progress.update(bar, advance=1, description=f"{outcome.name}: {states(line)}")
    except KeyboardInterrupt:
        console.print(f"stopped; {out.name} has every model that was finished, the same command goes on from there")
        return False
    return True


def states(line: dict[str, Any]) -> str:
    """How many parts of a line have which status."""
    counts = Counter(part["status"] for part in line.values() if isinstance(part, dict) and "status" in part)
    return ", ".join(f"{count} {status}" for status, count in counts.items())


# Tables ------------------------------------------------------------------------------------------------------------


def show(results: Results, console: Console) -> None:
    """A line for each family, then every failure with its reasons."""
    table = Table(title="coverage: random weights, randomised biases and norm statistics")
    columns = (
        "models",
        "cannot be exported",
        "passed in float64",
        "passed in float32",
        "transform / export",
        "slowest",
        "in onnxruntime",
    )
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for group in zoo.GROUPS:
        rows = [r for name, r in results.items() if name.startswith(f"{group}/")]
        if rows:
            table.add_row(group, *_cells(rows))
    table.add_section()
    table.add_row("[bold]all", *_cells(list(results.values())))
    console.print(table)
    for name, result in results.items():
        for dtype in DTYPES:
            if result[dtype]["status"] == "failed":
                console.print(f"[red]{name}[/] {dtype}: {'; '.join(result[dtype]['reasons'])}", highlight=False)
        if result.get("onnx", {}).get("status") == "failed":
            console.print(f"[red]{name}[/] in onnxruntime: {result['onnx']['error']}", highlight=False)
        if changed(result):
            console.print(f"{name} is now otherwise: {changed(result)}", highlight=False)
        if "check" in result and not sound(result):
            console.print(f"[red]check is not sound[/] for {name}: {result['check']}", highlight=False)


def _cells(rows: list[dict[str, Any]]) -> list[str]:
    exportable = [r for r in rows if r["float64"]["status"] != "not exportable"]
    passed = {d: sum(r[d]["status"] == "passed" for r in exportable) for d in DTYPES}
    timed = [r for r in exportable if r["export_seconds"] and "transform_seconds" in r["float32"]]
    ratios = [r["float32"]["transform_seconds"] / r["export_seconds"] for r in timed]
    sent = [r for r in rows if "onnx" in r]
    slowest = max((r["float32"]["transform_seconds"] for r in timed), default=None)
    return [
        str(len(rows)),
        str(len(rows) - len(exportable)),
        *(f"{passed[d]} / {len(exportable)}" for d in DTYPES),
        f"{statistics.median(ratios):.2f}" if ratios else "-",
        f"{slowest:.1f} s" if slowest else "-",
        f"{sum(r['onnx']['status'] == 'passed' for r in sent)} / {len(sent)}" if sent else "-",
    ]


def main(
    group: Annotated[list[str] | None, typer.Option(help="plain, huggingface, pyg, segmentation, ...")] = None,
    model: Annotated[list[str] | None, typer.Option(help="names as in zoo/names.json; any name of timm's")] = None,
    timm_below: Annotated[
        float | None, typer.Option(help="every name of timm's with fewer than so many million parameters")
    ] = None,
    workers: int = 2,
    timeout: Annotated[float, typer.Option(help="seconds for one model")] = 300,
    memory: Annotated[float, typer.Option(help="GiB for one model; a very large one has that of all workers")] = 10,
    out: Annotated[Path | None, typer.Option(help="default: results/coverage.json, or rule_sets.json")] = None,
    limit: Annotated[int | None, typer.Option(help="run at most so many models")] = None,
    checks: Annotated[
        bool, typer.Option("--checks", help="what omenn_fx.check says, added to finished models")
    ] = False,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="the exported explainer in onnxruntime, added to finished models")
    ] = False,
    verdicts: Annotated[
        bool, typer.Option("--verdicts", help="the finished models in float32 again, for another verdict")
    ] = False,
    rules: Annotated[bool, typer.Option("--rules", help="every rule set, on a sample of the models")] = False,
    again: Annotated[bool, typer.Option("--again", help="also what the result file has")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="what the result file has as failed, again")] = False,
    only_show: Annotated[bool, typer.Option("--show", help="run nothing")] = False,
) -> None:
    """Check every model of the zoo and write the result as JSON."""
    for stop in (signal.SIGINT, signal.SIGTERM):  # a job in the background ignores the first
        signal.signal(stop, signal.default_int_handler)
    console = Console()
    job = JOBS["checks" if checks else "onnx" if onnx else "verdicts" if verdicts else "rules" if rules else "models"]
    out = out or job.out
    results = read(out)
    asked = model or ([] if group else list(job.models))
    names = every_timm(timm_below, console) if timm_below else wanted(group or [], asked)
    names = [n for n in names if job.applies(results.get(n, {}))]
    left = [n for n in names if not only_show and not job.finished(results.get(n, {}), again, failed)]
    finished = run(job, available(left, console)[:limit], out, console, workers, timeout, memory)
    chosen = set(names)
    (rule_sets.show if rules else show)({n: r for n, r in read(out).items() if n in chosen}, console)
    raise typer.Exit(0 if finished else 130)


if __name__ == "__main__":
    typer.run(main)
