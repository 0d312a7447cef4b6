"""Export: torch.export at example inputs, with a symbolic batch where the model allows it.

Everything that can go wrong in the user's code goes wrong here, so here it becomes an error that names the user's line.
"""

from __future__ import annotations

import inspect
import logging
import re
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.overrides import TorchFunctionMode

from omenn_fx.capture.exclusive import quiet
from omenn_fx.capture.files import require_program
from omenn_fx.capture.hooks import without_watching_hooks
from omenn_fx.capture.isolate import isolated
from omenn_fx.capture.kept import kept
from omenn_fx.capture.model_state import Keys, Walk
from omenn_fx.capture.nodes import is_users
from omenn_fx.capture.outputs import tensors_only
from omenn_fx.capture.pt2_file import load_program
from omenn_fx.capture.sizes import batch_size, batch_symbol, fixed_sizes, free_dims, is_symbolic
from omenn_fx.compat import Comparisons, Tracing, failure_of, fake_mode_of, traced_by_this_thread_alone
from omenn_fx.errors import CaptureError, ModeError, OmennError, Place

log = logging.getLogger("omenn_fx")


Source = nn.Module | ExportedProgram | str | Path


def load_source(source: Source, trusted: bool = False) -> nn.Module | ExportedProgram:
    """An ExportedProgram from the path of a .pt2 file (see load_program); modules and programs as they are."""
    if isinstance(source, (str, Path)):
        path = Path(source)
        require_program(path)
        return load_program(path, trusted)
    if isinstance(source, (nn.Module, ExportedProgram)):
        return source
    raise TypeError(
        f"cannot transform a {type(source).__name__}: give an nn.Module, an fx.GraphModule, an ExportedProgram or the "
        "path of a .pt2 file"
    )


def require_eval(model: nn.Module) -> None:
    """Raise ModeError where any module is in train mode, CaptureError where one is TorchScript (and has no mode)."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            what = f"'{name}'" if name else "the model"
            raise CaptureError(
                f"{what} is TorchScript ({type(module).__name__}), whose Python code is gone: torch.export cannot "
                "capture it",
                fix="give the nn.Module that was scripted or traced",
            )
    training = [f"'{name}' ({type(m).__name__})" for name, m in model.named_modules() if m.training and name]
    if model.training or training:
        random = [t for t in training if re.search("Drop|Norm", t)] or training or [type(model).__name__]
        more = f" and {len(random) - 4} more" if len(random) > 4 else ""
        raise ModeError(
            f"the model is in train mode, where dropout and batch norm make every explanation random: "
            f"{', '.join(random[:4])}{more}. Call model.eval() first."
        )


def wrapped(model: nn.Module, comparisons: Comparisons | None = None) -> nn.Module:
    """A model without the parts of its return value that torch.export has no type for: key-value caches, for one.

    What forward writes to the model is in `written`. The inputs keep the names that its forward has; of the names that
    an export gives, `own_path` and `own_stack` take the wrapper away. `comparisons` gets those of the free sizes.
    """
    written: dict[Keys, Any] = {}

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = Walk(model)
        with _watching(comparisons, (args, kwargs)):
            result = getattr(self, _WRAPPER)(*args, **kwargs)
        written.update(before.changed_in(model))
        return tensors_only(result)

    own = inspect.signature(model.forward)
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    forward.__signature__ = own.replace(parameters=[this, *own.parameters.values()])  # type: ignore[attr-defined]
    # On the class: torch.export follows a module that has two names from the module that it traces.
    wrapper = type("TensorsOnly", (nn.Module,), {"forward": forward, "written": written})()
    wrapper.add_module(_WRAPPER, model)
    wrapper.training = False
    return wrapper


_WRAPPER = "omenn_fx_model"


def _watching(comparisons: Comparisons | None, inputs: Any) -> AbstractContextManager[None]:
    """Takes note of what the model compares free sizes with, where it is exported with some."""
    for leaf in pytree.tree_leaves(inputs):
        for size in leaf.shape if isinstance(leaf, torch.Tensor) else ():
            if comparisons is not None and is_symbolic(size) and fake_mode_of(leaf) is not None:
                return comparisons.watch(fake_mode_of(leaf), size)
    return nullcontext()


def own_path(path: str) -> str:
    """A path inside of an exported wrapper as a path inside of the model; any other path as it is."""
    return path.removeprefix(_WRAPPER).removeprefix(".") if path.startswith(_WRAPPER) else path


def own_stack(stack: dict[str, tuple[str, Any]]) -> dict[str, tuple[str, Any]]:
    """The modules around a node, outermost first, without the wrapper."""
    return {
        key.replace(f"{_WRAPPER}.", "").replace(_WRAPPER, ""): (own_path(path), kind)  # the model's takes the wrapper's
        for key, (path, kind) in stack.items()
    }


@dataclass(frozen=True)
class Exported:
    """A model as torch.export sees it.

    Attributes:
        written: what forward writes to the model, path -> value before.
        comparisons: what its code compares free sizes with.
    """

    program: ExportedProgram
    written: dict[Keys, Any]
    comparisons: Comparisons


def export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: bool, free: Sequence[str] = ()
) -> Exported:
    """Export a model as it is `wrapped`.

    Raises:
        CaptureError: the model cannot be captured, or fixes one of the sizes that are to stay free; names the line.
    """
    reason = ""
    if dynamic or free:
        exported, reason = _export_dynamic(model, args, kwargs, dynamic, free)
        if exported is not None:
            return exported
    if dynamic and free:  # the batch does not stay free: the others may
        exported = export(model, args, kwargs, False, free)
    else:
        try:
            exported = _traced(model, args, kwargs)
        except CaptureError:
            bare = without_watching_hooks(model, args, kwargs)
            if bare is None:
                raise
            log.warning("captured without the model's hooks, which cannot be traced and change no output")
            return export(bare, args, kwargs, dynamic, free)
        if free:
            raise CaptureError(f"{' and '.join(free)} cannot stay free: {reason}")
    if reason:
        log.warning("captured at a fixed batch size: %s", reason[:200])
    return exported


def _traced(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any = None) -> Exported:
    """One capture, of a copy of its own: what the trace before wrote is not there any more."""
    copied, comparisons, tracing = isolated(model), Comparisons(), Tracing()
    try:
        with quiet(), tracing, torch.no_grad(), traced_by_this_thread_alone(), kept(copied):
            module: Any = wrapped(copied, comparisons)
            program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
    except OmennError:
        raise
    except Exception as error:
        raise _explain(error, copied, tracing.transformed) from error
    return Exported(program, module.written, comparisons)


def _export_dynamic(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch: bool, free: Sequence[str]
) -> tuple[Exported | None, str]:
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

    try:
        exported = _traced(model, wide_args, wide_kwargs, shapes)
    except OmennError as error:  # the static capture that follows reports what is really wrong
        cause = error.__cause__ or error
        return None, (str(cause).strip() or type(cause).__name__).splitlines()[0]
    program = exported.program
    fixed = fixed_sizes(program, free)
    if fixed:
        watch = _Watch()
        with watch:
            _traced(model, wide_args, wide_kwargs, shapes)
        call = f"at '{watch.place.op}', or just before it," if watch.place else "somewhere"
        raise CaptureError(f"{fixed} cannot stay free: {call} one size only fits", watch.place, _ONE_SIZE)
    if batch and batch_symbol(program) is None:
        return None, f"the model's code fixes it at {size}"
    return exported, ""


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


def _in_batch(leaf: Any, size: int) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and leaf.shape[0] == size


_ADVICE = {
    "values": "the path through forward depends on values of the input: replace the `if`/`.item()`/"
    "boolean indexing at this line by torch.where, a mask, or torch.cond",
    "around": "forward leaves torch or goes around it (.data, .numpy()): use tensor operators, and torch.no_grad() to "
    "write",
    "no fake": "register a fake implementation for the custom operator",
    "transform": "a transform of torch.func (vmap, grad, jacrev ...) runs this line, and torch.export cannot capture "
    "it there: write it without that transform, for the whole batch at once",
    "inference": "make the model outside of torch.inference_mode(), or give copy.deepcopy(model), made outside of it",
    None: "make this line run under torch.export (see its message above)",
}


def _explain(error: Exception, model: nn.Module, transformed: bool) -> CaptureError:
    """The user's line and what to change, instead of a page of torch.export's internals."""
    lines = [s.strip() for s in str(error).splitlines() if s.strip()] or [type(error).__name__]
    reason = f"torch.export could not capture the model: {type(error).__name__}: {lines[0][:300]}"
    failure: str | None = failure_of(error)
    if any(t.is_inference() for t in chain(model.parameters(), model.buffers())):
        reason, failure = f"the model's weights were made under torch.inference_mode(). {reason}", "inference"
    elif transformed and failure == "around":  # what is left of a transform that torch.export lost track of
        failure = "transform"
    return CaptureError(reason, _place_of(error, model), _ADVICE[failure])


def _place_of(error: Exception, model: nn.Module) -> Place | None:
    """The user's line in which an error was raised, and the module that ran it; the module alone where no line is."""
    place = _users_place("torch.export", traceback.extract_tb(error.__traceback__))
    paths = {id(module): own_path(path) for path, module in model.named_modules()}
    inner = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        receiver = frame.f_locals.get(frame.f_code.co_varnames[0]) if frame.f_code.co_argcount else None
        inner = paths.get(id(receiver), inner) if isinstance(receiver, nn.Module) else inner
    if place is not None:
        return replace(place, module=inner)
    return Place(op="torch.export", module=inner) if inner else None


def _users_place(op: str, frames: Sequence[traceback.FrameSummary]) -> Place | None:
    """The innermost line that is not torch's or ours; None without one."""
    own = [f for f in frames if is_users(f.filename)]
    if not own:
        return None
    return Place(op=op, file=own[-1].filename, line=own[-1].lineno or 0, function=own[-1].name, code=own[-1].line or "")
