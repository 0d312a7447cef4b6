"""What a model returns, as torch.export can take it: tensors in tuples, lists and dicts."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import torch
import torch.utils._pytree as pytree

from omenn_fx.errors import OutputError


class Fields(dict[str, Any]):
    """The fields of a returned dataclass (or namespace), which torch.export has no type for: read as its attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


pytree.register_pytree_node(
    Fields,
    lambda fields: (list(fields.values()), list(fields)),
    lambda values, names: Fields(zip(names, values, strict=True)),
    serialized_type_name="omenn_fx.capture.outputs.Fields",
)


def tensors_only(result: Any) -> Any:
    """What a model returns, without the parts that torch.export has no type for: key-value caches, for one.

    Raises:
        OutputError: nothing is left.
    """
    kept = _kept(result)
    if not _known(kept):
        raise OutputError(
            f"the model returns an object of class {type(result).__name__}, in which torch.export sees no tensors",
            fix="wrap the model in one that returns its tensors: alone, in a tuple, a dict or a dataclass",
        )
    return kept


def _kept(result: Any) -> Any:
    if _known(result):
        return result
    if isinstance(result, dict):
        kept = {name: part for name, value in result.items() if _known(part := _kept(value))}
        return kept if type(result) is dict else type(result)(**kept)
    if isinstance(result, tuple):
        parts = [part if _known(part := _kept(value)) else None for value in result]
        kind: Any = type(result)
        return tuple(parts) if kind is tuple else kind(*parts)  # a namedtuple takes them one by one
    if type(result) is list:
        return [part if _known(part := _kept(value)) else None for value in result]
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return _fields({f.name: getattr(result, f.name) for f in dataclasses.fields(result)})
    return _fields(vars(result)) if isinstance(result, SimpleNamespace) else result


def _fields(named: dict[str, Any]) -> Fields:
    return Fields({name: part for name, value in named.items() if _known(part := _kept(value))})


_KNOWN = (
    torch.Tensor,
    int,
    float,
    bool,
    str,
    type(None),
    torch.SymInt,
    torch.SymFloat,
    torch.SymBool,
    torch.ScriptObject,
)


def _known(value: Any) -> bool:
    return all(isinstance(leaf, _KNOWN) for leaf in pytree.tree_leaves(value))
