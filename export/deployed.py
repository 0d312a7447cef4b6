"""Model and explanation as one module of tensors: what an exported file computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from omenn_fx.capture.nodes import fresh_name
from omenn_fx.capture.sizes import batch_size
from omenn_fx.errors import InputError, OutputError, TargetError, said
from omenn_fx.program import Program
from omenn_fx.target import Positions, resolve

Tensor = torch.Tensor
OUTPUTS = ("logits", "target", "X", "C", "C_w", "C_b", "bias", "completeness")
DEFAULT = ("logits", "C", "completeness")
TOP = -1  # as a target at run time: each row's largest output
TargetMode = str | int | Sequence[int]


class Deployed(nn.Module):
    """(*inputs[, target]) -> the tensors asked for, by name.

    `target` is "input" (an int64 tensor [N] at run time, a flat position in each row of the outputs or `TOP`), "top1"
    (each row's largest), an int, or a list of ints (T targets at once: tensors [N, T, ...]).
    """

    def __init__(self, program: Program, leaves: Sequence[Any], outputs: Sequence[str], target: Any):
        super().__init__()
        self.runnable = program.runnable
        self.inputs = [n.name for n, v in zip(program.captured.inputs, leaves, strict=True) if isinstance(v, Tensor)]
        self.constants = [None if isinstance(v, Tensor) else v for v in leaves]
        self.tensors = [isinstance(v, Tensor) for v in leaves]
        self.target = target
        self.outputs = list(outputs if "logits" in outputs else ("logits", *outputs))
        unknown = [o for o in outputs if o not in OUTPUTS]
        if unknown:
            raise OutputError(f"outputs {', '.join(map(repr, unknown))}: a file can hold {', '.join(OUTPUTS)}")
        if "C_b" in outputs and "C_b" not in self._parts(program):
            raise OutputError("this explainer makes no C_b: transform with bias='carrier' or 'contribution'")
        if "bias" in outputs and not self.runnable.biased:
            self.outputs.remove("bias")  # the model has none
        if not (target in ("input", "top1") if isinstance(target, str) else isinstance(target, (int, list, tuple))):
            raise TargetError(f"target={target!r}: an exported target is 'input', 'top1', an int or a list of ints")

    @staticmethod
    def _parts(program: Program) -> list[str]:
        result: Any = next(n for n in program.graph_module.graph.nodes if n.op == "output").args[0]
        return [name for name, value in result.items() if value is not None]

    @property
    def takes_target(self) -> bool:
        return self.target == "input"

    @property
    def several(self) -> bool:
        return isinstance(self.target, (list, tuple))

    @property
    def target_input(self) -> str:
        """The name of the input that takes the target: the model's own inputs keep theirs."""
        return fresh_name("target", self.inputs)

    @property
    def all_inputs(self) -> list[str]:
        """The names of the file's inputs."""
        return [*self.inputs, *([self.target_input] if self.takes_target else [])]

    @property
    def names(self) -> dict[str, str]:
        """What each result is -> its name in the file: an output cannot be called as an input is."""
        names: dict[str, str] = {}
        for result in self.results:
            names[result] = fresh_name(result, [*self.all_inputs, *names.values()])
        return names

    @property
    def results(self) -> list[str]:
        """What the results are: "C" for one explained input, "C.name" for each of several."""
        explained = self.runnable.names
        per_input = [s if len(explained) > 1 else "" for s in explained]
        return [
            f"{output}.{source}" if source else output
            for output in self.outputs
            for source in (per_input if output in ("X", "C", "C_w", "C_b") else [""])
        ]

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        given = iter(values)
        leaves = [next(given) if t else c for t, c in zip(self.tensors, self.constants, strict=True)]
        chosen = next(given, None)
        explanation = self.runnable.explain(leaves, lambda rows: self._positions(rows, chosen))
        whole: dict[str, Any] = {
            "logits": explanation.outputs,
            "target": explanation.target,
            "bias": explanation.bias.shares,
            "completeness": explanation.error_of_parts if "completeness" in self.outputs else None,
        }
        parts: Any = explanation.inputs.values()
        return tuple(
            tensor
            for name in self.outputs
            for tensor in ([whole[name]] if name in whole else [getattr(one, name) for one in parts])
        )

    def _positions(self, rows: Tensor, target: Tensor | None) -> Positions:
        if target is not None:
            largest = resolve(None, rows).target
            return Positions(torch.where(target < 0, largest, target), several=False)
        if self.several:  # its range was checked before: a graph cannot
            return Positions(target_of_call(self.target, rows.shape[0]).to(rows.device), several=True)
        positions = resolve(target_of_call(self.target, rows.shape[0]), rows)
        assert isinstance(positions, Positions)
        return positions

    def of_call(self, leaves: Sequence[Any]) -> Any:
        """The target that is explained, as of a call with these inputs."""
        return target_of_call(self.target, (batch_size(leaves) or 1) if self.runnable.batched else 1)


def inputs_of_call(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The inputs of a call in the order of `names`. Raises InputError: they are not those.

    torch.export writes the names of inputs in small letters; an argument may be called as the model's forward does.
    """
    named = {name if name in names else name.lower(): value for name, value in kwargs.items()}
    given = dict(zip(names, args, strict=False)) | named
    if len(args) + len(kwargs) != len(names) or set(given) != set(names):
        raise InputError(f"this explainer takes {', '.join(names)}; got {len(args)} inputs and {sorted(kwargs)}")
    return [given[name] for name in names]


def array_of(name: str, value: Any) -> np.ndarray:
    """An input as an array. Raises InputError: it is none, or holds NaN or inf."""
    try:
        array = value.numpy(force=True) if isinstance(value, Tensor) else np.asarray(value, order="C")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"input '{name}' is no array: {said(error)}") from error
    if array.dtype.kind not in "biufc":
        raise InputError(f"input '{name}' is a {type(value).__name__}, no array or tensor of numbers")
    _check_finite(name, bool(np.isfinite(array).all()), bool(np.isnan(array).any()))
    return array


def tensor_of(name: str, value: Any) -> Tensor:
    """An input as a tensor, as it is where it is one. Raises InputError: it is none, or holds NaN or inf."""
    if not isinstance(value, Tensor):
        array = array_of(name, value)
        try:
            return torch.tensor(array)
        except (TypeError, ValueError) as error:  # a dtype that torch has not
            raise InputError(f"input '{name}' is no array that torch takes: {said(error)}") from error
    if value.layout is not torch.strided or value.is_meta:
        raise InputError(f"input '{name}' is a {value.layout} tensor on {value.device}, which holds no dense values")
    _check_finite(name, bool(torch.isfinite(value).all()), bool(torch.isnan(value).any()))
    return value


def _check_finite(name: str, finite: bool, nan: bool) -> None:
    if not finite:
        raise InputError(f"input '{name}' holds {'NaN' if nan else 'inf'}: no explanation exists for it")


def target_of_call(target: TargetMode, count: int) -> Any:
    """The target of a file as that of a call with so many rows; None (the largest) where it is given at run time."""
    if isinstance(target, str):
        return None
    return target if isinstance(target, int) else torch.tensor(list(target)).expand(count, -1)
