"""The explainer graph as a torch.export program, the form that every further format starts from."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection

from omenn_fx.algebra.composites import kept
from omenn_fx.capture.exclusive import quiet
from omenn_fx.capture.sizes import batch_symbol, fixed_sizes, free_dims
from omenn_fx.compat import traced_by_this_thread_alone
from omenn_fx.errors import ExportError
from omenn_fx.export.passes.optimize import optimize, write_out
from omenn_fx.program import Live


@torch.random.fork_rng(devices=())  # as in to_onnx
def to_program(explainer: Live, *args: Any, **kwargs: Any) -> ExportedProgram:
    """Export model and explanation as one program, at example inputs.

    The program takes the leaves of (args, kwargs) and a cotangent of the explained output's shape (one-hot for one
    target), and returns the explainer graph's dict: `outputs` [N, ...], `X`, `C_w` and `C_b` (tuples with one tensor
    per explained input) and `bias` [N, V]. The batch stays dynamic where it was captured so. `torch.export.save`
    writes it to a `.pt2` file. It is optimised (`omenn_fx.passes`), and has copies of the weights that this changed.

    Raises:
        InputError: the inputs do not fit the model.
        ExportError: a free batch got fixed on the way.
    """
    explanation = explainer(*args, **kwargs)
    program, leaves = explainer.program_for(args, kwargs)
    cotangent = torch.zeros_like(explanation.outputs if explainer.request.batched else explanation.outputs[0])
    size = explanation.outputs.shape[0] if program.captured.dynamic_batch else None
    return _written_apart(optimised(program.graph_module, [*leaves, cotangent], size))


def _written_apart(program: ExportedProgram) -> ExportedProgram:
    """torch.export.save writes the modules around a node with commas and semicolons between them, not those in names:
    a module of such a name would make a file that nothing reads."""

    def apart(name: Any) -> Any:
        return re.sub("[,;]", "_", name) if isinstance(name, str) else name

    for node in program.graph.nodes:
        if stack := node.meta.get("nn_module_stack"):
            node.meta["nn_module_stack"] = {apart(k): (apart(path), apart(kind)) for k, (path, kind) in stack.items()}
    return program


def optimised(
    module: nn.Module,
    example: Sequence[Any],
    batch: int | None,
    free: Sequence[str] = (),
    more: Callable[[fx.GraphModule], fx.GraphModule] | None = None,
) -> ExportedProgram:
    """Export as `export_at` does, run the passes and then `more`. Raises ExportError where that fixed a free size."""
    graph: Any = optimize(export_at(module, example, batch, free).module())
    traced = export_at(write_out(graph if more is None else more(graph)), example, batch, free)
    fixed = fixed_sizes(traced, free) or ("the batch" if batch is not None and batch_symbol(traced) is None else "")
    if fixed:
        raise ExportError(
            f"{fixed} did not stay free while the graph was optimised: leave it out of dynamic, "
            "or transform with dynamic_batch=False"
        )
    return traced


def export_at(
    module: nn.Module, example: Sequence[Any], batch: int | None, free: Sequence[str] = ()
) -> ExportedProgram:
    """Export a module at example inputs; with a batch size, dimension 0 of the inputs of that size stays free.

    Composites stay operators, for the passes.
    `free` names other sizes that stay free (`exporting.FREE_SIZES`).
    """
    example = [leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in example]
    shapes: Any = ShapesCollection()
    rows = None
    if batch is not None:
        # torch.export takes sizes of 0 and 1 for constants, and may find at 2 that nothing else fits
        rows = torch.arange(max(batch, 3)) % max(batch, 1)
        example = [t[rows.to(t.device)] if _batched(t, batch) else t for t in example]
    for t in example:
        dims = [0] if rows is not None and _batched(t, len(rows)) else []
        dims += free_dims(t, free)
        if dims:
            shapes[t] = dict.fromkeys(dims, Dim.AUTO)
    with quiet(), torch.no_grad(), traced_by_this_thread_alone(), kept():
        return torch.export.export(module, tuple(example), dynamic_shapes=shapes, strict=False)


def _batched(value: Any, size: int) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == size
