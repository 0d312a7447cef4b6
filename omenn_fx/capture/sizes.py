"""Sizes that are free in a captured graph, and those that are fixed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.export import ExportedProgram

from omenn_fx.compat import fixed_value, free_symbols, hint_of

# A size that may stay free beside the batch: which dimension of an input it is, by the input's number of dimensions.
FREE_SIZES: dict[str, dict[int, int]] = {
    "tokens": {2: 1, 3: 1},  # ids and masks [N, T], embeddings [N, T, C]
    "height": {4: 2, 5: 3},  # images [N, C, H, W], videos [N, C, T, H, W]
    "width": {4: 3, 5: 4},
}


def free_dims(value: Any, free: Sequence[str]) -> list[int]:
    """The dimensions of an input that have one of these sizes."""
    ndim = value.ndim if isinstance(value, torch.Tensor) else 0
    return [FREE_SIZES[name][ndim] for name in free if ndim in FREE_SIZES[name]]


def is_symbolic(size: Any) -> bool:
    """Whether a size is still free: an export may have found out that only one value fits."""
    return isinstance(size, torch.SymInt) and fixed_value(size) is None


def batch_symbol(program: ExportedProgram) -> Any:
    """The symbolic size of the batch, None where it is fixed."""
    names = set(program.graph_signature.user_inputs)
    for node in program.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        batched = node.name in names and isinstance(value, torch.Tensor) and value.ndim
        if batched and is_symbolic(value.shape[0]):
            return value.shape[0]
    return None


def fixed_sizes(program: ExportedProgram, free: Sequence[str]) -> str:
    """The free sizes that came out as numbers: 'tokens of x'."""
    names = program.graph_signature.user_inputs
    values = {n.name: n.meta.get("val") for n in program.graph.find_nodes(op="placeholder") if n.name in names}
    fixed = [
        f"{size} of '{name}'"
        for size in free
        for name, value in values.items()
        if any(not is_symbolic(value.shape[d]) for d in free_dims(value, [size]))
    ]
    return ", ".join(fixed)


def batch_size(leaves: Sequence[Any]) -> int | None:
    """The size of dimension 0 of the first tensor that has one."""
    return next((int(t.shape[0]) for t in leaves if isinstance(t, torch.Tensor) and t.ndim), None)


def known(shape: Sequence[Any]) -> bool:
    """Whether no size depends on data."""
    return all(not isinstance(s, torch.SymInt) or hint_of(s) is not None for s in shape)


def hint(size: Any) -> int:
    """A size as a number: the one of the example where it is symbolic."""
    return int(hint_of(size) or 0) if isinstance(size, torch.SymInt) else int(size)


def symbols(size: Any) -> set[Any]:
    """What a free size is made of; nothing for a number."""
    return free_symbols(size) if is_symbolic(size) else set()
