"""Threads that share one explainer: no error, no wrong sum, and every shape captured once.

    python benchmarks/threads.py                       # eight threads, four shapes, thirty seconds
    python benchmarks/threads.py --seconds 300 --threads 16

The first calls of all threads come at the same moment. Each thread goes through the shapes in an order of its own, and
compares what it gets with the model's outputs and with an explanation that was made alone.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import omenn_fx

SIZES = ((8, 8), (9, 7), (12, 6), (6, 10), (7, 7), (8, 11))  # an explainer captures each of them, the batch left free
LIMIT = 1e-9  # of S, in float64
LATEST = 60.0  # seconds after the end in which a thread must be done: one that is not hangs


@dataclass
class Outcome:
    """What became of a run: calls, errors and wrong results by their text, and captures by the shape of a row."""

    calls: int = 0
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    captures: Counter[tuple[int, ...]] = field(default_factory=Counter)
    lock: Any = field(default_factory=threading.Lock)

    @property
    def ok(self) -> bool:
        """No fault, and no shape captured twice."""
        return not self.faults and set(self.captures.values()) == {1}


@dataclass(frozen=True)
class Question:
    """An input with what must come out of it."""

    x: Tensor
    target: Tensor
    value: Tensor
    C: Tensor


def network() -> nn.Module:
    """A network that takes images of any size."""
    body = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 2), nn.GELU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).double().eval()


@torch.no_grad()
def questions(model: nn.Module, shapes: int) -> list[Question]:
    """One for each shape; the explanations are of a copy of the model, made alone."""
    alone, found = omenn_fx.transform(copy.deepcopy(model)), []
    for i, size in enumerate(SIZES[:shapes]):
        x = torch.randn(1 + i % 3, 3, *size, dtype=torch.float64)
        value, target = model(x).max(1)
        found.append(Question(x, target, value, alone(x, target=target).C))
    return found


def counted(explainer: omenn_fx.Explainer, outcome: Outcome) -> omenn_fx.Explainer:
    """The explainer, whose captures are counted."""
    prepare = explainer.prepare

    def counting(x: Tensor) -> omenn_fx.Explainer:
        with outcome.lock:
            outcome.captures[tuple(x.shape[1:])] += 1
        return prepare(x)

    vars(explainer)["prepare"] = counting
    return explainer


def ask(explainer: omenn_fx.Explainer, question: Question) -> str:
    """What is wrong with one answer; "" where nothing is."""
    explanation = explainer(question.x, target=question.target)
    scale = explanation.scale
    if ((explanation.value - question.value).abs() / scale).max() > LIMIT:
        return "the outputs are not the model's"
    if ((explanation.C.flatten(1).sum(1) - question.value).abs() / scale).max() > LIMIT:
        return "the sum of C is not the logit"
    if ((explanation.C - question.C).abs().flatten(1).amax(1) / scale).max() > LIMIT:
        return "C is not what it is alone"
    return ""


def stress(seconds: float = 30, threads: int = 8, shapes: int = 4) -> Outcome:
    """Let threads call one explainer that has captured nothing yet; each asks for every shape at least once."""
    torch.manual_seed(0)
    model, outcome = network(), Outcome()
    asked = questions(model, shapes)
    explainer = counted(omenn_fx.transform(model), outcome)
    barrier, start = threading.Barrier(threads), time.monotonic()

    def work(thread: int) -> None:
        barrier.wait()
        turn = 0
        while turn < shapes or time.monotonic() - start < seconds:
            try:
                fault = ask(explainer, asked[(thread + turn * (1 + thread % 2)) % shapes])
            except Exception as error:
                lines = str(error).splitlines() or [""]
                fault = f"{type(error).__name__}: {lines[0][:200]}"
            turn += 1
            with outcome.lock:
                outcome.calls += 1
                outcome.faults.update([fault] if fault else [])

    workers = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(max(0.0, start + seconds + LATEST - time.monotonic()))
        outcome.faults.update(["a thread hangs"] if worker.is_alive() else [])
    outcome.seconds = time.monotonic() - start
    return outcome


def show(outcome: Outcome, console: Console) -> None:
    table = Table("calls", "seconds", "faults", "captures of each shape", title="threads")
    captures = ", ".join(f"{'x'.join(map(str, shape))}: {n}" for shape, n in sorted(outcome.captures.items()))
    table.add_row(str(outcome.calls), f"{outcome.seconds:.0f}", str(outcome.faults.total()), captures)
    console.print(table)
    for fault, count in outcome.faults.most_common():
        console.print(f"{count} times: {fault}", markup=False, soft_wrap=True)


def main(seconds: float = 30, threads: int = 8, shapes: int = 4) -> None:
    """Call one explainer from several threads. Exits with 1 where something is wrong."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("omenn_fx").setLevel(logging.ERROR)
    outcome = stress(seconds, threads, min(shapes, len(SIZES)))
    show(outcome, Console())
    raise typer.Exit(not outcome.ok)


if __name__ == "__main__":
    typer.run(main)
