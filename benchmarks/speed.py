"""What an explanation costs: forward, the eager twin, and autograd's input x gradient, side by side in one process.

    python benchmarks/speed.py                      # ResNet-50 and ViT-B/16, one thread
    python benchmarks/speed.py --models timm:deit_tiny_patch16_224 --rounds 30

The contestants of one model take turns, so that a slow minute of the machine hits all of them; ratios are of medians.
`build` compares `omenn_fx.transform` with `torch.export.export` alone, static as it comes and with a dynamic batch.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

import omenn_fx
from omenn_fx.sources import load

sys.path.append(str(Path(__file__).resolve().parent))
from contest import clock, device_name, interleaved

RESULTS = Path(__file__).resolve().parent / "results"
Timed = dict[str, Callable[[], Any]]


def explaining(model: torch.nn.Module, x: torch.Tensor, target: int) -> Timed:
    """The explanation by each way: all give one attribution of the input's shape."""
    explainers = {bias: omenn_fx.transform(model, x, bias=bias) for bias in ("carrier", "none")}

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return model(x)

    def input_x_gradient() -> torch.Tensor:
        leaf = x.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(model(leaf)[:, target].sum(), leaf)
        return gradient * leaf.detach()

    return {
        "forward": forward,
        "input x gradient": input_x_gradient,
        "twin": lambda: explainers["carrier"](x, target=target).C,
        "twin, bias=none": lambda: explainers["none"](x, target=target).C,
    }


def building(model: torch.nn.Module, x: torch.Tensor) -> Timed:
    """Capturing alone, and everything from the model to its explainer."""
    dynamic = torch.export.ShapesCollection()
    dynamic[x] = {0: torch.export.Dim.AUTO}
    return {
        "export": lambda: torch.export.export(model, (x,), strict=False),
        "export, dynamic batch": lambda: torch.export.export(model, (x,), dynamic_shapes=dynamic, strict=False),
        "transform": lambda: omenn_fx.transform(model, x),
    }


def measure(spec: str, batch: int, size: int, rounds: int, device: str) -> dict[str, Any]:
    model = load(spec).model
    assert isinstance(model, torch.nn.Module)
    model = model.to(device)
    x = torch.randn(batch, 3, size, size, device=device)
    now = clock(device) if device.startswith("cuda") else time.perf_counter
    times = interleaved(explaining(model, x, target=7), rounds, spec, now)
    wide = torch.cat([x, x]) if batch == 1 else x  # an export takes a size of 1 for a constant
    build = interleaved(building(model, wide), 3, f"{spec} build", now)
    explanation = omenn_fx.transform(model)(x, target=7)
    ratios = {
        "twin / input x gradient": times["twin"]["median"] / times["input x gradient"]["median"],
        "twin / forward": times["twin"]["median"] / times["forward"]["median"],
        "twin, bias=none / input x gradient": times["twin, bias=none"]["median"] / times["input x gradient"]["median"],
        "transform / export": build["transform"]["median"] / build["export"]["median"],
        "transform / export, dynamic batch": build["transform"]["median"] / build["export, dynamic batch"]["median"],
    }
    error = float(explanation.completeness_error.max())
    return {"model": spec, "batch": batch, "times": times | build, "ratios": ratios, "completeness_error": error}


def show(results: list[dict[str, Any]], console: Console) -> None:
    table = Table(title="median seconds (interquartile range), and ratios")
    table.add_column("")
    for r in results:
        table.add_column(r["model"], justify="right")
    for name in results[0]["times"]:
        table.add_row(name, *(f"{r['times'][name]['median']:.3f} ({r['times'][name]['iqr']:.3f})" for r in results))
    table.add_section()
    for name in results[0]["ratios"]:
        table.add_row(f"[bold]{name}", *(f"[bold]{r['ratios'][name]:.2f}" for r in results))
    table.add_row("completeness error", *(f"{r['completeness_error']:.1e}" for r in results))
    console.print(table)


def main(
    models: Annotated[list[str] | None, typer.Option(help="MODEL specs, as on the command line of omenn-fx")] = None,
    batch: int = 1,
    size: int = 224,
    rounds: int = 15,
    threads: int = 1,
    device: str = "cpu",
    out: Path = RESULTS / "speed.json",
) -> None:
    """Time explanations side by side and write the result as JSON."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    results = [
        measure(m, batch, size, rounds, device) for m in models or ["torchvision:resnet50", "torchvision:vit_b_16"]
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    setting = {"torch": torch.__version__, "threads": threads, "device": device_name(device), "rounds": rounds}
    out.write_text(json.dumps({"setting": setting, "results": results}, indent=2) + "\n")
    console = Console()
    show(results, console)
    console.print(f"{setting} -> {out.relative_to(Path.cwd()) if out.is_relative_to(Path.cwd()) else out}")


if __name__ == "__main__":
    typer.run(main)
