"""The runtimes that an exported explainer is run in: (file, several inputs by name) -> their outputs by name."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]
Results = list[dict[str, np.ndarray]]
Runner = Callable[[Path, list[Arrays]], Results]
TESTS = Path(__file__).resolve().parents[2] / "tests"
WASM = """
import { readFileSync, writeFileSync } from "node:fs";
import * as ort from "onnxruntime-web/wasm";
ort.env.wasm.numThreads = 1;
const folder = process.argv[2];
const session = await ort.InferenceSession.create(readFileSync(`${folder}/model.onnx`));
const types = { float32: Float32Array, int64: BigInt64Array, int32: Int32Array, bool: Uint8Array };
const said = [];
for (const [run, inputs] of JSON.parse(readFileSync(`${folder}/feeds.json`)).entries()) {
  const feeds = {};
  for (const [i, { name, type, dims }] of inputs.entries()) {
    const bytes = readFileSync(`${folder}/${run}.${i}.in`);
    const whole = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
    feeds[name] = new ort.Tensor(type, new types[type](whole), dims);
  }
  const results = Object.entries(await session.run(feeds));
  said.push(results.map(([name, { data, dims, type }], i) => {
    writeFileSync(`${folder}/${run}.${i}.out`, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    return { name, dims, type };
  }));
}
writeFileSync(`${folder}/results.json`, JSON.stringify(said));
"""


def _onnxruntime(path: Path, feeds: list[Arrays], optimised: bool = True) -> Results:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return [dict(zip(names, session.run(names, dict(one)), strict=True)) for one in feeds]


def _plainly(path: Path, feeds: list[Arrays]) -> Results:
    return _onnxruntime(path, feeds, optimised=False)


def _openvino(path: Path, feeds: list[Arrays]) -> Results:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    request, found = compiled.create_infer_request(), []
    for one in feeds:
        results = request.infer(dict(one))
        found.append({next(iter(o.names)): np.array(results[o]) for o in compiled.outputs})
    return found


def _tract(path: Path, feeds: list[Arrays]) -> Results:
    import onnx
    import tract

    names = [o.name for o in onnx.load(str(path), load_external_data=False).graph.output]
    model = tract.onnx().load(str(path))
    kinds = {"float32": "f32", "int64": "i64", "int32": "i32", "bool": "bool"}
    for i, array in enumerate(feeds[0].values()):
        model.set_input_fact(i, ",".join([*map(str, array.shape), kinds[str(array.dtype)]]))
    runnable = model.into_model().into_runnable()
    found = ([value.to_numpy() for value in runnable.run(list(one.values()))] for one in feeds)
    return [dict(zip(names, values, strict=True)) for values in found]


def _reference(path: Path, feeds: list[Arrays]) -> Results:
    from onnx.reference import ReferenceEvaluator

    session = ReferenceEvaluator(str(path))
    return [dict(zip(session.output_names, session.run(None, dict(one)), strict=True)) for one in feeds]


def _wasm(path: Path, feeds: list[Arrays]) -> Results:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(path, folder / "model.onnx")
        described = [[{"name": n, "type": str(a.dtype), "dims": a.shape} for n, a in one.items()] for one in feeds]
        (folder / "feeds.json").write_text(json.dumps(described))
        for run, one in enumerate(feeds):
            for i, array in enumerate(one.values()):
                (folder / f"{run}.{i}.in").write_bytes(np.ascontiguousarray(array).tobytes())
        (folder / "node_modules").symlink_to(_modules())
        (folder / "run.mjs").write_text(WASM)
        done = subprocess.run(["node", "run.mjs", name], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(next((line for line in done.stderr.splitlines() if "rror" in line), done.stderr[-300:]))
        said = json.loads((folder / "results.json").read_text())
        return [
            {r["name"]: _array(folder / f"{run}.{i}.out", r) for i, r in enumerate(s)} for run, s in enumerate(said)
        ]


def _array(path: Path, described: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(path.read_bytes(), dtype=described["type"]).reshape(described["dims"])


def _modules() -> Path | None:
    """The npm packages of the tests."""
    sys.path.append(str(TESTS))
    import npm

    return npm.found() if shutil.which("node") else None


RUNNERS: dict[str, Runner] = {
    "onnxruntime": _onnxruntime,
    "onnxruntime, nothing optimised": _plainly,
    "onnxruntime-web, wasm": _wasm,
    "OpenVINO": _openvino,
    "tract": _tract,
    "onnx.reference": _reference,
}


def installed() -> list[str]:
    """The runtimes that are here."""
    needs: dict[str, Any] = {"OpenVINO": "openvino", "tract": "tract"}
    missing = {name for name, library in needs.items() if importlib.util.find_spec(library) is None}
    return [name for name in RUNNERS if name not in missing and (name != "onnxruntime-web, wasm" or _modules())]
