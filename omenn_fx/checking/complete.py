"""Whether an explanation adds up, asked at every call: a few sums. Where it does not, the nodes are measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from omenn_fx.algebra.bias_policy import Policy, carrier
from omenn_fx.algebra.form import Affine, Call
from omenn_fx.algebra.tolerances import tolerances_of
from omenn_fx.checking.validate import Walk, measured
from omenn_fx.checking.validation_report import AT_NODES
from omenn_fx.errors import OmennError
from omenn_fx.explanation import Explanation
from omenn_fx.program import Program


def require_sum(
    explanation: Explanation, program: Program, leaves: Sequence[Any], policy: Policy | None
) -> Explanation:
    """An explanation, with an IncompleteWarning that names the node where it does not add up."""
    dtypes = {program.precision, explanation.outputs.dtype}
    if explanation.outputs.is_cuda and _in_tf32():
        dtypes.add(torch.float16)  # as many digits as TF32 has
    limit = tolerances_of(*dtypes)["completeness"]
    return explanation.require_sum(limit, lambda: _first_fault(program, leaves, policy or carrier))


def _in_tf32() -> bool:
    try:
        return torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:  # set by torch's newer names, which those of before refuse to read
        return True


def _first_fault(program: Program, leaves: Sequence[Any], policy: Policy) -> str:
    """The node that `validate` names first, in words."""
    faults = []

    def measure(node: fx.Node, call: Call, form: Affine) -> None:
        found = measured(program.tagged, node, call, form, policy)
        if found.allowed is not None and not all(getattr(found, k) <= found.allowed[k] for k in AT_NODES):
            faults.append(found.place)

    try:
        with torch.random.fork_rng(devices=[]):
            Walk(program.captured.module, program.tagged, measure).run(*leaves, enable_io_processing=False)
    except OmennError as error:  # a rule that raises
        faults += error.places
    if not faults:
        return "; every node by itself is exact: explainer.validate measures them"
    return f". The first node that is not exact: {faults[0]}"
