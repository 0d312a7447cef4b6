"""Whether a serialised program is data alone: known operators, arithmetic on sizes, and names that are names.

torch.export reads a program by evaluating its expressions and by writing Python from its names, and both run what
stands in them. Here each is held against what an export writes, before torch sees it.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any

import torch

from omenn_fx.compat import OpOverload, has_kernel, symbolic_operators


class NotPlainError(Exception):
    """Something that an export does not write, and that would run as code or read files; its text says what."""


def check_program(program: Any) -> None:
    """Raise NotPlainError where a program, parsed by torch's own schema, holds more than data."""
    for value in _parts(program):
        check = _CHECKS.get(type(value).__name__)
        if check is not None:
            check(value)


def _parts(value: Any) -> Iterator[Any]:
    """A value of the schema and all that is in it."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        yield value
        if hasattr(value, "type") and hasattr(value, "value"):  # a union: its one member alone can be asked for
            waiting.append(value.value)
        elif is_dataclass(value):
            waiting += [getattr(value, f.name) for f in fields(value)]
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _refuse(what: str, text: object) -> None:
    raise NotPlainError(f"{what}: {str(text)[:80]!r}")


# Names: they stand in the Python that torch.fx writes -----------------------------------------------------------------


def _is_name(text: str | None) -> None:
    if text and not text.isidentifier():
        _refuse("a name that is no identifier", text)


def _is_path(text: str | None) -> None:
    """The path of a module or a parameter: torch.fx puts it between double quotes."""
    if text and (not text.isprintable() or re.search(r"[\"'\\{}]", text)):
        _refuse("a path that is no path of a module", text)


def _is_symbol(text: str) -> None:
    # torch counts up to the number in a symbol's name
    if not re.fullmatch(r"[A-Za-z_]\w{0,60}", text) or re.search(r"\d{7}", text):
        _refuse("a symbol that is no symbol", text)


# Expressions: sympy and Python evaluate them --------------------------------------------------------------------------

_FUNCTIONS = _words(
    "Integer Rational Float Add Mul Pow Max Min Mod Abs floor ceiling sqrt Eq Ne Lt Le Gt Ge And Or Not Xor Piecewise "
    "ExprCondPair Equality Unequality StrictLessThan StrictGreaterThan LessThan GreaterThan Relational FloorDiv "
    "ModularIndexing Where PythonMod CleanDiv CeilToInt FloorToInt CeilDiv LShift RShift PowByNatural FloatPow "
    "FloatTrueDiv IntTrueDiv IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt RoundDecimal ToFloat "
    "Identity"
)
_CONSTANTS = _words("true false True False oo int_oo inf nan zoo")
_POWERS = _words("Pow PowByNatural FloatPow LShift")
_ARITHMETIC = (ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop)
_NOT_IT = (ast.BitXor, ast.MatMult)  # sympy reads ^ as a power
_LONGEST, _LARGEST, _LARGEST_POWER = 20_000, 2**63, 64
_NUMBER = re.compile(r"[-+]?[\d.]{1,40}(e[-+]?\d{1,3})?")


def _parsed(text: str, what: str) -> ast.expr:
    if len(text) > _LONGEST or not text.isascii() or re.search(r"[#\\\n\r]", text):
        _refuse(what, text)
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise NotPlainError(f"{what}: {text[:80]!r}") from None


@lru_cache(maxsize=4096)  # one size stands in many tensors
def check_expression(text: str) -> None:
    """Raise NotPlainError where the expression of a size is more than arithmetic on symbols."""
    what = "the expression of a size is more than arithmetic"
    tree = _parsed(text, what)
    if not _is_arithmetic(tree) or _grows(tree):
        _refuse(what, text)


def _is_arithmetic(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return _is_number(node.value)
    if isinstance(node, ast.Name):
        return node.id in _CONSTANTS or bool(re.fullmatch(r"[a-z]{1,20}\d{1,6}", node.id))
    if isinstance(node, ast.Call):
        return _is_known_call(node)
    if isinstance(node, ast.Tuple):  # the pairs of a Piecewise
        return all(map(_is_arithmetic, node.elts))
    return _is_operation(node) and all(map(_is_arithmetic, ast.iter_child_nodes(node)))


def _is_operation(node: ast.AST) -> bool:
    return isinstance(node, _ARITHMETIC) and not isinstance(node, _NOT_IT)


def _is_number(value: object) -> bool:
    return isinstance(value, (bool, int, float)) and (abs(value) <= _LARGEST or value == float("inf"))


def _is_known_call(call: ast.Call) -> bool:
    if not isinstance(call.func, ast.Name):
        return False
    texts = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    plain = all(k.arg and isinstance(k.value, ast.Constant) and _is_setting(k.value.value) for k in call.keywords)
    if call.func.id in ("Symbol", "Float", "Integer") and texts and len(call.args) == 1:
        if call.func.id == "Symbol":
            _is_symbol(texts[0])
            return plain
        return plain and bool(_NUMBER.fullmatch(texts[0]))
    if call.func.id == "Float" and len(call.args) > 1:  # with a precision
        return False
    return call.func.id in _FUNCTIONS and plain and all(map(_is_arithmetic, call.args))


def _is_setting(value: object) -> bool:
    """A flag or a precision."""
    return isinstance(value, (bool, int)) and 0 <= value <= 4096


def _grows(tree: ast.AST) -> bool:
    """Whether a power could be a number without end: of a power, or with an exponent that is large or computed."""
    for node in ast.walk(tree):
        operands = _of_power(node)
        if operands and any(_of_power(inner) for operand in operands for inner in ast.walk(operand)):
            return True
        constants = [n.value for n in ast.walk(operands[-1]) if isinstance(n, ast.Constant)] if operands else []
        numbers = [abs(n) for n in constants if isinstance(n, (int, float))]
        if len(numbers) > 1 or max(numbers, default=0) > _LARGEST_POWER:
            return True
    return False


def _of_power(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Pow, ast.LShift)):
        return [node.left, node.right]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _POWERS:
        return list(node.args)
    return []


_OF_TENSORS = frozenset(("size", "stride", "storage_offset", "dim", "numel"))
_OF_MATH = frozenset(("floor", "ceil", "sqrt", "trunc", "log2", "exp", "pow", "fabs"))


def check_guard(text: str) -> None:
    """Raise NotPlainError where a guard is more than a comparison of the sizes of inputs."""
    what = "a guard is more than a comparison of sizes"
    tree = _parsed(text, what)
    if not _is_guard(tree) or _grows(tree):
        _refuse(what, text)


def _is_guard(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return node.value is None or _is_number(node.value) or _is_key(node.value)
    if isinstance(node, ast.Name):
        return node.id == "L" or node.id in _CONSTANTS
    if isinstance(node, ast.Subscript):
        return _is_guard(node.value) and _is_guard(node.slice)
    if isinstance(node, ast.Call):
        return not node.keywords and _is_guard_call(node.func) and all(map(_is_guard, node.args))
    inside = _is_operation(node) or isinstance(node, (ast.Tuple, ast.IfExp, ast.Load))
    return inside and all(map(_is_guard, ast.iter_child_nodes(node)))


def _is_key(value: object) -> bool:
    """A name of an input, or a key of a dict in it."""
    return isinstance(value, str) and bool(re.fullmatch(r"[\w .-]{1,200}", value))


def _is_guard_call(func: ast.AST) -> bool:
    if isinstance(func, ast.Attribute):
        if isinstance(func.value, ast.Name) and func.value.id == "math":
            return func.attr in _OF_MATH
        return func.attr in _OF_TENSORS and _is_guard(func.value)
    return isinstance(func, ast.Name) and (func.id in _FUNCTIONS or func.id in ("max", "min", "abs"))


# Trees of inputs and outputs: their types are imported ----------------------------------------------------------------

_FACTORIES = frozenset(("list", "dict", "tuple", "set", "int", "float", "bool", "str"))


def check_treespec(text: str) -> None:
    """Raise NotPlainError where the tree of inputs or outputs imports something, or has a keyword that is no name."""
    spec = json.loads(text)
    for part in _json_parts(spec):
        if not isinstance(part, dict):
            continue
        if "__enum__" in part:
            _refuse("the tree of inputs holds an enum, whose module would be imported", part.get("fqn"))
        if "default_factory_module" in part and (
            part["default_factory_module"] != "builtins" or part.get("default_factory_name") not in _FACTORIES
        ):
            _refuse("the tree of inputs holds a defaultdict of", part)
    for keyword in _keywords(spec):
        _is_name(str(keyword))


def _json_parts(value: Any) -> Iterator[Any]:
    """All that stands in a JSON value, inside of strings that are JSON too."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
            try:
                value = json.loads(value)
            except ValueError:
                continue
        yield value
        if isinstance(value, (dict, list)):
            waiting += value.values() if isinstance(value, dict) else value


def _keywords(spec: Any) -> list[Any]:
    """The keys of a tree ((args), {kwargs}): torch.fx makes them the arguments of a function."""
    children = spec[1].get("children_spec") or []
    if len(children) != 2 or children[1].get("type") != "builtins.dict":
        return []
    context = children[1]["context"]
    return json.loads(context) if isinstance(context, str) else list(context)


# Operators: any attribute of torch can be named as one ----------------------------------------------------------------

_HIGHER_ORDER = _words(
    "wrap_with_set_grad_enabled wrap_with_autocast cond while_loop scan associative_scan map_impl flex_attention "
    "flex_attention_backward invoke_subgraph hints_wrapper auto_functionalized auto_functionalized_v2 strict_mode "
    "out_dtype tag_activation_checkpoint wrap_activation_checkpoint"
)
_PREDISPATCH = _words(
    "lazy_load_decompositions _vmap_increment_nesting _vmap_decrement_nesting _add_batch_dim _remove_batch_dim "
    "_jvp_increment_nesting _jvp_decrement_nesting _make_dual _unpack_dual _unwrap_for_grad _enter_dual_level "
    "_exit_dual_level"
)
_ON_SIZES = frozenset(("_operator.getitem", "torch.sym_sum", "torch._sym_sqrt"))
_OF_TORCH = frozenset(("aten", "prims"))
_RAW_MEMORY = frozenset(("inductor", "inductor_prims", "c10d", "symm_mem", "static_runtime", "debugprims", "profiler"))


def check_operator(target: str) -> OpOverload | None:
    """The operator that a target names, None for those that are no overloads. Raises NotPlainError for another name."""
    operator = re.fullmatch(r"torch\.ops\.(\w+)\.(\w+)\.(\w+)", target)
    if operator is not None:
        return _overload(target, *operator.groups())
    place, _, name = target.rpartition(".")
    known = (
        (place == "torch.ops.higher_order" and name in _HIGHER_ORDER)
        or (place == "torch._functorch.predispatch" and name in _PREDISPATCH)
        or target in symbolic_operators() | _ON_SIZES
    )
    if not known:
        _refuse("a call of something that is no known operator", target)
    return None


def _overload(target: str, namespace: str, name: str, overload: str) -> OpOverload | None:
    try:
        found = getattr(getattr(getattr(torch.ops, namespace), name), overload)
    except (AttributeError, RuntimeError):
        return None  # not registered: torch refuses it by name
    if not isinstance(found, OpOverload) or not has_kernel(found) or namespace in _RAW_MEMORY:
        _refuse("a call of something that is no known operator", target)
    if any(a.name in ("filename", "path") and "str" in str(a.type) for a in found._schema.arguments):
        _refuse("an operator that opens a file", target)
    return found


def _check_node(node: Any) -> None:
    found = check_operator(node.target)
    _is_name(node.name)
    if found is not None and found.namespace not in _OF_TORCH:
        arguments = [part for i in node.inputs for part in _parts(i.arg)]
        if any(getattr(part, "type", None) in ("as_string", "as_strings") for part in arguments):
            _refuse("text is handed to an operator that is not torch's, and may name a file", node.target)


def _check_argument(argument: Any) -> None:
    if argument.type == "as_operator":
        check_operator(argument.value)


def _check_signature(signature: Any) -> None:
    check_treespec(signature.in_spec)
    check_treespec(signature.out_spec)
    for name in signature.forward_arg_names or ():
        _is_name(name)


def _check_program_itself(program: Any) -> None:
    for guard in program.guards_code or ():
        check_guard(guard)
    for symbol in program.range_constraints:
        _is_symbol(symbol)


def _no_object(value: Any) -> None:
    _refuse("an object of a class of its own", value.class_fqn)


def _named(*paths: str) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        for path in paths:
            _is_path(getattr(value, path))

    return check


def _reference(value: Any) -> None:
    if value.type == "as_name":
        _is_name(value.value)


def _name_of(value: Any) -> None:
    _is_name(value.name)


_CHECKS: dict[str, Callable[[Any], None]] = {
    "ExportedProgram": _check_program_itself,
    "Node": _check_node,
    "Argument": _check_argument,
    "NamedArgument": _name_of,
    "TensorArgument": _name_of,
    "TokenArgument": _name_of,
    "GraphArgument": _name_of,
    "InputToConstantInputSpec": _name_of,
    "SymIntArgument": _reference,
    "SymFloatArgument": _reference,
    "SymBoolArgument": _reference,
    "SymExpr": lambda value: check_expression(value.expr_str),
    "CustomObjArgument": _no_object,
    "ModuleCallSignature": _check_signature,
    "ModuleCallEntry": _named("fqn"),
    "InputToParameterSpec": _named("parameter_name"),
    "InputToBufferSpec": _named("buffer_name"),
    "InputToTensorConstantSpec": _named("tensor_constant_name"),
    "BufferMutationSpec": _named("buffer_name"),
    "ParameterMutationSpec": _named("parameter_name"),
    "UserInputMutationSpec": _named("user_input_name"),
    "GradientToParameterSpec": _named("parameter_name"),
    "GradientToUserInputSpec": _named("user_input_name"),
}
