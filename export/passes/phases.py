"""The transpose of a strided convolution as convolutions of stride 1: one for each phase of the output.

Along one dimension, position i of a transposed convolution with kernel w, stride s and padding p sums g[o] w[k] over
all o s + k - p = i. With i = s t + c (block t, phase c), a = (c + p) // s and r = (c + p) % s that is the sum over j of
g[t + a - j] w[r + s j]: a convolution of stride 1 with every s-th tap. A phase without a tap is zero.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch

Tensor = torch.Tensor


@dataclass(frozen=True)
class Taps:
    """What some phases along one dimension read: g[t + low .. t + high], as phase -> [(offset, tap of the kernel)]."""

    reads: dict[int, list[tuple[int, int]]]

    @property
    def low(self) -> int:
        return min(o for reads in self.reads.values() for o, _ in reads)

    @property
    def high(self) -> int:
        return max(o for reads in self.reads.values() for o, _ in reads)

    @property
    def length(self) -> int:
        return self.high - self.low + 1

    def pads(self, more: int) -> tuple[int, int]:
        """Zeros (negative: a cut) before and behind g for so many more blocks than g has positions."""
        return -self.low, more + self.high


def taps(phases: list[int], kernel: int, stride: int, padding: int) -> Taps | None:
    """The reads of some phases; None where they read nothing."""
    reads = {}
    for c in phases:
        a, r = divmod(c + padding, stride)
        reads[c] = [(a - j, r + stride * j) for j in range(len(range(r, kernel, stride)))]
    return Taps(reads) if any(reads.values()) else None


def phase_kernel(weight: Tensor, phase: tuple[int, ...], window: list[Taps]) -> Tensor:
    """The kernel [out, in, *length] of one phase, from the whole one [out, in, *kernel] of the transposed way."""
    kernel = weight.new_zeros(*weight.shape[:2], *(w.length for w in window))
    for reads in itertools.product(*(w.reads[c] for w, c in zip(window, phase, strict=True))):
        at: Any = tuple(offset - w.low for (offset, _), w in zip(reads, window, strict=True))
        read: Any = tuple(tap for _, tap in reads)
        kernel[(..., *at)] = weight[(..., *read)]
    return kernel
