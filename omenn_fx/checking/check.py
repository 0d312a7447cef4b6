"""Check: whether a model can be explained exactly, and by name what cannot, before any data and any weights.

`check` makes the plan that `transform` makes, from shapes alone, and reports it node by node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx, nn
from torch.export import ExportedProgram

from omenn_fx.algebra.ruleset import RuleSet
from omenn_fx.analysis.endpoints import Explain, Output
from omenn_fx.analysis.plan import Plan, Request, make_plan
from omenn_fx.analysis.roles import Role, Tagged
from omenn_fx.capture.inputs import positional
from omenn_fx.capture.nodes import place_of, producer, slots_of
from omenn_fx.capture.sizes import batch_size
from omenn_fx.capture.torch_export import Source, load_source
from omenn_fx.checking.check_report import CheckReport
from omenn_fx.checking.findings import problems, reached, untried, warnings
from omenn_fx.checking.verdict import NodeVerdict, Verdict
from omenn_fx.errors import InputError, OmennError
from omenn_fx.program import tried_plan


@torch.no_grad()
def check(
    model: Source,
    example_inputs: torch.Tensor | tuple[Any, ...] | None = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    explain: Explain = None,
    at: str | None = None,
    output: Output = None,
    rules: str | RuleSet = "omenn",
    roles: Mapping[str, str] | None = None,
    dynamic_batch: bool = True,
    batched: bool = True,
    trusted: bool = False,
) -> CheckReport:
    """Say whether `transform` with these arguments explains the model exactly.

    A model on the meta device (`with torch.device("meta"): ...`) needs no weights; example inputs are then moved there
    too. Where there are weights, whether the samples of a batch reach each other is tried on a few rows as well.

    Args:
        model: as of `transform`.
        example_inputs, example_kwargs: inputs of the right shapes. Without them: those of an exported program, or what
            a model of transformers or timm says of itself.
        explain, at, output, rules, roles, dynamic_batch, batched, trusted: as of `transform`.

    Returns:
        A report; what `transform` would raise is in its problems, never raised here.

    Raises:
        InputError: no example inputs are given, and the model tells none.
        FileError: as of `transform`.
    """
    request = Request.of(
        rules, explain=explain, at=at, output=output, roles=roles, dynamic_batch=dynamic_batch, batched=batched
    )
    try:
        source = load_source(model, trusted)
        args, kwargs = positional(example_inputs), dict(example_kwargs or {})
    except OmennError as error:
        return report(
            Plan(request, error=error), str(model) if isinstance(model, (str, Path)) else type(model).__name__
        )
    if not args and not kwargs:
        args, kwargs = own_inputs(source)
    args, kwargs = _on_the_models_device(source, args, kwargs)
    plan = _at_fixed_shapes(source, args, kwargs, request) or tried_plan(source, args, kwargs, request)
    return report(plan, type(source).__name__)


def _at_fixed_shapes(source: Any, args: Any, kwargs: Any, request: Request) -> Plan | None:
    """The plan of one sample captured at a fixed batch of one, which takes half the time of a free one; or None.

    `transform` captures it with the batch free where its graph is that of a larger batch, and so where it is not, or
    where the samples of that would meet. The operators are these either way. Anything else, an error above all, is left
    to the capture that `transform` makes.
    """
    leaves = pytree.tree_leaves((args, kwargs))
    free = request.dynamic_batch and request.batched and not isinstance(source, ExportedProgram)
    if not free or batch_size(leaves) != 1:
        return None
    plan = make_plan(source, args, kwargs, replace(request, dynamic_batch=False))
    return plan if plan.error is None else None


def report(plan: Plan, name: str) -> CheckReport:
    """What a plan holds, as a report."""
    found = [] if plan.error is None else problems(plan.error)
    if plan.captured is None or plan.tagged is None:
        return CheckReport(name, plan.request.rules.name, [], found, [])
    found_warnings = [
        *warnings(plan.captured, plan.tagged),
        *([] if plan.reached is None else [reached(plan.reached)]),
        *([untried(plan.captured)] if plan.untried else []),
    ]
    edges = [(o.name, n.name) for n in plan.captured.graph.nodes for o in n.all_input_nodes if n.op != "output"]
    return CheckReport(name, plan.request.rules.name, verdicts(plan.tagged), found, found_warnings, edges)


# Verdicts ------------------------------------------------------------------------------------------------------------


def verdicts(tagged: Tagged) -> list[NodeVerdict]:
    """One verdict for each node, in order."""
    decided = {d.node: d for d in tagged.decisions}
    opaque: dict[str, list[str]] = {}
    for reader, operand in tagged.opaque:
        opaque.setdefault(reader, []).append(operand)
    found = []
    for node in tagged.captured.graph.nodes:
        if node.op == "output":
            continue
        call = producer(node)[0] if node.op == "call_function" else node
        if node in tagged.sources.values():
            verdict, reason = Verdict.SOURCE, "explained"
        elif node in tagged.missing:
            verdict, reason = Verdict.UNSUPPORTED, f"no rule for {call.target}"
        elif tagged.role[node] is Role.CONSTANT:
            verdict, reason = Verdict.CONSTANT, "no explained input reaches it"
        elif tagged.role[node] is Role.COEFFICIENT:
            verdict, reason = Verdict.COEFFICIENT, "held fixed at its value"
        elif node.name in opaque:
            names = ", ".join(opaque[node.name])
            verdict, reason = Verdict.OPAQUE, f"{names}: an input-dependent bias, no linear path leads to it"
        elif node.name in decided:
            verdict, reason = Verdict.POLICY, f"{decided[node.name].policy}: {decided[node.name].reason}"
        else:
            verdict, reason = _affine(tagged, node, call)
        place = place_of(call)
        found.append(NodeVerdict(node.name, place.op, place.module, verdict, reason, place.file, place.line))
    return found


def _affine(tagged: Tagged, node: fx.Node, call: fx.Node) -> tuple[Verdict, str]:
    if node in tagged.treatments:
        return Verdict.DYNAMIC, f"{tagged.rules.name}: {tagged.treatments[node].treatment}"
    rule = tagged.rules.get(call.target)
    fixed = [n.name for n in call.all_input_nodes if tagged.role[n] is Role.COEFFICIENT]
    if tagged.is_dynamic(node):
        return Verdict.DYNAMIC, "W depends on the content itself"
    factors = [o for s, o in slots_of(call, rule) if rule.multiplies(s)] if rule is not None else []
    if len([o for o in factors if tagged.role[o] is Role.CONTENT]) > 1:
        return Verdict.DYNAMIC, "W is the other factor"
    if fixed:
        return Verdict.DYNAMIC, f"W depends on {', '.join(fixed)}"
    return Verdict.AFFINE, "W is constant"


# Inputs --------------------------------------------------------------------------------------------------------------


def own_inputs(source: nn.Module | ExportedProgram) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs that a model tells of itself. Raises InputError where it tells none."""
    if isinstance(source, ExportedProgram):
        if source.example_inputs is None:
            raise InputError("the exported program holds no example inputs: give example_inputs")
        args, kwargs = source.example_inputs
        return args, kwargs
    config: Any = getattr(source, "config", None)
    if getattr(source, "main_input_name", None) == "pixel_values" and hasattr(config, "image_size"):
        size = config.image_size if isinstance(config.image_size, (tuple, list)) else [config.image_size] * 2
        return (), {"pixel_values": torch.zeros(1, getattr(config, "num_channels", 3), *size)}
    if getattr(source, "main_input_name", None) == "input_ids":
        return (), {"input_ids": torch.zeros(1, 8, dtype=torch.long)}
    card: Any = getattr(source, "pretrained_cfg", None) or getattr(source, "default_cfg", None)
    if isinstance(card, Mapping) and "input_size" in card:
        return (torch.zeros(1, *card["input_size"]),), {}
    raise InputError(
        f"check needs example_inputs for {type(source).__name__}: tensors of the right shapes, of any values; "
        "check(model, torch.empty(1, 3, 224, 224)), say"
    )


def _on_the_models_device(source: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """A model without weights takes inputs without values."""
    parameters = list(source.parameters()) if isinstance(source, nn.Module) else []
    if not parameters or any(p.device.type != "meta" for p in parameters):
        return args, kwargs

    def moved(leaf: Any) -> Any:
        return leaf.to("meta") if isinstance(leaf, torch.Tensor) else leaf

    args, kwargs = pytree.tree_map(moved, (args, kwargs))
    return args, kwargs
