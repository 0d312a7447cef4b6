"""Random networks under everything that must hold: outputs, sum, nodes, rows, `check`, files, and an unchanged model.

    python benchmarks/fuzz.py                          # seeds 0 to 299; skips what the result file has
    python benchmarks/fuzz.py --first 300 --last 400   # others
    python benchmarks/fuzz.py --onnx 60                # every fifth as an ONNX and a .pt2 file too
    python benchmarks/fuzz.py --seed 17                # one network, with its layers, in no file
    python benchmarks/fuzz.py --seed 17 --most 10      # ... as the tests draw it, of 10 layers at most
    python benchmarks/fuzz.py --show                   # the table of the result file alone

A seed always is the same network (`random_networks.network`). Where one fails, it is
made small: its first layers alone. The result file is written after every seed.
"""

from __future__ import annotations

import copy
import json
import logging
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import omenn_fx
from omenn_fx.algebra.tolerances import TOLERANCES
from omenn_fx.errors import OmennError
from omenn_fx.explainer import Explainer
from omenn_fx.explanation import Explanation

sys.path.append(str(Path(__file__).resolve().parent))
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from contest import device_name
from random_networks import MOST, Example, network
from unchanged import settle, unchanged

RESULTS = Path(__file__).resolve().parent / "results"
SETS = ("gradient", "epsilon_plus", "omenn_gamma")  # in turn, on every third seed
ROWS = 1e-9  # of S: a row alone against the row in its batch, in float64
FILE = 1e-4  # of S: C in onnxruntime, in float32
Record = dict[str, Any]
Failures = list[dict[str, str]]


def examine(seed: int, count: int | None = None, most: int = MOST, files: bool = False) -> Record:
    """One network under all of it. Never raises: what goes wrong is in "failures", each with its kind."""
    start, failures = time.process_time(), Failures()
    example = network(seed, count, most)
    with noted(failures, "unchanged"), unchanged(example.model, *example.inputs):
        _explained(example, seed, files, failures)
    seconds = round(time.process_time() - start, 2)
    return {"layers": example.layers, "files": files, "seconds": seconds, "failures": failures}


@contextmanager
def noted(failures: Failures, kind: str) -> Iterator[None]:
    """What the block raises is a failure of this kind."""
    try:
        yield
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        failures.append({"kind": kind, "error": f"{type(error).__name__}: {' | '.join(lines)}"[:600]})


def _explained(example: Example, seed: int, files: bool, failures: Failures) -> None:
    explainer = None
    with noted(failures, "transform"):
        explainer = omenn_fx.transform(example.model, example.inputs)
    with noted(failures, "check"):
        agrees(example, "omenn", explainer is not None)
    if explainer is None:
        return
    kinds: dict[str, Callable[[], None]] = {
        "sum": lambda: adds_up(explainer(*example.inputs), example.logits()),
        "nodes": lambda: validates(explainer, example),
        "rows": lambda: row_by_row(explainer, example),
    }
    if seed % 3 == 0:
        kinds[SETS[seed // 3 % len(SETS)]] = lambda: by_another_set(example, SETS[seed // 3 % len(SETS)])
    if seed % 4 == 1:
        kinds["float32"] = lambda: in_float32(explainer, example)
    if files:
        kinds |= {"onnx": lambda: onnx_file(explainer, example), "pt2": lambda: pt2_file(explainer, example)}
    for kind, holds in kinds.items():
        with noted(failures, kind):
            holds()


# What must hold ------------------------------------------------------------------------------------------------------


def adds_up(explanation: Explanation, logits: Tensor) -> None:
    """The outputs are the model's, and the sum of C over all inputs is the explained one of them."""
    limits = TOLERANCES[explanation.outputs.dtype]
    assert explanation.outputs.shape == logits.shape, f"outputs {list(explanation.outputs.shape)}"
    apart = float((explanation.outputs - logits).abs().max() / logits.abs().max())
    assert apart <= limits["forward"], f"outputs are {apart:.1e} from the model's"
    chosen = logits.flatten(1).gather(1, explanation.target[:, None])[:, 0]
    total = torch.stack([one.C.flatten(1).sum(1) for one in explanation.inputs.values()]).sum(0)
    gap = float(((total - chosen).abs() / explanation.scale).max())
    assert gap <= limits["completeness"] + limits["forward"], f"the sum of C is {gap:.1e} of S from the logit"
    error = float(explanation.completeness_error.max())
    assert error <= limits["completeness"], f"completeness error {error:.1e}"


def agrees(example: Example, rules: str, explained: bool) -> None:
    """`check` says what `transform` does."""
    report = omenn_fx.check(example.model, example.inputs, rules=rules)
    assert report.supported == explained, f"check says {report.supported}, transform {explained}: {report.problems}"


def validates(explainer: Explainer, example: Example) -> None:
    """Every invariant at every node."""
    report = explainer.validate(*example.inputs)
    worst = max(report.nodes, key=lambda node: node.worst)
    assert report.ok, f"{report.whole}; worst at {worst.name} ({worst.place.op}): {worst.worst:.1e}"


def row_by_row(explainer: Explainer, example: Example) -> None:
    """A row alone has the explanation that it has in its batch."""
    together = explainer(*example.inputs)
    for i, flat in enumerate(together.target):
        position = tuple(int(p) for p in torch.unravel_index(flat, together.outputs.shape[1:]))
        alone = explainer(*(x[i : i + 1] for x in example.inputs), target=position)
        for name, one in alone.inputs.items():
            gap = float((one.C[0] - together.inputs[name].C[i]).abs().max() / together.scale[i])
            assert gap <= ROWS, f"C of '{name}' of row {i} alone is {gap:.1e} of S from that in the batch"


def by_another_set(example: Example, rules: str) -> None:
    """Another rule set adds up too, or refuses the model, as `check` says."""
    try:
        explainer = omenn_fx.transform(example.model, example.inputs, rules=rules)
    except OmennError:
        agrees(example, rules, False)
    else:
        agrees(example, rules, True)
        adds_up(explainer(*example.inputs), example.logits())


def in_float32(explainer: Explainer, example: Example) -> None:
    adds_up(explainer.converted(torch.float32)(*narrow(example)), narrowed(example))


def onnx_file(explainer: Explainer, example: Example) -> None:
    """onnxruntime explains as the twin does in float32."""
    from omenn_fx.export import load

    twin, inputs = explainer.converted(torch.float32), narrow(example)
    with tempfile.TemporaryDirectory() as folder:
        twin.to_onnx(Path(folder) / "explainer.onnx", *inputs)
        _same(load(Path(folder) / "explainer.onnx")(*inputs), twin(*inputs), FILE)


def pt2_file(explainer: Explainer, example: Example) -> None:
    """A saved explainer explains as the live one does."""
    with tempfile.TemporaryDirectory() as folder:
        explainer.save(Path(folder) / "explainer.pt2", *example.inputs)
        _same(omenn_fx.load(Path(folder) / "explainer.pt2")(*example.inputs), explainer(*example.inputs), ROWS)


def _same(got: Explanation, want: Explanation, limit: float) -> None:
    for (name, one), two in zip(got.inputs.items(), want.inputs.values(), strict=True):
        rows = (one.C - two.C).abs().flatten(1).amax(1)
        gap = float((rows / want.scale).max())
        assert gap <= limit, f"C of '{name}' is {gap:.1e} of S from the live explainer's"


def narrow(example: Example) -> tuple[Tensor, ...]:
    return tuple(x.float() if x.is_floating_point() else x for x in example.inputs)


@torch.no_grad()
def narrowed(example: Example) -> Tensor:
    """What a copy of the model in float32 says."""
    return Example(copy.deepcopy(example.model).float(), narrow(example), []).logits()


def smallest(seed: int, record: Record, most: int = MOST) -> int:
    """How many layers of a network that fails are enough to fail in the same way, by halving."""
    kinds = {failure["kind"] for failure in record["failures"]}
    passing, failing = 0, len(record["layers"])
    while failing - passing > 1:
        count = (passing + failing) // 2
        found = examine(seed, count, most, record["files"])["failures"]
        passing, failing = (passing, count) if kinds & {f["kind"] for f in found} else (count, failing)
    return failing


# The result file -----------------------------------------------------------------------------------------------------


def read(path: Path) -> dict[int, Record]:
    return {int(k): v for k, v in json.loads(path.read_text())["seeds"].items()} if path.exists() else {}


def write(path: Path, results: dict[int, Record]) -> None:
    """One seed a line; the old file stays until the new one is whole."""
    setting = {"omenn_fx": omenn_fx.__version__, "torch": torch.__version__, "device": device_name()}
    lines = ",\n".join(f'  "{seed}": {json.dumps(results[seed])}' for seed in sorted(results))
    unfinished = path.with_suffix(".part")
    unfinished.write_text(f'{{"setting": {json.dumps(setting)},\n "seeds": {{\n{lines}\n}}}}\n')
    unfinished.replace(path)


def show(results: dict[int, Record], console: Console) -> None:
    kinds = Counter(failure["kind"] for record in results.values() for failure in record["failures"])
    layers = Counter(name for record in results.values() for name in record["layers"])
    clean = sum(not record["failures"] for record in results.values())
    table = Table("networks", "clean", "as files", "layers", "kinds of layers", "seconds", title="random networks")
    seconds = sum(record["seconds"] for record in results.values())
    files = sum(record["files"] for record in results.values())
    table.add_row(*map(str, (len(results), clean, files, layers.total(), len(layers), round(seconds))))
    console.print(table)
    for kind, count in kinds.most_common():
        console.print(f"[bold]{kind}[/]: {count} fail")
    for seed, record in sorted(results.items()):
        for failure in record["failures"]:
            small = f", already its first {record['smallest']} layers" if "smallest" in record else ""
            console.print(f"seed {seed}{small}, {failure['kind']}: {failure['error']}", markup=False, soft_wrap=True)


def main(
    first: int = 0,
    last: int = 299,
    onnx: Annotated[int, typer.Option(help="how many of them are written as files too")] = 0,
    seed: Annotated[int | None, typer.Option(help="one network, in no file")] = None,
    most: Annotated[int, typer.Option(help="layers of a network")] = MOST,
    again: Annotated[bool, typer.Option(help="also what the result file has")] = False,
    only_show: Annotated[bool, typer.Option("--show", help="the result file alone")] = False,
    out: Path = RESULTS / "fuzz.json",
) -> None:
    """Examine random networks and write the result as JSON. Exits with 1 where one of them fails."""
    torch.set_num_threads(1)
    settle()
    warnings.simplefilter("ignore")
    logging.getLogger("omenn_fx").setLevel(logging.ERROR)
    console = Console()
    if seed is not None:
        results = {seed: examine(seed, most=most, files=onnx > 0)}
        for name, reads in zip(results[seed]["layers"], network(seed, most=most).model.reads, strict=True):
            console.print(f"{name} of {', '.join(map(str, reads))}", markup=False)
    else:
        results = read(out)
        every = (last - first + 1) // onnx if onnx else 0
        for one in () if only_show else track(range(first, last + 1), "random networks", console=console):
            files = every > 0 and (one - first) % every == 0 and (one - first) // every < onnx
            if not again and one in results and (results[one]["files"] or not files):
                continue
            record = examine(one, most=most, files=files)
            results[one] = record | ({"smallest": smallest(one, record, most)} if record["failures"] else {})
            write(out, results)
    show(results, console)
    raise typer.Exit(any(record["failures"] for record in results.values()))


if __name__ == "__main__":
    typer.run(main)
