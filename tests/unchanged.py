"""Nothing of the user's may differ after a call: `with unchanged(model, *inputs): ...` compares all there is to change.

Of the model: parameters and buffers (identity, bits, version, gradient), every module's `__dict__`, flags and hooks. Of
the process: random numbers, modes and flags of torch, numpy's, warnings, loggers, streams, folder, environment.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Snapshot = dict[str, Any]


class It:
    """A value that is the same only as the same object."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, It) and self.value is other.value

    def __repr__(self) -> str:
        return f"{self.value!r:.60} at {id(self.value):#x}"

    __hash__ = None  # type: ignore[assignment]


@contextmanager
def unchanged(model: nn.Module | None = None, *inputs: Any, apart: Iterable[str] = ()) -> Iterator[None]:
    """Raise AssertionError, with a line for each difference, where the block changes something.

    Args:
        model: of the user.
        *inputs: tensors of the user, also in lists, tuples and dicts.
        apart: entries that may differ.
    """
    before = snapshot(model, inputs)
    yield
    found = differences(before, snapshot(model, inputs), apart)
    assert not found, "\n  ".join(["changed:", *found])


def settle() -> None:
    """Let torch set up what it sets up at its first export, for the process: filters, a logger, a variable."""
    linear, x = nn.Linear(3, 2).eval(), torch.zeros(2, 3)
    torch.export.export(linear, (x,))
    torch.onnx.export(linear, (x,), dynamo=True, verbose=False)


def snapshot(model: nn.Module | None, inputs: Any = ()) -> Snapshot:
    """What the model, the inputs and the process are now."""
    leaves = torch.utils._pytree.tree_leaves(inputs)
    given = {f"input {i}": of_tensor(v) if isinstance(v, Tensor) else It(v) for i, v in enumerate(leaves)}
    return {**({} if model is None else of_model(model)), **given, **of_process()}


def differences(before: Snapshot, after: Snapshot, apart: Iterable[str] = ()) -> list[str]:
    """A line for each entry that is gone, new or another; loggers may come, as libraries are imported."""
    gone = [f"{name} is gone" for name in before if name not in after]
    new = [f"{name} is new" for name in after if name not in before and not name.startswith("logger ")]
    other = [
        f"{name} was {before[name]!r:.200} and is {after[name]!r:.200}"
        for name in before
        if name in after and before[name] != after[name]
    ]
    return [line for line in gone + new + other if not line.startswith(tuple(apart))]


# The model -----------------------------------------------------------------------------------------------------------


def of_model(model: nn.Module) -> Snapshot:
    """Every module: its class, its `__dict__` and the containers in it by identity; its tensors by their bits too."""
    found: Snapshot = {}
    for path, module in model.named_modules(remove_duplicate=False):
        where = f"module '{path}'"
        found[where] = (It(module), It(type(module)))
        for name, value in vars(module).items():
            found[f"{where}.{name}"] = _value(value)
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            found[f"{where}: tensor '{name}'"] = None if tensor is None else of_tensor(tensor)
    found["state_dict"] = [(name, value.data_ptr()) for name, value in model.state_dict().items()]
    return found


def _value(value: Any) -> Any:
    """A container as itself and what it contains, in order; a tensor by its bits; anything else by identity."""
    if isinstance(value, Tensor):
        return of_tensor(value)
    if isinstance(value, dict):
        return It(value), [(key, It(v)) for key, v in value.items()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return It(value), [It(v) for v in value]
    return value if isinstance(value, (bool, int, float, str)) else It(value)


def of_tensor(tensor: Tensor) -> tuple[Any, ...]:
    layout = (
        tensor.dtype,
        tensor.device,
        tuple(tensor.shape),
        tensor.stride() if tensor.layout is torch.strided else 0,
    )
    version = None if tensor.is_inference() else tensor._version
    gradient = It(tensor.grad) if tensor.is_leaf else None
    flags = (tensor.requires_grad, tensor.is_leaf, version)
    return It(tensor), type(tensor), layout, flags, gradient, _bits(tensor), _bits(gradient and gradient.value)


def _bits(tensor: Tensor | None) -> bytes | None:
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta or tensor.layout is not torch.strided:
        return None
    return tensor.detach().resolve_conj().reshape(-1).contiguous().view(torch.uint8).numpy(force=True).tobytes()


# The process ---------------------------------------------------------------------------------------------------------


def of_process() -> Snapshot:
    found = {**of_random_numbers(), **of_torch(), **of_python()}
    for logger in (logging.root, *logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            handlers = [(It(h), h.level, It(getattr(h, "stream", None))) for h in logger.handlers]
            filters = [It(f) for f in logger.filters]
            found[f"logger {logger.name}"] = (logger.level, logger.propagate, logger.disabled, handlers, filters)
    return found


def of_random_numbers() -> Snapshot:
    name, state, *rest = np.random.get_state()
    return {
        "random numbers of torch": torch.random.get_rng_state().numpy().tobytes(),
        "random numbers of numpy": (name, state.tobytes(), rest),
        "random numbers of Python": random.getstate(),
    }


def of_torch() -> Snapshot:
    devices = ("cpu", "cuda")
    new = torch.empty(1)
    return {
        "gradients enabled": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "a new tensor": (type(new), new.requires_grad),  # another one under a mode that was left on
        "autocast": [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices],
        "cache of autocast": torch.is_autocast_cache_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.get_deterministic_debug_mode()),
        "cudnn": (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "mkldnn": torch.backends.mkldnn.enabled,
        "fast path of attention": torch.backends.mha.get_fastpath_enabled(),
        "precision of matmul": torch.get_float32_matmul_precision(),
        "kernels of sdpa": (
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
        ),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "hooks of all modules": {
            name: [It(hook) for hook in hooks.values()]
            for name, hooks in vars(nn.modules.module).items()
            if name.startswith("_global_") and isinstance(hooks, dict)
        },
        "forward and call of Module": (It(nn.Module.__call__), It(nn.Module.__getattr__), It(nn.Module.__setattr__)),
    }


def of_python() -> Snapshot:
    return {
        "warning filters": list(warnings.filters),
        "showwarning": It(warnings.showwarning),
        "logging.disable": logging.root.manager.disable,
        "streams": (It(sys.stdout), It(sys.stderr), It(sys.stdin)),
        "hooks of sys": (It(sys.excepthook), It(sys.displayhook), sys.gettrace(), sys.getprofile()),
        "recursion limit": sys.getrecursionlimit(),
        "garbage collection": (gc.isenabled(), gc.get_threshold()),
        "errors of numpy": np.geterr(),
        "sys.path": list(sys.path),
        "folder": os.getcwd(),
        "environment": dict(os.environ),
    }
