"""What is read off one node of a captured graph: its place in the user's code, its operator, its operands by name."""

from __future__ import annotations

import linecache
import operator
import re
import sysconfig
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import fx

from omenn_fx.algebra.form import Slot
from omenn_fx.algebra.ruleset import Rule
from omenn_fx.compat import OpOverload
from omenn_fx.errors import Place

_OURS = Path(__file__).parent.parent
_TORCH = Path(torch.__file__).parent
_PYTHON = sysconfig.get_path("stdlib")


def has_lines(file: str) -> bool:
    """Whether a frame's file can be shown: not ours, not Python's own (contextlib, functools), not text in memory."""
    hidden = Path(file).is_relative_to(_OURS) or (file.startswith(_PYTHON) and "-packages" not in file)
    if hidden or file == "<string>":  # every text that is executed has this name; Python 3.13 keeps the lines of one
        return False
    return bool(linecache.getline(file, 1) or Path(file).is_file())


def is_users(file: str) -> bool:
    """Whether a frame's file is the user's, or that of a library of models: not torch's, nor code that torch wrote."""
    return has_lines(file) and not Path(file).is_relative_to(_TORCH) and not file.startswith("<eval_with_key>")


def place_of(node: fx.Node) -> Place:
    """The operator, node name, module path and the user's own source line of a node."""
    module = next(reversed(modules_of(node)), "")
    return Place(node.name, _name(node.target), module, *_innermost(node.meta.get("stack_trace") or ""))


_NOWHERE = "_empty_nn_module_stack_from_metadata_hook"  # what torch writes for code that no module calls


def modules_of(node: fx.Node) -> list[str]:
    """The paths of the modules whose forward called a node, the outermost first; the model itself has none."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = (re.sub(r"^L__self___?|^L\['self'\]\.?", "", str(path)) for path, _ in stack.values())
    return [path for path in paths if path and path != _NOWHERE]


def _name(target: Any) -> str:
    """An operator's name; a Python function's without the address that its text has."""
    if isinstance(target, (OpOverload, str)) or not hasattr(target, "__qualname__"):
        return str(target)
    return f"{target.__module__}.{target.__qualname__}"


# torch keeps the stack as Python prints it. A path may hold anything: it ends at the last '", line N, in name'.
_FRAME = re.compile(r'^ {0,2}File "(.*)", line (\d+), in (\S+)$(?:\n {4}(.*))?', re.MULTILINE)


def _innermost(stack_trace: str) -> tuple[str, int, str, str]:
    """File, line, function and code of the user's innermost frame in a printed stack; torch's where there is none."""
    frames = [f for f in _FRAME.findall(stack_trace) if has_lines(f[0])]
    if not frames:
        return "", 0, "", ""
    file, line, function, code = next((f for f in reversed(frames) if is_users(f[0])), frames[-1])
    return file, int(line), function, code.strip()


def producer(node: fx.Node) -> tuple[fx.Node, int | None]:
    """The operator behind a value: for one result of several, the operator and the result's position."""
    if node.target is operator.getitem:
        origin: Any = node.args[0]
        position: Any = node.args[1]
        if isinstance(value_of(origin), (tuple, list)):
            return origin, position
    return node, None


def free_name(module: torch.nn.Module, name: str) -> str:
    """A name for a new attribute: the model may have one of this name itself."""
    while hasattr(module, name):
        name = f"{name}_"
    return name


def fresh_name(name: str, taken: Collection[str]) -> str:
    """A name that is not taken: what is the user's keeps its own."""
    while name in taken:
        name = f"{name}_"
    return name


def value_of(node: Any) -> Any:
    """The fake value (shape and dtype, no data) that capture recorded."""
    return node.meta.get("val") if isinstance(node, fx.Node) else node


def bind(node: fx.Node) -> dict[str, Any]:
    """The operands of a call by their schema names, defaults filled in."""
    if not isinstance(node.target, OpOverload):
        return {f"arg{i}": a for i, a in enumerate(node.args)}
    bound = {}
    for i, argument in enumerate(node.target._schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        bound[argument.name] = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name, default)
    return bound


def read_by(node: fx.Node, rule: Rule | None, besides: tuple[str, ...] = ()) -> list[fx.Node]:
    """The operands of a node whose values its result depends on, without those named in `besides`."""
    left_out = {*besides, *(rule.unread if rule else ())}
    if not left_out:
        return node.all_input_nodes
    found: list[fx.Node] = []
    fx.map_arg({name: operand for name, operand in bind(node).items() if name not in left_out}, found.append)
    return found


def slots_of(node: fx.Node, rule: Rule) -> list[tuple[Slot, fx.Node]]:
    """The operands of a node that its rule lets carry content."""
    found = []
    operands = bind(node)
    for name in rule.content:
        operand = operands.get(name)
        if isinstance(operand, fx.Node):
            found.append((Slot(name), operand))
        elif isinstance(operand, (list, tuple)):
            found += [(Slot(name, i), o) for i, o in enumerate(operand) if isinstance(o, fx.Node)]
    return found


_NUMBERS = {torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default}


def is_value(node: fx.Node) -> bool:
    """Tensors, tuples of tensors, and numbers taken out of a tensor: a size read from one is no value of it."""
    value = value_of(node)
    return isinstance(value, (torch.Tensor, tuple, list, torch.SymFloat)) or node.target in _NUMBERS
