"""What a capture depends on in a model, so that each call can tell whether the capture still holds.

Modules and their classes, parameters and buffers, hooks, training flags, and the attributes that may steer `forward`.
Parameters and buffers that change in place need no new capture: the graph shares them. The model is not kept alive.
"""

from __future__ import annotations

import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn

from omenn_fx.capture.isolate import is_own_object

Tensor = torch.Tensor
Keys = tuple[Any, ...]  # the keys from a model to a value: ("_modules", "0", "_parameters", "weight")

_KINDS = {
    "_modules": "the module", "_parameters": "the parameter", "_buffers": "the buffer",
    "_forward_pre_hooks": "a hook of", "_forward_hooks": "a hook of",
}  # fmt: skip
_UNREAD = {*vars(nn.Module()), "_compiled_call_impl"} - {*_KINDS, "training"}  # forward does not depend on these
_CONTAINERS = (list, tuple, deque, set, dict, OrderedDict, defaultdict)
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, type)
_SIZE = 4096  # containers and objects that are looked into, and entries of each


class Walk:
    """All that steers a model's forward: `values` and their `paths`, and `places`, by which they are found again."""

    def __init__(self, model: nn.Module):
        self.paths: list[Keys] = []
        self.values: list[Any] = []
        self.places: list[tuple[int, Any, bool]] = []  # of each holder but the first: parent, key, has attributes
        self._seen = {id(model)}
        holders: list[tuple[Any, Keys]] = [(vars(model), ())]
        for at, (holder, path) in enumerate(holders):  # grows on the way
            for key, value in list(_items(holder)):
                self.paths.append((*path, key))
                self.values.append(value)
                if key not in _UNREAD and self._is_holder(value, key, len(holders)) and type(holder) is not set:
                    self._seen.add(id(value))
                    attributes = not isinstance(value, _CONTAINERS)
                    self.places.append((at, key, attributes))
                    holders.append((vars(value) if attributes else value, (*path, key)))

    def _is_holder(self, value: Any, key: Any, holders: int) -> bool:
        """Whether a value is looked into: modules and what they hold, small containers, objects of the user's."""
        if isinstance(value, _PLAIN) or id(value) in self._seen:
            return False
        if isinstance(value, nn.Module) or key in _KINDS:
            return True
        small = 0 < len(value) <= _SIZE if type(value) in _CONTAINERS else is_own_object(value)
        return small and holders < _SIZE

    def changed_in(self, model: nn.Module) -> dict[Keys, Any]:
        """What a model holds now and did not before, or the reverse: path -> the value before, None without one.

        A list or an object that changed inside is one value.
        """
        before, after = self.by_path(), Walk(model).by_path()
        paths = [p for p in {**before, **after} if before.get(p, _ABSENT) is not after.get(p, _ABSENT)]
        return {_attribute(path): before.get(path) for path in paths}

    def by_path(self) -> dict[Keys, Any]:
        """Keys -> value."""
        return dict(zip(self.paths, self.values, strict=True))


_ABSENT = object()


def _items(holder: Any) -> Iterable[tuple[Any, Any]]:
    return holder.items() if isinstance(holder, dict) else enumerate(holder)


def _attribute(path: Keys) -> Keys:
    """The path to the attribute of a module that a value lies in; to an entry of the module's own tables, itself."""
    at = 0
    while at < len(path) and path[at] in _KINDS:
        at += 2
    return path[: at + 1]


class _Snapshot:
    """A model at one moment."""

    def __init__(self, model: nn.Module, walk: Walk):
        self.kind, self.places = type(model), walk.places
        self.ids = list(map(id, walk.values))
        self.kinds = list(map(type, walk.values))
        self.tensors = [i for i, value in enumerate(walk.values) if isinstance(value, Tensor)]
        self.written = [i for i in self.tensors if not _is_shared(walk.paths[i])]
        self.memory = self._memory(walk.values)
        self.tokens = {path: _Token(value, path) for path, value in walk.by_path().items()}
        self.alive = [t.value for t in self.tokens.values() if t.weak]
        classes = {type(model), *(type(v) for v in walk.values if isinstance(v, nn.Module))}
        self.forwards = [(kind, _forward(kind)) for kind in classes]

    def _memory(self, values: list[Any]) -> list[Any]:
        tensors = [values[i] for i in self.tensors]
        return [*_places(tensors), *(_version(values[i]) for i in self.written)]

    def holds(self, model: nn.Module) -> bool:
        """Whether nothing is another object: by identity alone, for every call pays for it."""
        found: list[Any] = [vars(model)]
        try:
            for parent, key, attributes in self.places:
                value = found[parent][key]
                found.append(vars(value) if attributes else value)
            values = list(chain.from_iterable([h.values() if isinstance(h, dict) else h for h in found]))
        except (LookupError, TypeError, RuntimeError):  # of another structure, or changed by another thread meanwhile
            return False
        return (
            list(map(id, values)) == self.ids
            and list(map(type, values)) == self.kinds
            and type(model) is self.kind
            and not any(alive() is None for alive in self.alive)  # an id is of one object as long as that lives
            and all(_forward(kind) is forward for kind, forward in self.forwards)
            and self._memory(values) == self.memory
        )


class _Token:
    """What is remembered of one value: itself where it is plain, else a reference that does not keep it alive."""

    __slots__ = ("kind", "memory", "value", "weak")

    def __init__(self, value: Any, path: Keys):
        self.kind, self.value, self.weak, self.memory = type(value), value, False, []
        if isinstance(value, Tensor):
            self.memory = [*_places([value]), None if _is_shared(path) else _version(value)]
        if isinstance(value, _CONTAINERS):
            self.value = None  # its entries have tokens of their own
        elif not isinstance(value, (*_PLAIN, weakref.ref)):
            try:
                self.value, self.weak = weakref.ref(value), True
            except TypeError:  # not every type has references
                self.value = value

    def is_of(self, value: Any, path: Keys) -> bool:
        """Whether the value is still the same."""
        if self.kind is not type(value):
            return False
        if isinstance(value, _CONTAINERS):
            return True
        known = self.value() if self.weak else self.value
        if isinstance(value, (*_PLAIN, types.MethodType)):
            return bool(known == value) or (known != known and value != value)  # NaN
        return known is value and (not isinstance(value, Tensor) or self.memory == _Token(value, path).memory)


class ModelState:
    """A model as it is now, to be compared with what it is later. Does not keep it alive."""

    def __init__(self, model: nn.Module):
        self._model = weakref.ref(model)
        self._snapshot = _Snapshot(model, Walk(model))
        self._results: frozenset[Keys] = frozenset()

    def leave_out(self, results: Iterable[Keys]) -> None:
        """Forward writes these itself, at each call: they say nothing about what was captured."""
        self._results |= frozenset(results)

    def changes(self, model: nn.Module) -> list[str]:
        """What is not as it was, in words; nothing where a capture still holds."""
        if model is not self._model():
            return ["it is another model"]
        if self._snapshot.holds(model):
            return []
        snapshot, walk = self._snapshot, Walk(model)
        words = [f"the forward of {kind.__name__}" for kind, own in snapshot.forwards if _forward(kind) is not own]
        if type(model) is not snapshot.kind:
            words.append(f"the model is a {type(model).__name__}, was a {snapshot.kind.__name__}")
        words += self._replaced(snapshot.tokens, walk.by_path())
        if not words:
            self._snapshot = _Snapshot(model, walk)  # equal values in other objects, or what forward writes
        return words

    def _replaced(self, tokens: Mapping[Keys, _Token], now: Mapping[Keys, Any]) -> list[str]:
        known: set[Keys] = {path for path in {**tokens, **now} if path[-1] in _UNREAD}
        words = []
        for path in {**tokens, **now}:  # a module comes before what it holds
            token, value = tokens.get(path), now.get(path, _ABSENT)
            same = token is not None and token.is_of(value, path)
            if same or _attribute(path) in self._results or any(path[:i] in known for i in range(1, len(path) + 1)):
                continue
            known.add(path)
            words.append(_in_words(path, token, value))
        return words


def _in_words(path: Keys, token: _Token | None, value: Any) -> str:
    table = path[-2] if len(path) > 1 else ""
    hooked = "hooks" in str(table)
    where = ".".join(str(key) for key in (path[:-2] if hooked else path) if key not in _KINDS)
    what = f"{_KINDS.get(table, 'the attribute')} '{where}'" if where else f"{_KINDS.get(table, '')} the model"
    if token is None:
        return f"{what} is new"
    if value is _ABSENT:
        return f"{what} is gone"
    if isinstance(value, (bool, int, float, str)) and token.kind in (bool, int, float, str):
        return f"{what} is {value!r}, was {token.value!r}"
    if isinstance(value, nn.Module) and token.kind is not type(value):
        return f"{what} is a {type(value).__name__}, was a {token.kind.__name__}"
    return (
        f"{what} was replaced" if not isinstance(value, Tensor) or token.value() is not value else f"{what} was changed"
    )


def _forward(kind: Any) -> Any:
    """The forward of a class; that of TorchScript's has none."""
    try:
        return kind.forward
    except AttributeError:
        return None


def _is_shared(path: Keys) -> bool:
    """Whether a tensor is a parameter or a buffer: a graph shares it, whatever it is used for."""
    return len(path) > 1 and path[-2] in ("_parameters", "_buffers")


def _places(tensors: list[Tensor]) -> list[Any]:
    """Where tensors lie and how they are read. `tensor.data = ...` changes that, writing in place does not."""
    try:
        return [*map(Tensor.data_ptr, tensors), *map(Tensor.size, tensors), *map(Tensor.stride, tensors)]
    except (RuntimeError, TypeError, NotImplementedError):  # not every kind of tensor lies in one place
        return [_places([t]) for t in tensors] if len(tensors) > 1 else [None]


def _version(tensor: Tensor) -> int | None:
    """How often a tensor was written to; inference tensors do not count it."""
    return None if tensor.is_inference() else tensor._version
