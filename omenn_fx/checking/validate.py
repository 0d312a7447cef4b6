"""Validate: the invariants of the design on the user's own model and data, node by node.

`explainer.validate(*inputs)` walks the captured graph once, measures every content node while its operands are there,
and lets go of what nothing after it reads. The measures are those of `omenn_fx.invariants`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx

from omenn_fx.algebra import invariants
from omenn_fx.algebra.bias_policy import Policy, carrier
from omenn_fx.algebra.form import Affine, Call
from omenn_fx.algebra.tolerances import FORWARD_IN_FLOAT32, coarsest, tolerances_of
from omenn_fx.analysis.roles import Tagged
from omenn_fx.capture.nodes import place_of, producer, slots_of, value_of
from omenn_fx.checking.validation_report import NodeErrors, ValidationReport
from omenn_fx.explanation import Explanation
from omenn_fx.graph.twin import Twin, at_node
from omenn_fx.program import Live

Tensor = torch.Tensor
Measure = Callable[[fx.Node, Call, Affine], None]


class Walk(fx.Interpreter):
    """Runs a captured graph and calls `measure` at each content node while its operands are still there."""

    def __init__(self, module: fx.GraphModule, tagged: Tagged, measure: Measure):
        super().__init__(module)
        self.user_to_last_uses = _last_uses(tagged)
        self.tagged, self.measure = tagged, measure
        self.content = {n for n in tagged.content if n not in tagged.sources.values()}

    def run_node(self, n: fx.Node) -> Any:
        self.env[n] = super().run_node(n)
        if n in self.content:
            with at_node(n):
                self.measure(n, *Twin(self.tagged, self.env).form(n))
        return self.env[n]


def _last_uses(tagged: Tagged) -> dict[fx.Node, list[fx.Node]]:
    """Node -> the values that nothing after it needs. A result of several needs the operands of its operator."""
    last: dict[fx.Node, fx.Node] = {}
    for node in tagged.captured.graph.nodes:
        read = (*node.all_input_nodes, *producer(node)[0].all_input_nodes)
        reference = (tagged.reference[n] for n in (node, *read) if n in tagged.reference)
        last.update(dict.fromkeys((*read, *reference), node))
    uses: dict[fx.Node, list[fx.Node]] = {}
    for needed, node in last.items():
        uses.setdefault(node, []).append(needed)
    return uses


@torch.no_grad()
def validate(
    explainer: Live,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    target: Any = None,
    tolerance: float | None = None,
    double: bool = False,
    seed: int = 0,
) -> ValidationReport:
    """See `Explainer.validate`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # a model may draw numbers in forward: the same for both
        explanation = explainer(*args, target=target, **kwargs)
        torch.manual_seed(seed)
        wanted = explainer.reference(*args, **kwargs)
    apart = _against_float64(explainer, explanation, args, kwargs) if double else None
    program, leaves = explainer.program_for(args, kwargs)
    outputs = explanation.outputs.dtype
    dtypes = {outputs} | {d for n in program.tagged.content for d in _dtypes(n, program.tagged)}
    limits = _limits(dtypes, program.captured.widened, tolerance)
    carried = [i.C_b for i in explanation.inputs.values()]
    whole = {
        "forward": _relative(explanation.outputs, wanted),
        "completeness": float(explanation.completeness_error.max()) if explanation.value.numel() else 0.0,
        "mass": 0.0 if None in map(_nothing, carried) else _mass(explanation),
    }
    if not all(bool(torch.isfinite(i.C).all()) for i in explanation.inputs.values()):
        whole["completeness"] = torch.inf
    del explanation, carried  # the walk needs the memory
    policy = explainer.request.policy or carrier
    nodes: list[NodeErrors] = []

    def measure(node: fx.Node, call: Call, form: Affine) -> None:
        entry = measured(program.tagged, node, call, form, policy, seed)
        nodes.append(entry if tolerance is None else replace(entry, allowed=None))

    Walk(program.captured.module, program.tagged, measure).run(*leaves, enable_io_processing=False)
    names = dict.fromkeys(_name(d) for d in (coarsest(dtypes), outputs))
    return ValidationReport(nodes, whole, limits, " and ".join(names), apart)


def measured(tagged: Tagged, node: fx.Node, call: Call, form: Affine, policy: Policy, seed: int = 0) -> NodeErrors:
    """The errors of a node, and what is allowed in the dtypes that it computes in."""
    generator = torch.Generator().manual_seed(seed)
    errors = {
        "node": invariants.node(call, form),
        "linear": invariants.linear(call, form, generator),
        "transpose": invariants.transpose(call, form, generator),
        "mass": invariants.mass(call, form, policy, generator),
    }
    own, worse = _dtypes(node, tagged), {k: _worse(e) for k, e in errors.items()}
    place = place_of(producer(node)[0])
    return NodeErrors(node.name, place, dtype=_name(coarsest(own)), allowed=tolerances_of(*own), **worse)


def _limits(dtypes: set[torch.dtype], widened: bool, tolerance: float | None) -> dict[str, float]:
    """What holds of the whole, computed in these dtypes."""
    limits = dict(tolerances_of(*dtypes))
    if tolerance is not None:
        return dict.fromkeys(limits, tolerance)
    return limits | {"forward": FORWARD_IN_FLOAT32} if widened else limits


def _dtypes(node: fx.Node, tagged: Tagged) -> set[torch.dtype]:
    """The dtypes of a content node and of the content that it reads: those that it computes in."""
    dtypes = {value_of(node).dtype}
    if node not in tagged.sources.values():
        call, _ = producer(node)
        rule = tagged.rules[call.target]
        dtypes |= {value_of(o).dtype for slot, o in slots_of(call, rule) if slot in tagged.slots[node]}
    return dtypes


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _against_float64(explainer: Live, explanation: Explanation, args: Any, kwargs: Any) -> dict[str, float]:
    """How far outputs and C are from those of the same model in float64, relative to the largest of them."""
    args, kwargs = pytree.tree_map(lambda v: v.double() if _floats(v) else v, (args, kwargs))
    exact = explainer.in_float64()(*args, target=explanation.target, **kwargs)
    pairs = [(i.C, exact.inputs[name].C) for name, i in explanation.inputs.items()]
    return {
        "outputs": _relative(explanation.outputs.double(), exact.outputs),
        "C": max(_relative(own.double(), other) for own, other in pairs),
    }


def _floats(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _worse(error: Tensor) -> float:
    """NaN is worse than any number."""
    value = float(error)
    return torch.inf if value != value else value


def _nothing(value: Any) -> Any:
    return None if value is None else 0


def _relative(got: Tensor, want: Tensor) -> float:
    """The largest difference relative to the largest output; where both are the same infinity there is none."""
    if not want.numel():
        return 0.0
    want = want.reshape(got.shape)
    gap = torch.where(got == want, torch.zeros_like(got), (got - want).abs()).max()
    size = torch.where(want.isfinite(), want.abs(), torch.zeros_like(want)).max()
    return _worse(torch.where(gap == 0, gap, gap / size))


def _mass(explanation: Any) -> float:
    """sum(C_b) against the sum of all bias shares that were carried, relative to S."""
    ndim = explanation.value.ndim
    total = sum(i.C_b.flatten(ndim).sum(-1) if i.C_b.ndim > ndim else i.C_b for i in explanation.inputs.values())
    gap = (total - (explanation.bias.total - explanation.bias.remainder)).abs()
    return _worse(torch.where(gap == 0, gap, gap / explanation.size).max()) if gap.numel() else 0.0
