"""What an exported explanation costs in onnxruntime: against its own forward, and against Captum in torch.

    python benchmarks/deployed.py                      # all models, one thread, batch 1
    python benchmarks/deployed.py --model resnet18 --rounds 20

The contestants of one model take turns in one process; times are processor seconds (of the clock with several threads),
ratios are of medians. Peak memory is what a call takes beyond what was there before it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
import torch
import typer
from captum.attr import InputXGradient, IntegratedGradients
from rich.console import Console
from rich.table import Table

import omenn_fx

sys.path.append(str(Path(__file__).resolve().parent))
import zoo.preload  # noqa: F401  (torchvision beside a CPU build of torch)
from contest import clock, device_name, interleaved, peak_memory
from zoo.random_weights import randomise

RESULTS = Path(__file__).resolve().parent / "results"
STEPS = 50  # of integrated gradients, which is timed in every fifth round
TARGETS = 10  # at once: one forward, as many adjoints
IN_TORCH = ("torch forward", "torch explainer", "Captum InputXGradient")
HALVED = ("resnet50", "vit_b_16")
VISION = ("resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0", "convnext_tiny", "vit_b_16")


class Embedded(torch.nn.Module):
    """BERT-base for classification, from the embeddings of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertForSequenceClassification

        self.bert = BertForSequenceClassification._from_config(BertConfig(num_labels=10), attn_implementation="sdpa")

    def forward(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        return self.bert(inputs_embeds=inputs_embeds).logits


def build(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if name == "bert_base":
        model: torch.nn.Module = Embedded().eval()
        x = torch.randn(1, 128, 768)
    else:
        import torchvision

        model, x = getattr(torchvision.models, name)().eval(), torch.randn(1, 3, 224, 224)
    randomise(model, seed=0)
    return model, x


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def contestants(model: torch.nn.Module, x: torch.Tensor, folder: Path, threads: int) -> tuple[dict[str, Any], str]:
    """Each contestant by name, and what the proof of the exported file says."""
    explainer = omenn_fx.transform(model, x)
    written = explainer.to_onnx(folder / "explainer.onnx", x)
    wide = torch.cat([x, x])
    free = {"dynamic_shapes": ({0: torch.export.Dim.DYNAMIC},)}
    torch.onnx.export(model, (wide,), dynamo=True, verbose=False, **free).save(folder / "forward.onnx")
    deployed, forward = session(folder / "explainer.onnx", threads), session(folder / "forward.onnx", threads)
    target = int(explainer(x).target[0])
    several = torch.arange(TARGETS)[None]
    feeds = {deployed.get_inputs()[0].name: x.numpy(), "target": np.array([target])}
    image = {forward.get_inputs()[0].name: x.numpy()}
    return {
        "onnxruntime forward": lambda: forward.run(None, image),
        "onnxruntime explainer": lambda: deployed.run(None, feeds),
        "torch forward": lambda: _without_gradients(model, x),
        "torch explainer": lambda: explainer(x, target=target).C,
        f"torch explainer, {TARGETS} targets": lambda: explainer(x, target=several).C,
        "Captum InputXGradient": lambda: InputXGradient(model).attribute(x.clone().requires_grad_(), target=target),
        f"Captum IntegratedGradients, {STEPS} steps": lambda: IntegratedGradients(model).attribute(
            x, target=target, n_steps=STEPS, internal_batch_size=1
        ),
    }, str(written.proof)


def _without_gradients(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(x)


def measure(name: str, rounds: int, threads: int) -> dict[str, Any]:
    model, x = build(name)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        runs, proof = contestants(model, x, Path(folder), threads)
        exporting = time.perf_counter() - start
        rare = [key for key in runs if "Integrated" in key]
        taken = interleaved(runs, rounds, name, clock(threads=threads), rare)
        memory = {key: peak_memory(runs[key]) for key in IN_TORCH}
        halved = half(model, x, Path(folder)) if name in HALVED else None
    median = {key: times["median"] for key, times in taken.items()}
    explainer = median["onnxruntime explainer"]
    ratios = {
        "explainer / forward, in onnxruntime": explainer / median["onnxruntime forward"],
        "explainer / forward, in torch": median["torch explainer"] / median["torch forward"],
        "InputXGradient in torch / explainer in onnxruntime": median["Captum InputXGradient"] / explainer,
        "IntegratedGradients in torch / explainer in onnxruntime": median[list(runs)[-1]] / explainer,
    }
    ratios |= {
        f"{TARGETS} targets / forward, in torch": median[f"torch explainer, {TARGETS} targets"]
        / median["torch forward"],
        "peak memory, explainer / InputXGradient, in torch": _ratio(memory),
    }
    return {
        "seconds": median, "ratios": ratios, "peak_bytes": memory, "proof": proof, "float16": halved,
        "exporting_seconds": exporting,
    }  # fmt: skip


def _ratio(memory: dict[str, int | None]) -> float:
    explainer, gradient = memory["torch explainer"], memory["Captum InputXGradient"]
    return explainer / gradient if explainer and gradient else float("nan")


def half(model: torch.nn.Module, x: torch.Tensor, folder: Path) -> dict[str, Any]:
    """The same explainer as a float16 file: onnxruntime's sum against its own logit, and its C against the twin's."""
    written = omenn_fx.transform(model, x).to_onnx(folder / "half.onnx", x, dtype="float16")
    assert written.proof is not None
    return {
        "completeness": written.proof.completeness, "parity": written.proof.parity, "rounding": written.proof.rounding,
        "mib": round(written.size / 2**20, 1),
    }  # fmt: skip


def show(results: dict[str, Any], console: Console) -> None:
    table = Table(title="processor seconds, medians; and their ratios")
    table.add_column("")
    for name in results:
        table.add_column(name, justify="right")
    first = next(iter(results.values()))
    for key in first["seconds"]:
        table.add_row(key, *(f"{r['seconds'][key]:.3f}" for r in results.values()))
    table.add_section()
    for key in first["ratios"]:
        table.add_row(f"[bold]{key}", *(f"[bold]{r['ratios'][key]:.2f}" for r in results.values()))
    console.print(table)
    for name, r in results.items():
        half = f"; in float16: {r['float16']}" if r["float16"] else ""
        console.print(f"{name}: {r['proof']}{half}", highlight=False)


def main(
    model: Annotated[list[str] | None, typer.Option(help="of torchvision's, or bert_base")] = None,
    rounds: int = 11,
    threads: int = 1,
    out: Path = RESULTS / "deployed.json",
) -> None:
    """Time exported explainers and write the result as JSON."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    results = {name: measure(name, rounds, threads) for name in model or [*VISION, "bert_base"]}
    setting = {
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "device": device_name(),
        "threads": threads,
        "rounds": rounds,
    }
    out.write_text(json.dumps({"setting": setting, "models": results}, indent=2) + "\n")
    show(results, Console())


if __name__ == "__main__":
    typer.run(main)
