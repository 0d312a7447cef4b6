"""Export: torch.export at example inputs, with a symbolic batch where the model allows it.

Everything that can go wrong in the user's code goes wrong here, so here it becomes an error that names the user's line.
"""

from __future__ import annotations

import copy
import inspect
import io
import logging
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.overrides import TorchFunctionMode

from omenn_fx.capture.sizes import batch_size, batch_symbol, fixed_sizes, free_dims, is_symbolic
from omenn_fx.compat import failure_of
from omenn_fx.errors import CaptureError, ModeError, Place

log = logging.getLogger("omenn_fx")


Source = nn.Module | ExportedProgram | str | Path


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


def wrapped(model: nn.Module) -> nn.Module:
    """A model without the parts of its return value that torch.export has no type for: key-value caches, for one.

    The user's module is called, never changed. The inputs keep the names that its forward has; of the names that an
    export gives, `own_path` and `own_stack` take the wrapper away.
    """

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return tensors_only(getattr(self, _WRAPPER)(*args, **kwargs))

    own = inspect.signature(model.forward)
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    forward.__signature__ = own.replace(parameters=[this, *own.parameters.values()])  # type: ignore[attr-defined]
    # On the class: torch.export follows a module that has two names from the module that it traces.
    wrapper = type("TensorsOnly", (nn.Module,), {"forward": forward})()
    wrapper.add_module(_WRAPPER, model)
    wrapper.training = False
    return wrapper


_WRAPPER = "omenn_fx_model"


def own_path(path: str) -> str:
    """A path inside of an exported wrapper as a path inside of the model; any other path as it is."""
    return path.removeprefix(_WRAPPER).removeprefix(".") if path.startswith(_WRAPPER) else path


def own_stack(stack: dict[str, tuple[str, Any]]) -> dict[str, tuple[str, Any]]:
    """The modules around a node, outermost first, without the wrapper."""
    return {
        key.replace(f"{_WRAPPER}.", "").replace(_WRAPPER, ""): (own_path(path), kind)  # the model's takes the wrapper's
        for key, (path, kind) in stack.items()
    }


def tensors_only(result: Any) -> Any:
    """What a model returns, without the parts that torch.export has no type for."""
    if _known(result):
        return result
    if isinstance(result, dict):
        return type(result)(**{k: v for k, v in result.items() if _known(v)})
    if type(result) is tuple:
        return tuple(v if _known(v) else None for v in result)
    return result


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


def export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: bool, free: Sequence[str] = ()
) -> ExportedProgram:
    """Export a model as it is `wrapped`.

    Raises:
        CaptureError: the model cannot be captured, or fixes one of the sizes that are to stay free; names the line.
    """
    scripted = isinstance(model, torch.jit.ScriptModule)  # torch.export refuses it by name, if it sees it
    return _export_at(model if scripted else wrapped(model), args, kwargs, dynamic, free)


def _export_at(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: bool, free: Sequence[str]
) -> ExportedProgram:
    reason = ""
    if dynamic or free:
        program, reason = _export_dynamic(model, args, kwargs, dynamic, free)
        if program is not None:
            return program
    if dynamic and free:  # the batch does not stay free: the others may
        program = _export_at(model, args, kwargs, False, free)
    else:
        try:
            with quiet(), torch.no_grad(), kept(model):
                program = torch.export.export(model, args, kwargs, strict=False)
        except Exception as error:
            raise _explain(error) from error
        if free:
            raise CaptureError(f"{' and '.join(free)} cannot stay free: {reason}")
    if reason:
        log.warning("captured at a fixed batch size: %s", reason[:200])
    return program


def _export_dynamic(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch: bool, free: Sequence[str]
) -> tuple[ExportedProgram | None, str]:
    """A program with a symbolic batch and other free sizes, or None and the reason."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    size = batch_size(leaves) if batch else None
    if size is None and not free:
        return None, "no input has a batch dimension"
    # torch.export takes sizes of 0 and 1 for constants: capture such a batch at 2.
    wide = [_copied(t) if size is None else widened(t, size) for t in leaves]
    shapes: Any = ShapesCollection()
    for t in wide:
        dims = [0] if size is not None and _in_batch(t, max(size, 2)) else []
        dims += free_dims(t, free)
        if dims:
            shapes[t] = dict.fromkeys(dims, Dim.AUTO)
    wide_args, wide_kwargs = pytree.tree_unflatten(wide, spec)

    def exported() -> ExportedProgram:
        with quiet(), torch.no_grad(), kept(model):
            return torch.export.export(model, wide_args, wide_kwargs, dynamic_shapes=shapes, strict=False)

    try:
        program = exported()
    except Exception as error:  # the static capture that follows reports what is really wrong
        return None, (str(error).strip() or type(error).__name__).splitlines()[0]
    fixed = fixed_sizes(program, free)
    if fixed:
        watch = _Watch()
        with watch:
            exported()
        call = f"at '{watch.place.op}', or just before it," if watch.place else "somewhere"
        raise CaptureError(f"{fixed} cannot stay free: {call} one size only fits", watch.place, _ONE_SIZE)
    if batch and batch_symbol(program) is None:
        return None, f"the model's code fixes it at {size}"
    return program, ""


_ONE_SIZE = "leave it out of the free sizes, or make this line work for any size"


class _Watch(TorchFunctionMode):
    """Notes the user's line after which a size has one value only."""

    place: Place | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.place is None and any(map(_has_fixed_size, pytree.tree_leaves((args, result)))):
            self.place = _users_place(getattr(func, "__name__", str(func)), traceback.extract_stack())
        return result


def _has_fixed_size(value: Any) -> bool:
    """Whether a size of a fake tensor was free, and is a number now."""
    sizes = value.shape if isinstance(value, torch.Tensor) else ()
    return any(isinstance(s, torch.SymInt) and not is_symbolic(s) for s in sizes)


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf


def widened(leaf: Any, size: int) -> Any:
    """An input of a batch of 0 or 1 as one of two; any other as it is."""
    if not _in_batch(leaf, size):
        return leaf
    return leaf.new_zeros(2, *leaf.shape[1:]) if size == 0 else torch.cat([leaf, leaf]) if size == 1 else leaf.clone()


@contextmanager
def quiet() -> Iterator[None]:
    """torch logs and prints pages of its internals where an export fails; CaptureError says what matters."""
    loggers = [logging.getLogger(name) for name in ("torch.fx", "torch.export", "torch._export", "torch._dynamo")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    written = io.StringIO()
    try:
        with redirect_stderr(written), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
            warnings.filterwarnings("ignore", message="(?s).*assigned during export")  # recurrent modules do so
            yield
        sys.stderr.write(written.getvalue())  # what the model itself wrote
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


_RUNS = threading.RLock()  # two runs of a model at once would keep what the other wrote


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Undo what a run of the model writes into its modules: attributes, buffers, what lists, dicts and sets contain.

    torch.export puts copies in the place of containers, and leaves fake tensors in attributes that forward is the first
    to set and in containers that it fills.
    """
    with _RUNS:
        buffers = [(b, b._version, b.clone()) for b in model.buffers() if not b.is_inference()]
        attributes = [(module, dict(vars(module))) for module in model.modules()]
        containers = _containers([list(before.values()) for _, before in attributes])
        try:
            yield
        finally:
            for buffer, version, content in buffers:
                if buffer._version != version:
                    buffer.copy_(content)
            for container, contents in containers.values():
                if not isinstance(container, tuple) and [*map(id, _contents(container))] != [*map(id, contents)]:
                    _refill(container, contents)
            for module, before in attributes:
                for name in vars(module).keys() - before.keys():
                    del vars(module)[name]
                vars(module).update(before)


def copied(model: nn.Module) -> nn.Module:
    """A copy of its own; of what a run with gradients left in it (activations, normed weights) without the history."""
    lists = _containers([list(vars(module).values()) for module in model.modules()]).values()
    held = [value for _, contents in lists for value in contents]
    tensors = [v for v in held if isinstance(v, torch.Tensor) and not v.is_leaf]
    return copy.deepcopy(model, {id(v): v.detach().clone() for v in tensors})


def _containers(values: list[Any]) -> dict[int, tuple[Any, list[Any]]]:
    """The list itself and every list, dict, set and tuple in it, with their contents, by id."""
    found: dict[int, tuple[Any, list[Any]]] = {}
    left: list[Any] = [values]
    while left:
        value = left.pop()
        if isinstance(value, (list, tuple, dict, set)) and id(value) not in found:
            found[id(value)] = (value, _contents(value))
            left += found[id(value)][1]
    return found


def _contents(container: Any) -> list[Any]:
    """Elements in order; of a dict its keys, then its values."""
    return [*container, *container.values()] if isinstance(container, dict) else list(container)


def _refill(container: Any, contents: list[Any]) -> None:
    container.clear()
    if isinstance(container, dict):
        half = len(contents) // 2
        container.update(zip(contents[:half], contents[half:], strict=True))
    else:
        (container.extend if isinstance(container, list) else container.update)(contents)


def _in_batch(leaf: Any, size: int) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and leaf.shape[0] == size


_ADVICE = {
    "values": "the path through forward depends on values of the input: replace the `if`/`.item()`/"
    "boolean indexing at this line by torch.where, a mask, or torch.cond",
    "around": "forward leaves torch or goes around it (.data, .numpy()): use tensor operators, and torch.no_grad() to "
    "write",
    "no fake": "register a fake implementation for the custom operator",
    None: "make this line run under torch.export (see its message above)",
}


def _explain(error: Exception) -> CaptureError:
    """The user's line and what to change, instead of a page of torch.export's internals."""
    lines = [s.strip() for s in str(error).splitlines() if s.strip()] or [type(error).__name__]
    place = _users_place("torch.export", traceback.extract_tb(error.__traceback__))
    reason = f"torch.export could not capture the model: {type(error).__name__}: {lines[0][:300]}"
    return CaptureError(reason, place, _ADVICE[failure_of(error)])


def _users_place(op: str, frames: Sequence[traceback.FrameSummary]) -> Place | None:
    """The innermost line that is not torch's or ours; None without one."""
    inside = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    own = [f for f in frames if not f.filename.startswith(inside)]
    if not own:
        return None
    return Place(op=op, file=own[-1].filename, line=own[-1].lineno or 0, function=own[-1].name, code=own[-1].line or "")
