"""All that is private of torch, captum and friends and is used here, in one place, with a line each on why.

`tests/test_compat.py` looks every name up by its path and says which one moved when a version changes. Imports nothing
of omenn_fx; what is costly to import (`torch._dynamo`, captum, onnxscript) is imported inside of the functions.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from types import FrameType
from typing import Any, Literal

import torch
from torch._dispatch.python import enable_python_dispatcher  # a fake tensor runs an operator's Python decomposition
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket  # the only types that tell operators apart
from torch._subclasses.fake_tensor import FakeTensor  # what a graph records of a value: its shape and dtype
from torch.overrides import TorchFunctionMode

__all__ = ["FakeTensor", "HigherOrderOperator", "OpOverload", "OpOverloadPacket", "enable_python_dispatcher"]

# module -> the private names that are used of it, dotted where a class holds them
PRIVATE: dict[str, tuple[str, ...]] = {
    "torch": ("_is_all_true",),
    "torch._C._functorch": ("maybe_current_level",),
    "torch.distributions": ("Distribution._validate_sample",),
    "torch._functorch.predispatch": ("_add_batch_dim", "_remove_batch_dim"),
    "torch._dispatch.python": ("enable_python_dispatcher",),
    "torch._ops": ("HigherOrderOperator", "OpOverload", "OpOverloadPacket"),
    "torch._subclasses.fake_tensor": (
        "FakeTensor",
        "FakeTensorMode.from_tensor",
        "DataDependentOutputException",
        "DynamicOutputShapeException",
        "UnsupportedFakeTensorException",
        "UnsupportedOperatorException",
    ),
    "torch.fx.experimental.proxy_tensor": (
        "_ModuleStackTracer.call_module",
        "_ModuleStackTracer.getattr",
        "make_fx",
    ),
    "torch.fx.experimental.sym_node": ("SymNode.expr", "SymNode.hint", "SymNode.maybe_as_int"),
    "torch.fx.experimental.symbolic_shapes": (
        "GuardOnDataDependentSymNode",
        "PendingUnbackedSymbolNotFound",
        "ShapeEnv.evaluate_expr",
        "ShapeEnv.replace",
        "ShapeEnv.suppress_guards",
        "statically_known_true",
    ),
    "torch._C": ("PyTorchFileReader", "_dispatch_has_kernel"),
    "torch._export.serde.schema": ("ExportedProgram", "PayloadConfig"),
    "torch._export.serde.serialize": ("_SYM_OPS", "_bytes_to_dataclass"),
    "torch._decomp.decompositions": ("lstm_impl",),
    "torch._dynamo.decorators": ("skip",),
    "torch._dynamo.exc": ("UserError", "UserErrorType.DYNAMIC_CONTROL_FLOW"),
    "captum._utils.common": ("_select_targets",),
}


# Sizes ---------------------------------------------------------------------------------------------------------------


def fixed_value(size: torch.SymInt) -> int | None:
    """The number that an export found a free size to be, None where it is free: no public question answers this."""
    return size.node.maybe_as_int()


def hint_of(size: torch.SymInt) -> int | None:
    """The size of the example, None where it depends on data: `int(size)` would fix a free size."""
    return size.node.hint


def free_symbols(size: torch.SymInt) -> set[Any]:
    """What the expression of a free size is made of: torch shows its text alone."""
    return set(size.node.expr.free_symbols)


def always(condition: Any) -> bool:
    """Whether a comparison of sizes holds for all that they may be; asking it so adds no guard, as `bool` would."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)


def size_at(size: Any, values: Mapping[str, int]) -> int:
    """A free size where its symbols have these values. Raises KeyError where one has none."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    import sympy

    return int(size.node.expr.xreplace({s: sympy.Integer(values[str(s)]) for s in free_symbols(size)}))


def guards_of(fake_mode: Any) -> list[str] | None:
    """The conditions under which torch.export's graph is the model, as sympy writes them: no program shows them.

    None where they cannot be read.
    """
    env = getattr(fake_mode, "shape_env", None)
    if env is None:
        return []
    try:
        return [str(env.replace(guard.expr)) for guard in env.guards]
    except AttributeError:
        return None


class Comparisons:
    """What the code of a model finds free sizes to be, comparison by comparison, while torch.export runs it.

    torch.export makes a condition of a comparison only where it does not know the answer; it knows that no free size is
    one, which is not so. Comparisons that torch makes itself are left out: it broadcasts a size of one, and computes
    the same. `env.evaluate_expr` is replaced on the one environment that this export has made for itself.
    """

    def __init__(self) -> None:
        self._found: list[tuple[Any, Any]] = []
        self._env: Any = None
        self.seen = False  # whether a comparison that was made for a trial was noticed

    @contextmanager
    def watch(self, fake_mode: Any, size: Any) -> Iterator[None]:
        """Take note of the comparisons made inside; `size` is one that is free."""
        env = self._env = fake_mode.shape_env
        own = env.evaluate_expr

        def evaluate(expr: Any, *args: Any, **kwargs: Any) -> Any:
            result = own(expr, *args, **kwargs)
            if _asked_outside_of_torch(sys._getframe(1)):
                self._found.append((expr, result))
            return result

        env.evaluate_expr = evaluate
        try:
            self._found.clear()
            bool(size == 1)
            self.seen = len(self._found) == 1
            self._found.clear()
            yield
        finally:
            del env.evaluate_expr

    def texts(self) -> list[str]:
        """All of them, as conditions that hold at the example."""
        import sympy

        found = []
        for expr, result in self._found:
            told = isinstance(expr, sympy.logic.boolalg.Boolean)
            wanted = (expr if result else sympy.Not(expr)) if told else sympy.Eq(expr, result)
            found.append(str(self._env.replace(wanted)))
        return [text for text in dict.fromkeys(found) if text != "True"]


_TORCH = os.path.dirname(torch.__file__) + os.sep
_AS_A_VALUE = ("__bool__", "__int__", "__index__", "__float__")  # of SymInt and SymBool: Python asks for a number


def _asked_outside_of_torch(frame: FrameType | None) -> bool:
    """Whether Python code that is not torch's asks for the value of a comparison: kernels ask without `__bool__`."""

    def inside(of_value: bool) -> bool:
        code = None if frame is None else frame.f_code
        return code is not None and code.co_filename.startswith(_TORCH) and (code.co_name in _AS_A_VALUE) is of_value

    for of_value in (False, True):
        if of_value and not inside(True):
            return False
        while frame is not None and inside(of_value):
            frame = frame.f_back
    return frame is not None and not frame.f_code.co_filename.startswith(_TORCH)


def without_guards(fake_mode: Any) -> AbstractContextManager[Any]:
    """New nodes get their shapes without a guard, or a free batch gets fixed."""
    sizes = fake_mode.shape_env
    return nullcontext() if sizes is None else sizes.suppress_guards()


def fake_mode_of(value: Any) -> Any:
    """The mode that a fake tensor belongs to, None of anything else: new shapes must come from the same one."""
    return value.fake_mode if isinstance(value, FakeTensor) else None


def traced_calls(function: Any, values: list[Any]) -> Any:
    """A graph of the ATen operators that a function of fake tensors calls: torch.export takes modules alone."""
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(function)(*values)


# Errors of torch.export ----------------------------------------------------------------------------------------------

Failure = Literal["values", "around", "no fake", "transform"]

_TEXTS: tuple[tuple[type[Exception], str, Failure], ...] = (
    (RuntimeError, "We found a fake tensor in the exported program constant's list", "around"),
    (AssertionError, "Expected FakeTensor, got", "around"),  # torch 2.11's words for the first
    (RuntimeError, ".numpy() is not supported for tensor subclasses", "around"),
    (RuntimeError, "There was no fake impl registered for", "no fake"),
    (NotImplementedError, "no fake impl or Meta kernel", "no fake"),
)


def failure_of(error: Exception) -> Failure | None:
    """Why torch.export refuses a model: the path depends on values, forward goes around torch, no fake implementation.

    Told by the type of the error. Where torch raises a plain RuntimeError its own fixed sentence is all there is; it
    counts only where torch raised it.
    """
    from torch._dynamo.exc import UserError, UserErrorType
    from torch._subclasses import fake_tensor
    from torch.fx.experimental import symbolic_shapes

    if isinstance(error, UserError):
        return "values" if error.error_type is UserErrorType.DYNAMIC_CONTROL_FLOW else None
    values = (
        symbolic_shapes.GuardOnDataDependentSymNode,
        symbolic_shapes.PendingUnbackedSymbolNotFound,
        fake_tensor.DataDependentOutputException,
        fake_tensor.DynamicOutputShapeException,
    )
    if isinstance(error, values):
        return "values"
    if isinstance(error, (fake_tensor.UnsupportedOperatorException, fake_tensor.UnsupportedFakeTensorException)):
        return "no fake"
    if any(frame.f_code.co_filename in _transforms() for frame, _ in traceback.walk_tb(error.__traceback__)):
        return "transform"
    return next((what for kind, text, what in _TEXTS if type(error) is kind and text in str(error)), None)


TRANSFORMS = "torch._functorch.predispatch"  # whose functions an exported graph calls where vmap begins and ends


def _transforms() -> tuple[str, ...]:
    """The files in which the transforms of torch.func run what the user gives them."""
    return torch.vmap.__code__.co_filename, torch.func.jacrev.__code__.co_filename


class Tracing(TorchFunctionMode):
    """What torch.export is not to see, and what it does not tell, of the calls of this thread.

    Distributions pass their own validation, which branches on values that no graph can hold. (The default,
    `set_default_validate_args`, is one for all threads, and does not count where `validate_args=True` is given.)

    Attributes:
        transformed: whether a transform of torch.func, such as vmap, was on.
    """

    transformed = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not torch.compiler.is_dynamo_compiling():
            if func in _VERDICTS and _validates(_caller()):
                return True
            self.transformed = self.transformed or torch._C._functorch.maybe_current_level() is not None
        return func(*args, **(kwargs or {}))


_VERDICTS = (torch._is_all_true, torch.Tensor.__bool__)


def _validates(code: Any) -> bool:
    """Whether code is that of torch.distributions which looks at the values of arguments and samples."""
    from torch.distributions import ContinuousBernoulli, Distribution, Geometric, constraints

    kinds: tuple[type, ...] = (Distribution, Geometric, ContinuousBernoulli)  # the last two look once more
    codes = [*(vars(kind)["__init__"].__code__ for kind in kinds), Distribution._validate_sample.__code__]
    return code in codes or (code is not None and code.co_filename == constraints.__file__)


def _caller() -> Any:
    """The code that called a function of torch, below the modes that see the call first."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_code.co_name == "__torch_function__":
        frame = frame.f_back
    return None if frame is None else frame.f_code


# Files of torch.export -----------------------------------------------------------------------------------------------


def archive_reader(file: Any) -> Any:
    """torch's own reader of archives: what is looked at is what will be loaded."""
    return torch._C.PyTorchFileReader(file)


def parsed_program(data: bytes) -> Any:
    """A program of an archive as torch's schema, with nothing in it evaluated yet."""
    from torch._export.serde import schema, serialize

    return serialize._bytes_to_dataclass(schema.ExportedProgram, data)


def parsed_payloads(data: bytes) -> dict[str, Any]:
    """What an archive says of its tensors, by their names."""
    from torch._export.serde import schema, serialize

    return serialize._bytes_to_dataclass(schema.PayloadConfig, data).config


@cache
def symbolic_operators() -> set[str]:
    """The functions on sizes that a program may call, as their names are written in archives."""
    from torch._export.serde.serialize import _SYM_OPS

    return {f"{op.__module__}.{op.__name__}" for op in _SYM_OPS}


def has_kernel(operator: OpOverload) -> bool:
    """Whether the dispatcher knows an operator: those of TorchScript alone write files, print and warn."""
    return torch._C._dispatch_has_kernel(operator.name())


# Compilation ---------------------------------------------------------------------------------------------------------


def import_sympy() -> None:
    """What torch imports when it first compiles or exports; without the filter of warnings that it leaves."""
    if "sympy" not in sys.modules:
        with warnings.catch_warnings():
            importlib.import_module("sympy")


def keep_out_of_compilation(owner: type, *names: str) -> None:
    """torch.compile leaves methods alone; said at first use, for torch.compiler.disable imports torch._dynamo."""
    import_sympy()
    for name in names:
        method = getattr(owner, name)
        if not getattr(method, "_torchdynamo_disable", False):
            setattr(owner, name, torch.compiler.disable(method))


def compile_inside(owner: type, name: str) -> None:
    """torch.compile starts behind a method, at what that calls; the public way to say so fails during an export."""
    from torch._dynamo.decorators import skip

    method = getattr(owner, name)
    if not getattr(method, "_torchdynamo_disable", False):
        setattr(owner, name, skip(method))


def undecorated(function: Any) -> Any:
    """What torch.compile or torch.compiler.disable wrapped, any other function as it is: nothing public tells."""
    return getattr(function, "_torchdynamo_orig_callable", function)


# Captures in one of several threads ----------------------------------------------------------------------------------


@contextmanager
def traced_by_this_thread_alone() -> Iterator[None]:
    """A trace replaces `nn.Module.__call__` for all threads: what the others call is kept from its tracer.

    Without this a module that another thread runs may end up in the tracer's stack of modules.
    """
    from torch.fx.experimental.proxy_tensor import _ModuleStackTracer as Tracer

    thread, call, get = threading.get_ident(), Tracer.call_module, Tracer.getattr

    def call_module(self: Any, m: Any, forward: Any, args: Any, kwargs: Any) -> Any:
        mine = threading.get_ident() == thread
        return call(self, m, forward, args, kwargs) if mine else forward(*args, **kwargs)

    def getattr_of(self: Any, attr: str, value: Any, cache: Any) -> Any:
        return get(self, attr, value, cache) if threading.get_ident() == thread else value

    patched: Any = Tracer
    try:
        patched.call_module, patched.getattr = call_module, getattr_of
        yield
    finally:
        patched.call_module, patched.getattr = call, get


# Others --------------------------------------------------------------------------------------------------------------


def lstm_decomposition() -> Any:
    """The decomposition of an LSTM with projections, which torch keeps out of its public table."""
    from torch._decomp.decompositions import lstm_impl

    return lstm_impl


def select_targets(outputs: torch.Tensor, target: Any) -> torch.Tensor:
    """Captum's own reading of a target, in every form that it has, so that ours agrees with it."""
    from captum._utils.common import _select_targets

    return _select_targets(outputs, target)
