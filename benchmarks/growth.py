"""How the cost of an explanation grows: with the batch, the tokens, the depth and the number of targets.

    python benchmarks/growth.py

Forward and explainer take turns in one process, in torch, one thread, processor seconds. The slope is that of the
logarithms between the last two sizes: 1 is linear, 2 quadratic. An explanation grows as its forward does.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import nn

import omenn_fx

sys.path.append(str(Path(__file__).resolve().parent))
import zoo.preload  # noqa: F401  (torchvision beside a CPU build of torch)
from contest import device_name, interleaved

RESULTS = Path(__file__).resolve().parent / "results"
Point = tuple[int, nn.Module, torch.Tensor, Any]  # size, model, input, target


class Encoder(nn.Module):
    """A transformer encoder with a classifier on the mean token, width 128."""

    def __init__(self, depth: int, width: int = 128):
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, activation="gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).mean(1))


def batch() -> Iterator[Point]:
    import torchvision

    model = torchvision.models.resnet18().eval()
    for size in (1, 2, 4, 8, 16, 32):
        yield size, model, torch.randn(size, 3, 112, 112), 3


def tokens() -> Iterator[Point]:
    model = Encoder(4).eval()
    for size in (64, 128, 256, 512, 1024):
        yield size, model, torch.randn(1, size, 128), 3


def depth() -> Iterator[Point]:
    for size in (2, 4, 8, 16, 32):
        yield size, Encoder(size).eval(), torch.randn(1, 128, 128), 3


def targets() -> Iterator[Point]:
    import torchvision

    model, x = torchvision.models.resnet18().eval(), torch.randn(1, 3, 112, 112)
    for size in (1, 2, 5, 10, 20):
        yield size, model, x, torch.arange(size)[None]


AXES: dict[str, Callable[[], Iterator[Point]]] = {
    "batch": batch, "tokens": tokens, "depth": depth, "targets": targets
}  # fmt: skip
NAMES = {
    "batch": "batch (ResNet-18, 112 pixels)", "tokens": "tokens (transformer, 4 layers)",
    "depth": "layers (transformer, 128 tokens)", "targets": "targets (ResNet-18, 112 pixels)",
}  # fmt: skip


def measure(axis: str, rounds: int) -> dict[str, Any]:
    """Seconds of both at each size, and how they grow."""
    sizes, seconds = [], {"forward": [], "explainer": []}
    for size, model, x, target in AXES[axis]():
        explainer = omenn_fx.transform(model, x)
        with torch.no_grad():
            runs = {
                "forward": lambda m=model, v=x: m(v),
                "explainer": lambda e=explainer, v=x, t=target: e(v, target=t).C,
            }
            taken = interleaved(runs, rounds, f"{axis} {size}")
        sizes.append(size)
        for name, times in taken.items():
            seconds[name].append(times["median"])
    slopes = {name: _slope(sizes[-2:], values[-2:]) for name, values in seconds.items()}
    ratios = [e / f for e, f in zip(seconds["explainer"], seconds["forward"], strict=True)]
    return {"sizes": sizes, "seconds": seconds, "ratios": ratios, "slopes": slopes}


def _slope(sizes: list[int], values: list[float]) -> float:
    return math.log(values[1] / values[0]) / math.log(sizes[1] / sizes[0])


def draw(results: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(3.1 * len(results), 3.0), layout="constrained")
    for axes, (axis, result) in zip(figure.subplots(1, len(results)), results.items(), strict=True):
        for (name, values), colour in zip(result["seconds"].items(), ("#888888", "#b2182b"), strict=True):
            label = f"{name}, slope {result['slopes'][name]:.2f}"
            axes.loglog(result["sizes"], [1e3 * v for v in values], "o-", color=colour, label=label, markersize=4)
        axes.set_xticks(result["sizes"], labels=map(str, result["sizes"]))
        axes.set_xticks([], minor=True)
        axes.set_xlabel(NAMES[axis], fontsize=8)
        axes.set_ylabel("milliseconds", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=7, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def show(results: dict[str, Any], console: Console) -> None:
    table = Table("", "sizes", "explainer / forward", "slope, forward", "slope, explainer", title="growth")
    for axis, result in results.items():
        slopes = (f"{result['slopes'][name]:.2f}" for name in ("forward", "explainer"))
        table.add_row(
            NAMES[axis], " ".join(map(str, result["sizes"])), " ".join(f"{r:.2f}" for r in result["ratios"]), *slopes
        )
    console.print(table)


def main(rounds: int = 7, out: Path = RESULTS / "growth.json") -> None:
    """Measure the growth and write it as JSON and as a picture beside it."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results = {axis: measure(axis, rounds) for axis in AXES}
    setting = {"torch": torch.__version__, "device": device_name(), "rounds": rounds}
    out.write_text(json.dumps({"setting": setting, "axes": results}, indent=2) + "\n")
    draw(results, out.with_suffix(".png"))
    show(results, Console())


if __name__ == "__main__":
    typer.run(main)
