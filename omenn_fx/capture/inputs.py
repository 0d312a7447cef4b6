"""Inputs of a call: do they fit what was captured, and can they be explained at all?"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
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


def positional(example_inputs: Any) -> tuple[Any, ...]:
    """Example inputs as the positional inputs of forward: one tensor, or a tuple of inputs."""
    if example_inputs is None or isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs or ())
    if isinstance(example_inputs, Tensor):
        return (example_inputs,)
    if isinstance(example_inputs, Mapping):
        raise InputError(
            f"example_inputs is a {type(example_inputs).__name__}",
            fix="give example_inputs=(batch,) where forward takes the mapping itself, or example_kwargs=batch where it "
            "takes what is in it by name",
        )
    raise InputError(f"example_inputs is a {type(example_inputs).__name__}: {_not_a_tensor(example_inputs)}")


def check_leaves(leaves: Sequence[Any]) -> None:
    """Tensors and plain values, with a batch among them."""
    for leaf in leaves:
        if not isinstance(leaf, (Tensor, int, float, bool, str, type(None))):
            raise InputError(f"an input is a {type(leaf).__name__}, not a torch.Tensor; {_not_a_tensor(leaf)}")
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


def _not_a_tensor(value: Any) -> str:
    """What to do with an input that torch.export has no type for."""
    name = type(value).__name__
    if hasattr(value, "__array__"):
        return "convert it with torch.from_numpy (a single number with .item())"
    if dataclasses.is_dataclass(value):
        return f"call torch.export.register_dataclass({name}) once, before"
    if isinstance(value, Mapping):
        return "give a plain dict of it: dict(...)"
    return "convert it first"


def check_signature(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise InputError where the model's forward does not take these inputs."""
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        signature = inspect.signature(model.forward)
        raise InputError(f"the inputs do not fit {type(model).__name__}.forward{signature}: {error}") from None


def check_rank(captured: Captured | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """The rank and kind that were captured: anything else is a mistake, not a new shape; another structure is none."""
    if captured is None or other_structure(captured, args, kwargs):
        return
    for node, leaf in zip(captured.inputs, flatten_inputs(captured, args, kwargs), strict=True):
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


def mismatch(captured: Captured | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """What differs from what was captured, in words."""
    assert captured is not None
    structure = other_structure(captured, args, kwargs)
    if structure:
        return structure
    parts = []
    for node, leaf in zip(captured.inputs, flatten_inputs(captured, args, kwargs), strict=True):
        value = value_of(node)
        if isinstance(leaf, Tensor) and isinstance(value, Tensor):
            have = f"{tuple(leaf.shape)} {leaf.dtype} {leaf.device}"
            want = f"({', '.join(map(str, value.shape))}) {value.dtype} {value.device}"
            if have != want:
                parts.append(f"'{node.name}' is {have}, was {want}")
        elif leaf is not value and leaf != value:
            parts.append(f"'{node.name}' is {leaf!r}, was {value!r}")
    leaves = flatten_inputs(captured, args, kwargs)
    sizes = sizes_of(captured.shapes, leaves)
    broken = captured.conditions.broken(sizes) if sizes else None
    if broken is not None:
        parts.append(f"the model takes another branch of its code where {broken} does not hold")
    return "; ".join(parts) or "values of the inputs"


# Structure: a dict is its keys, whatever their order ------------------------------------------------------------------


def flatten_inputs(captured: Captured, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The leaves of (args, kwargs) in the order of the graph's placeholders. Raises InputError on another structure."""
    leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
    return leaves if spec == captured.in_spec else list(_ordered(*_example(captured), args, dict(kwargs)))


def other_structure(captured: Captured, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """How the structure of inputs differs from the captured one, by its first difference; "" where it does not."""
    try:
        flatten_inputs(captured, args, kwargs)
    except InputError as error:
        return error.reason
    return ""


def fitting(captured: Captured, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any] | None:
    """The leaves of inputs in the order of a graph, where it was captured for inputs like these; else None."""
    try:
        leaves = flatten_inputs(captured, args, kwargs)
    except InputError:
        return None
    return leaves if fits(captured, leaves) else None


def _example(captured: Captured) -> tuple[Any, Any]:
    """Positional and keyword inputs of the captured structure."""
    args, kwargs = pytree.tree_unflatten([None] * captured.in_spec.num_leaves, captured.in_spec)
    return args, kwargs


def _ordered(
    wanted_args: tuple[Any, ...], wanted: Mapping[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[Any]:
    if len(args) != len(wanted_args) or set(kwargs) != set(wanted):
        raise InputError(
            f"the inputs are {len(args)} by position and {_listed(kwargs)} by name; captured were {len(wanted_args)} "
            f"by position and {_listed(wanted)} by name"
        )
    for i, (want, value) in enumerate(zip(wanted_args, args, strict=True)):
        yield from _leaves(want, value, f"input {i}")
    for name, want in wanted.items():
        yield from _leaves(want, kwargs[name], f"input '{name}'")


def _leaves(want: Any, value: Any, where: str) -> Iterator[Any]:
    """The leaves of a value in the order of an example. Raises InputError: names what is missing or too much."""
    if isinstance(want, dict) and isinstance(value, dict):
        missing, unknown = [k for k in want if k not in value], [k for k in value if k not in want]
        if missing or unknown:
            lacks = [f"lacks {_listed(missing)}"] if missing else []
            has = [f"has {_listed(unknown)}, which the captured one had not"] if unknown else []
            raise InputError(f"{where} {' and '.join(lacks + has)}")
        for key, part in want.items():
            yield from _leaves(part, value[key], f"{where}[{key!r}]")
        return
    (parts, kind), (wanted, wanted_kind) = _children(value), _children(want)
    if kind != wanted_kind:
        raise InputError(f"{where} is {_named(value, parts)}, captured was {_named(want, wanted)}")
    if parts and parts[0] is value:
        yield value
        return
    for i, (part, one) in enumerate(zip(wanted, parts, strict=True)):
        yield from _leaves(part, one, f"{where}[{i}]")


def _children(value: Any) -> tuple[list[Any], Any]:
    """The parts of a value, one level down, and what holds them; of a leaf itself."""
    return pytree.tree_flatten(value, is_leaf=lambda part: part is not value)


def _named(value: Any, parts: Sequence[Any]) -> str:
    leaf = len(parts) == 1 and parts[0] is value
    return "a tensor or a plain value" if leaf else f"a {type(value).__name__} of {len(parts)}"


def _listed(names: Collection[Any]) -> str:
    shown = ", ".join(repr(name) for name in list(names)[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown or "none"
