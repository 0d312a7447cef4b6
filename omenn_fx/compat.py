"""All that is private of torch, captum and friends and is used here, in one place, with a line each on why.

`tests/test_compat.py` looks every name up by its path and says which one moved when a version changes. Imports nothing
of omenn_fx; what is costly to import (`torch._dynamo`, captum, onnxscript) is imported inside of the functions.
"""

from __future__ import annotations

import sys
import traceback
from contextlib import AbstractContextManager, nullcontext
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
    "torch.fx.experimental.sym_node": ("SymNode.expr", "SymNode.hint", "SymNode.maybe_as_int"),
    "torch.fx.experimental.symbolic_shapes": (
        "GuardOnDataDependentSymNode",
        "PendingUnbackedSymbolNotFound",
        "ShapeEnv.suppress_guards",
        "statically_known_true",
    ),
    "torch._decomp.decompositions": ("lstm_impl",),
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


def without_guards(fake_mode: Any) -> AbstractContextManager[Any]:
    """New nodes get their shapes without a guard, or a free batch gets fixed."""
    sizes = fake_mode.shape_env
    return nullcontext() if sizes is None else sizes.suppress_guards()


def fake_mode_of(value: Any) -> Any:
    """The mode that a fake tensor belongs to, None of anything else: new shapes must come from the same one."""
    return value.fake_mode if isinstance(value, FakeTensor) else None


# Errors of torch.export ----------------------------------------------------------------------------------------------

Failure = Literal["values", "around", "no fake", "transform"]

_TEXTS: tuple[tuple[type[Exception], str, Failure], ...] = (
    (RuntimeError, "We found a fake tensor in the exported program constant's list", "around"),
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


# Compilation ---------------------------------------------------------------------------------------------------------


def keep_out_of_compilation(owner: type, name: str) -> None:
    """torch.compile leaves a method alone; said at first use, for torch.compiler.disable imports torch._dynamo."""
    method = getattr(owner, name)
    if not getattr(method, "_torchdynamo_disable", False):
        setattr(owner, name, torch.compiler.disable(method))


# Others --------------------------------------------------------------------------------------------------------------


def lstm_decomposition() -> Any:
    """The decomposition of an LSTM with projections, which torch keeps out of its public table."""
    from torch._decomp.decompositions import lstm_impl

    return lstm_impl


def select_targets(outputs: torch.Tensor, target: Any) -> torch.Tensor:
    """Captum's own reading of a target, in every form that it has, so that ours agrees with it."""
    from captum._utils.common import _select_targets

    return _select_targets(outputs, target)
