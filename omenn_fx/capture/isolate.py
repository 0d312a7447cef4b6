"""A copy of a model to capture: its modules and what they hold are copied, its tensors are shared.

torch.export puts fake tensors in the place of a model's parameters while it traces, runs its hooks on fake tensors, and
undoes only part of what forward writes. All that happens to the copy: another thread may call the model meanwhile, and
what hooks and forward write during a capture goes with the copy.
"""

from __future__ import annotations

import copy
import dis
import enum
import functools
import inspect
import sys
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from omenn_fx.compat import undecorated

_ATOMS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, type)
_OURS = ("torch", "numpy", "builtins", "omenn_fx")  # objects of these are shared
_SIZE = 100_000  # of a container: what is larger is data, and shared


def isolated(model: nn.Module) -> nn.Module:
    """A copy of a model that shares its tensors; the model itself where it cannot be copied so."""
    try:
        copied: nn.Module = _Copier().of(model)
    except (_CannotBeCopied, RecursionError):
        return model
    return copied


def deep_copied(model: nn.Module) -> nn.Module:
    """A copy of a model with tensors of its own; what forward left in attributes is copied without its history."""
    try:
        copied: nn.Module = _Copier(lambda t: copy.deepcopy(t) if t.is_leaf else t.detach().clone()).of(model)
    except (_CannotBeCopied, RecursionError):
        return copy.deepcopy(model)
    return copied


class _CannotBeCopied(Exception):
    pass


class _Copier:
    """Copies what can be written to, and rebuilds what refers to it: methods, closures, partials."""

    def __init__(self, tensor: Callable[[torch.Tensor], torch.Tensor] = lambda t: t) -> None:
        self.tensor = tensor
        self.memo: dict[int, Any] = {}
        self.read: set[tuple[int, str]] = set()  # globals that the model's own classes read: those stay shared
        self.alive: list[Any] = []  # an id is of one object only as long as that lives

    def of(self, model: nn.Module) -> Any:
        """A copy of a model. A hook and a forward that share something in a global go on sharing it."""
        self.read = _globals_read({kind for module in model.modules() for kind in type(module).__mro__})
        return self.copy(model)

    def copy(self, value: Any) -> Any:
        if isinstance(value, _ATOMS):
            return value
        if id(value) not in self.memo:
            self.alive.append(value)
            copier = next((make for kinds, make in _COPIERS if isinstance(value, kinds)), None)
            if copier is not None:
                self.put(value, copier(self, value))
            else:
                self.put(value, self.object(value) if is_own_object(value) else value)
        return self.memo[id(value)]

    def put(self, value: Any, copied: Any) -> Any:
        """Known from here on: what it holds may refer to it."""
        self.memo.setdefault(id(value), copied)
        return copied

    def module(self, value: nn.Module) -> Any:
        if isinstance(value, torch.jit.ScriptModule):
            return value
        if hasattr(type(value), "__del__"):
            raise _CannotBeCopied(f"{type(value).__name__} lets go of something when it is deleted")
        return self.object(value)

    def object(self, value: Any) -> Any:
        try:
            copied = object.__new__(type(value))
            if any(getattr(kind, "__slots__", ()) for kind in type(value).__mro__):
                raise TypeError
        except TypeError:  # part of it is not Python's, or not in its `__dict__`
            if isinstance(value, nn.Module):
                raise _CannotBeCopied(type(value).__name__) from None
            return value
        self.put(value, copied)
        held = vars(copied)
        for name, each in vars(value).items():
            held[name] = self.copy(each)
        held.pop("_compiled_call_impl", None)  # of `Module.compile`: it compiles what the model is, not the copy
        return copied

    def sequence(self, value: Any) -> Any:
        if type(value) not in (list, deque) or len(value) > _SIZE:
            return value
        copied = self.put(value, [] if type(value) is list else deque(maxlen=value.maxlen))
        copied.extend(map(self.copy, value))
        return copied

    def mapping(self, value: Any) -> Any:
        if type(value) not in (dict, OrderedDict, defaultdict) or len(value) > _SIZE:
            return value
        empty = defaultdict(value.default_factory) if isinstance(value, defaultdict) else type(value)()
        copied = self.put(value, empty)
        for key, each in value.items():
            copied[self.copy(key)] = self.copy(each)
        return copied

    def set(self, value: Any) -> Any:
        return type(value)(map(self.copy, value)) if type(value) is set and len(value) <= _SIZE else value

    def tuple(self, value: Any) -> Any:
        copied = [self.copy(each) for each in value]
        if all(a is b for a, b in zip(copied, value, strict=True)):
            return value
        return type(value)(*copied) if hasattr(value, "_fields") else tuple(copied)

    def method(self, value: Any) -> Any:
        owner, function = self.copy(value.__self__), self.copy(value.__func__)
        same = owner is value.__self__ and function is value.__func__
        return value if same else types.MethodType(function, owner)

    def partial(self, value: Any) -> Any:
        function, args, keywords = self.copy(value.func), self.copy(value.args), self.copy(value.keywords)
        return functools.partial(function, *args, **keywords)

    def reference(self, value: Any) -> Any:
        there = value()
        copied = self.copy(there)
        return value if copied is there else weakref.ref(copied)

    def function(self, value: Any) -> Any:
        inner = undecorated(value)
        if inner is not value:  # torch.compile's wrapper, which steps aside while a graph is traced
            return self.copy(inner)
        shared = {name for space, name in self.read if space == id(value.__globals__)}
        own = [name for name in _names(value.__code__) if name not in shared and _is_state(value, name)]
        names = {name: value.__globals__[name] for name in own}
        if value.__closure__ is None and not names:
            return value
        cells = tuple(types.CellType() for _ in value.__closure__ or ())
        space = dict(value.__globals__) if names else value.__globals__
        copied = types.FunctionType(value.__code__, space, value.__name__, value.__defaults__, cells or None)
        self.put(value, copied)
        copied.__kwdefaults__, copied.__qualname__ = value.__kwdefaults__, value.__qualname__
        copied.__module__, copied.__doc__ = value.__module__, value.__doc__
        space.update({name: self.copy(each) for name, each in names.items()})
        vars(copied).update({name: self.copy(each) for name, each in vars(value).items()})
        for cell, old in zip(cells, value.__closure__ or (), strict=True):
            try:
                cell.cell_contents = self.copy(old.cell_contents)
            except ValueError:  # an empty one
                continue
        return copied


_COPIERS: tuple[tuple[Any, Callable[[_Copier, Any], Any]], ...] = (
    (torch.Tensor, lambda copier, value: copier.tensor(value)),
    (nn.Module, _Copier.module),
    ((list, deque), _Copier.sequence),
    (dict, _Copier.mapping),
    ((set, frozenset), _Copier.set),
    (tuple, _Copier.tuple),
    (types.MethodType, _Copier.method),
    (types.FunctionType, _Copier.function),
    (functools.partial, _Copier.partial),
    (weakref.ref, _Copier.reference),
)


def is_own_object(value: Any) -> bool:
    """Whether a value is an object with attributes, of the user's own, and nothing happens when it is deleted."""
    kind = type(value)
    room = kind.__module__.partition(".")[0]
    shared = room in _OURS or (room in sys.stdlib_module_names and room != "__main__")
    return not shared and hasattr(value, "__dict__") and not hasattr(kind, "__del__") and not isinstance(value, _SHARED)


_SHARED = (enum.Enum, types.ModuleType)


def _globals_read(kinds: set[type]) -> set[tuple[int, str]]:
    """What the methods of classes, and all functions that they call, may read: (the globals' id, the name)."""
    left: list[Any] = [each for kind in kinds for each in vars(kind).values()]
    read, seen = set[tuple[int, str]](), set[int]()
    while left:
        value = left.pop()
        function = getattr(value, "__func__", value)  # of a static method or one of the class
        if not isinstance(function, types.FunctionType) or id(function) in seen or _room(function) in _OURS:
            continue
        seen.add(id(function))
        names, space = set(_names(function.__code__)), function.__globals__
        read |= {(id(space), name) for name in names}
        left += [space[name] for name in names if name in space]
        left += [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    return read


def _room(function: types.FunctionType) -> str:
    return str(function.__globals__.get("__name__")).partition(".")[0]


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _names(code: types.CodeType) -> Iterator[str]:
    """The names that a function and those inside of it may read from its module."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _is_state(function: types.FunctionType, name: str) -> bool:
    """Whether a name is something of the function's own module that may be written to: records of a hook, say."""
    space = function.__globals__
    room = _room(function)
    if name not in space or room in _OURS or (room in sys.stdlib_module_names and room != "__main__"):
        return False
    if any(step.opname == "STORE_GLOBAL" and step.argval == name for step in dis.get_instructions(function)):
        return True
    value = space[name]
    if inspect.isfunction(value):
        return value.__globals__ is space and value is not function
    if isinstance(value, (nn.Module, types.MethodType, functools.partial)):
        return True
    own = is_own_object(value) and type(value).__module__ == space.get("__name__")
    return own or type(value) in (list, dict, set, deque, defaultdict, OrderedDict)
