"""Inputs of a call: do they fit what was captured, and can they be explained at all?"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn

from omenn_fx.capture.captured import Captured
from omenn_fx.capture.conditions import sizes_of
from omenn_fx.capture.nodes import value_of
from omenn_fx.capture.sizes import batch_size
from omenn_fx.errors import InputError, OmennError

Tensor = torch.Tensor


def fits(captured: Captured, leaves: Sequence[Any]) -> bool:
    """Whether what was captured is the model at these inputs.

    They have the captured shapes, dtypes and devices; a free size is the same wherever it stands, and fulfils the
    conditions.
    """
    nodes = captured.inputs
    if len(nodes) != len(leaves):
        return False
    batch = batch_size(leaves)
    for node, shape, leaf in zip(nodes, captured.shapes, leaves, strict=True):
        value = value_of(node)
        if isinstance(value, Tensor) != isinstance(leaf, Tensor):
            return False
        if not isinstance(leaf, Tensor):
            if value != leaf:
                return False
            continue
        if leaf.dtype != value.dtype or leaf.device != value.device or leaf.ndim != value.ndim:
            return False
        if shape and isinstance(shape[0], str) and leaf.shape[0] != batch:
            return False
    return captured.is_model_at(leaves)


def check_leaves(leaves: Sequence[Any]) -> None:
    """Tensors and plain values, with a batch among them."""
    for leaf in leaves:
        if not isinstance(leaf, (Tensor, int, float, bool, str, type(None))):
            raise InputError(f"an input is a {type(leaf).__name__}, not a torch.Tensor; convert it first")
    if not any(isinstance(leaf, Tensor) and leaf.ndim for leaf in leaves):
        raise InputError("no input is a tensor with a batch dimension: give tensors of shape [N, ...]")


def check_autocast(leaves: Sequence[Any]) -> None:
    """Raise OmennError inside of torch.autocast, which gives operators other dtypes than a graph records."""
    kinds = {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)} | {"cpu"}
    for kind in sorted(kinds):
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            raise OmennError(
                f"torch.autocast is on for '{kind}': it changes the dtypes of operators while they run, so that an "
                "explanation is of no one dtype",
                fix=f"leave the autocast region for this call: with torch.autocast('{kind}', enabled=False): ..., and "
                "for an explanation in a lower precision convert the model itself (model.bfloat16())",
            )


def check_signature(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise InputError where the model's forward does not take these inputs."""
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        signature = inspect.signature(model.forward)
        raise InputError(f"the inputs do not fit {type(model).__name__}.forward{signature}: {error}") from None


def check_rank(captured: Captured | None, leaves: Sequence[Any]) -> None:
    """The rank and kind that were captured: anything else is a mistake, not a new shape."""
    if captured is None:
        return
    for node, leaf in zip(captured.inputs, leaves, strict=False):
        value = value_of(node)
        if isinstance(value, Tensor) and isinstance(leaf, Tensor):
            if leaf.ndim != value.ndim:
                raise InputError(
                    f"input '{node.name}' has {leaf.ndim} dimensions {tuple(leaf.shape)}, captured with {value.ndim} "
                    f"({', '.join(map(str, value.shape))})"
                )
            if leaf.is_floating_point() != value.is_floating_point():
                raise InputError(f"input '{node.name}' is {leaf.dtype}, captured as {value.dtype}; convert it first")


def check_finite(captured: Captured, leaves: Sequence[Any]) -> None:
    """No NaN, no inf: names the input that holds one."""
    for node, leaf in zip(captured.inputs, leaves, strict=True):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and not torch.isfinite(leaf).all():
            what = "NaN" if torch.isnan(leaf).any() else "inf"
            raise InputError(f"input '{node.name}' holds {what}: no explanation exists for it")


def mismatch(captured: Captured | None, leaves: Sequence[Any]) -> str:
    """What differs from what was captured, in words."""
    assert captured is not None
    parts = []
    for node, leaf in zip(captured.inputs, leaves, strict=False):
        value = value_of(node)
        if isinstance(leaf, Tensor) and isinstance(value, Tensor):
            have = f"{tuple(leaf.shape)} {leaf.dtype} {leaf.device}"
            want = f"({', '.join(map(str, value.shape))}) {value.dtype} {value.device}"
            if have != want:
                parts.append(f"'{node.name}' is {have}, was {want}")
        elif leaf != value:
            parts.append(f"'{node.name}' is {leaf!r}, was {value!r}")
    sizes = sizes_of(captured.shapes, leaves) if len(leaves) == len(captured.shapes) else None
    broken = captured.conditions.broken(sizes) if sizes else None
    if broken is not None:
        parts.append(f"the model takes another branch of its code where {broken} does not hold")
    return "; ".join(parts) or "another structure of inputs"


def flatten_inputs(captured: Captured, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The leaves of (args, kwargs) in the order of the graph's placeholders. Raises InputError on another structure."""
    leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
    if spec != captured.in_spec:
        leaves_by_name = _reordered(captured, args, kwargs)
        if leaves_by_name is None:
            raise InputError(
                f"the inputs have another structure than the captured ones: got {len(args)} positional and keywords "
                f"{sorted(kwargs)}, captured {captured.in_spec}"
            )
        return leaves_by_name
    return leaves


def _reordered(captured: Captured, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any] | None:
    """Keyword arguments in another order than at capture."""
    example_args, example_kwargs = pytree.tree_unflatten(list(range(captured.in_spec.num_leaves)), captured.in_spec)
    if len(example_args) != len(args) or set(example_kwargs) != set(kwargs):
        return None
    leaves, spec = pytree.tree_flatten((args, {k: kwargs[k] for k in example_kwargs}))
    return leaves if spec == captured.in_spec else None
