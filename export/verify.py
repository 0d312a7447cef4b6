"""Is the file the twin? onnxruntime's outputs against torch's, and the completeness of onnxruntime's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch.export import ExportedProgram

from omenn_fx.capture.nodes import bind
from omenn_fx.compat import OpOverload
from omenn_fx.errors import ParityError
from omenn_fx.explanation import Explanation
from omenn_fx.export.deployed import Deployed
from omenn_fx.export.draws import Inputs, inputs_to_try
from omenn_fx.export.files import as_export_error
from omenn_fx.export.nodes import compare
from omenn_fx.export.runtime import OnnxExplainer, load
from omenn_fx.export.sizes import FileSizes
from omenn_fx.program import Live
from omenn_fx.target import Positions

Tensor = torch.Tensor
# |C of onnxruntime - C of the twin| summed, relative to S; the completeness of onnxruntime's C, relative to S
PARITY = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 2e-1}
COMPLETENESS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}
FUSED = "the kernels that onnxruntime fuses"  # where nothing differs before it fuses them


@dataclass(frozen=True)
class Proof:
    """The worst over the inputs tried, relative to S (the logits: to the larger of S and themselves)."""

    logits: float
    parity: float
    completeness: float | None
    inputs: int
    kinks: tuple[str, ...] = ()  # where rounding alone decided, such as the sign of a unit at 0
    rounding: float | None = None  # how far the explainer itself is from float64, where that explains the difference
    random: bool = False

    @property
    def _inputs(self) -> str:
        return f"{self.inputs} input{'' if self.inputs == 1 else 's'}"

    def __str__(self) -> str:
        sums = "" if self.completeness is None else f", completeness {self.completeness:.1e}"
        if self.random:
            return f"verified on {self._inputs}{sums}; the model draws random numbers, so C is another each time"
        own = "" if self.rounding is None else f" (which is {self.rounding:.1e} from itself in float64)"
        kinks = "" if not self.kinks else f"; rounding decided at {', '.join(self.kinks)}"
        return f"verified on {self._inputs}: C within {self.parity:.1e} of S of the twin{own}{sums}{kinks}"


def prove(
    path: Path, explainer: Live, traced: ExportedProgram, args: Any, kwargs: Any, deployed: Deployed, sizes: FileSizes
) -> Proof:
    """Compare on the given inputs and on others like them, of other sizes too.

    Raises ParityError with the first node that differs.
    """
    with as_export_error("onnxruntime cannot run the file on the CPU"):
        session = load(path, providers=["CPUExecutionProvider"])
    found: list[Proof] = []
    for inputs in inputs_to_try(explainer, (args, kwargs), sizes):
        with as_export_error("the explainer fails on inputs that the file is verified on"):
            twin, leaves = _explained(explainer, inputs, deployed)
        if all(torch.isfinite(one.C).all() for one in twin.inputs.values()):
            found.append(_compared(session, explainer, traced, inputs, leaves, twin, deployed))
        elif not found:
            raise ParityError(f"C is not finite at the given inputs in {twin.value.dtype}: there is nothing to verify")
    sums = [f.completeness for f in found if f.completeness is not None]
    return Proof(
        max(f.logits for f in found),
        max(f.parity for f in found),
        max(sums) if sums else None,
        len(found),
        tuple(dict.fromkeys(k for f in found for k in f.kinks)),
        max((f.rounding for f in found if f.rounding is not None), default=None),
        any(f.random for f in found),
    )


def _explained(explainer: Live, inputs: Inputs, deployed: Deployed) -> tuple[Explanation, list[Any]]:
    """The twin's own explanation, and the leaves of the inputs as the file takes them."""
    args, kwargs = inputs
    _, leaves = explainer.program_for(args, kwargs)
    return explainer(*args, **kwargs, target=deployed.of_call(leaves)), leaves


def in_double(values: Any) -> Any:
    """Floating-point tensors in float64."""
    return pytree.tree_map(lambda v: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v, values)


def _distance(got: Tensor, wanted: Tensor, scale: Tensor) -> float:
    """The summed difference for each explained value, relative to S; the largest."""
    gap = (got.double() - wanted.double()).abs()
    return float((_summed(gap, scale) / scale.double().clamp_min(torch.finfo(torch.float32).tiny)).max())


def _summed(value: Tensor, like: Tensor) -> Tensor:
    """Summed over everything but batch and targets."""
    return value.flatten(like.ndim).sum(-1) if value.ndim > like.ndim else value


def _compared(
    session: OnnxExplainer,
    explainer: Live,
    traced: ExportedProgram,
    inputs: Inputs,
    leaves: list[Any],
    twin: Explanation,
    deployed: Deployed,
) -> Proof:
    """onnxruntime's results on some inputs. Its completeness is known where the file holds all of the sum."""
    values = [v.numpy(force=True) for v in leaves if isinstance(v, Tensor)]
    if deployed.takes_target:
        values.append(twin.target.numpy())
    with as_export_error("onnxruntime cannot run the file on the CPU"):
        found = session.run(values)
    got = {name: torch.from_numpy(value).double() for name, value in found.items()}
    # a logit that is a small difference of large terms is no more exact than those
    largest = max(float(v.abs().max()) for v in (twin.outputs.double(), _scale(twin)) if v.numel())
    logits = float((got["logits"] - twin.outputs.double()).abs().max()) / max(largest, 1e-30)
    parity, error = _parity(got, twin), _completeness(got, twin, deployed)
    dtype = twin.value.dtype
    if error is not None and not error <= COMPLETENESS[dtype]:
        compared = compare(session, traced, values)
        where = compared.wrong or compared.parted or ""
        raise ParityError(f"sum(C) in onnxruntime misses the explained value by {error:.1e} of S. {where}")
    random = _draws(traced)
    if random or (logits <= PARITY[dtype] and parity <= PARITY[dtype]):
        return Proof(logits, parity, error, 1, random=random)
    drift = ours = 0.0  # what the dtype costs the explainer itself
    if dtype != torch.float64 and explainer.model is not None:
        args, kwargs = in_double(inputs)
        exact = explainer.in_float64()(*args, **kwargs, target=twin.target)
        drift = float((twin.outputs.double() - exact.outputs).abs().max()) / max(largest, 1e-30)
        ours = max(_distance(one.C, exact.inputs[name].C, exact.size) for name, one in twin.inputs.items())
    alike = logits <= max(PARITY[dtype], 10 * drift)
    if alike and parity <= max(PARITY[dtype], 10 * ours):
        return Proof(logits, parity, error, 1, rounding=max(drift, ours))
    compared = compare(session, traced, values)
    if alike and compared.wrong is None:
        return Proof(logits, parity, error, 1, (compared.parted.node if compared.parted else FUSED,))
    what = f"C differs from the twin's by {parity:.1e} of S, the logits by {logits:.1e} of the largest"
    where = compared.wrong or compared.parted or "No single node differs: the difference builds up"
    raise ParityError(f"onnxruntime computes something else: {what}. {where}")


def _scale(twin: Explanation) -> Tensor:
    return twin.size.double().clamp_min(torch.finfo(torch.float32).tiny)


def _end(name: str, twin: Explanation) -> str:
    return f".{name}" if len(twin.inputs) > 1 else ""


def _parity(got: Mapping[str, Tensor], twin: Explanation) -> float:
    """How far onnxruntime's C and C_b are from the twin's, relative to S."""
    pairs = [
        (f"{part}{_end(name, twin)}", wanted)
        for name, one in twin.inputs.items()
        for part, wanted in (("C", one.C), ("C_b", one.C_b))
        if wanted is not None
    ]
    gaps = [_distance(got[name], wanted, _scale(twin)) for name, wanted in pairs if name in got]
    return float(torch.tensor([0.0, *gaps], dtype=torch.float64).max())  # NaN where one is


def _completeness(got: Mapping[str, Tensor], twin: Explanation, deployed: Deployed) -> float | None:
    """How far the sum of onnxruntime's C is from its own explained value; None where C is not all of the sum, and the
    file does not say it either."""
    names = [f"C{_end(name, twin)}" for name in twin.inputs]
    measured = float(got["completeness"].max()) if "completeness" in got and got["completeness"].numel() else None
    if any(one.C_b is None for one in twin.inputs.values()) or any(name not in got for name in names):
        return measured
    scale = _scale(twin)
    total = sum((_summed(got[name], scale) for name in names), torch.zeros_like(scale))
    value = Positions(twin.target, deployed.several).value(got["logits"])  # onnxruntime's own
    found = float(((total - value).abs() / scale).max())
    return found if measured is None else max(found, measured)


def _draws(traced: ExportedProgram) -> bool:
    """Whether the model draws random numbers, which are others in onnxruntime: its sum is all that can be verified."""
    return any(_is_random(n) for n in traced.graph.nodes)


def _is_random(node: fx.Node) -> bool:
    """Attention and recurrent layers draw numbers for their dropout alone."""
    op = node.target
    if not isinstance(op, OpOverload) or torch.Tag.nondeterministic_seeded not in op.tags:
        return False
    values = bind(node)
    return bool(values.get("train", True)) and values.get("dropout_p", 1.0) != 0.0
