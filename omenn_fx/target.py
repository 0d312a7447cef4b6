"""Targets: which value of the output is explained, as a cotangent over the output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from omenn_fx.errors import OutputError, TargetError

Tensor = torch.Tensor
Target = int | Sequence[int] | Tensor | None


def _rows(outputs: Tensor) -> Tensor:
    """One flat row per sample, [N, K], also for outputs [N] and empty batches."""
    return outputs.flatten(1) if outputs.ndim > 1 else outputs[:, None]


@dataclass(frozen=True)
class Resolved:
    """A target as flat positions in each row of the output: [N], or [N, T] for several at once."""

    index: Tensor
    several: bool

    def value(self, outputs: Tensor) -> Tensor:
        """The explained values: shape [N] or [N, T]."""
        rows = _rows(outputs)
        picked = rows.gather(1, self.index if self.several else self.index[:, None])
        return picked if self.several else picked[:, 0]

    def cotangents(self, outputs: Tensor) -> list[Tensor]:
        """One one-hot tensor of the output's shape for each target."""
        columns = self.index.unbind(1) if self.several else (self.index,)
        zeros = _rows(torch.zeros_like(outputs))
        return [zeros.scatter(1, c[:, None], 1.0).reshape(outputs.shape) for c in columns]


def resolve(target: Target, outputs: Tensor) -> Resolved:
    """Resolve a target against outputs [N, ...].

    None: the largest output of each row. int: that class for every row (outputs [N, K]). A tuple of ints: that
    position of outputs [N, A, B, ...]. LongTensor [N]: one class per row; [N, T]: T per row at once.
    Raises TargetError for anything else, naming the valid range.
    """
    if outputs.ndim == 0:
        raise OutputError("the explained output is a single number without a batch dimension; logits are [N, K]")
    count = outputs.shape[0]
    shape = tuple(outputs.shape[1:])
    rows = _rows(outputs)
    if target is None:
        return Resolved(rows.argmax(1), False)
    if isinstance(target, bool) or not isinstance(target, (int, tuple, list, Tensor)):
        raise TargetError(f"target must be None, an int, a tuple of ints or a LongTensor, not {type(target).__name__}")
    if isinstance(target, Tensor) and target.ndim == 0:
        target = int(target)
    if isinstance(target, int):
        target = (target,)
    elif isinstance(target, list):
        target = torch.tensor(target)
    if isinstance(target, tuple):
        return Resolved(torch.full((count,), _flat(target, shape), device=outputs.device), False)
    return _from_tensor(target, count, shape, outputs.device)


def _flat(position: tuple[int, ...], shape: tuple[int, ...]) -> int:
    if len(position) != len(shape):
        raise TargetError(
            f"target {position if len(position) != 1 else position[0]} does not select one value of outputs "
            f"[N, {', '.join(map(str, shape))}]: give {_wanted(len(shape))}"
            if shape
            else f"the outputs are one number per row ([N]): leave target=None, not {position[0]}"
        )
    for at, size in zip(position, shape, strict=True):
        if not 0 <= at < size:
            raise TargetError(f"target {at} is out of range: the output has {size} values, 0 to {size - 1}")
    flat = 0
    for at, size in zip(position, shape, strict=True):
        flat = flat * size + at
    return flat


def _wanted(ndim: int) -> str:
    return "an int" if ndim == 1 else f"a tuple of {ndim} ints"


def _from_tensor(target: Tensor, count: int, shape: tuple[int, ...], device: Any) -> Resolved:
    if target.dtype.is_floating_point or target.dtype in (torch.bool, torch.complex64, torch.complex128):
        raise TargetError(f"target must hold integers, not {target.dtype}")
    if target.ndim not in (1, 2) or target.shape[0] != count:
        raise TargetError(
            f"target of shape {tuple(target.shape)} does not fit a batch of {count}: give an int, a LongTensor "
            f"[{count}], or [{count}, T] for T targets at once"
        )
    if target.ndim == 2 and target.shape[1] == 0:
        raise TargetError(f"target of shape {tuple(target.shape)} names no class")
    size = math.prod(shape)
    index = target.to(device=device, dtype=torch.long)
    if not torch.compiler.is_compiling() and index.numel():
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= size:
            bad = low if low < 0 else high
            raise TargetError(f"target {bad} is out of range: the output has {size} values, 0 to {size - 1}")
    return Resolved(index, target.ndim == 2)
