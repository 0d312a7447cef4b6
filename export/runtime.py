"""An exported explainer in onnxruntime: numpy in, an `Explanation` out. No model, no autograd."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from omenn_fx.errors import ExportError, InputError, TargetError
from omenn_fx.explanation import BiasTable, Explanation, InputExplanation, WholeExplanation
from omenn_fx.export.deployed import inputs_of_call, target_of_call
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
        self.session = onnxruntime.InferenceSession(str(path), providers=wanted)
        self.provider: str = self.session.get_providers()[0]
        written = self.session.get_modelmeta().custom_metadata_map
        self.metadata = {k.removeprefix("omenn_fx."): v for k, v in written.items() if k.startswith("omenn_fx.")}
        if "explained" not in self.metadata:
            raise ExportError(f"'{path}' is an ONNX file, but not one that Explainer.to_onnx wrote")
        self.inputs = [i.name for i in self.session.get_inputs()]
        self.outputs = [o.name for o in self.session.get_outputs()]

    def __reduce__(self) -> tuple[Any, ...]:
        """By its file and providers: a session stays in its process."""
        return type(self), (self.path.resolve(), self.session.get_providers())

    def run(self, values: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """All inputs, the target among them, to all outputs by name."""
        return dict(zip(self.outputs, self.session.run(None, dict(zip(self.inputs, values, strict=True))), strict=True))

    def __call__(self, *inputs: Any, target: Target = None, **named: Any) -> Explanation:
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
        if "target" not in self.inputs:
            if target is not None:
                raise TargetError(f"this file explains target {self.metadata['target']}: leave target out")
            return self._explained(self.run(feeds), feeds, None)
        chosen = resolve(target, self._rows(target, feeds))
        if not isinstance(chosen, Positions):
            raise TargetError("an exported explainer takes positions of its outputs as targets, not weights or regions")
        columns = chosen.target.unbind(1) if chosen.several else [chosen.target]
        results = [self.run([*feeds, c.contiguous().numpy()]) for c in columns]
        together = {
            key: np.stack([r[key] for r in results], 1) if chosen.several and key not in ("logits", "X") else value
            for key, value in results[0].items()
        }
        return self._explained(together, feeds, chosen)

    def _rows(self, target: Target, feeds: list[np.ndarray]) -> Tensor:
        """The outputs that a target refers to: their shape is enough where it does not depend on their values."""
        count = int(feeds[0].shape[0]) if self.metadata["batched"] == "yes" else 1
        shape = next(o.shape for o in self.session.get_outputs() if o.name == "logits")[1:]
        if target is not None and not callable(target) and all(isinstance(s, int) for s in shape):
            return torch.empty(count, *shape)
        return torch.from_numpy(self.run([*feeds, np.zeros(count, dtype=np.int64)])["logits"])

    def _feeds(self, inputs: Sequence[Any], named: Mapping[str, Any]) -> list[np.ndarray]:
        names = [n for n in self.inputs if n != "target"]
        given = inputs_of_call(names, inputs, named)
        arrays = [v.numpy(force=True) if isinstance(v, Tensor) else np.asarray(v) for v in given]
        for want, have in zip(self.session.get_inputs(), arrays, strict=False):
            fixed = [(w, h) for w, h in zip(want.shape, have.shape, strict=False) if isinstance(w, int) and w != h]
            if len(want.shape) != have.ndim or fixed:
                raise InputError(f"input '{want.name}' has shape {have.shape}, the file takes {tuple(want.shape)}")
        return arrays

    def _explained(self, got: dict[str, np.ndarray], feeds: list[np.ndarray], chosen: Positions | None) -> Explanation:
        tensors = {key: torch.from_numpy(np.asarray(value)) for key, value in got.items()}
        outputs = tensors["logits"]
        kind = self.metadata["target"]
        fixed = kind if kind in ("input", "top1") else json.loads(kind)
        positions = chosen or resolve(target_of_call(fixed, len(outputs)), outputs)
        assert isinstance(positions, Positions)
        value = positions.value(outputs)
        sources = json.loads(self.metadata["explained"])
        inputs: dict[str, InputExplanation | WholeExplanation] = {}
        for name in sources:
            end = f".{name}" if len(sources) > 1 else ""
            at = self.inputs.index(name) if name in self.inputs else None
            x = tensors.get(f"X{end}", torch.from_numpy(feeds[at]) if at is not None else torch.empty(0))
            if f"C_w{end}" in tensors:
                inputs[name] = InputExplanation(x, tensors[f"C_w{end}"], tensors.get(f"C_b{end}"), positions.several)
            elif f"C{end}" in tensors:
                inputs[name] = WholeExplanation(x, tensors[f"C{end}"])
        shares = tensors.get("bias")
        biased, kept = (json.loads(self.metadata[key]) for key in ("biased", "kept"))
        return Explanation(outputs, positions.target, value, inputs, BiasTable(biased, shares, value, kept))

    def __repr__(self) -> str:
        return (
            f"OnnxExplainer({self.path.name}: {', '.join(self.inputs)} -> {', '.join(self.outputs)}, "
            f"{self.provider}, rules={self.metadata['rules']!r}, bias={self.metadata['bias']!r})"
        )
