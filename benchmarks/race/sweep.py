"""An explanation against its forward on many architectures, drawn by a seed: a distribution, and what takes the time.

Every model runs in a process of its own, at batch 1 and 8 with one thread. The contestants of a batch take turns; times
are processor seconds. Where onnxruntime is among them its profiler says which operators take what the explainer takes
beyond a forward.
"""

from __future__ import annotations

import copy
import json
import random
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from contest import device_name, interleaved
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from zoo import pool

BATCHES = (1, 8)
SEED, COUNT = 23, 80
RUNTIMES = ("onnxruntime", "openvino", "torch")
NAMED = 6  # operators of a line
WORST = 12  # models in the table
TIMEOUT, MEMORY = 900, 10  # seconds and GiB of a model
PROFILED = 5  # runs
TRAINED = (
    "CIFAR ResNet-20",
    "CIFAR ResNet-56",
    "SqueezeNet 1.0",
    "EfficientNet-Lite0",
    "MNIST LSTM",
    "MiniLM sentiment",
)
Line = dict[str, Any]
Send = Callable[[str, Any], None]
Calls = dict[str, Callable[[], Any]]


def drawn(coverage: dict[str, Any], seconds: float, count: int = COUNT, seed: int = SEED) -> list[str]:
    """Names of the census, and the trained models before them.

    Those with a free batch whose line took less processor time than `seconds`: a sweep of the largest takes days.
    """
    fit = [
        name
        for name, line in coverage.items()
        if line["float32"]["status"] == "passed"
        and line["float32"]["dynamic_batch"]
        and (line["processor_seconds"] or seconds) < seconds
    ]
    return [*TRAINED, *random.Random(seed).sample(sorted(fit), min(count - len(TRAINED), len(fit)))]


def task(name: str, send: Send, runtimes: tuple[str, ...], rounds: int) -> None:
    """One model: a line for each batch, sent as it is finished."""
    import omenn_fx

    model, args, kwargs = example(name)
    explainer = omenn_fx.transform(model, args, example_kwargs=kwargs)
    with tempfile.TemporaryDirectory() as folder:
        files = written(explainer, (model, args, kwargs), Path(folder)) if set(runtimes) & {*RUNTIMES[:2]} else None
        for batch in BATCHES:
            rows = rows_of(args, kwargs, batch)
            calls: Calls = {}
            for runtime in runtimes:
                try:
                    calls |= _CALLS[runtime](model, explainer, files, rows)
                except Exception as error:  # a peer's own failure is a result
                    send(f"{runtime}, batch {batch}", {"failed": f"{type(error).__name__}: {error}"[:300]})
            taken = interleaved(calls, rounds if batch == 1 else max(3, rounds // 2))
            for runtime in {name.rpartition(" ")[0] for name in calls}:
                send(f"{runtime}, batch {batch}", _line(taken, runtime))
        if files and "onnxruntime" in runtimes:
            send("operators", _excess(files, rows_of(args, kwargs, 1)))


def _line(taken: dict[str, dict[str, float]], runtime: str) -> Line:
    times = {part: taken[f"{runtime} {part}"]["median"] for part in ("forward", "explainer")}
    peer = taken.get(f"{runtime} InputXGradient")
    more = {"inputxgradient": peer["median"] / times["forward"]} if peer else {}
    return times | {"ratio": times["explainer"] / times["forward"]} | more


# Models --------------------------------------------------------------------------------------------------------------


def example(name: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    if name in TRAINED:
        import trained

        found = trained.MODELS[name]()
        start = {key: value[:2] for key, value in found.inputs.items()}
        return (found.model, tuple(start.values()), {}) if "x" in start else (found.model, (), start)
    import zoo

    return zoo.build(name)


def _rows(leaf: Any, batch: int) -> Any:
    """So many rows of an example; others than its own are copies, for the time does not depend on values."""
    if not isinstance(leaf, Tensor) or not leaf.ndim:
        return leaf
    return leaf[torch.arange(batch) % len(leaf)].contiguous()


def rows_of(args: Any, kwargs: Any, batch: int) -> Any:
    return pytree.tree_map(lambda leaf: _rows(leaf, batch), (args, kwargs))


def written(explainer: Any, of: Any, folder: Path) -> dict[str, Path]:
    """The explainer's file as users write it, and the model alone by torch.onnx, both with a free batch."""
    model, args, kwargs = of
    files = {part: folder / f"{part}.onnx" for part in ("explainer", "forward")}
    explainer.to_onnx(files["explainer"], *args, verify=False, **kwargs)
    free = pytree.tree_map(
        lambda leaf: {0: torch.export.Dim.DYNAMIC} if isinstance(leaf, Tensor) and leaf.ndim else None, (args, kwargs)
    )
    by_name = free[1] if not args else None
    torch.onnx.export(
        copy.deepcopy(model), args, kwargs=kwargs, dynamo=True, verbose=False, dynamic_shapes=by_name or free[0]
    ).save(files["forward"])
    return files


# Runtimes ------------------------------------------------------------------------------------------------------------


def _in_torch(model: Any, explainer: Any, files: Any, rows: Any) -> Calls:
    """torch eager, and Captum's InputXGradient where the model has one input by position."""
    args, kwargs = rows
    target = explainer(*args, **kwargs).target

    def forward() -> Any:
        with torch.no_grad():
            return model(*args, **kwargs)

    calls: Calls = {"torch forward": forward, "torch explainer": lambda: explainer(*args, target=target, **kwargs).C}
    plain = len(args) == 1 and not kwargs and isinstance(out := forward(), Tensor) and out.ndim == 2
    if plain and args[0].is_floating_point():
        from captum.attr import InputXGradient

        x, method = args[0].clone().requires_grad_(), InputXGradient(model)
        calls["torch InputXGradient"] = lambda: method.attribute(x, target=target)
    return calls


def _session(path: Path, profile: Path | None = None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feeds_of(names: list[str], rows: Any) -> dict[str, Any]:
    """The tensors in the order of the inputs; a target behind them."""
    values = [leaf for leaf in pytree.tree_leaves(rows) if isinstance(leaf, Tensor)]
    batch = next(len(v) for v in values if v.ndim)
    values.append(torch.zeros(batch, dtype=torch.int64))
    return {name: value.numpy() for name, value in zip(names, values, strict=False)}


def _in_onnxruntime(model: Any, explainer: Any, files: dict[str, Path], rows: Any) -> Calls:
    calls: Calls = {}
    for part, path in files.items():
        session = _session(path)
        feeds = feeds_of([i.name for i in session.get_inputs()], rows)
        calls[f"onnxruntime {part}"] = lambda session=session, feeds=feeds: session.run(None, feeds)
    return calls


def _in_openvino(model: Any, explainer: Any, files: dict[str, Path], rows: Any) -> Calls:
    import openvino

    core, calls = openvino.Core(), Calls()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    for part, path in files.items():
        compiled = core.compile_model(str(path), "CPU", settings)
        feeds = feeds_of([next(iter(i.names)) for i in compiled.inputs], rows)
        request = compiled.create_infer_request()
        calls[f"openvino {part}"] = lambda request=request, feeds=feeds: request.infer(feeds)
    return calls


_CALLS: dict[str, Callable[..., Calls]] = {
    "onnxruntime": _in_onnxruntime,
    "openvino": _in_openvino,
    "torch": _in_torch,
}


# Where the time goes -------------------------------------------------------------------------------------------------


def _excess(files: dict[str, Path], rows: Any) -> list[list[Any]]:
    """[operator, share of a forward that the explainer spends in it beyond the forward], the largest first."""
    own, other = (_by_operator(files[part], rows) for part in ("explainer", "forward"))
    whole = sum(other.values())
    more = Counter({op: (own[op] - other[op]) / whole for op in own})
    return [[op, round(share, 3)] for op, share in more.most_common(NAMED)]


def _by_operator(path: Path, rows: Any) -> Counter[str]:
    """Microseconds of one run by operator, as onnxruntime's profiler has them."""
    session = _session(path, path.with_suffix(""))
    feeds = feeds_of([i.name for i in session.get_inputs()], rows)
    for _ in range(PROFILED):
        session.run(None, feeds)
    found: Counter[str] = Counter()
    for event in _kernels(Path(session.end_profiling())):
        found[event["args"]["op_name"]] += event["dur"]
    return Counter({op: time / PROFILED for op, time in found.items()})


def _kernels(profile: Path) -> Iterator[dict[str, Any]]:
    events = json.loads(profile.read_text())
    return (e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time"))


# The command ---------------------------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Line]:
    return json.loads(path.read_text())["models"] if path.exists() else {}


def write(path: Path, models: dict[str, Line], setting: dict[str, Any]) -> None:
    """One model a line; the old file stays until the new one is whole."""
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(line)}" for name, line in models.items())
    whole = {"seed": SEED, "device": device_name(), **setting}
    unfinished = path.with_suffix(".part")
    unfinished.write_text(f'{{"setting": {json.dumps(whole)},\n "models": {{\n{lines}\n}}}}\n')
    unfinished.replace(path)


def compete(
    names: list[str], out: Path, runtimes: tuple[str, ...], rounds: int, setting: dict[str, Any], console: Console
) -> None:
    """The models that the result file does not have yet, one after the other: two at once would slow each other."""
    left = [name for name in names if name not in read(out)]
    work = partial(task, runtimes=runtimes, rounds=rounds)
    outcomes = pool.run(work, left, 1, TIMEOUT, MEMORY, alone=lambda name: False)
    for outcome in track(outcomes, "models", total=len(left), console=console):
        line = outcome.sent | ({"ended": outcome.ended} if outcome.ended else {})
        write(out, read(out) | {outcome.name: line}, setting)


def show(models: dict[str, Line], console: Console) -> None:
    """The distribution in each runtime and batch, then the models where an explanation costs most, and why."""
    table = Table("", "models", "median", "90 %", "worst", "", title="explainer / forward")
    for key in [f"{runtime}, batch {batch}" for runtime in RUNTIMES for batch in BATCHES]:
        found = sorted((line[key]["ratio"], name) for name, line in models.items() if "ratio" in line.get(key, {}))
        if len(found) > 1:
            ratios = [ratio for ratio, _ in found]
            ninety = statistics.quantiles(ratios, n=10, method="inclusive")[-1]
            shown = (f"{value:.2f}" for value in (statistics.median(ratios), ninety, ratios[-1]))
            table.add_row(key, str(len(found)), *shown, found[-1][1])
    console.print(table)
    first = f"onnxruntime, batch {BATCHES[0]}"
    worst = Table("", "ratio", "operators that take the time beyond a forward, in forwards", title=first)
    ranked = sorted(models.items(), key=lambda item: -item[1].get(first, {}).get("ratio", 0))
    for name, line in [item for item in ranked if "ratio" in item[1].get(first, {})][:WORST]:
        operators = ", ".join(f"{op} {share:.2f}" for op, share in line.get("operators", []) if share > 0)
        worst.add_row(name, f"{line[first]['ratio']:.2f}", operators)
    console.print(worst)
    for name, line in models.items():
        for key, part in line.items():
            if key == "ended" or (isinstance(part, dict) and "failed" in part):
                console.print(f"{name}, {key}: {part if key == 'ended' else part['failed']}", markup=False)
