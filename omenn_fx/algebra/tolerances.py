"""Tolerances: how far from exact each invariant may be, for the precision that values are computed in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

INVARIANTS = ("forward", "node", "linear", "transpose", "completeness", "mass")

# forward is relative to the largest output, node, linear and transpose to the terms of the sums, the others to S
TOLERANCES: dict[torch.dtype, dict[str, float]] = {
    torch.float64: {"forward": 1e-10, "node": 1e-9, "linear": 1e-9, "transpose": 1e-9, "completeness": 1e-10,
                    "mass": 1e-10},
    torch.float32: {"forward": 1e-4, "node": 1e-4, "linear": 1e-4, "transpose": 1e-4, "completeness": 1e-5,
                    "mass": 1e-5},
    torch.float16: dict.fromkeys(INVARIANTS, 2e-2),
    torch.bfloat16: dict.fromkeys(INVARIANTS, 6e-2),
}  # fmt: skip
FORWARD_IN_FLOAT32 = 1e-5  # of a float64 model that computes parts in float32 itself, which the twin does not

_REAL = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}


def coarsest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The least precise of some dtypes: what is computed from all of them is no more exact. Integers are exact."""
    real = (_REAL.get(dtype, dtype) for dtype in dtypes)
    floating = [dtype for dtype in real if dtype.is_floating_point]
    return max(floating, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float64)


def tolerances_of(*dtypes: torch.dtype) -> Mapping[str, float]:
    """The largest error of each invariant that holds, of what is computed in all of these dtypes."""
    return TOLERANCES.get(coarsest(dtypes), TOLERANCES[torch.bfloat16])
