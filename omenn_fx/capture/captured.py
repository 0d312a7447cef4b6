"""Capture: any PyTorch model becomes one flat, functional ATen graph whose parameters are attributes.

`torch.export` does the capturing. Its training IR is kept wherever it can be (names and operators stay the user's own);
in-place operators are made functional by `functionalize`, and only a graph that writes through views, or that holds an
operator without a rule, pays for `run_decompositions`.
"""

from __future__ import annotations

import keyword
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from omenn_fx.algebra.aliases import canonical
from omenn_fx.algebra.ruleset import RuleSet
from omenn_fx.capture.conditions import Conditions, sizes_of
from omenn_fx.capture.decompositions import decomposed, lstm_by_steps
from omenn_fx.capture.functionalize import drop_inference_no_ops, functionalize, input_dependent
from omenn_fx.capture.model_state import Keys
from omenn_fx.capture.nodes import fresh_name, place_of
from omenn_fx.capture.single import conditions_of, rows_at_one, with_rows
from omenn_fx.capture.sizes import batch_size, batch_symbol, is_symbolic
from omenn_fx.capture.torch_export import export, own_path, own_stack, require_eval
from omenn_fx.compat import TRANSFORMS, HigherOrderOperator, OpOverload, enable_python_dispatcher, fake_mode_of
from omenn_fx.errors import CaptureError, InputError

aten = torch.ops.aten
log = logging.getLogger("omenn_fx")


@dataclass(frozen=True)
class Captured:
    """A model as one graph: placeholders are the leaves of (args, kwargs), the output is a tuple of leaves."""

    module: fx.GraphModule
    inputs: tuple[fx.Node, ...]
    outputs: tuple[Any, ...]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    batch: Any  # symbolic size of the batch, the fixed int, or None where all inputs are one sample
    dynamic_batch: bool
    widened: bool = False  # a float64 model whose casts to float32 were made float64
    mutated: tuple[str, ...] = ()  # parameters and buffers that forward writes to
    conditions: Conditions = field(default_factory=Conditions)  # of the free sizes, wherever this graph is the model
    written: frozenset[Keys] = frozenset()  # attributes of the model that are results of forward
    shapes: tuple[tuple[str | int, ...], ...] = field(init=False)  # of each input, free sizes by name

    def __post_init__(self) -> None:
        # Names of free sizes are found now: torch.compile would read a symbol as the number that it was found at.
        values = [n.meta.get("val") for n in self.inputs]
        shapes = tuple(
            tuple(str(s) if is_symbolic(s) else int(s) for s in v.shape) if isinstance(v, torch.Tensor) else ()
            for v in values
        )
        object.__setattr__(self, "shapes", shapes)

    @property
    def graph(self) -> fx.Graph:
        return self.module.graph

    def is_model_at(self, leaves: Sequence[Any]) -> bool:
        """Whether inputs have the captured sizes, and free ones at which this graph is the model."""
        sizes = sizes_of(self.shapes, leaves)
        return sizes is not None and self.conditions.broken(sizes) is None

    def with_rows(self, rows: Sequence[list[int] | None] = ()) -> Captured:
        """A batch of one, with the dimension of the batch in its outputs where the model leaves it out."""
        known = rows or [None] * len(self.outputs)
        return replace(self, outputs=with_rows(self.module, self.outputs, known))


def capture(
    source: nn.Module | ExportedProgram,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    rules: RuleSet,
    dynamic_batch: bool = True,
    batched: bool = True,
    free: Sequence[str] = (),
) -> Captured:
    """Capture a model at example inputs. Raises CaptureError with the user's line where torch.export cannot.

    `free` names sizes of the inputs that stay free beside the batch (`exporting.FREE_SIZES`).
    """
    changed: dict[Keys, Any] = {}
    if isinstance(source, ExportedProgram):
        program, functional, comparisons = source, False, None  # the user's own program is not edited
    else:
        require_eval(source)
        traced = export(source, args, dict(kwargs), dynamic_batch and batched, free)
        program, changed, comparisons = traced.program, traced.written, traced.comparisons
        drop_inference_no_ops(program.graph)
        functional = functionalize(program.graph, program.graph_signature.user_inputs, rules)
    original = program
    if not functional or _needs_decomposition(program, rules):
        table = torch.export.default_decompositions()
        for op in [op for op in table if op in rules]:
            table.pop(op)
        if torch.ops.aten.lstm.input in table:
            table[torch.ops.aten.lstm.input] = lstm_by_steps
        _require_written_names(program)
        written = decomposed(program, table, rules)
        effects = any(spec.kind == InputKind.TOKEN for spec in written.graph_signature.input_specs)
        # Ordered side effects (error checks of linear algebra) have no affine form: name the operator as it was.
        program = program if effects and functional else written
    captured = _flatten(program, batched)
    _require_one_dtype(captured, rules)
    conditions = conditions_of(captured.graph, captured.inputs, (original, program), comparisons, rules)
    captured = replace(captured, conditions=conditions, written=_results(changed, captured.module))
    leaves = pytree.tree_leaves((args, dict(kwargs)))
    if isinstance(source, nn.Module) and captured.dynamic_batch and not captured.is_model_at(leaves):
        log.info("captured at a fixed batch of one, where the model does something else than in a larger batch")
        rows = rows_at_one(captured.outputs, captured.inputs)
        alone = capture(source, args, kwargs, rules, False, batched, free)
        return alone if captured.batch is None else alone.with_rows(rows)
    return captured.with_rows() if captured.batch == 1 else captured


def _results(written: Mapping[Keys, Any], module: nn.Module) -> frozenset[Keys]:
    """The attributes that forward writes, without those whose values before it are read: they are its state."""
    held = {t.data_ptr() for t in chain(module.parameters(), module.buffers()) if t.device.type != "meta"}
    tensors = {path: value for path, value in written.items() if isinstance(value, torch.Tensor)}
    state = {path for path, value in tensors.items() if path[-2:-1] in _TENSORS or value.data_ptr() in held}
    return frozenset(written) - state


_TENSORS = (("_parameters",), ("_buffers",))


def _require_one_dtype(captured: Captured, rules: RuleSet) -> None:
    """Products of two dtypes, which shapes alone do not refuse and kernels do. Raises InputError with the line."""
    for node in captured.graph.nodes:
        rule = rules.get(node.target)
        if rule is None or rule.layer is None:
            continue
        values = [v for n in node.all_input_nodes if isinstance(v := n.meta.get("val"), torch.Tensor)]
        dtypes = sorted({str(v.dtype) for v in values if v.is_floating_point()})
        if len(dtypes) > 1:
            raise InputError(
                f"{place_of(node)}\n      gets {' and '.join(dtypes)}: convert the input to the dtype of the weights "
                "(.to(dtype))"
            )


def _needs_decomposition(program: ExportedProgram, rules: RuleSet) -> bool:
    """Whether an operator that the user's input reaches has no rule, so that its decomposition may have."""
    live = input_dependent(program.graph, program.graph_signature.user_inputs, rules)
    operators = (OpOverload, HigherOrderOperator)
    return any(_is_transform(node) for node in program.graph.nodes) or any(
        isinstance(node.target, operators) and node.target not in rules and not _shape_only(node) for node in live
    )


def _is_transform(node: fx.Node) -> bool:
    """A call at which a transform of torch.func, vmap say, begins or ends: between them values hide a dimension."""
    return getattr(node.target, "__module__", None) == TRANSFORMS


def _shape_only(node: fx.Node) -> bool:
    """Nodes that no explanation passes through: sizes and assertions."""
    value = node.meta.get("val")
    return not isinstance(value, (torch.Tensor, tuple, list)) or "_assert" in str(node.target)


def _flatten(program: ExportedProgram, batched: bool) -> Captured:
    """Parameters, buffers and constants become attributes; user inputs stay placeholders, in order."""
    root, graph = nn.Module(), fx.Graph()
    placeholders = program.graph.find_nodes(op="placeholder")
    double = any(isinstance(v := n.meta.get("val"), torch.Tensor) and v.dtype == torch.float64 for n in placeholders)
    double = double and all(p.dtype != torch.float32 for p in program.parameters())  # a part is meant to be float32
    env: dict[fx.Node, Any] = _inputs_and_constants(program, root, graph)
    inputs = tuple(node for node in env.values() if node.op == "placeholder")
    outputs: tuple[Any, ...] = ()
    widened = False
    for node in program.graph.nodes:
        if node.op == "output":
            leaves = zip(program.graph_signature.output_specs, node.args[0], strict=True)
            outputs = tuple(
                env.get(leaf, leaf) if isinstance(leaf, fx.Node) else leaf
                for spec, leaf in leaves
                if spec.kind == OutputKind.USER_OUTPUT
            )
        elif node.op == "get_attr":
            _assign(root, node.target, _attribute(program.graph_module, node.target))
            env[node] = graph.node_copy(node, env.__getitem__)
        elif node.op != "placeholder" and "_assert" not in str(node.target):
            env[node] = canonicalised(graph.node_copy(node, env.__getitem__))
            widened = double and (_widen(env[node]) or widened)
            if widened:
                _refresh(env[node])
    graph.output(outputs)
    for node in graph.nodes:
        if "nn_module_stack" in node.meta:
            node.meta["nn_module_stack"] = own_stack(node.meta["nn_module_stack"])
    module = fx.GraphModule(root, graph)
    symbol = batch_symbol(program) if batched else None
    batch = symbol if symbol is not None or not batched else batch_size([n.meta.get("val") for n in inputs])
    spec = program.call_spec
    changes = (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION)
    mutated = tuple(own_path(str(s.target)) for s in program.graph_signature.output_specs if s.kind in changes)
    return Captured(module, inputs, outputs, spec.in_spec, spec.out_spec, batch, symbol is not None, widened, mutated)


def _inputs_and_constants(program: ExportedProgram, root: nn.Module, graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """What stands for each placeholder of a program: an input, or a tensor of the model, which becomes an attribute."""
    signature = {s.arg.name: s for s in program.graph_signature.input_specs if hasattr(s.arg, "name")}
    kinds = {node: signature[node.name] for node in program.graph.find_nodes(op="placeholder")}
    users = [node for node, spec in kinds.items() if spec.kind == InputKind.USER_INPUT]
    env = {node: graph.placeholder(node.name) for node in users}  # in front of everything else
    paths = _attribute_paths([own_path(str(spec.target)) for spec in kinds.values() if spec.target is not None])
    for node, spec in kinds.items():
        if node not in env:
            target = str(spec.target)
            tensor = program.state_dict.get(target, program.constants.get(target))
            if not isinstance(tensor, torch.Tensor):
                raise CaptureError(f"the model holds '{target}', which is not a tensor ({type(tensor).__name__})")
            path = paths[own_path(target)]
            _assign(root, path, tensor)
            env[node] = graph.create_node("get_attr", path, name=path.replace(".", "_"))
        env[node].meta = dict(node.meta)
    return env


def _attribute_paths(names: Sequence[str]) -> dict[str, str]:
    """Names of parameters and buffers -> where they lie in the graph's module.

    That is where they lie in the model, unless they would take the place of something of the graph module's own there
    (`graph`, `code`), or cannot be written in the code that it makes of its graph.
    """
    taken = {name.partition(".")[0] for name in names} | _RESERVED
    paths = {}
    for name in names:
        plain = name.partition(".")[0] not in _RESERVED and _can_be_written(name)
        paths[name] = name if plain else fresh_name("named", taken)
        taken.add(paths[name])
    return paths


_RESERVED = {*dir(fx.GraphModule(nn.Module(), fx.Graph()))}


def _can_be_written(path: str) -> bool:
    """Whether torch can write a path of attributes in the code that it makes of a graph: it quotes, but never escapes.

    A keyword (a `ModuleDict` may have one for a key) is a syntax error there, and a quotation mark ends the name, so
    that the rest of it would run.
    """
    return not any(keyword.iskeyword(part) or re.search(r'["\\\n\r]', part) for part in path.split("."))


def _require_written_names(program: ExportedProgram) -> None:
    """Raise CaptureError where the name of a parameter would break the code that torch makes of a program."""
    targets = [own_path(str(spec.target)) for spec in program.graph_signature.input_specs if spec.target is not None]
    wrong = [repr(name)[:80] for name in targets if not _can_be_written(name)]
    if wrong:
        raise CaptureError(
            f"torch.export cannot take the model apart: it cannot write in code the names {', '.join(wrong[:3])}",
            fix="rename these parts of the model: without Python's keywords, quotation marks, backslashes or new lines",
        )


def canonicalised(node: fx.Node) -> fx.Node:
    """A call of an alias becomes one of the operator that it is another name of, in place."""
    alias: Any = node.target
    operator = canonical(alias)
    if operator is not alias:
        names = {a.name: b.name for a, b in zip(alias._schema.arguments, operator._schema.arguments, strict=True)}
        node.target, node.kwargs = operator, {names[name]: value for name, value in node.kwargs.items()}
    return node


def _widen(node: fx.Node) -> bool:
    """In a float64 model a cast to float32 guards nothing and would lose half of the digits: keep float64."""

    def wide(value: Any) -> Any:
        return torch.float64 if value is torch.float32 else value

    before = node.args, node.kwargs
    node.args = tuple(wide(a) for a in node.args)
    node.kwargs = {k: wide(v) for k, v in node.kwargs.items()}
    return (node.args, node.kwargs) != before


def _refresh(node: fx.Node) -> None:
    """Recorded shapes and dtypes behind a widened cast."""
    values = pytree.tree_leaves([n.meta.get("val") for n in node.all_input_nodes])  # a getitem reads a tuple
    mode = next((mode for v in values if (mode := fake_mode_of(v)) is not None), None)
    if mode is not None and callable(node.target):
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        with mode, enable_python_dispatcher(), torch.no_grad():  # torch 2.11's own kernels ask for fixed sizes
            node.meta["val"] = node.target(*args, **kwargs)


def _attribute(module: nn.Module, path: str) -> Any:
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _assign(root: nn.Module, path: str, tensor: torch.Tensor | nn.Module) -> None:
    if isinstance(tensor, nn.Module):  # the branches of a control-flow operator
        root.add_module(path, tensor)
        return
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    if name in root._parameters or name in root._buffers:
        return
    if isinstance(tensor, nn.Parameter):
        root.register_parameter(name, tensor)
    else:
        root.register_buffer(name, tensor)
