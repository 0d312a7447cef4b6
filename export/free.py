"""Sizes that stay free in an exported file beside the batch: the number of tokens, height and width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn

from omenn_fx.capture.sizes import FREE_SIZES, free_dims
from omenn_fx.errors import CaptureError, ExportError, NodeError
from omenn_fx.program import Live

Tensor = torch.Tensor


def freed(explainer: Live, args: Any, kwargs: Any, dynamic: Sequence[str]) -> Live:
    """An explainer of the same model with these sizes free; the same one where that is the batch at most.

    Raises:
        CaptureError: the model's code fixes a size, and names the line; or it runs at no other size.
        ExportError: a rule needs a size as a number; names the node.
    """
    sizes = tuple(name for name in FREE_SIZES if name in dynamic)
    if not sizes:
        return explainer
    what = f"{' and '.join(sizes)} cannot stay free"
    if explainer.model is None:
        raise ExportError(f"{what}: an exported program keeps its sizes, transform the model itself")
    own = explainer.request
    free_batch = own.dynamic_batch and "batch" in dynamic
    other = explainer.with_request(replace(own, free=sizes, dynamic_batch=free_batch))
    try:
        other.prepare(*args, **kwargs)
    except NodeError as error:
        (place,) = error.places
        raise ExportError(f"{what}: the rule of this operator needs its sizes as numbers.\n  at {place}") from error
    _try_another_size(explainer.model, args, kwargs, sizes, what)
    return other


def _try_another_size(model: nn.Module, args: Any, kwargs: Any, sizes: Sequence[str], what: str) -> None:
    """torch.export lets a size pass that fits together with another one only: height x width positions, say."""
    longer = one_more(args, kwargs, None, sizes)
    try:
        with torch.no_grad():
            model(*longer[0], **longer[1])
    except Exception as error:
        raise CaptureError(f"{what}: the model fails at one more: {str(error).splitlines()[0][:200]}") from error


def one_more(args: Any, kwargs: Any, rows: int | None, free: Sequence[str]) -> tuple[Any, Any]:
    """Free sizes one larger: the first sample, and the first token, again."""

    def longer(value: Any) -> Any:
        batched = isinstance(value, Tensor) and value.ndim and value.shape[0] == rows
        for d in ([0] if batched else []) + free_dims(value, free):
            value = torch.cat([value, value.narrow(d, 0, 1)], d)
        return value

    return pytree.tree_map(longer, (args, kwargs))


def name_sizes(model: Any, sizes: Sequence[str]) -> None:
    """Call the free dimensions of an onnx_ir model `batch`, `tokens` ..., whatever symbols torch.export gave them."""
    import onnx_ir as ir

    names: dict[str, str] = {}
    for value in model.graph.inputs:
        shape = value.shape or ()
        dims = {d: name for name in sizes if (d := FREE_SIZES[name].get(len(shape))) is not None}
        for d, size in enumerate(shape):
            if isinstance(size, ir.SymbolicDim):
                name = dims.get(d, "batch")
                apart = name != "batch" and name in names.values()  # two inputs, and nothing makes their sizes equal
                names.setdefault(str(size), f"{value.name}_{name}" if apart else name)
    values = [*model.graph.inputs, *(v for node in model.graph.all_nodes() for v in node.outputs)]
    for value in values:
        for d, size in enumerate(value.shape or ()):
            if isinstance(size, ir.SymbolicDim) and str(size) in names:
                value.shape[d] = names[str(size)]
