"""Hooks that only watch: they may read values, which a trace does not have, and are left out where it fails."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn

from omenn_fx.capture.isolate import isolated

_TABLES = ("_forward_hooks", "_forward_pre_hooks")


def without_watching_hooks(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module | None:
    """A copy of a model without its hooks, where they change no output; None where they do, or cannot be tried.

    They are tried on the inputs and on other ones: what a hook has kept from an earlier call would show there.
    """
    hooked = any(getattr(module, table) for module in model.modules() for table in _TABLES)
    if not hooked or isolated(model) is model:
        return None
    try:
        for inputs in ((args, kwargs), pytree.tree_map(_other, (args, kwargs))):
            with torch.random.fork_rng(devices=[]):
                want = _outputs(isolated(model), inputs)
            with torch.random.fork_rng(devices=[]):
                got = _outputs(_bare(model), inputs)
            if len(got) != len(want) or not all(map(_equal, got, want)):
                return None
    except Exception:  # whatever the model or a hook raises: the error of the capture says what is wrong
        return None
    return _bare(model)


def _bare(model: nn.Module) -> nn.Module:
    copied = isolated(model)
    for module in copied.modules():
        for table in _TABLES:
            getattr(module, table).clear()
    return copied


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Any) -> list[Any]:
    args, kwargs = pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, inputs)
    return pytree.tree_leaves(model(*args, **kwargs))


def _other(leaf: Any) -> Any:
    """Another input like this one: values that it has in other places, floating-point ones moved as well."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    flipped = leaf.flip(list(range(leaf.ndim)))
    return flipped * 1.25 + 0.125 if leaf.is_floating_point() else flipped


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return type(one) is type(other)
