"""Operators that torch has under several names: each has one canonical name here, and rules know that one alone."""

from __future__ import annotations

from typing import Any

import torch

aten = torch.ops.aten

# alias -> canonical name; of each overload that both have
NAMES = {
    "absolute": "abs",
    "arccos": "acos",
    "arccosh": "acosh",
    "arcsin": "asin",
    "arcsinh": "asinh",
    "arctan": "atan",
    "arctan2": "atan2",
    "arctanh": "atanh",
    "clip": "clamp",
    "concat": "cat",
    "concatenate": "cat",
    "divide": "div",
    "fix": "trunc",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "moveaxis": "movedim",
    "multiply": "mul",
    "negative": "neg",
    "not_equal": "ne",
    "special_erf": "erf",
    "special_erfc": "erfc",
    "special_erfinv": "erfinv",
    "special_exp2": "exp2",
    "special_expit": "sigmoid",
    "special_expm1": "expm1",
    "special_log1p": "log1p",
    "special_logsumexp": "logsumexp",
    "subtract": "sub",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "true_divide": "div",
    # A view asks for strides, which another way to the same values need not have: decompositions, passes, a caller.
    "_unsafe_view": "reshape",
    "view": "reshape",
    "view_as": "reshape_as",
}
_OVERLOADS = {"transpose": "int"}  # where the overloads of both have other names


def _table() -> dict[Any, Any]:
    found = {}
    for name, canonical in NAMES.items():
        alias, packet = getattr(aten, name, None), getattr(aten, canonical)
        for overload in alias.overloads() if alias is not None else ():
            target = _OVERLOADS.get(canonical, overload)
            if target in packet.overloads():
                found[getattr(alias, overload)] = getattr(packet, target)
    return found


ALIASES = _table()


def canonical(op: Any) -> Any:
    """The operator that an alias is another name of; any other as it is. Arguments keep their order."""
    return ALIASES.get(op, op)
