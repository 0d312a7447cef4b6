"""One model of the zoo under the invariants of the design: `check(name, dtype)` -> a record of plain values.

The measures are those of `algebra.invariants` and `tests/invariants.py`; here they are taken on models that random
weights, thousands of nodes or a dict of outputs make harder to compare. Seconds are those of the processor in this
process, which other processes on the machine do not change.
"""

from __future__ import annotations

import math
import re
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

import omenn_fx
from omenn_fx.algebra import invariants as measures
from omenn_fx.algebra.form import Affine, Call
from omenn_fx.algebra.tolerances import FORWARD_IN_FLOAT32, TOLERANCES
from omenn_fx.analysis.layers import stand_ins
from omenn_fx.capture.torch_export import export
from omenn_fx.checking.validate import Walk
from omenn_fx.errors import CaptureError, OmennError, UnsupportedOpError
from omenn_fx.explainer import Explainer
from omenn_fx.explanation import Explanation

from . import Example, build, census

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
import invariants

DTYPES = {"float64": torch.float64, "float32": torch.float32}
TRANSPOSED = 200  # the dot test is taken at no more nodes than this
Record = dict[str, Any]


def check(name: str, dtype: str, seed: int = 0, rules: str = "omenn") -> Record:
    """Transform a model by a rule set and measure it. Never raises: what goes wrong is the status, and its reasons.

    A set other than omenn may have no rule for an operator: where the error names it, it is "refused".
    """
    try:
        return _measured(name, dtype, seed, rules)
    except CaptureError as error:
        reasons = _unexpected(name, error)
        return {
            "status": "failed" if reasons else "not exportable",
            "reasons": reasons,
            "error": relative(str(error)),
        }
    except Exception as error:
        refused = isinstance(error, UnsupportedOpError) and rules != "omenn"
        status = "refused" if refused else "failed"
        return {"status": status, "reasons": [_reason(error)], "error": relative(_trace(error))}


def export_seconds(name: str, seed: int = 0) -> float | None:
    """The time of torch.export alone, at fixed shapes: the better of two, as the first one warms up."""
    model, args, kwargs = build(name, seed=seed)
    taken = []
    try:
        while len(taken) < 2 and sum(taken) < 20:
            start = time.process_time()
            export(model, args, kwargs, dynamic=False)
            taken.append(time.process_time() - start)
    except CaptureError:
        return None
    return round(min(taken), 3)


def _measured(name: str, dtype: str, seed: int, rules: str) -> Record:
    model, args, kwargs = build(name, DTYPES[dtype], seed)
    start = time.process_time()
    explainer = omenn_fx.transform(model, args, example_kwargs=kwargs, rules=rules)
    transformed = time.process_time()
    explanation = _seeded(seed, lambda: explainer(*args, **kwargs))
    explained = time.process_time()
    report = invariants.Report()
    precision = forward(report, explanation, (model, args, kwargs), name, seed)
    invariants.completeness(report, explanation)
    invariants.mass(report, explanation)
    facts = _facts(explainer, explanation)
    empty = facts["weight_share"] == 0 and moves(explainer, explanation, args, kwargs, seed)
    del explanation  # a large model leaves no room for it beside what follows
    by_position = nodes(report, explainer, args, kwargs)
    record = {
        "transform_seconds": round(transformed - start, 3),
        "explain_seconds": round(explained - transformed, 3),
        **{key: _number(error) for key, (error, _) in report.worst.items()},
        "precision": precision,
        "worst": {key: where for key, (_, where) in report.worst.items() if key in ("node", "transpose")},
        **facts,
        "zero": zero(explainer, args, kwargs),
        "empty": empty and not by_position,
    }
    tolerances = dict(TOLERANCES[DTYPES[dtype]])
    if precision:
        tolerances["forward"] = FORWARD_IN_FLOAT32
    reasons = _failures(report, tolerances) + _wrong(record)
    return {"status": "failed" if reasons else "passed", "reasons": reasons, **record}


@torch.no_grad()
def nodes(report: invariants.Report, explainer: Explainer, args: Any, kwargs: Any) -> bool:
    """Invariant 2 at every content node; 4, the dot test, at a sample of them.

    Returns whether a node passes all of its value on by position alone, as LRP's flat rule does: C_w is 0 behind it.
    """
    program, leaves = explainer.program_for(args, kwargs)
    content = [n for n in program.tagged.content if n not in program.tagged.sources.values()]
    sample = set(content[:: max(1, -(-len(content) // TRANSPOSED))])
    generator = torch.Generator().manual_seed(0)
    by_position = False

    def measure(node: fx.Node, call: Call, form: Affine) -> None:
        nonlocal by_position
        by_position |= form.bias is not None and form.bias.relevance
        where = f"{node.name} [{call.op}]"
        report.add("node", measures.node(call, form), where)
        if node in sample:
            report.add("transpose", measures.transpose(call, form, generator), where)

    Walk(program.captured.module, program.tagged, measure).run(*leaves, enable_io_processing=False)
    return by_position


def _seeded(seed: int, run: Any) -> Any:
    """A call with the generator at a known state: a model may draw its latent in forward."""
    torch.manual_seed(seed)
    return run()


def outputs_of(result: Any) -> Tensor:
    """The tensor that omenn_fx explains by default: the logits, or the first one."""
    if isinstance(result, Tensor):
        return result
    logits = result.get("logits") if isinstance(result, dict) else getattr(result, "logits", None)
    leaves = pytree.tree_leaves(dict(result) if isinstance(result, dict) else result)
    return logits if logits is not None else next(v for v in leaves if isinstance(v, Tensor) and v.is_floating_point())


@torch.no_grad()
def forward(report: invariants.Report, explanation: Explanation, example: Example, name: str, seed: int) -> str:
    """Invariant 1; and, of a model in float64, what it computes in float32 all the same ("" for nothing).

    omenn_fx keeps float64 where a model casts. The model is run so as well, and where that agrees no better (a cast
    that Python cannot see) as it is: the smaller difference counts.
    """

    def run(model: nn.Module, args: Any, kwargs: Any) -> Tensor:
        return _seeded(seed, lambda: outputs_of(model(*args, **kwargs)))

    note = ""
    if explanation.outputs.dtype != torch.float64:
        wanted = [run(*example)]
    else:
        try:
            with invariants.KeepFloat64():
                wanted = [run(*example)]
            wanted.append(run(*example))
            note = "" if torch.equal(*wanted) else "casts to float32"
        except RuntimeError:  # an operator that knows no float64, where the captured graph has another one
            wanted = [run(*build(name, torch.float32, seed)).double()]
            note = "cannot run in float64"
    differences = [(explanation.outputs - w).abs().max() / w.abs().max() for w in wanted]
    report.add("forward", min(differences, key=lambda d: float(d.nan_to_num(torch.inf))), "outputs")
    return note


def _facts(explainer: Explainer, explanation: Explanation) -> Record:
    """What the roles decided, and how large the terms of the sum are."""
    captured = explainer.ready.captured
    scale = explanation.scale
    readers = {reader for reader, _ in explainer.opaque}
    opaque = sum((explanation.bias[r].abs() for r in readers if r in explanation.bias), torch.zeros_like(scale))
    tensors = [explanation.outputs, *(t for i in explanation.inputs.values() for t in (i.C_w, i.C_b, i.C))]
    return {
        "nodes": len(captured.graph.nodes),
        "content": len(explainer.ready.tagged.content),
        "dynamic_batch": captured.dynamic_batch,
        "decisions": dict(Counter(d.policy for d in explainer.decisions)),
        "stand_ins": {op: len(at) for op, at in stand_ins(explainer.ready.tagged).items()},
        "opaque": len(readers),
        "opaque_share": _worst(opaque / scale),
        "weight_share": _worst(1 - explanation.bias.magnitude / scale),
        "relative": _worst(explanation.relative_error),
        "scale_over_value": _worst(scale / explanation.value.abs()),
        "finite": all(bool(torch.isfinite(t).all()) for t in tensors),
    }


def _worst(values: Tensor) -> float | str:
    return _number(float(values.max()))


def _number(value: float) -> float | str:
    """Three digits; JSON has no other numbers than finite ones."""
    return float(f"{value:.3g}") if math.isfinite(value) else str(value)


def moves(explainer: Explainer, explanation: Explanation, args: Any, kwargs: Any, seed: int) -> bool:
    """Whether the outputs are others at an input that is a little larger: dead units may leave nothing to explain."""
    args, kwargs = pytree.tree_map(lambda v: v * 1.01 if _floating(v) else v, (args, kwargs))
    return not torch.equal(_seeded(seed, lambda: explainer(*args, **kwargs)).outputs, explanation.outputs)


def _floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def zero(explainer: Explainer, args: Any, kwargs: Any) -> str:
    """C at an input that is zero everywhere: "finite", "not finite", or why there is nothing to see."""
    if not any(map(_floating, pytree.tree_leaves((args, kwargs)))):
        return "no floating-point input"
    args, kwargs = pytree.tree_map(lambda v: torch.zeros_like(v) if _floating(v) else v, (args, kwargs))
    explanation = explainer(*args, **kwargs)
    if not torch.isfinite(explanation.outputs).all():
        return "the model's own output is not finite"
    parts = [t for i in explanation.inputs.values() for t in (i.C_w, i.C_b)]
    return "finite" if all(bool(torch.isfinite(t).all()) for t in parts) else "not finite"


def _failures(report: invariants.Report, tolerances: dict[str, float]) -> list[str]:
    return [
        f"{key} {report.worst[key][0]:.1e} at {report.worst[key][1]}"
        for key, tolerance in tolerances.items()
        if key in report.worst and not report.worst[key][0] <= tolerance
    ]


def _wrong(record: Record) -> list[str]:
    """What is wrong beside the invariants, which an explanation that says nothing keeps as well."""
    wrong = {
        "C or the outputs are not finite": not record["finite"],
        "C is not finite at an input of zeros": record["zero"] == "not finite",
        "C_w is zero, but the output moves with the input": record["empty"],
    }
    return [reason for reason, holds in wrong.items() if holds]


# Errors -----------------------------------------------------------------------------------------------------------


def _unexpected(name: str, error: CaptureError) -> list[str]:
    """What is wrong about a capture that failed: nothing, where the census says so and the user's line is named."""
    wrong = {
        "the error names no line of the user's code": not re.search(r"^\s*at .+:\d+ in ", str(error), re.M),
        "not captured, which the census could": name not in census() or census()[name].exports,
    }
    return [reason for reason, holds in wrong.items() if holds]


def _reason(error: BaseException) -> str:
    """The first line of an error; for operators without a rule, which."""
    places = getattr(error, "places", ())
    if places:
        counts = Counter(p.op for p in places)
        return "no rule for " + ", ".join(f"{op} ({n})" for op, n in counts.items())
    return f"{type(error).__name__}: {relative((str(error).strip() or '-').splitlines()[0])[:300]}"


def _trace(error: BaseException) -> str:
    """The message, and for an error that is not meant for users the last frames."""
    text = f"{type(error).__name__}: {error}"[:2000]
    if isinstance(error, OmennError):
        return text
    chain = error.__cause__ or error
    frames = traceback.extract_tb(chain.__traceback__)[-4:]
    return text + "".join(f"\n  {f.filename}:{f.lineno} in {f.name}: {f.line}" for f in frames)


def relative(text: str) -> str:
    """A text without the paths of this machine."""
    text = text.replace(f"{Path(__file__).resolve().parents[2]}/", "")
    return re.sub(r"/\S*/(site-packages|lib/python[\d.]+)/", "", text)
