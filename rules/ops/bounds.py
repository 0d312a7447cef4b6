"""Clamps of all kinds, and the threshold: element-wise functions that their bounds make constant."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from omenn_fx.algebra.composites import saturation
from omenn_fx.algebra.form import Bias, Call
from omenn_fx.algebra.linear import Diagonal, Linear
from omenn_fx.rules.ops.forms import quotient, where
from omenn_fx.rules.ops.functions import KINKED, function, with_form

aten = torch.ops.aten
Tensor = torch.Tensor


def limits(call: Call) -> tuple[float, float]:
    """The bounds of a clamp of any kind."""
    low = call.operands.get("min", call.operands.get("min_val"))
    high = call.operands.get("max", call.operands.get("max_val"))
    if call.op is aten.relu6.default:
        return 0.0, 6.0
    return -math.inf if low is None else float(low), math.inf if high is None else float(high)


def _clamped_zero(call: Call) -> float:
    low, high = limits(call)
    return min(max(0.0, low), high)


def _clamped_slope(call: Call) -> float:
    """As for ReLU, the slope at a bound of 0 is 0."""
    low, high = limits(call)
    return 1.0 if low < 0.0 < high else 0.0


def _clamp(call: Call) -> tuple[Linear, Bias | None]:
    x, zero, (low, high) = call.x, _clamped_zero(call), limits(call)
    if low == 0 < high and x.dtype in (torch.float32, torch.float64):
        ratio = saturation(call.out, x, high)  # ReLU6: at and below 0 it is 0
    else:
        ratio = quotient(call.out - zero if zero else call.out, x, _clamped_slope(call))
    return Diagonal(ratio, x.shape, call.out.shape), Bias(zero) if zero else None


def _sign_of_bounds(operands: Mapping[str, Any]) -> str | None:
    low = operands.get("min", operands.get("min_val"))
    if not isinstance(low, (int, float)) or low < 0:
        return None
    return "rectified" if low == 0 else "positive"


def _between(call: Call) -> Tensor:
    """As autograd has it, the slope of a clamp at its bounds is 1 ..."""
    low, high = limits(call)
    return where((call.x >= low) & (call.x <= high), call)


def _strictly_between(call: Call) -> Tensor:
    """... and that of hardtanh is 0."""
    low, high = limits(call)
    return where((call.x > low) & (call.x < high), call)


with_form(
    _clamp, aten.clamp.default, aten.clamp_min.default, derivative=_between, change=KINKED, passes_gate=True,
    sign=_sign_of_bounds, kind="activation",
)  # fmt: skip
with_form(_clamp, aten.clamp_max.default, derivative=_between, change=KINKED, passes_gate=True)
with_form(
    _clamp, aten.hardtanh.default, derivative=_strictly_between, change=KINKED, passes_gate=True,
    sign=_sign_of_bounds, kind="activation",
)  # fmt: skip
with_form(
    _clamp, aten.relu6.default, derivative=_strictly_between, change=KINKED, passes_gate=True, sign="rectified",
    kind="activation",
)  # fmt: skip


def _clamp_between(call: Call) -> tuple[Linear, Bias]:
    """Bounds of each position, held fixed."""
    zero = torch.clamp(torch.zeros_like(call.x), call["min"], call["max"])
    step = torch.finfo(call.out.dtype).tiny
    inside = torch.clamp(zero + step, call["min"], call["max"]) - torch.clamp(zero - step, call["min"], call["max"])
    slope = (inside > step).to(call.out.dtype)
    return Diagonal(quotient(call.out - zero, call.x, slope), call.shape(), call.out.shape), Bias(zero)


with_form(
    _clamp_between, aten.clamp.Tensor, derivative=lambda c: where(c.x == c.out, c), change=KINKED, passes_gate=True
)  # fmt: skip
function(
    aten.threshold.default, slope=lambda c: 1.0 if c["threshold"] < 0 else 0.0,
    at0=lambda c: 0.0 if c["threshold"] < 0 else float(c["value"]),
    derivative=lambda c: where(c.x > c["threshold"], c), change=KINKED,
)  # fmt: skip
