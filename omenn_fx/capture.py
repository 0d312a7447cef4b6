"""Capture: any PyTorch model becomes one flat, functional ATen graph whose parameters are attributes.

`torch.export` does the capturing. Its training IR is kept wherever it can be (names and operators stay the user's own);
in-place operators are made functional by `functionalize`, and only a graph that writes through views, or that holds an
operator without a rule, pays for `run_decompositions`.
"""

from __future__ import annotations

import functools
import io
import logging
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.export.graph_signature import InputKind, OutputKind

from omenn_fx.errors import CaptureError, InputError, ModeError, Place
from omenn_fx.functionalize import drop_inference_no_ops, functionalize, input_dependent
from omenn_fx.registry import RuleSet

log = logging.getLogger("omenn_fx")

Source = nn.Module | ExportedProgram | str | Path


@dataclass
class Captured:
    """A model as one graph: placeholders are the leaves of (args, kwargs), the output is a tuple of leaves."""

    module: fx.GraphModule
    inputs: list[fx.Node]
    outputs: list[Any]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    batch: Any  # symbolic size of the batch, or the fixed int
    dynamic_batch: bool

    @property
    def graph(self) -> fx.Graph:
        return self.module.graph


def place_of(node: fx.Node) -> Place:
    """The operator, node name, module path and the user's own source line of a node."""
    stack = node.meta.get("nn_module_stack") or {}
    module = str(list(stack.values())[-1][0]) if stack else ""
    module = re.sub(r"^L__self___?|^L\['self'\]\.?", "", module)
    return Place(node.name, str(node.target), module, _source_line(node.meta.get("stack_trace") or ""))


def _source_line(stack_trace: str) -> str:
    frames = re.findall(r'File "(.+?)", line (\d+), in (.+?)\n\s*(.*)', stack_trace)
    if not frames:
        return ""
    file, line, function, code = frames[-1]
    return f"{file}:{line} in {function}: {code.strip()}"


def load_source(source: Source) -> nn.Module | ExportedProgram:
    """An ExportedProgram from the path of a .pt2 file; modules and programs as they are."""
    if isinstance(source, (str, Path)):
        path = Path(source)
        if not path.exists():
            raise CaptureError(f"there is no file '{path}'; a path must name a .pt2 file saved by torch.export.save")
        return torch.export.load(path)
    if isinstance(source, (nn.Module, ExportedProgram)):
        return source
    raise TypeError(
        f"cannot transform a {type(source).__name__}: give an nn.Module, an fx.GraphModule, an ExportedProgram or the "
        "path of a .pt2 file"
    )


def require_eval(model: nn.Module) -> None:
    """Raise ModeError where any module is in train mode."""
    training = [f"'{name}' ({type(m).__name__})" for name, m in model.named_modules() if m.training and name]
    if model.training or training:
        random = [t for t in training if re.search("Drop|Norm", t)] or training or [type(model).__name__]
        more = f" and {len(random) - 4} more" if len(random) > 4 else ""
        raise ModeError(
            f"the model is in train mode, where dropout and batch norm make every explanation random: "
            f"{', '.join(random[:4])}{more}. Call model.eval() first."
        )


def capture(
    source: nn.Module | ExportedProgram,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    rules: RuleSet,
    dynamic_batch: bool = True,
) -> Captured:
    """Capture a model at example inputs. Raises CaptureError with the user's line where torch.export cannot."""
    if isinstance(source, ExportedProgram):
        program, functional = source, False  # the user's own program is not edited
    else:
        require_eval(source)
        program = _export(source, args, dict(kwargs), dynamic_batch)
        drop_inference_no_ops(program.graph)
        functional = functionalize(program.graph, program.graph_signature.user_inputs)
    if not functional or _needs_decomposition(program, rules):
        table = torch.export.default_decompositions()
        for op in [op for op in table if op in rules]:
            table.pop(op)
        program = program.run_decompositions(table)
    return _flatten(program)


@contextmanager
def tensors_only(model: nn.Module) -> Iterator[None]:
    """The model's forward, for a while, without the parts of its return value that torch.export has no type for."""
    forward = model.forward

    @functools.wraps(forward)
    def pruned(*args: Any, **kwargs: Any) -> Any:
        result = forward(*args, **kwargs)
        if isinstance(result, dict):
            return type(result)(**{k: v for k, v in result.items() if _known(v)})
        if type(result) is tuple:
            return tuple(v if _known(v) else None for v in result)
        return result

    object.__setattr__(model, "forward", pruned)
    try:
        yield
    finally:
        object.__delattr__(model, "forward")


def _known(value: Any) -> bool:
    leaves = pytree.tree_leaves(value)
    return all(isinstance(leaf, (torch.Tensor, int, float, bool, str, type(None))) for leaf in leaves)


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: bool) -> ExportedProgram:
    """Export, dropping what the model returns beside tensors where torch.export has no type for it."""
    try:
        return _export_at(model, args, kwargs, dynamic)
    except CaptureError as error:
        if "not a known type" not in str(error):
            raise
    with tensors_only(model):  # key-value caches, for one
        return _export_at(model, args, kwargs, dynamic)


def _export_at(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: bool) -> ExportedProgram:
    reason = ""
    if dynamic:
        program, reason = _export_dynamic(model, args, kwargs)
        if program is not None:
            return program
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(model, args, kwargs, strict=False)
    except Exception as error:
        raise CaptureError(_explain(error)) from error
    if reason:
        log.warning("captured at a fixed batch size: %s", reason[:200])
    return program


def _export_dynamic(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[ExportedProgram | None, str]:
    """A program with a symbolic batch, or None and the reason."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    size = batch_size(leaves)
    if size is None:
        return None, "no input has a batch dimension"
    # torch.export takes a size of 1 for a constant: capture such a batch at 2.
    wide = [_widened_batch(t, size) for t in leaves]
    shapes: Any = ShapesCollection()
    for t in wide:
        if _in_batch(t, max(size, 2)):
            shapes[t] = {0: Dim.AUTO}
    wide_args, wide_kwargs = pytree.tree_unflatten(wide, spec)
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(model, wide_args, wide_kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # the static capture that follows reports what is really wrong
        return None, (str(error).strip() or type(error).__name__).splitlines()[0]
    if _batch_symbol(program) is None:
        return None, f"the model's code fixes it at {size}"
    return program, ""


def _widened_batch(leaf: Any, size: int) -> Any:
    if not _in_batch(leaf, size):
        return leaf
    return torch.cat([leaf, leaf]) if size == 1 else leaf.clone()


@contextmanager
def _quiet() -> Iterator[None]:
    """torch logs and prints pages of its internals where an export fails; CaptureError says what matters."""
    loggers = [logging.getLogger(name) for name in ("torch.fx", "torch.export", "torch._export", "torch._dynamo")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    written = io.StringIO()
    try:
        with redirect_stderr(written):
            yield
        sys.stderr.write(written.getvalue())  # what the model itself wrote
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def batch_size(leaves: Sequence[Any]) -> int | None:
    """The size of dimension 0 of the first tensor that has one."""
    return next((int(t.shape[0]) for t in leaves if isinstance(t, torch.Tensor) and t.ndim), None)


def _in_batch(leaf: Any, size: int) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and leaf.shape[0] == size


def _batch_symbol(program: ExportedProgram) -> Any:
    names = set(program.graph_signature.user_inputs)
    for node in program.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        batched = node.name in names and isinstance(value, torch.Tensor) and value.ndim
        if batched and is_symbolic(value.shape[0]):
            return value.shape[0]
    return None


def is_symbolic(size: Any) -> bool:
    """Whether a size is still free: an export may have found out that only one value fits."""
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


_ADVICE = (
    (
        r"data-dependent|GuardOnDataDependent|UserError.*control flow|u\d+",
        "the path through forward depends on values of the input: replace the `if`/`.item()`/"
        "boolean indexing at this line by torch.where, a mask, or torch.cond",
    ),
    (r"unsupported operator|no fake impl|meta kernel|fake", "register a fake implementation for the custom operator"),
)


def _explain(error: Exception) -> str:
    """The user's line and what to change, instead of a page of torch.export's internals."""
    inside = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(inside)]
    lines = [s.strip() for s in str(error).splitlines() if s.strip()] or [type(error).__name__]
    text = f"torch.export could not capture the model: {type(error).__name__}: {lines[0][:300]}"
    if frames:
        at = frames[-1]
        text += f"\n  at {at.filename}:{at.lineno} in {at.name}: {at.line}"
    for pattern, advice in _ADVICE:
        if re.search(pattern, f"{type(error).__name__} {error}"):
            return f"{text}\n  What to change: {advice}."
    return f"{text}\n  What to change: make this line run under torch.export (see its message above)."


def _needs_decomposition(program: ExportedProgram, rules: RuleSet) -> bool:
    """Whether an operator that the user's input reaches has no rule, so that its decomposition may have."""
    live = input_dependent(program.graph, program.graph_signature.user_inputs)
    operators = (torch._ops.OpOverload, torch._ops.HigherOrderOperator)
    return any(
        isinstance(node.target, operators) and node.target not in rules and not _shape_only(node) for node in live
    )


def _shape_only(node: fx.Node) -> bool:
    """Nodes that no explanation passes through: sizes and assertions."""
    value = node.meta.get("val")
    return not isinstance(value, (torch.Tensor, tuple, list)) or "_assert" in str(node.target)


def _flatten(program: ExportedProgram) -> Captured:
    """Parameters, buffers and constants become attributes; user inputs stay placeholders, in order."""
    root = nn.Module()
    graph = fx.Graph()
    env: dict[fx.Node, Any] = {}
    kinds = {s.arg.name: s for s in program.graph_signature.input_specs if hasattr(s.arg, "name")}
    inputs: list[fx.Node] = []
    placeholders = program.graph.find_nodes(op="placeholder")
    for node in placeholders:
        if kinds[node.name].kind == InputKind.USER_INPUT:
            new = graph.placeholder(node.name)
            new.meta = dict(node.meta)
            env[node] = new
            inputs.append(new)
    double = any(isinstance(v := n.meta.get("val"), torch.Tensor) and v.dtype == torch.float64 for n in placeholders)
    for node in placeholders:
        spec = kinds[node.name]
        if spec.kind == InputKind.USER_INPUT:
            continue
        target = str(spec.target)
        tensor = program.state_dict.get(target, program.constants.get(target))
        if not isinstance(tensor, torch.Tensor):
            raise CaptureError(f"the model holds '{target}', which is not a tensor ({type(tensor).__name__})")
        _assign(root, target, tensor)
        new = graph.create_node("get_attr", target, name=target.replace(".", "_"))
        new.meta = dict(node.meta)
        env[node] = new
    outputs: list[Any] = []
    widened = False
    for node in program.graph.nodes:
        if node.op == "output":
            leaves = zip(program.graph_signature.output_specs, node.args[0], strict=True)
            outputs = [
                env.get(leaf, leaf) if isinstance(leaf, fx.Node) else leaf
                for spec, leaf in leaves
                if spec.kind == OutputKind.USER_OUTPUT
            ]
        elif node.op == "get_attr":
            _assign(root, node.target, _attribute(program.graph_module, node.target))
            env[node] = graph.node_copy(node, env.__getitem__)
        elif node.op != "placeholder" and "_assert" not in str(node.target):
            env[node] = graph.node_copy(node, env.__getitem__)
            widened = double and (_widen(env[node]) or widened)
            if widened:
                _refresh(env[node])
    graph.output(tuple(outputs))
    module = fx.GraphModule(root, graph)
    batch, dynamic = _batch_symbol(program), True
    if batch is None:
        batch, dynamic = batch_size([n.meta.get("val") for n in inputs]), False
    spec = program.call_spec
    return Captured(module, inputs, outputs, spec.in_spec, spec.out_spec, batch, dynamic)


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
    values = [n.meta.get("val") for n in node.all_input_nodes]
    mode = next((v.fake_mode for v in values if isinstance(v, FakeTensor)), None)
    if mode is not None and callable(node.target):
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        with mode, torch.no_grad():
            node.meta["val"] = node.target(*args, **kwargs)


def _attribute(module: nn.Module, path: str) -> Any:
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _assign(root: nn.Module, path: str, tensor: torch.Tensor) -> None:
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
