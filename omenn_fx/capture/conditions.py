"""Conditions: which free sizes a captured graph is the model at.

A graph holds one branch of the model's code. The others are told by the conditions that torch.export put on the free
sizes, and by the comparisons that the code made (`compat.Comparisons`): torch.export takes a free size for at least
two, so it decides `n == 1` without a condition. A file keeps its conditions as text; they are read by a reader of
arithmetic that knows nothing else, for a file may come from anywhere.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch

Shapes = Sequence[Sequence[str | int]]  # of each input: numbers, names of free sizes, expressions of those


@dataclass(frozen=True)
class Conditions:
    """What the free sizes fulfil wherever a graph is the model: comparisons of arithmetic in their names."""

    texts: tuple[str, ...] = ()

    @cached_property
    def _trees(self) -> list[tuple[str, ast.expr]]:
        return [(text, ast.parse(text, mode="eval").body) for text in self.texts]

    def broken(self, sizes: Mapping[str, int]) -> str | None:
        """The first condition that sizes do not fulfil, None where they fulfil all.

        An empty batch fulfils all: it has no rows that a graph could be wrong about.
        """
        if 0 in sizes.values():
            return None
        return next((text for text, tree in self._trees if not _holds(tree, sizes)), None)

    @property
    def names(self) -> set[str]:
        """The sizes that the conditions are on."""
        return {n.id for _, tree in self._trees for n in ast.walk(tree) if isinstance(n, ast.Name)} - set(_FUNCTIONS)

    def renamed(self, names: Mapping[str, str]) -> Conditions:
        """The same conditions on sizes of other names; a number is the name of a size that is fixed."""
        texts = dict.fromkeys(_renamed(text, names) for text in self.texts)
        return Conditions(tuple(text for text in texts if not _always(text)))


def sizes_of(shapes: Shapes, leaves: Sequence[Any]) -> dict[str, int] | None:
    """What the free sizes of inputs are, by name; None where the inputs have other shapes."""
    tensors = [(s, leaf.shape) for s, leaf in zip(shapes, leaves, strict=True) if isinstance(leaf, torch.Tensor)]
    if any(len(shape) != len(sizes) for shape, sizes in tensors):
        return None
    pairs = [(want, int(have)) for shape, sizes in tensors for want, have in zip(shape, sizes, strict=True)]
    found: dict[str, int] = {}
    for want, have in pairs:
        if isinstance(want, str) and want.isidentifier() and found.setdefault(want, have) != have:
            return None
    for want, have in pairs:
        if isinstance(want, str) and not want.isidentifier():
            try:
                want = _value(ast.parse(want, mode="eval").body, found)
            except ValueError:  # of a size that stands nowhere alone: the same wherever the expression stands
                want = found.setdefault(want, have)
        if isinstance(want, int) and want != have:
            return None
    return found


def readable(text: str, names: Mapping[str, int]) -> bool:
    """Whether a condition is arithmetic in these sizes, and holds at them."""
    try:
        return bool(_value(ast.parse(text, mode="eval").body, names))
    except (SyntaxError, ValueError, TypeError, ArithmeticError):
        return False


# Arithmetic, as sympy writes it --------------------------------------------------------------------------------------

_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv, ast.Mod: operator.mod, ast.USub: operator.neg, ast.UAdd: operator.pos,
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.BitAnd: lambda a, b: bool(a) and bool(b), ast.BitOr: lambda a, b: bool(a) or bool(b),
    ast.Invert: operator.not_, ast.Not: operator.not_, ast.Pow: lambda a, b: _power(a, b),
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Eq": operator.eq, "Ne": operator.ne, "Mod": operator.mod, "PythonMod": operator.mod, "Max": max, "Min": min,
    "FloorDiv": operator.floordiv, "CleanDiv": operator.floordiv, "IntTrueDiv": operator.truediv,
    "FloatTrueDiv": operator.truediv, "ToFloat": float, "FloatPow": lambda a, b: _power(a, b),
    "PowByNatural": lambda a, b: _power(a, b), "Abs": abs,
}  # fmt: skip


def _power(base: Any, exponent: Any) -> Any:
    if abs(exponent) > 64:
        raise ValueError("a power that no size has")
    return base**exponent


def _holds(tree: ast.expr, sizes: Mapping[str, int]) -> bool:
    try:
        return bool(_value(tree, sizes))
    except (ValueError, TypeError, ArithmeticError):
        return False


def _value(tree: ast.expr, sizes: Mapping[str, int]) -> Any:
    """The value of an expression. Raises ValueError for anything but arithmetic in known sizes."""
    match tree:
        case ast.Constant(value=bool() | int() | float() as value):
            return value
        case ast.Name(id=name) if name in sizes:
            return sizes[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, sizes), _value(right, sizes))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(operand, sizes))
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, sizes), _value(right, sizes))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_value(a, sizes) for a in args))
    raise ValueError(f"not arithmetic in sizes: {ast.unparse(tree)}")


def _renamed(text: str, names: Mapping[str, str]) -> str:
    tree = ast.parse(text, mode="eval")
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            node.id = names.get(node.id, node.id)
    return ast.unparse(tree)


def _always(text: str) -> bool:
    """Whether a condition compares one and the same: two sizes that have one name now."""
    match ast.parse(text, mode="eval").body:
        case ast.Compare(left=left, ops=[ast.Eq() | ast.LtE() | ast.GtE()], comparators=[right]):
            return ast.unparse(left) == ast.unparse(right)
    return False


def plainly(text: str) -> str:
    """A condition as Python writes it: `n != 3` for `Ne(n, 3)`."""
    return ast.unparse(_Plain().visit(ast.parse(text, mode="eval")))


class _Plain(ast.NodeTransformer):
    """Sympy's functions of two arguments as the operators that they are."""

    _SIGNS: ClassVar[dict[str, Any]] = {"Eq": ast.Eq(), "Ne": ast.NotEq(), "Mod": ast.Mod(), "PythonMod": ast.Mod()}

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        sign = self._SIGNS.get(node.func.id) if isinstance(node.func, ast.Name) and len(node.args) == 2 else None
        if sign is None:
            return node
        left, right = node.args
        return ast.Compare(left, [sign], [right]) if isinstance(sign, ast.cmpop) else ast.BinOp(left, sign, right)
