"""What an explanation costs: omenn-fx in torch, torch.compile and onnxruntime, and its peers, against the forward.

    python benchmarks/speed.py                                             # everything: hours on two cores
    python benchmarks/speed.py --models resnet18 --batch 1 --threads 1     # some of the races
    python benchmarks/speed.py --rules                                     # rule sets in onnxruntime, against omenn
    python benchmarks/speed.py --sweep                                     # eighty architectures drawn by a seed
    python benchmarks/speed.py --device cuda                               # into a result file with the GPU's name
    python benchmarks/speed.py --show                                      # the tables of the result file alone
    python benchmarks/speed.py --markdown                                  # the same for the documentation

A race is one model at one batch size with so many threads. Its contestants take turns in one process, so that a slow
minute of the machine hits all of them. Times are processor seconds where one thread works, else of the clock; medians.
A ratio is to the forward in the same runtime and race, of a rule set besides to the explainer by omenn. The result file
is written after every race, and the same command goes on where it was stopped. `race/contestants.py` says who runs.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import re
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track

sys.path.append(str(Path(__file__).resolve().parent))
import zoo.preload  # noqa: F401  (torchvision beside a CPU build of torch)
from contest import clock, device_name, interleaved, peak_memory
from race import sweep as sweeping
from race import tables
from race.contestants import CONTESTANTS, DEPLOYED, PLAIN, NotApplicable, Race, Ready
from race.models import MODELS, WITH_SETS, Subject, subject

RESULTS = Path(__file__).resolve().parent / "results"
LIBRARIES = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "captum", "zennit")
Row = dict[str, Any]


def run(race: Race, names: list[str], rounds: int, label: str) -> dict[str, Row]:
    """A row for each contestant: its median in seconds, ratio and peak memory, or why there is none."""
    torch._dynamo.reset()  # what was compiled for other races
    rows: dict[str, Row] = {}
    ready: dict[str, Ready] = {}
    for name in track(names, f"{label}: preparing", transient=True):
        start = time.perf_counter()
        try:
            ready[name] = CONTESTANTS[name].make(race)
        except NotApplicable as reason:
            rows[name] = {"not applicable": str(reason)}
        except Exception as error:  # a peer's own failure is a result; the next run tries again
            rows[name] = {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
        else:
            rows[name] = {"preparing": time.perf_counter() - start, **ready[name].facts}
    slow = [name for name in ready if CONTESTANTS[name].slow]
    peaks = {name: peak(race, name, each) for name, each in ready.items() if race.batch == 1 or name not in slow}
    taken = interleaved(
        {name: each.run for name, each in ready.items()}, rounds, label, clock(race.device, race.threads), slow
    )
    for name, times in taken.items():
        own = taken.get(f"{CONTESTANTS[name].runtime} forward", {"median": float("nan")})
        rows[name] |= times | {"ratio": times["median"] / own["median"], "peak": peaks.get(name)}
        if CONTESTANTS[name].rules and PLAIN in taken:
            rows[name]["times_omenn"] = times["median"] / taken[PLAIN]["median"]
    return {name: rows[name] for name in names}


def peak(race: Race, name: str, ready: Ready) -> int | None:
    """Bytes of a call: of the first one, as onnxruntime keeps what it has taken; on a GPU it does not tell at all."""
    if race.device != "cpu" and CONTESTANTS[name].runtime == DEPLOYED:
        return None
    return peak_memory(ready.run, race.device)


def asked(methods: list[str] | None, batch: int, sets: bool = False) -> list[str]:
    """The contestants at a batch size, in a race of rule sets or another; who they are compared with among them."""
    fit = [n for n, c in CONTESTANTS.items() if bool(c.rules) == sets and (batch == 1 or not c.single)]
    chosen = [n for n in fit if not methods or n in methods]
    beside = {f"{CONTESTANTS[n].runtime} forward" for n in chosen} | ({PLAIN} if sets else set())
    return [n for n in CONTESTANTS if n in chosen or n in beside]


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {"races": {}}


def write(path: Path, results: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(rounded(results), indent=1) + "\n")
    temporary.replace(path)


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def installed() -> dict[str, str]:
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def results_for(device: str) -> Path:
    """speed.json of a CPU, speed-<name>.json of a GPU."""
    if not device.startswith("cuda"):
        return RESULTS / "speed.json"
    return RESULTS / f"speed-{re.sub(r'[^a-z0-9]+', '-', device_name(device).lower())}.json"


def main(
    models: Annotated[list[str] | None, typer.Option(help=", ".join(MODELS))] = None,
    batch: Annotated[list[int] | None, typer.Option(help="default: 1 and 8")] = None,
    threads: Annotated[list[int] | None, typer.Option(help="default: 1 and all; all with a GPU")] = None,
    methods: Annotated[list[str] | None, typer.Option(help="names as in race/contestants.py")] = None,
    rounds: Annotated[int, typer.Option(help="at batch 1; half as many at larger ones")] = 11,
    rules: Annotated[
        bool,
        typer.Option("--rules", help=f"rule sets in onnxruntime; default: {', '.join(WITH_SETS)}, batch 1, 1 thread"),
    ] = False,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="drawn architectures at batch 1 and 8, one thread; --models: others")
    ] = False,
    count: Annotated[int, typer.Option(help="architectures of the sweep")] = sweeping.COUNT,
    runtimes: Annotated[list[str] | None, typer.Option(help="of the sweep; default: those installed")] = None,
    device: str = "cpu",
    out: Annotated[Path | None, typer.Option(help="default: results/speed.json, with a GPU's name for a GPU")] = None,
    again: Annotated[bool, typer.Option("--again", help="also the races that the result file has")] = False,
    only_show: Annotated[bool, typer.Option("--show", help="run nothing")] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="run nothing, print tables for the documentation")
    ] = False,
) -> None:
    """Race explanations and write the result as JSON."""
    console = Console(width=None if sys.stdout.isatty() else 200)
    if sweep:
        out = out or RESULTS / "sweep.json"
        if not only_show:
            run_sweep(models or [], out, runtimes, rounds, count, console)
        sweeping.show(sweeping.read(out), console)
        return
    for given, known in ((models or [], MODELS), (methods or [], CONTESTANTS)):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise typer.BadParameter(f"{', '.join(unknown)}: there are {', '.join(known)}")
    path = out or results_for(device)
    if markdown:
        print(tables.markdown(read(path)), tables.deployed(read(path)), sep="\n\n")
        return
    if not only_show:
        warnings.simplefilter("ignore")
        torch.backends.cudnn.allow_tf32 = False  # float32 on a GPU too
        every = [os.cpu_count() or 1] if device.startswith("cuda") else sorted({1, os.cpu_count() or 1})
        sizes, every = ((1,), every[:1]) if rules else ((1, 8), every)
        courses = [(b, t) for t in threads or every for b in batch or sizes]
        chosen = models or (WITH_SETS if rules else MODELS)
        compete(list(chosen), courses, methods, rules, rounds, device, path, again, console)
    tables.show(read(path), console)


def compete(
    models: list[str], courses: list[tuple[int, int]], methods: list[str] | None, sets: bool, rounds: int, device: str,
    path: Path, again: bool, console: Console,
) -> None:  # fmt: skip
    """All races that the result file does not have yet, model by model."""
    done, total = 0, len(models) * len(courses)
    for name in models:
        raced: Subject | None = None
        for batch, threads in courses:
            done += 1
            key = f"{name}, batch {batch}, {threads} threads{', rule sets' if sets else ''}"
            wanted = asked(methods, batch, sets)
            if not again and finished(read(path)["races"].get(key), wanted):
                continue
            raced = raced or subject(name, device)
            torch.set_num_threads(threads)
            turns = rounds if batch == 1 else max(1, rounds // 2)
            rows = run(Race(raced, batch, threads), wanted, turns, f"{key} ({done} of {total})")
            results = read(path)
            results["setting"] = installed()
            race = {"model": name, "device": device_name(device), "batch": batch, "threads": threads, "rounds": turns}
            results["races"][key] = race | ({"sets": True} if sets else {}) | {"rows": rows}
            write(path, results)
            console.print(f"{key}: {sum('median' in row for row in rows.values())} of {len(rows)} ran", highlight=False)
            gc.collect()


def run_sweep(
    models: list[str], out: Path, runtimes: list[str] | None, rounds: int, count: int, console: Console
) -> None:
    """Models drawn from the census that take less than a minute there, and the trained ones; or those given."""
    coverage = json.loads((RESULTS / "coverage.json").read_text())["models"]
    names = models or sweeping.drawn(coverage, seconds=60, count=count)
    present = tuple(r for r in runtimes or sweeping.RUNTIMES if importlib.util.find_spec(r))
    sweeping.compete(names, out, present, rounds, installed(), console)


def finished(race: Row | None, names: list[str]) -> bool:
    return race is not None and all("failed" not in race["rows"].get(name, {"failed": ""}) for name in names)


if __name__ == "__main__":
    typer.run(main)
