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
from omenn_fx.capture.sizes import FREE_SIZES
from omenn_fx.errors import ExportError
from omenn_fx.export.deployed import DEFAULT, TOP, Deployed, TargetMode
from omenn_fx.export.draws import Inputs, first_taken, unseen
from omenn_fx.export.files import own_weights, weights_name, whole, writing
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


@torch.random.fork_rng(devices=())  # a model that draws random numbers runs here, and leaves the caller's as they were
def to_onnx(
    explainer: Live,
    path: str | Path,
    inputs: tuple[Any, ...] = (),
    *,
    input_kwargs: Mapping[str, Any] | None = None,
    outputs: Sequence[str] = DEFAULT,
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
    explainer, (args, kwargs) = _examples(explainer, inputs, dict(input_kwargs or {}), DTYPES[dtype])
    explainer = freed(explainer, args, kwargs, dynamic)
    program, leaves = explainer.program_for(args, kwargs)
    deployed = Deployed(program, leaves, outputs, target)
    rows = explainer(*args, **kwargs, target=deployed.of_call(leaves)).outputs  # raises TargetError now
    example = [v for v in leaves if isinstance(v, Tensor)]
    if deployed.takes_target:
        example.append(torch.zeros(rows.shape[0], dtype=torch.long))
    free = program.captured.dynamic_batch and "batch" in dynamic
    batch = rows.shape[0] if free else None
    proof, former = None, _weights_of(path)
    with whole(path) as meanwhile:
        traced, model = _translated(deployed, example, batch, explainer.request.free, opset)
        sizes = file_sizes(program.captured, traced, deployed.inputs, explainer.request.rules)
        described = _described(_description(explainer, deployed, free) | {"sizes": sizes.text}, metadata or {})
        model.model.metadata_props.update({f"omenn_fx.{key}": value for key, value in described.items()})
        with writing(path):
            model.save(meanwhile)
        if verify:
            _check(meanwhile)
            proof = prove(meanwhile, explainer, traced, args, kwargs, deployed, sizes)
        size = sum(file.stat().st_size for file in meanwhile.parent.iterdir())
    for file in former:
        file.unlink(missing_ok=True)
    names = list(deployed.names.values())
    return OnnxFile(path, deployed.all_inputs, names, size, time.perf_counter() - start, proof)


def _weights_of(path: Path) -> list[Path]:
    """The files that were written with an ONNX file for its weights; none where there is no such file yet."""
    if not path.is_file() or not any(path.parent.glob(weights_name("*"))):
        return []
    import onnx

    try:
        tensors = onnx.load(str(path), load_external_data=False).graph.initializer
    except Exception:  # of whatever type: what stands there is no ONNX file
        return []
    names = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    return own_weights(path, names)


def _translated(
    deployed: Deployed,
    example: list[Tensor],
    batch: int | None,
    sizes: Sequence[str],
    opset: int | None,
) -> tuple[ExportedProgram, Any]:
    """The optimised graph as torch.onnx decomposed it, and its translation, which names values as that does."""
    single = all(t.dtype == torch.float32 for t in example if t.is_floating_point())
    traced = optimised(deployed, example, batch, sizes, for_onnxruntime if single else None)
    try:
        from omenn_fx.export.passes.onnx_simplify import simplify, without_origins
        from omenn_fx.export.passes.portable import without_free_shapes
        from omenn_fx.export.translations import translations, without_projections
    except ImportError as error:
        raise ExportError("ONNX export needs onnx and onnxscript: pip install 'omenn-fx[onnx]'") from error
    try:
        with quiet():
            traced = without_projections(traced)
            model = torch.onnx.export(
                traced, dynamo=True, opset_version=opset, verbose=False, optimize=False,
                custom_translation_table=translations(),
            )  # fmt: skip
            assert model is not None
            assert model.exported_program is not None
            simplify(model.model)
            without_origins(model.model)
            _name_ends(model.model, deployed.all_inputs, list(deployed.names.values()))
    except Exception as error:
        raise ExportError(_untranslated(error)) from error
    name_sizes(model.model, sizes)
    without_free_shapes(model.model)
    return model.exported_program, model


def _name_ends(model: Any, inputs: list[str], outputs: list[str]) -> None:
    """Name inputs and outputs, last of all: what is both is two values by now, and a value inside may be called so."""
    graph = model.graph
    ends = dict(zip([*graph.inputs, *graph.outputs], [*inputs, *outputs], strict=True))
    inside = [*graph.initializers.values(), *(v for node in graph.all_nodes() for v in node.outputs)]
    for i, value in enumerate(v for v in inside if v not in ends and v.name in ends.values()):
        value.name = f"{value.name}__{i}"  # as no node of torch's is called, for values are compared by their names
    for value, name in ends.items():
        value.name = name


def _untranslated(error: Exception) -> str:
    """The operator that torch.onnx does not know, out of a page of text."""
    causes = []
    at: BaseException | None = error
    while at is not None:
        causes.append(str(at).strip().splitlines()[0] if str(at).strip() else type(at).__name__)
        at = at.__cause__
    return f"torch.onnx could not translate the explainer: {causes[-1][:400]}"


def _examples(
    explainer: Live, args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype
) -> tuple[Live, Inputs]:
    """The inputs given, or random ones like those captured; and an explainer for them in the file's dtype."""
    given = [(args, kwargs)] if args or kwargs else list(unseen(explainer))
    explainer, candidates = _in_dtype(explainer, given, dtype)
    if args or kwargs:
        return explainer, candidates[0]
    found = first_taken(explainer, iter(candidates))
    if found is None:
        raise ExportError(
            "the model takes none of the random inputs that were tried",
            fix="give to_onnx example inputs, behind the path",
        )
    return explainer, found


def _in_dtype(explainer: Live, inputs: list[Inputs], dtype: torch.dtype) -> tuple[Live, list[Inputs]]:
    """An explainer of the model in another dtype, with its inputs; the same one where it has that dtype."""

    def cast(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype).cpu() if floating else value.cpu() if isinstance(value, Tensor) else value

    inputs = pytree.tree_map(cast, inputs)
    if explainer.model is None:
        return explainer, inputs
    own = {(p.dtype, p.device.type) for p in explainer.model.parameters() if p.is_floating_point()}
    if own <= {(dtype, "cpu")}:
        return explainer, inputs
    return explainer.converted(dtype, "cpu"), inputs


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
        "target_input": deployed.target_input if deployed.takes_target else "",
        "top_target": str(TOP) if deployed.takes_target else "",
        "outputs": json.dumps(deployed.names),
        "biased": json.dumps(deployed.runnable.biased),
        "kept": json.dumps(deployed.runnable.kept),
        "batched": "yes" if deployed.runnable.batched else "no",
        "dynamic": json.dumps([*(["batch"] if free else []), *explainer.request.free]),
        "model": type(model).__name__ if model is not None else "ExportedProgram",
        "weights_sha256": "" if model is None else weights_hash(model),
    }


def _described(own: dict[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """The file's metadata with the caller's. Raises ExportError: an entry is the file's own, or no text."""
    wrong = [key for key, value in more.items() if key in own or not (isinstance(key, str) and isinstance(value, str))]
    if wrong:
        raise ExportError(
            f"metadata {', '.join(map(repr, wrong))}: an entry is text, under a name that no own entry has"
        )
    return own | dict(more)


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
