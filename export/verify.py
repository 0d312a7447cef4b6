"""Is the file the twin? onnxruntime's outputs against torch's, and the completeness of onnxruntime's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch.export import ExportedProgram

from omenn_fx.capture.nodes import bind
from omenn_fx.compat import OpOverload
from omenn_fx.errors import ExportError, OmennError, ParityError
from omenn_fx.export.deployed import Deployed
from omenn_fx.export.free import nearby
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

    def __str__(self) -> str:
        sums = "" if self.completeness is None else f", completeness {self.completeness:.1e}"
        if self.random:
            return f"verified on {self.inputs} inputs{sums}; the model draws random numbers, so C is another each time"
        own = "" if self.rounding is None else f" (which is {self.rounding:.1e} from itself in float64)"
        kinks = "" if not self.kinks else f"; rounding decided at {', '.join(self.kinks)}"
        return f"verified on {self.inputs} inputs: C within {self.parity:.1e} of S of the twin{own}{sums}{kinks}"


def prove(
    path: Path, explainer: Live, traced: ExportedProgram, args: Any, kwargs: Any, deployed: Deployed, sizes: FileSizes
) -> Proof:
    """Compare on the given inputs, on random ones, and on some of other sizes that the file is the model at.

    Raises ParityError with the first node that differs.
    """
    with _refusals():
        session = load(path, providers=["CPUExecutionProvider"])
    tried = [(args, kwargs), _disturbed(args, kwargs)]
    tried += nearby(explainer.program_for(args, kwargs)[0].captured, tried[1], sizes)
    found = [_compared(session, explainer, traced, a, k, deployed) for a, k in tried]
    sums = [f.completeness for f in found if f.completeness is not None]
    return Proof(
        max(f.logits for f in found),
        max(f.parity for f in found),
        max(sums) if sums else None,
        len(tried),
        tuple(dict.fromkeys(k for f in found for k in f.kinks)),
        max((f.rounding for f in found if f.rounding is not None), default=None),
        any(f.random for f in found),
    )


@contextmanager
def _refusals() -> Iterator[None]:
    """What onnxruntime cannot run, which is an operator without a kernel for a dtype, as a rule."""
    try:
        yield
    except OmennError:
        raise
    except Exception as error:
        raise ExportError(f"onnxruntime cannot run the file on the CPU: {str(error).splitlines()[0]}") from error


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


def _disturbed(args: Any, kwargs: Any) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(0)

    def other(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float32)
        spread = value.float().std().nan_to_num() if value.numel() else 1.0
        return (noise * spread).to(value.dtype)

    return pytree.tree_map(other, (args, kwargs))


def _compared(
    session: OnnxExplainer, explainer: Live, traced: ExportedProgram, args: Any, kwargs: Any, deployed: Deployed
) -> Proof:
    """onnxruntime's results on some inputs. Its completeness is known where the file holds all of the sum."""
    _, leaves = explainer.program_for(args, kwargs)
    twin = explainer(*args, **kwargs, target=deployed.of_call(leaves))
    values = [v.numpy(force=True) for v in leaves if isinstance(v, Tensor)]
    if deployed.takes_target:
        values.append(twin.target.numpy())
    with _refusals():
        found = session.run(values)
    got = {name: torch.from_numpy(value).double() for name, value in found.items()}
    scale = twin.size.double().clamp_min(torch.finfo(torch.float32).tiny)

    # a logit that is a small difference of large terms is no more exact than those
    largest = max(float(v.abs().max()) for v in (twin.outputs.double(), scale) if v.numel())
    logits = float((got["logits"] - twin.outputs.double()).abs().max()) / max(largest, 1e-30)
    parity, total = 0.0, torch.zeros_like(scale)
    complete = all(one.C_b is not None for one in twin.inputs.values())
    for name, one in twin.inputs.items():
        end = f".{name}" if len(twin.inputs) > 1 else ""
        for part, wanted in (("C", one.C), ("C_b", one.C_b)):
            if f"{part}{end}" in got and wanted is not None:
                parity = max(parity, _distance(got[f"{part}{end}"], wanted, scale))
        complete = complete and f"C{end}" in got
        total = total + _summed(got[f"C{end}"], scale) if complete else total
    value = Positions(twin.target, deployed.several).value(got["logits"])  # onnxruntime's own
    error = float(((total - value).abs() / scale).max()) if complete else None
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
        exact = explainer.in_float64()(*in_double(args), **in_double(kwargs), target=twin.target)
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
