"""Decompositions: an exported program in the operators that have rules, or the error that says why not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, fx
from torch.export import ExportedProgram

from omenn_fx.algebra.ruleset import RuleSet
from omenn_fx.capture.exclusive import quiet
from omenn_fx.capture.nodes import place_of
from omenn_fx.capture.torch_export import own_path
from omenn_fx.compat import HigherOrderOperator, lstm_decomposition
from omenn_fx.errors import CaptureError, Place

_OUTSIDE = (
    "run the layer outside of torch.autocast, on values in the dtype of its weights: "
    "with torch.autocast(device, enabled=False): layer(x.float())"
)


def lstm_by_steps(input: Tensor, hx: list[Tensor], *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """An LSTM as its steps. torch 2.11 and 2.12 give the last states a dimension too many, unless the batch is one."""
    out, h, c = lstm_decomposition()(input, hx, *rest)
    return out, h.reshape(hx[0].shape), c.reshape(hx[1].shape)


def decomposed(program: ExportedProgram, table: dict[Any, Any], rules: RuleSet) -> ExportedProgram:
    """Raises CaptureError where torch fails at it, and for recurrent layers inside of torch.autocast: torch 2.13 fails
    at them, torch 2.12 made a program that mixes dtypes."""
    place = _within_autocast(program.graph_module, rules)
    if place is not None:
        reason = f"torch cannot decompose {place.label} inside of torch.autocast, which this model enters in forward"
        raise CaptureError(reason, place, _OUTSIDE)
    try:
        with quiet():
            return program.run_decompositions(table)
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = f"torch could not decompose the exported model: {type(error).__name__}: {first[:300]}"
        raise CaptureError(reason, fix="write the model without the operator that the message names") from error


def _within_autocast(module: fx.GraphModule, rules: RuleSet, on: bool = False) -> Place | None:
    """The first operator inside of a region of autocast that torch takes apart into several products."""
    for node in module.graph.nodes:
        rule = rules.get(node.target) if on else None
        if rule is not None and rule.apart:
            place = place_of(node)
            return replace(place, module=own_path(place.module))
        if isinstance(node.target, HigherOrderOperator):
            enabled = node.args[2:3] if node.target.name() == "wrap_with_autocast" else [on]  # behind device and dtype
            inside = bool(enabled[0])
            bodies = [getattr(module, str(n.target)) for n in node.all_input_nodes if n.op == "get_attr"]
            found = (_within_autocast(b, rules, inside) for b in bodies if isinstance(b, fx.GraphModule))
            place_inside = next(filter(None, found), None)
            if place_inside is not None:
                return place_inside
    return None
