"""Whether one file gives the same map in every runtime, says so where it does not, and is as small as its model.

    python benchmarks/parity.py                    # forty models; those runtimes that are installed
    python benchmarks/parity.py --models "CIFAR ResNet-20" --again
    python benchmarks/parity.py --show             # the tables of the result file alone

Forty models, drawn from the census by a seed, and the trained ones. Each file is written as users write it, and run in
onnxruntime (as it is, and with nothing optimised), onnxruntime-web's wasm in Node, OpenVINO, tract and the reference
evaluator of onnx: pip install openvino tract for those. C is compared with the explainer's in torch, relative to S. It
is the same where it is within 1e-4 of S, or ten times what float32 costs the explainer itself at worst; "wrong" where
it is not, and "silent" where the file's own output `completeness` does not tell. Each model is explained at three
inputs, whose median counts: a unit that rounding puts on the other side of its kink makes another map, which is right
too, of one input and not of the next. The result file is written after every model, and the same command goes on where
it was stopped.
"""

from __future__ import annotations

import json
import logging
import signal
import statistics
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.utils._pytree as pytree
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parent))
import zoo.preload  # noqa: F401  (torchvision beside a CPU build of torch)
from race import sweep
from race.runtimes import RUNNERS, installed
from zoo import pool

from omenn_fx.export.verify import in_double

RESULTS = Path(__file__).resolve().parent / "results"
COUNT, SECONDS = 40, 12  # models, and processor seconds of their lines in the coverage at most
LIMIT, SUM = 1e-4, 1e-5  # of C and of its sum, relative to S
INPUTS, NOISE = 3, 0.05  # with noise: flat parts of an image make windows with two winners
PATIENCE = 120  # seconds of one runtime
TIMEOUT, MEMORY = 900, 10  # seconds and GiB of a model
Line = dict[str, Any]


def task(name: str, send: sweep.Send, runtimes: list[str]) -> None:
    """One model: the sizes of its files, then a line for each runtime."""
    import omenn_fx

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    model, *inputs = sweep.example(name)
    every = [pytree.tree_map(partial(_noisy, torch.Generator().manual_seed(i)), inputs) for i in range(INPUTS)]
    explainer = omenn_fx.transform(model, inputs[0], example_kwargs=inputs[1])
    twins = [explainer(*args, **kwargs) for args, kwargs in every]
    double = explainer.in_float64()
    exact = [
        double(*args, target=t.target, **kwargs) for (args, kwargs), t in zip(in_double(every), twins, strict=True)
    ]
    costs = [
        max(_distance(one.C.numpy(), e.inputs[n].C, e) for n, one in t.inputs.items())
        for t, e in zip(twins, exact, strict=True)
    ]
    send("float32", max(costs))
    with tempfile.TemporaryDirectory() as folder:
        files = sweep.written(explainer, (model, *inputs), Path(folder))
        send("bytes", {part: path.stat().st_size for part, path in files.items()})
        names = _inputs_of(files["explainer"])
        feeds = [
            sweep.feeds_of(names, values) | {names[-1]: t.target.numpy()}
            for values, t in zip(every, twins, strict=True)
        ]
        for runtime in runtimes:
            send(runtime, _outcome(runtime, files["explainer"], feeds, twins))


def _noisy(generator: torch.Generator, leaf: Any) -> Any:
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
        return leaf
    return leaf * (1 + NOISE * torch.randn(leaf.shape, generator=generator))


def _inputs_of(path: Path) -> list[str]:
    """The names of a file's inputs, the target's last."""
    import onnx

    return [i.name for i in onnx.load(str(path), load_external_data=False).graph.input]


def _outcome(runtime: str, path: Path, feeds: list[dict[str, np.ndarray]], twins: list[Any]) -> Line:
    """How far C is off, what the file says of its sum, or why the runtime does not run it."""
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(PATIENCE)
    try:
        results = RUNNERS[runtime](path, feeds)
    except Exception as error:  # a runtime's own failure is a result; tract puts a stack behind it
        causes = [part.strip() for part in str(error).partition("Stack backtrace")[0].splitlines() if part.strip()]
        return {"failed": f"{type(error).__name__}: {'; '.join(causes)}"[:300]}
    finally:
        signal.alarm(0)
    ends = {n: f".{n}" if len(twins[0].inputs) > 1 else "" for n in twins[0].inputs}
    off = [
        max(_distance(got[f"C{ends[n]}"], one.C, twin) for n, one in twin.inputs.items())
        for got, twin in zip(results, twins, strict=True)
    ]
    sums = [float(got["completeness"].max()) for got in results]
    return {"C": statistics.median(off), "worst": max(off), "completeness": statistics.median(sums)}


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"more than {PATIENCE} s")


def _distance(got: np.ndarray, wanted: Tensor, of: Any) -> float:
    """The summed difference of a row, relative to S; the largest."""
    gap = np.abs(got.astype(np.float64) - wanted.double().numpy())
    return float((gap.reshape(len(gap), -1).sum(1) / of.size.double().numpy()).max())


def verdict(line: Line, runtime: str) -> str:
    """The same, wrong, silent or failed."""
    found = line[runtime]
    if "failed" in found:
        return "failed"
    if found["C"] <= max(LIMIT, 10 * line["float32"]):
        return "the same"
    return "silent" if found["completeness"] <= SUM else "wrong"


def show(models: dict[str, Line], console: Console) -> None:
    """What each runtime does with the files, then their sizes, then all that is not the same."""
    done = {name: line for name, line in models.items() if "bytes" in line}
    table = Table(
        "", "files", "the same", "wrong", "silent", "does not run", "largest difference of C, of S", title="Maps"
    )
    for runtime in RUNNERS:
        lines = {name: line for name, line in done.items() if runtime in line}
        said = [verdict(line, runtime) for line in lines.values()]
        counts = [str(said.count(kind)) for kind in ("the same", "wrong", "silent", "failed")]
        worst = max((line[runtime]["C"] for line in lines.values() if "C" in line[runtime]), default=float("nan"))
        if lines:
            table.add_row(runtime, str(len(lines)), *counts, f"{worst:.1e}")
    console.print(table)
    table = Table("", "MB of the model's file", "MB of the explainer's", "ratio", title="Sizes")
    for name, line in sorted(done.items(), key=lambda item: -item[1]["bytes"]["forward"]):
        own, other = (line["bytes"][part] / 1e6 for part in ("explainer", "forward"))
        table.add_row(name, f"{other:.2f}", f"{own:.2f}", f"{own / other:.2f}")
    console.print(table)
    for name, line in done.items():
        for runtime in RUNNERS:
            if runtime in line and (kind := verdict(line, runtime)) != "the same":
                found = line[runtime]
                what = (
                    found.get("failed") or f"C off by {found['C']:.1e} of S, completeness {found['completeness']:.1e}"
                )
                console.print(f"{name}, {runtime}: {kind}: {what}", markup=False, soft_wrap=True)
    for name, line in models.items():
        if "ended" in line:
            console.print(f"{name}: {line['ended']}", markup=False)


def main(
    models: Annotated[list[str] | None, typer.Option(help="names of the census, or of trained models")] = None,
    runtimes: Annotated[list[str] | None, typer.Option(help="default: those installed")] = None,
    count: int = COUNT,
    workers: int = 1,
    again: Annotated[bool, typer.Option(help="also what the result file has")] = False,
    only_show: Annotated[bool, typer.Option("--show", help="the result file alone")] = False,
    out: Path = RESULTS / "parity.json",
) -> None:
    """Write each model's file, run it everywhere, and write the result as JSON."""
    console = Console()
    if not only_show:
        coverage = json.loads((RESULTS / "coverage.json").read_text())["models"]
        names = models or sweep.drawn(coverage, SECONDS, count)
        left = [name for name in names if again or name not in sweep.read(out)]
        work = partial(task, runtimes=runtimes or installed())
        outcomes = pool.run(work, left, workers, TIMEOUT, MEMORY, alone=lambda name: False)
        for outcome in track(outcomes, "models", total=len(left), console=console):
            line = outcome.sent | ({"ended": outcome.ended} if outcome.ended else {})
            sweep.write(out, sweep.read(out) | {outcome.name: line}, {"runtimes": installed()})
    show(sweep.read(out), console)


if __name__ == "__main__":
    typer.run(main)
