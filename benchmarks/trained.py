"""Exported explainers of trained models over all their data: does onnxruntime's C sum to onnxruntime's own logit?

    python benchmarks/trained.py
    python benchmarks/trained.py --model "MNIST LSTM"
    python benchmarks/trained.py --rules omenn_gamma

The sum is taken in float64 of the float32 values in the file's outputs, so that the error is the file's alone. S is the
sum of the magnitudes that were added: of C_w * X at each input value, of the share of each biased node.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import omenn_fx
from omenn_fx.export import load

sys.path.append(str(Path(__file__).resolve().parent))
import zoo.preload  # noqa: F401  (torchvision beside a CPU build of torch)
from assets import ASSETS, module_at
from judge.models import cifar, efficientnet_lite0, squeezenet

RESULTS = Path(__file__).resolve().parent / "results"
ROWS = 20  # at once


@dataclass(frozen=True)
class Trained:
    """A model in eval mode, and all its inputs by name."""

    model: nn.Module
    inputs: dict[str, Tensor]


def of_images(judged: Any) -> Trained:
    return Trained(judged.model, {"x": judged.x})


def funnybirds() -> Trained:
    """A ResNet-18 of half width on the 500 test birds."""
    model, preprocess = module_at(ASSETS / "load.py").model_funnybirds()
    with np.load(ASSETS / "funnybirds" / "test.npz") as birds:
        return Trained(model, {"x": preprocess(birds["images"])})


def mnist_lstm() -> Trained:
    assets = module_at(ASSETS / "load.py")
    model, preprocess = assets.model_mnist_lstm()
    return Trained(model, {"x": preprocess(assets.images_mnist()[0])})


def sentiment() -> Trained:
    """MiniLM on padded texts, explained from the embeddings of their words."""
    assets = module_at(ASSETS / "load.py")
    model, tokenise = assets.model_sentiment()
    return Trained(model, tokenise(assets.text_sentiment()[0]))


MODELS: dict[str, Callable[[], Trained]] = {
    "CIFAR ResNet-20": lambda: of_images(cifar(20, 500)),
    "CIFAR ResNet-56": lambda: of_images(cifar(56, 500)),
    "SqueezeNet 1.0": lambda: of_images(squeezenet(200)),
    "EfficientNet-Lite0": lambda: of_images(efficientnet_lite0(200)),
    "FunnyBirds ResNet-18": funnybirds,
    "MNIST LSTM": mnist_lstm,
    "MiniLM sentiment": sentiment,
}


def measure(name: str, rules: str) -> dict[str, Any]:
    """The worst completeness error of an exported file over all inputs of its model, each row's top class explained."""
    trained = MODELS[name]()
    start = {key: value[:2] for key, value in trained.inputs.items()}
    positional = tuple(start.values()) if "x" in start else ()
    named = {} if positional else start
    explainer = omenn_fx.transform(trained.model, positional, example_kwargs=named, rules=rules)
    with tempfile.TemporaryDirectory() as folder:
        written = explainer.to_onnx(
            Path(folder) / "model.onnx", *positional, outputs=("logits", "C", "C_w", "X", "bias", "target"),
            target="top1", **named,
        )  # fmt: skip
        deployed = load(written.path, providers=["CPUExecutionProvider"])
    samples = len(next(iter(trained.inputs.values())))
    errors, relative = [], []
    for first in track(range(0, samples, ROWS), description=name, transient=True):
        got = deployed.run([value[first : first + ROWS].numpy() for value in trained.inputs.values()])
        error, value, scale = completeness(got)
        errors += (error / scale).tolist()
        relative += (error / np.abs(value)).tolist()
    return {
        "samples": samples, "worst": float(np.max(errors)), "median": float(np.median(errors)),
        "worst_of_logit": float(np.max(relative)),
        "proof": str(written.proof),
    }  # fmt: skip


def completeness(got: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """|sum(C) - logit|, the logit and S of each row of a file's outputs."""
    wide = {key: value.astype(np.float64).reshape(len(value), -1) for key, value in got.items() if key != "target"}
    value = np.take_along_axis(wide["logits"], got["target"][:, None], 1)[:, 0]
    scale = np.abs(wide["C_w"] * wide["X"]).sum(1) + np.abs(wide["bias"]).sum(1)
    return np.abs(wide["C"].sum(1) - value), value, scale


def show(results: dict[str, Any], console: Console) -> None:
    table = Table("", "samples", "worst |sum(C) - logit| / S", "median", "worst / |logit|")
    for name, r in results.items():
        table.add_row(name, str(r["samples"]), *(f"{r[key]:.1e}" for key in ("worst", "median", "worst_of_logit")))
    console.print(table)


def main(
    model: Annotated[list[str] | None, typer.Option(help=f"of {', '.join(MODELS)}")] = None,
    rules: Annotated[str, typer.Option(help="a rule set")] = "omenn",
    out: Annotated[Path | None, typer.Option(help="where the results are, by default by rule set")] = None,
) -> None:
    """Run exported explainers over trained models' data and write the result as JSON."""
    warnings.simplefilter("ignore")
    out = out or RESULTS / ("trained.json" if rules == "omenn" else f"trained-{rules}.json")
    results = {name: measure(name, rules) for name in model or MODELS}
    setting = {"rules": rules, "torch": torch.__version__, "onnxruntime": onnxruntime.__version__, "rows": ROWS}
    out.write_text(json.dumps({"setting": setting, "models": results}, indent=2) + "\n")
    show(results, Console())


if __name__ == "__main__":
    typer.run(main)
