"""Targets: which value of the output is explained, as a cotangent over the output."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import torch

from omenn_fx.errors import OutputError, TargetError

Tensor = torch.Tensor
Part = int | slice | EllipsisType | Tensor
Chosen = int | Sequence[Part] | Tensor | None
Target = Chosen | Callable[[Tensor], Chosen]


def _rows(outputs: Tensor) -> Tensor:
    """One flat row per sample, [N, K], also for outputs [N] and empty batches."""
    return outputs.flatten(1) if outputs.ndim > 1 else outputs[:, None]


@dataclass(frozen=True)
class Positions:
    """One output value per row: flat positions in each row of the output, [N], or [N, T] for several at once."""

    target: Tensor
    several: bool

    def value(self, outputs: Tensor) -> Tensor:
        """The explained values: shape [N] or [N, T]."""
        picked = _rows(outputs).gather(1, self.target if self.several else self.target[:, None])
        return picked if self.several else picked[:, 0]

    def cotangents(self, outputs: Tensor) -> list[Tensor]:
        """One one-hot tensor of the output's shape for each target."""
        columns = self.target.unbind(1) if self.several else (self.target,)
        zeros = _rows(torch.zeros_like(outputs))
        return [zeros.scatter(1, c[:, None], 1.0).reshape(outputs.shape) for c in columns]


@dataclass(frozen=True)
class Weights:
    """A weighted sum of output values per row: weights of the outputs' shape, or [N, T, ...] for several at once."""

    target: Tensor
    several: bool

    def value(self, outputs: Tensor) -> Tensor:
        """The explained values: shape [N] or [N, T]. What has weight 0 may be infinite (masked logits)."""
        outputs = outputs.unsqueeze(1) if self.several else outputs
        terms = torch.where(self.target == 0, torch.zeros_like(self.target), self.target * outputs)
        lead = 2 if self.several else 1
        return terms.flatten(lead).sum(-1) if terms.ndim > lead else terms

    def cotangents(self, outputs: Tensor) -> list[Tensor]:
        """The weights themselves."""
        return list(self.target.unbind(1)) if self.several else [self.target]


Chooser = Callable[[Tensor], Positions | Weights]


def resolve(target: Target | Chooser, outputs: Tensor) -> Positions | Weights:
    """Resolve a target against outputs [N, ...].

    None: the largest output of each row. int: that class for every row (outputs [N, K]). A tuple of ints: that
    position of outputs [N, A, B, ...]; with slices, `...` or masks in it, the sum of what it indexes. LongTensor [N]:
    one class per row; [N, T]: T per row at once. A floating-point tensor: the weights of a sum, one for all rows
    (shape [...] of a row), one for each ([N, ...]), or T for each ([N, T, ...]). A callable: called with the outputs,
    it returns one of these, or what they resolve to.
    Raises TargetError for anything else, naming the valid range.
    """
    if outputs.ndim == 0:
        raise OutputError("the explained output is a single number without a batch dimension; logits are [N, K]")
    chosen: Any = target(outputs) if callable(target) and not isinstance(target, Tensor) else target
    if isinstance(chosen, (Positions, Weights)):
        return chosen
    if chosen is None:
        return Positions(_rows(outputs).argmax(1), False)
    chosen = _plain(chosen)
    if isinstance(chosen, bool) or not isinstance(chosen, (int, tuple, Tensor)):
        raise TargetError(
            "target must be None, an int, a tuple of ints or slices, a LongTensor, a tensor of weights or a callable "
            f"that returns one, not {type(chosen).__name__}"
        )
    return _from_tensor(chosen, outputs) if isinstance(chosen, Tensor) else _from_position(chosen, outputs)


def _plain(chosen: Any) -> Any:
    """Numbers and arrays of numpy as an int, a bool or a tensor, and so a list; what is in a tuple, part by part."""
    if isinstance(chosen, tuple):
        return tuple(_plain(part) for part in chosen)
    if isinstance(chosen, Tensor) or not (isinstance(chosen, list) or hasattr(chosen, "__array__")):
        return chosen
    try:
        values = torch.as_tensor(chosen)
    except (TypeError, ValueError, RuntimeError) as error:  # of words, of several lengths
        raise TargetError(f"the target {chosen!r} is no tensor of numbers: {error}") from None
    return values if values.ndim or values.is_floating_point() else values.item()


def _from_tensor(target: Tensor, outputs: Tensor) -> Positions | Weights:
    """Weights, one class for all rows (no dimension), or classes of each row."""
    if target.is_floating_point():
        return _from_weights(target, outputs)
    if target.ndim == 0 and target.dtype != torch.bool:
        return _from_position(int(target), outputs)
    return _from_indices(target, outputs)


def _from_position(target: int | tuple[Part, ...], outputs: Tensor) -> Positions | Weights:
    """One position of each row, or the region that slices and masks index."""
    parts = (target,) if isinstance(target, int) else target
    if not all(isinstance(part, int) and not isinstance(part, bool) for part in parts):
        return _from_region(parts, outputs)
    position = tuple(int(part) for part in parts)  # type: ignore[arg-type]
    flat = _flat(position, tuple(outputs.shape[1:]))
    return Positions(torch.full((outputs.shape[0],), flat, device=outputs.device), False)


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
    return "an int" if ndim == 1 else f"a tuple of {ndim} ints (or of ints, slices and masks, whose values are summed)"


def _from_indices(target: Tensor, outputs: Tensor) -> Positions:
    count, *shape = outputs.shape
    if target.dtype in (torch.bool, torch.complex64, torch.complex128):
        raise TargetError(f"target must hold integers or floating-point weights, not {target.dtype}")
    if target.ndim not in (1, 2) or target.shape[0] != count:
        raise TargetError(
            f"target of shape {tuple(target.shape)} does not fit a batch of {count}: give an int, a LongTensor "
            f"[{count}], or [{count}, T] for T targets at once"
        )
    if target.ndim == 2 and target.shape[1] == 0:
        raise TargetError(f"target of shape {tuple(target.shape)} names no class")
    size = math.prod(shape)
    index = target.to(device=outputs.device, dtype=torch.long)
    if not torch.compiler.is_compiling() and index.numel():
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= size:
            bad = low if low < 0 else high
            raise TargetError(f"target {bad} is out of range: the output has {size} values, 0 to {size - 1}")
    return Positions(index, target.ndim == 2)


def _from_weights(target: Tensor, outputs: Tensor) -> Weights:
    """Weights for all rows, for each row, or T for each row."""
    weights = target.to(device=outputs.device, dtype=outputs.dtype)
    if weights.shape == outputs.shape[1:]:
        return Weights(weights.expand(outputs.shape), False)
    if weights.shape == outputs.shape:
        return Weights(weights, False)
    if (
        weights.ndim == outputs.ndim + 1
        and weights.shape[0] == outputs.shape[0]
        and weights[:, 0].shape == outputs.shape
    ):
        return Weights(weights, True)
    count, row = outputs.shape[0], ", ".join(map(str, outputs.shape[1:]))
    raise TargetError(
        f"weights of shape {tuple(weights.shape)} do not fit outputs {tuple(outputs.shape)}: give [{row}] for all "
        f"rows, [{count}, {row}] for each, or [{count}, T, {row}] for T at once"
    )


def _from_region(target: tuple[Part, ...], outputs: Tensor) -> Weights:
    """Weight 1 for all that the index selects in each row."""
    weights = torch.zeros_like(outputs)
    parts = tuple(p.to(outputs.device) if isinstance(p, Tensor) else p for p in target)
    try:
        weights[(slice(None), *parts)] = 1.0
    except (IndexError, TypeError, RuntimeError) as error:
        row = ", ".join(map(str, outputs.shape[1:]))
        raise TargetError(f"target {target} does not index a row of outputs [N, {row}]: {error}") from None
    if not torch.compiler.is_compiling() and outputs.numel() and not weights.any():
        raise TargetError(f"target {target} selects no value of outputs {tuple(outputs.shape)}")
    return Weights(weights, False)
