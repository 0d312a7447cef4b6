"""Sizes that stay free in an exported file beside the batch: the number of tokens, height and width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn

from omenn_fx.capture.captured import Captured
from omenn_fx.capture.conditions import sizes_of
from omenn_fx.capture.nodes import value_of
from omenn_fx.capture.sizes import FREE_SIZES, free_dims
from omenn_fx.errors import CaptureError, ExportError, NodeError
from omenn_fx.export.sizes import FileSizes
from omenn_fx.program import Live

Tensor = torch.Tensor
Inputs = tuple[Any, Any]  # args, kwargs


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
    _try_another_size(explainer.model, other.ready.captured, (args, kwargs), sizes, what)
    return other


def _try_another_size(model: nn.Module, captured: Captured, inputs: Inputs, free: Sequence[str], what: str) -> None:
    """torch.export lets a size pass that fits together with another one only: height x width positions, say."""
    placed = [(shape, free_dims(value_of(n), free)) for n, shape in zip(captured.inputs, captured.shapes, strict=True)]
    names = {str(shape[d]) for shape, dims in placed for d in dims}
    failed = ""
    for how, step in (("one more", 1), ("one less", -1), ("two more", 2), ("two less", -2)):  # two: for even sizes
        args, kwargs = resized(captured, inputs, dict.fromkeys(names, step))
        try:
            with torch.no_grad():
                model(*args, **kwargs)
        except Exception as error:
            failed = failed or f"the model fails at {how}: {str(error).splitlines()[0][:200]}"
        else:
            if captured.is_model_at(pytree.tree_leaves((args, kwargs))):
                return
    held = " and ".join(captured.conditions.texts)
    raise CaptureError(f"{what}: {failed or f'the model takes another branch of its code where not {held}'}")


def resized(captured: Captured, inputs: Inputs, steps: Mapping[str, int]) -> Inputs:
    """Inputs whose free sizes are larger or smaller by so much: the first rows again, or without the last."""
    leaves, spec = pytree.tree_flatten(inputs)
    found = []
    for leaf, shape in zip(leaves, captured.shapes, strict=True):
        for d, name in enumerate(shape):
            have = leaf.shape[d]
            size = max(have + steps.get(str(name), 0), 1)
            if size != have:
                leaf = leaf.index_select(d, torch.arange(size, device=leaf.device) % have)
        found.append(leaf)
    args, kwargs = pytree.tree_unflatten(found, spec)
    return args, kwargs


def nearby(captured: Captured, inputs: Inputs, file: FileSizes) -> list[Inputs]:
    """Inputs of other sizes that both the graph and its file are the model at: next to the given ones, and one row."""
    sizes = sizes_of(captured.shapes, pytree.tree_leaves(inputs)) or {}
    rows = {str(shape[0]) for shape in captured.shapes if shape} & set(sizes)
    steps = [dict.fromkeys(names, step) for names in (set(sizes), *({n} for n in sizes)) for step in _STEPS]
    alone = {name: 1 - sizes[name] for name in rows}
    found = []
    for candidates in (steps, [alone]):
        changed = (resized(captured, inputs, step) for step in candidates if any(step.values()))
        fitting = (one for one in changed if _is_model_at(captured, file, one))
        found += [one for one in [next(fitting, None)] if one is not None]
    return found


_STEPS = (1, -1, 2, -2)  # two: for a model of even sizes


def _is_model_at(captured: Captured, file: FileSizes, inputs: Inputs) -> bool:
    leaves = pytree.tree_leaves(inputs)
    return captured.is_model_at(leaves) and file.take([v for v in leaves if isinstance(v, Tensor)])


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
