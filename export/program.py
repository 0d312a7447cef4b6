"""The explainer graph as a torch.export program, the form that every further format starts from."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import Dim, ExportedProgram, ShapesCollection

from omenn_fx.explainer import Explainer


def to_program(explainer: Explainer, *args: Any, **kwargs: Any) -> ExportedProgram:
    """Export model and explanation as one program, at example inputs.

    The program takes the leaves of (args, kwargs) and a cotangent of the explained output's shape (one-hot for one
    target), and returns the explainer graph's dict: `outputs` [N, ...], `X`, `C_w` and `C_b` (tuples with one tensor
    per explained input) and `bias` [N, V]. The batch stays dynamic where it was captured so. `torch.export.save`
    writes it to a `.pt2` file.

    Raises:
        InputError: the inputs do not fit the model.
    """
    explanation = explainer(*args, **kwargs)
    program, leaves = explainer.program_for(args, kwargs)
    cotangent = torch.zeros_like(explanation.outputs if explainer.request.batched else explanation.outputs[0])
    example = [leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in (*leaves, cotangent)]
    shapes: Any = None
    if program.captured.dynamic_batch:
        size = cotangent.shape[0]
        if size == 1:  # torch.export takes a size of 1 for a constant
            example = [torch.cat([t, t]) if _batched(t, 1) else t for t in example]
        shapes = ShapesCollection()
        for t in example:
            if _batched(t, max(size, 2)):
                shapes[t] = {0: Dim.AUTO}
    with torch.no_grad():
        return torch.export.export(program.graph_module, tuple(example), dynamic_shapes=shapes, strict=False)


def _batched(value: Any, size: int) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == size
