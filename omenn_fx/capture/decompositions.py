"""Decompositions: an exported program in the operators that have rules, or the error that says why not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import fx
from torch.export import ExportedProgram

from omenn_fx.algebra.ruleset import RuleSet
from omenn_fx.capture.exclusive import quiet
from omenn_fx.capture.nodes import place_of
from omenn_fx.capture.torch_export import own_path
from omenn_fx.compat import HigherOrderOperator
from omenn_fx.errors import CaptureError, Place

_OUTSIDE = (
    "run the layer outside of torch.autocast, on values in the dtype of its weights: "
    "with torch.autocast(device, enabled=False): layer(x.float())"
)


def decomposed(program: ExportedProgram, table: dict[Any, Any], rules: RuleSet) -> ExportedProgram:
    """Raises CaptureError where torch fails at it, as it does with recurrent layers inside of torch.autocast."""
    try:
        with quiet():
            return program.run_decompositions(table)
    except Exception as error:
        place = _within_autocast(program.graph_module, rules)
        if place is None:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            reason = f"torch could not decompose the exported model: {type(error).__name__}: {first[:300]}"
            raise CaptureError(reason, fix="write the model without the operator that the message names") from error
        reason = f"torch cannot decompose {place.label} inside of torch.autocast, which this model enters in forward"
        raise CaptureError(reason, place, _OUTSIDE) from error


def _within_autocast(module: fx.GraphModule, rules: RuleSet) -> Place | None:
    """The first operator inside of a region of autocast that torch takes apart into several products."""
    for node in module.graph.nodes:
        if not isinstance(node.target, HigherOrderOperator):
            continue
        bodies = [getattr(module, str(n.target)) for n in node.all_input_nodes if n.op == "get_attr"]
        for body in (b for b in bodies if isinstance(b, fx.GraphModule)):
            for inner in body.graph.nodes:
                rule = rules.get(inner.target)
                if rule is not None and rule.apart:
                    place = place_of(inner)
                    return replace(place, module=own_path(place.module))
            found = _within_autocast(body, rules)
            if found is not None:
                return found
    return None
