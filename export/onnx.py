"""Model and explanation as one ONNX file, checked against the twin on the way out.

torch.onnx translates the operators; what is ours is the graph that it is given, the metadata, and the proof.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn
from torch.export import ExportedProgram

from omenn_fx._version import __version__
from omenn_fx.capture.exclusive import quiet
from omenn_fx.capture.sizes import FREE_SIZES, hint
from omenn_fx.compat import FakeTensor
from omenn_fx.errors import ExportError, OmennError
from omenn_fx.export.deployed import Deployed, TargetMode
from omenn_fx.export.free import freed, name_sizes
from omenn_fx.export.passes.onnxruntime_layout import for_onnxruntime
from omenn_fx.export.program import optimised
from omenn_fx.export.sizes import file_sizes
from omenn_fx.export.verify import Proof, prove
from omenn_fx.program import Live

Tensor = torch.Tensor
DTYPES = {"float32": torch.float32, "float16": torch.float16}  # onnxruntime convolves no float64


@dataclass(frozen=True)
class OnnxFile:
    """What was written: where, its inputs and outputs, its size, and how it compares with the twin."""

    path: Path
    inputs: list[str]
    outputs: list[str]
    size: int
    seconds: float
    proof: Proof | None

    def __repr__(self) -> str:
        proof = "not verified" if self.proof is None else str(self.proof)
        return (
            f"{self.path} ({self.size / 2**20:.1f} MiB): {', '.join(self.inputs)} -> {', '.join(self.outputs)}; {proof}"
        )


def to_onnx(
    explainer: Live,
    path: str | Path,
    inputs: tuple[Any, ...] = (),
    *,
    input_kwargs: Mapping[str, Any] | None = None,
    outputs: Sequence[str] = ("logits", "C"),
    target: TargetMode = "input",
    opset: int | None = None,
    dtype: str = "float32",
    dynamic: Sequence[str] = ("batch",),
    verify: bool = True,
    metadata: Mapping[str, str] | None = None,
) -> OnnxFile:
    """Write model and explanation as one ONNX graph. See `Explainer.to_onnx`."""
    start = time.perf_counter()
    if dtype not in DTYPES:
        raise ExportError(f"dtype='{dtype}': an exported explainer is {', '.join(DTYPES)}")
    if set(dynamic) - {"batch", *FREE_SIZES}:
        raise ExportError(f"dynamic={tuple(dynamic)}: what can stay free is {', '.join(['batch', *FREE_SIZES])}")
    path = Path(path)
    args, kwargs = _examples(explainer, inputs, dict(input_kwargs or {}))
    explainer, args, kwargs = _in_dtype(explainer, args, kwargs, DTYPES[dtype])
    explainer = freed(explainer, args, kwargs, dynamic)
    program, leaves = explainer.program_for(args, kwargs)
    deployed = Deployed(program, leaves, outputs, target)
    rows = explainer(*args, **kwargs, target=deployed.of_call(leaves)).outputs  # raises TargetError now
    example = [v for v in leaves if isinstance(v, Tensor)]
    if deployed.takes_target:
        example.append(torch.zeros(rows.shape[0], dtype=torch.long))
    free = program.captured.dynamic_batch and "batch" in dynamic
    names = [*deployed.inputs, *(["target"] if deployed.takes_target else [])]
    batch = rows.shape[0] if free else None
    traced, model = _translated(deployed, example, batch, explainer.request.free, names, opset)
    sizes = file_sizes(program.captured, traced, deployed.inputs, explainer.request.rules)
    described = _description(explainer, deployed, free) | {"sizes": sizes.text} | dict(metadata or {})
    model.model.metadata_props.update({f"omenn_fx.{key}": value for key, value in described.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save(path)
    proof = None
    if verify:
        try:
            _check(path)
            proof = prove(path, explainer, traced, args, kwargs, deployed, sizes)
        except OmennError:
            path.unlink()  # a file that computes something else must not be taken for one that does not
            path.with_name(path.name + ".data").unlink(missing_ok=True)
            raise
    return OnnxFile(path, names, deployed.names, _size(path), time.perf_counter() - start, proof)


def _translated(
    deployed: Deployed,
    example: list[Tensor],
    batch: int | None,
    sizes: Sequence[str],
    names: list[str],
    opset: int | None,
) -> tuple[ExportedProgram, Any]:
    """The optimised graph as torch.onnx decomposed it, and its translation, which names values as that does."""
    single = all(t.dtype == torch.float32 for t in example if t.is_floating_point())
    traced = optimised(deployed, example, batch, sizes, for_onnxruntime if single else None)
    try:
        from omenn_fx.export.passes.onnx_simplify import simplify
        from omenn_fx.export.translations import translations, without_projections
    except ImportError as error:
        raise ExportError("ONNX export needs onnx and onnxscript: pip install 'omenn-fx[onnx]'") from error
    try:
        with quiet():
            traced = without_projections(traced)
            model = torch.onnx.export(
                traced, dynamo=True, opset_version=opset, input_names=names, output_names=deployed.names, verbose=False,
                custom_translation_table=translations(), optimize=False,
            )  # fmt: skip
            assert model is not None
            assert model.exported_program is not None
            simplify(model.model)
    except Exception as error:
        raise ExportError(_untranslated(error)) from error
    name_sizes(model.model, sizes)
    return model.exported_program, model


def _untranslated(error: Exception) -> str:
    """The operator that torch.onnx does not know, out of a page of text."""
    causes = []
    at: BaseException | None = error
    while at is not None:
        causes.append(str(at).strip().splitlines()[0] if str(at).strip() else type(at).__name__)
        at = at.__cause__
    return f"torch.onnx could not translate the explainer: {causes[-1][:400]}"


def _examples(explainer: Live, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """The inputs given, or random ones like those captured."""
    if args or kwargs:
        return args, kwargs
    captured = explainer.ready.captured
    leaves = [_random(n.meta.get("val")) for n in captured.inputs]
    return pytree.tree_unflatten(leaves, captured.in_spec)


def _random(value: Any) -> Any:
    if not isinstance(value, FakeTensor):
        return value
    shape = [hint(s) for s in value.shape]
    if value.is_floating_point():
        return torch.randn(shape, dtype=value.dtype)
    return torch.ones(shape, dtype=value.dtype)


def _in_dtype(explainer: Live, args: Any, kwargs: Any, dtype: torch.dtype) -> tuple[Live, Any, Any]:
    """An explainer of the model in another dtype, with its inputs; the same one where it has that dtype."""

    def cast(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype).cpu() if floating else value.cpu() if isinstance(value, Tensor) else value

    args, kwargs = pytree.tree_map(cast, (args, kwargs))
    if explainer.model is None:
        return explainer, args, kwargs
    own = {(p.dtype, p.device.type) for p in explainer.model.parameters() if p.is_floating_point()}
    if own <= {(dtype, "cpu")}:
        return explainer, args, kwargs
    return explainer.converted(dtype, "cpu"), args, kwargs


def _description(explainer: Live, deployed: Deployed, free: bool) -> dict[str, str]:
    model = explainer.model
    return {
        "version": __version__,
        "torch": torch.__version__,
        "rules": explainer.request.rules.name,
        "bias": explainer.bias,
        "target": deployed.target if isinstance(deployed.target, str) else json.dumps(deployed.target),
        "explained": json.dumps(deployed.runnable.names),
        "inputs": json.dumps(deployed.inputs),
        "biased": json.dumps(deployed.runnable.biased),
        "kept": json.dumps(deployed.runnable.kept),
        "batched": "yes" if deployed.runnable.batched else "no",
        "dynamic": json.dumps([*(["batch"] if free else []), *explainer.request.free]),
        "model": type(model).__name__ if model is not None else "ExportedProgram",
        "weights_sha256": "" if model is None else weights_hash(model),
    }


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over the names and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check(path: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise ExportError(f"onnx refuses the file: {str(error).splitlines()[0]}") from error


def _size(path: Path) -> int:
    beside = path.with_name(path.name + ".data")
    return path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)
