"""An exported explainer in onnxruntime: numpy in, an `Explanation` out. No model, no autograd."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from omenn_fx.algebra.tolerances import tolerances_of
from omenn_fx.errors import ExportError, InputError, TargetError, said
from omenn_fx.explanation import BiasTable, Explanation, InputExplanation, WholeExplanation
from omenn_fx.export.deployed import TargetMode, array_of, inputs_of_call, target_of_call
from omenn_fx.export.sizes import FileSizes
from omenn_fx.target import Positions, Target, resolve

Tensor = torch.Tensor
_PREFERRED = ("CUDAExecutionProvider", "CPUExecutionProvider")


def load(path: str | Path, providers: Sequence[str] | None = None) -> OnnxExplainer:
    """Load a file written by `Explainer.to_onnx`.

    Args:
        path: the file.
        providers: onnxruntime's execution providers, best first. Default: CUDA where it is there, then the CPU.

    Raises:
        ExportError: no such file, not one of ours, or onnxruntime is not installed.
    """
    return OnnxExplainer(Path(path), providers)


class OnnxExplainer:
    """A session of onnxruntime that is called like an `Explainer`.

    Attributes:
        path: the file.
        metadata: what `to_onnx` wrote into it.
        inputs, outputs: names.
        sizes: the free sizes of the inputs, and what they fulfil wherever the file is the model.
        provider: where it runs.
    """

    def __init__(self, path: Path, providers: Sequence[str] | None = None):
        try:
            import onnxruntime
        except ImportError as error:
            raise ExportError("running an exported explainer needs onnxruntime: pip install 'omenn-fx[cpu]'") from error
        if not path.exists():
            raise ExportError(f"there is no file '{path}'")
        there = onnxruntime.get_available_providers()
        missing = [p for p in providers or () if p not in there]
        if missing:
            raise ExportError(f"{', '.join(missing)}: this onnxruntime has {', '.join(there)}")
        wanted = list(providers or [p for p in _PREFERRED if p in there])
        self.path = path
        try:
            self.session = onnxruntime.InferenceSession(str(path), providers=wanted)
        except Exception as error:  # onnxruntime's own have no common type
            raise ExportError(f"onnxruntime cannot read '{path}': {said(error)}") from error
        self.provider: str = self.session.get_providers()[0]
        written = self.session.get_modelmeta().custom_metadata_map
        self.metadata = {k.removeprefix("omenn_fx."): v for k, v in written.items() if k.startswith("omenn_fx.")}
        if not self.metadata:
            raise ExportError(f"'{path}' is an ONNX file, but not one that Explainer.to_onnx wrote")
        self.sizes = FileSizes.read(self.metadata.get("sizes", ""))
        self.inputs = [i.name for i in self.session.get_inputs()]
        self.outputs = [o.name for o in self.session.get_outputs()]
        self._notes = _read(self.metadata, path, self.inputs, self.outputs)

    def __reduce__(self) -> tuple[Any, ...]:
        """By its file and providers: a session stays in its process."""
        return type(self), (self.path.resolve(), self.session.get_providers())

    def run(self, values: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """All inputs, the target among them, to all results by what they are."""
        found = self.session.run(None, dict(zip(self.inputs, values, strict=True)))
        return dict(zip(self._notes.results, found, strict=True))

    def __call__(self, /, *inputs: Any, target: Target = None, **named: Any) -> Explanation:
        """Explain one output value per row.

        Args:
            *inputs, **named: arrays or tensors, in the order of `inputs` or by name.
            target: as of an `Explainer` (no weights, regions or callables), where the file takes its target at run
                time. None: each row's largest output.

        Raises:
            InputError: the inputs do not fit the file's.
            TargetError: out of range, or the file's target is fixed.
        """
        feeds = self._feeds(inputs, named)
        if self._notes.target_input is None:
            if target is not None:
                raise TargetError(f"this file explains target {self.metadata['target']}: leave target out")
            return self._explained(self._found(feeds), feeds, None)
        if target is None and self._notes.top is not None:
            largest = np.full(self._count(feeds), self._notes.top, dtype=np.int64)
            return self._explained(self._found([*feeds, largest]), feeds, None)
        chosen = resolve(target, self._rows(target, feeds))
        if not isinstance(chosen, Positions):
            raise TargetError("an exported explainer takes positions of its outputs as targets, not weights or regions")
        columns = chosen.target.unbind(1) if chosen.several else [chosen.target]
        results = [self._found([*feeds, c.contiguous().numpy()]) for c in columns]
        together = {
            key: np.stack([r[key] for r in results], 1) if chosen.several and not _of_rows(key) else value
            for key, value in results[0].items()
        }
        return self._explained(together, feeds, chosen)

    def _rows(self, target: Target, feeds: list[np.ndarray]) -> Tensor:
        """The outputs that a target refers to: their shape is enough where it does not depend on their values."""
        count = self._count(feeds)
        shape = self.session.get_outputs()[self._notes.results.index("logits")].shape[1:]
        if target is not None and not callable(target) and all(isinstance(s, int) for s in shape):
            return torch.empty(count, *shape)
        return torch.from_numpy(self._found([*feeds, np.zeros(count, dtype=np.int64)])["logits"])

    def _count(self, feeds: list[np.ndarray]) -> int:
        return next((len(array) for array in feeds if array.ndim), 1) if self._notes.batched else 1

    def _found(self, values: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        try:
            return self.run(values)
        except Exception as error:  # onnxruntime's own have no common type
            raise InputError(f"onnxruntime refuses these inputs: {said(error)}") from error

    def _feeds(self, inputs: Sequence[Any], named: Mapping[str, Any]) -> list[np.ndarray]:
        given = inputs_of_call(self._notes.inputs, inputs, named)
        free: dict[str, int] = {}  # a size that stays free is the same wherever it stands
        arrays = []
        for want, value in zip(self.session.get_inputs(), given, strict=False):
            array = _array(want, value)
            sizes = [
                free.setdefault(w, h) if isinstance(w, str) else w
                for w, h in zip(want.shape, array.shape, strict=False)
            ]
            if len(want.shape) != array.ndim or any(
                w not in (None, h) for w, h in zip(sizes, array.shape, strict=True)
            ):
                taken = f"({', '.join(map(str, want.shape))})"
                raise InputError(f"input '{want.name}' has shape {array.shape}, the file takes {taken}{_where(free)}")
            arrays.append(array)
        self.sizes.check(self._notes.inputs, [torch.from_numpy(a) for a in arrays])
        return arrays

    def _explained(self, got: dict[str, np.ndarray], feeds: list[np.ndarray], chosen: Positions | None) -> Explanation:
        notes = self._notes
        tensors = {key: torch.from_numpy(np.asarray(value)) for key, value in got.items()}
        outputs = tensors["logits"]
        positions = chosen or resolve(target_of_call(notes.target, len(outputs)), outputs)
        assert isinstance(positions, Positions)
        value = positions.value(outputs)
        inputs: dict[str, InputExplanation | WholeExplanation] = {}
        for name in notes.explained:
            end = f".{name}" if len(notes.explained) > 1 else ""
            at = notes.inputs.index(name) if name in notes.inputs else None
            x = tensors.get(f"X{end}", torch.from_numpy(feeds[at]) if at is not None else torch.empty(0))
            if f"C_w{end}" in tensors:
                inputs[name] = InputExplanation(x, tensors[f"C_w{end}"], tensors.get(f"C_b{end}"), positions.several)
            elif f"C{end}" in tensors:
                inputs[name] = WholeExplanation(x, tensors[f"C{end}"])
        table = BiasTable(notes.biased, tensors.get("bias"), value, notes.kept)
        explanation = Explanation(outputs, positions.target, value, inputs, table)
        limit = tolerances_of(*(t.dtype for t in tensors.values()))["completeness"]
        return explanation.require_sum(limit, measured=tensors.get("completeness"))

    def __repr__(self) -> str:
        return (
            f"OnnxExplainer({self.path.name}: {', '.join(self.inputs)} -> {', '.join(self.outputs)}, "
            f"{self.provider}, rules={self.metadata['rules']!r}, bias={self.metadata['bias']!r})"
        )


def _of_rows(result: str) -> bool:
    """Whether a result is the same for all targets: outputs, and each X."""
    return result.partition(".")[0] in ("logits", "X")


# The file's own words ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Notes:
    """The metadata that a call needs, read."""

    inputs: list[str]  # of the model
    target_input: str | None
    results: list[str]  # what each output is
    target: TargetMode
    explained: list[str]
    biased: list[str]
    kept: list[str]
    batched: bool
    top: int | None = (
        None  # as a target: each row's largest output; None where the file was written before there was one
    )


def _read(metadata: Mapping[str, str], path: Path, inputs: list[str], outputs: list[str]) -> _Notes:
    """Raises ExportError: an entry is missing or damaged, or the file is not the one that they were written for."""
    try:
        given, explained, biased, kept = (_names(metadata[key]) for key in ("inputs", "explained", "biased", "kept"))
        kind = metadata["target"]
        target = kind if kind in ("input", "top1") else json.loads(kind)
        target_input = metadata.get("target_input", "target") if kind == "input" else None
        named = json.loads(metadata.get("outputs", "{}")) or {name: name for name in outputs}
        results = {name: result for result, name in named.items()}
        notes = _Notes(
            given, target_input, [results[name] for name in outputs], target, explained, biased, kept,
            metadata["batched"] == "yes", int(metadata["top_target"]) if metadata.get("top_target") else None,
        )  # fmt: skip
        if inputs != [*given, *([] if target_input is None else [target_input])]:
            raise ValueError(f"the file takes {', '.join(inputs)}")
        if missing := [key for key in ("rules", "bias") if key not in metadata]:
            raise KeyError(missing[0])
        if metadata["batched"] not in ("yes", "no") or "logits" not in notes.results:
            raise ValueError("it says neither what a row is nor which output has the logits")
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ExportError(f"the metadata of '{path}' are damaged, or another program's: {said(error)}") from error
    return notes


def _names(text: str) -> list[str]:
    names = json.loads(text)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{text[:100]} is no list of names")
    return names


_DTYPES = {"float": "float32", "double": "float64"}  # onnxruntime's names, where they are not numpy's


def _array(want: Any, value: Any) -> np.ndarray:
    """An input as an array of the file's dtype. Raises InputError: of another one, or it holds NaN or inf."""
    array = array_of(want.name, value)
    kind = want.type.removeprefix("tensor(").removesuffix(")")
    dtype = _DTYPES.get(kind, kind)
    if str(array.dtype) != dtype:
        raise InputError(f"input '{want.name}' is {array.dtype}, the file takes {dtype}; convert it first")
    return array


def _where(sizes: Mapping[str, int]) -> str:
    return " where " + ", ".join(f"{name} is {size}" for name, size in sizes.items()) if sizes else ""
