"""The invariants 1 to 6 of the design, measured on any explainer: `measure(explainer, model, *inputs)` -> `Report`.

Each error is relative to the size of what is added up (|W| |h| + |b|, |<W u, v>|'s terms, S), never to a result that
may have cancelled, and each comes with the node that it was worst at.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from omenn_fx.algebra import invariants
from omenn_fx.algebra.invariants import Report
from omenn_fx.capture.nodes import producer
from omenn_fx.explainer import Explainer
from omenn_fx.explanation import Explanation
from omenn_fx.graph.affine_map import Recorder
from omenn_fx.graph.twin import Twin

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


class KeepFloat64(TorchFunctionMode):
    """Casts to float32 give float64, as omenn_fx makes them in a float64 model (`capture._widen`).

    Llama's RMS norm, rotary embedding and eager softmax cast to float32 whatever the model's dtype is; compared with
    such a forward, float64 could never agree better than 1e-7.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.float:
            return args[0].double()
        wide = [torch.float64 if a is torch.float32 else a for a in args]
        named = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return function(*wide, **named)


@torch.no_grad()
def measure(explainer: Explainer, model: nn.Module, *args: Any, target: Any = None, **kwargs: Any) -> Report:
    """All six invariants of an explainer at one batch of inputs."""
    report = Report()
    explanation = explainer(*args, target=target, **kwargs)
    forward(report, explanation, reference_outputs(model, args, kwargs))
    completeness(report, explanation)
    mass(report, explanation)
    nodes(report, explainer, args, kwargs)
    return report


def reference_outputs(model: nn.Module, args: Any, kwargs: Any) -> Tensor:
    """The model's own output; a float64 model's is float64 throughout."""
    double = any(v.dtype == torch.float64 for v in (*model.parameters(), *model.buffers()))
    with KeepFloat64() if double else nullcontext():
        outputs = model(*args, **kwargs)
    return outputs if isinstance(outputs, Tensor) else outputs.logits


def forward(report: Report, explanation: Explanation, outputs: Tensor) -> None:
    """1. The twin's outputs are the model's."""
    report.add("forward", (explanation.outputs - outputs).abs().max() / outputs.abs().max(), "outputs")


def completeness(report: Report, explanation: Explanation) -> None:
    """5. sum(C) over all inputs is the explained value, relative to S; with bias="none" the shares are added to it."""
    total = sum(_per_value(i.C, explanation.value) for i in explanation.inputs.values())
    if any(i.C_b is None for i in explanation.inputs.values()):
        total = total + explanation.bias.total
    weighted = [i.C_w * (i.X[:, None] if i.several else i.X) for i in explanation.inputs.values()]
    shares = sum((s.abs() for s in explanation.bias.values()), torch.zeros_like(explanation.value))
    scale = sum(_per_value(w.abs(), explanation.value) for w in weighted) + shares
    torch.testing.assert_close(explanation.scale, scale)
    report.add("completeness", ((total - explanation.value).abs() / scale).max(), "sum(C)")


def mass(report: Report, explanation: Explanation) -> None:
    """6. sum(C_b) is the sum of all bias shares, sample by sample."""
    carried = [i.C_b for i in explanation.inputs.values()]
    if any(c is None for c in carried):
        return
    total = sum(_per_value(c, explanation.value) for c in carried)
    scale = sum(_per_value(c.abs(), explanation.value) for c in carried) + explanation.bias.magnitude
    error = (total - explanation.bias.total).abs() / scale.clamp_min(torch.finfo(scale.dtype).tiny)
    report.add("mass", error.max(), "sum(C_b)")


def _per_value(values: Tensor, like: Tensor) -> Tensor:
    """The sum over everything but the batch (and the targets)."""
    return values.flatten(like.ndim).sum(-1) if values.ndim > like.ndim else values


def content_nodes(explainer: Explainer, args: Any, kwargs: Any) -> tuple[Twin, dict[fx.Node, Any], list[fx.Node]]:
    """The affine twin at these inputs, the value of every node, and the content nodes less the sources."""
    program, leaves = explainer.program_for(args, kwargs)
    values = Recorder(program.captured.module).record(leaves)
    sources = set(program.tagged.sources.values())
    return Twin(program.tagged, values), values, [n for n in program.tagged.content if n not in sources]


def nodes(report: Report, explainer: Explainer, args: Any, kwargs: Any, seed: int = 0) -> None:
    """2. W h + b == h, 3. W acts linearly, 4. <W u, v> == <u, W^T v>: at every content node, for every operand."""
    generator = torch.Generator().manual_seed(seed)
    twin, _, content = content_nodes(explainer, args, kwargs)
    for node in content:
        where = f"{node.name} [{producer(node)[0].target}]"
        call, form = twin.form(node)
        report.add("node", invariants.node(call, form), where)
        report.add("linear", invariants.linear(call, form, generator), where)
        report.add("transpose", invariants.transpose(call, form, generator), where)
