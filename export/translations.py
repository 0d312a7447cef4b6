"""Translations into ONNX in place of torch.onnx's own, where those do not fit all that an explainer needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import opset18

op: Any = opset18  # its own types do not compose


def layer_norm(
    input: Any, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> tuple[Any, Any, Any]:
    """native_layer_norm, whose statistics ONNX returns in float32: they go on in the input's dtype, as torch's do."""
    axis = -len(normalized_shape)
    if weight is None:
        weight = op.CastLike(op.Expand(op.Constant(value_floats=[1.0]), op.Shape(input, start=axis)), input)
    result, mean, inverse = op.LayerNormalization(input, weight, bias, axis=axis, epsilon=eps)
    return result, op.CastLike(mean, input), op.CastLike(inverse, input)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.aten.native_layer_norm.default: layer_norm}
