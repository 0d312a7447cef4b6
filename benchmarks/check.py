"""What `omenn_fx.check` costs: against torch.export alone, and on a model of 70 billion parameters without weights.

    python benchmarks/check.py

The contestants on ViT-B/16 take turns in one process; ratios are of medians of processor time. The Llama runs in a
process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.table import Table

import omenn_fx

sys.path.append(str(Path(__file__).resolve().parent))
import zoo.preload  # noqa: F401  (torchvision beside a CPU build of torch)
from contest import device_name, interleaved

RESULTS = Path(__file__).resolve().parent / "results"


def vit(rounds: int) -> dict[str, Any]:
    """`check` against torch.export: of one sample, and of a batch of two that stays free or is fixed."""
    import torchvision

    model, x = torchvision.models.vit_b_16().eval(), torch.randn(2, 3, 224, 224)
    one = x[:1]
    free = {"dynamic_shapes": ({0: torch.export.Dim.AUTO},)}
    contestants = {
        "export": lambda: torch.export.export(model, (one,), strict=False),
        "check": lambda: omenn_fx.check(model, one),
        "export, fixed batch of two": lambda: torch.export.export(model, (x,), strict=False),
        "check, dynamic_batch=False": lambda: omenn_fx.check(model, x, dynamic_batch=False),
        "export, free batch": lambda: torch.export.export(model, (x,), strict=False, **free),
        "check of a batch": lambda: omenn_fx.check(model, x),
    }
    seconds = {name: taken["median"] for name, taken in interleaved(contestants, rounds, "ViT-B/16").items()}
    ratios = {
        "check / export, one sample": seconds["check"] / seconds["export"],
        "check / export, both with a free batch of two": seconds["check of a batch"] / seconds["export, free batch"],
        "check / export, both with a fixed batch of two": (
            seconds["check, dynamic_batch=False"] / seconds["export, fixed batch of two"]
        ),
    }
    return {"seconds": seconds, "ratios": ratios}


def llama() -> dict[str, Any]:
    """A Llama of 70 billion parameters on the meta device: seconds by the clock and the peak of the process."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8, vocab_size=128256, use_cache=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval()
        ids = torch.zeros(1, 128, dtype=torch.long)
    before = _peak_gib()
    start = time.perf_counter()
    report = omenn_fx.check(model, ids)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "supported": report.supported,
        "nodes": len(report.nodes),
        "seconds": time.perf_counter() - start,
        "peak_gib": _peak_gib(),
        "peak_gib_before": before,
    }


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def show(result: dict[str, Any], console: Console) -> None:
    table = Table("ViT-B/16", "", title="omenn_fx.check")
    for name, seconds in result["vit"]["seconds"].items():
        table.add_row(name, f"{seconds:.2f} s")
    for name, ratio in result["vit"]["ratios"].items():
        table.add_row(f"[bold]{name}", f"[bold]{ratio:.2f}")
    console.print(table)
    row = result["llama"]
    console.print(
        f"Llama, {row['parameters'] / 1e9:.1f} billion parameters, {row['nodes']} nodes, supported {row['supported']}: "
        f"{row['seconds']:.1f} s, peak of the process {row['peak_gib']:.2f} GiB ({row['peak_gib_before']:.2f} before)"
    )


def main(rounds: int = 7, out: Path = RESULTS / "check.json") -> None:
    """Time `check` and write the result as JSON."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with get_context("spawn").Pool(1) as pool:
        result = {"llama": pool.apply(llama), "vit": vit(rounds)}
    setting = {"torch": torch.__version__, "device": device_name(), "rounds": rounds}
    out.write_text(json.dumps({"setting": setting, **result}, indent=2) + "\n")
    show(result, Console())


if __name__ == "__main__":
    typer.run(main)
