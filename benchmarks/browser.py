"""What an explanation costs in the browser: in onnxruntime-web's wasm in Node, one thread, against the forward there.

python benchmarks/browser.py                     # SqueezeNet 1.0; a few minutes
python benchmarks/browser.py --model torchvision:resnet18

The times are processor time of the process, the runs take turns, and the medians are compared. It needs Node.js,
torchvision and the npm packages that `python tests/npm.py` fetches.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer

import omenn_fx
from omenn_fx.export.web.runtime import RUNTIME
from omenn_fx.loading import models as sources

TESTS = Path(__file__).resolve().parent.parent / "tests"
FILES = {"forward": None, "logits, C": ("logits", "C"), "the page's file": ("logits", "C", "C_w", "C_b")}
RACE = """
import { readFileSync } from "node:fs";
const [runtime, rounds, ...files] = process.argv.slice(2);
const ort = await import(runtime);
ort.env.wasm.numThreads = 1;
const racers = [];
for (const file of files) {
  const session = await ort.InferenceSession.create(readFileSync(file));
  const feeds = {};
  for (const { name, type, shape } of session.inputMetadata) {
    const dims = shape.map((size) => (typeof size === "number" ? size : 1));
    const length = dims.reduce((a, b) => a * b, 1);
    const data = type === "int64" ? [7n] : Float32Array.from({ length }, (_, i) => 2 * Math.sin(i * i));
    feeds[name] = new ort.Tensor(type, data, dims);
  }
  racers.push({ session, feeds, times: [] });
}
for (let round = -2; round < Number(rounds); round++) {
  for (const { session, feeds, times } of racers) {
    const start = process.cpuUsage();
    await session.run(feeds);
    const { user, system } = process.cpuUsage(start);
    if (round >= 0) times.push((user + system) / 1000);
  }
}
console.log(JSON.stringify(racers.map(({ times }) => times.sort((a, b) => a - b)[times.length >> 1])));
"""


def write_files(model: str, weights: Path | None, folder: Path) -> list[Path]:
    """The model alone, and its explainers, all for one image."""
    loaded = sources.load(model, weights)
    size = loaded.preprocess.steps.size if loaded.preprocess.steps else (224, 224)
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    explainer = omenn_fx.transform(loaded.model, x)
    paths = []
    for number, outputs in enumerate(FILES.values()):
        path = folder / f"{number}.onnx"
        if outputs is None:
            torch.onnx.export(loaded.model, (x,), path, dynamo=True, external_data=False, verbose=False)
        else:
            explainer.to_onnx(path, x, outputs=outputs, dynamic=(), verify=False)
        paths.append(path)
    return paths


def race(files: list[Path], rounds: int, runtime: Path) -> list[float]:
    """Milliseconds of each file, the median of so many runs."""
    script = files[0].parent / "race.mjs"
    script.write_text(RACE, encoding="utf-8")
    command = ["node", str(script), str(runtime), str(rounds), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout))


def main(
    model: Annotated[str, typer.Option(help="as omenn-fx explain takes it")] = "torchvision:squeezenet1_0",
    weights: Annotated[Path | None, typer.Option(help="a state_dict")] = None,
    rounds: Annotated[int, typer.Option(help="that are counted")] = 15,
) -> None:
    """Write the files, let them race, print the ratios."""
    sys.path.append(str(TESTS))
    import npm

    modules = npm.found()
    if modules is None:
        sys.exit("the npm packages are not there: python tests/npm.py")
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(model, weights, Path(folder))
        times = race(files, rounds, modules / "onnxruntime-web" / "dist" / "ort.wasm.bundle.min.mjs")
    print(f"{model}, {RUNTIME} (wasm, one thread) in Node, median of {rounds}, processor time")
    for name, time in zip(FILES, times, strict=True):
        print(f"{name:16} {time:8.1f} ms  {time / times[0]:.2f} x forward")


if __name__ == "__main__":
    typer.run(main)
