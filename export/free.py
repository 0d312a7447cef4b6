"""Sizes that stay free in an exported file beside the batch: the number of tokens, height and width."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from omenn_fx.capture import place_of
from omenn_fx.errors import ExportError, OmennError
from omenn_fx.explainer import Explainer
from omenn_fx.exporting import FREE_SIZES
from omenn_fx.roles import producer


def freed(explainer: Explainer, args: Any, kwargs: Any, dynamic: Sequence[str]) -> Explainer:
    """An explainer of the same model with these sizes free; the same one where that is the batch at most.

    Raises:
        CaptureError: the model's code fixes a size; names the line.
        ExportError: a rule needs a size as a number; names the node.
    """
    sizes = tuple(name for name in FREE_SIZES if name in dynamic)
    if not sizes:
        return explainer
    what = f"{' and '.join(sizes)} cannot stay free"
    if explainer.model is None:
        raise ExportError(f"{what}: an exported program keeps its sizes, transform the model itself")
    own = explainer.request
    other = Explainer(explainer.model, bias=explainer.bias)
    other.request = replace(own, free=sizes, dynamic_batch=own.dynamic_batch and "batch" in dynamic)
    try:
        return other.prepare(*args, **kwargs)
    except OmennError:
        raise
    except Exception as error:
        node = next(_nodes_of_frames(error), None)
        if node is None:
            raise
        place = place_of(producer(node)[0])
        raise ExportError(f"{what}: the rule of this operator needs its sizes as numbers.\n  at {place}") from error


def _nodes_of_frames(error: Exception) -> Iterator[fx.Node]:
    """The nodes that were worked on when an error was raised, innermost first."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        node = frame.f_locals.get("node")
        if isinstance(node, fx.Node):
            yield node


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
