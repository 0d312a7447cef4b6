"""Sliding windows over an image, cut into blocks as long as the stride: what max pools are made of."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F

from omenn_fx.algebra import composites
from omenn_fx.algebra.mass import Shape

Tensor = torch.Tensor


class Windows:
    """The geometry of sliding windows over the last n dimensions.

    The input is cut into blocks as long as the stride. A position is a phase within its block; at one offset, all
    windows read the same phase, each at its own block: a shift. So nothing is copied with steps, and no sum overlaps.
    """

    def __init__(
        self,
        size: list[Any],
        out: list[Any],
        kernel: list[int],
        stride: list[int],
        padding: list[int],
        dilation: list[int],
    ):
        """Sizes are ints, or free: values of the graph that is built, of which only sums and products are known."""
        self.size, self.out, self.stride, self.padding, self.dilation = size, out, stride, padding, dilation
        dimensions = list(zip(size, out, kernel, stride, padding, dilation, strict=True))
        # More blocks than windows, and positions of the blocks beyond the end; of a free size as many as there may be.
        self.more = [
            -(-n // s) - o if known(n, o) else -(-(d * (k - 1) - 2 * p) // s) for n, o, k, s, p, d in dimensions
        ]
        self.blocks = [o + m for o, m in zip(out, self.more, strict=True)]
        self.rests = [
            q * s - n if known(n, o) else 0 if s == 1 else (m + 1) * s + p
            for q, m, (n, o, _, s, p, _) in zip(self.blocks, self.more, dimensions, strict=True)
        ]
        # An offset at which every window reads padding (a window larger than the image) is none.
        self.offsets = [o for o in itertools.product(*(range(k) for k in kernel)) if self._reads(o)]

    def _reads(self, offset: tuple[int, ...]) -> bool:
        ends = zip(self._at(offset)[1], self.blocks, self.out, strict=True)
        return all(-o < shift < q for shift, q, o in ends if known(q, o))

    def _at(self, offset: tuple[int, ...]) -> tuple[tuple[int, ...], list[int]]:
        """The phase that an offset reads, and the block of the first window."""
        geometry = zip(offset, self.dilation, self.padding, self.stride, strict=True)
        shifts, phase = zip(*(divmod(k * d - p, s) for k, d, p, s in geometry), strict=True)
        return phase, list(shifts)

    def phases(self, x: Tensor, value: float) -> dict[tuple[int, ...], Tensor]:
        """Phase -> its values at every block, [..., *blocks]; `value` beyond the end."""
        n = len(self.size)
        if any(self.rests):
            x = F.pad(x, [v for r in reversed(self.rests) for v in (0, r)], value=value)
            free = [0 if known(size) else r for r, size in zip(self.rests, self.size, strict=True)]
            x = _first(x, [q * s for q, s in zip(self.blocks, self.stride, strict=True)], free)
        if all(s == 1 for s in self.stride):
            return {(0,) * n: x}
        parts = composites.phases(x, self.blocks, self.stride)
        return {phase: parts[i] for i, phase in enumerate(itertools.product(*(range(s) for s in self.stride)))}

    def view(self, phases: dict[tuple[int, ...], Tensor], offset: tuple[int, ...], value: float) -> Tensor:
        """The values at one offset of every window, `value` in the padding."""
        phase, shifts = self._at(offset)
        pads = [v for t, more in zip(shifts[::-1], self.more[::-1], strict=True) for v in (-t, t - more)]
        return F.pad(phases[phase], pads, value=value) if any(pads) else phases[phase]

    def overlap_add(self, pieces: dict[tuple[int, ...], Tensor], leading: Shape) -> Tensor:
        """The transpose of all views together: pieces[offset] of the output's shape, summed at the input's positions.

        Positions of the same phase are summed on the grid of blocks, then interleaved.
        """
        n, lead = len(self.size), len(leading)
        terms: dict[tuple[int, ...], Tensor] = {}
        for offset, piece in pieces.items():
            phase, shifts = self._at(offset)
            pads = [v for t, more in zip(shifts[::-1], self.more[::-1], strict=True) for v in (t, more - t)]
            term = F.pad(piece, pads) if any(pads) else piece
            terms[phase] = terms[phase] + term if phase in terms else term
        if all(s == 1 for s in self.stride):
            return terms[(0,) * n]
        nothing = torch.zeros_like(next(iter(terms.values())))
        stacked = torch.stack(
            [terms.get(phase, nothing) for phase in itertools.product(*(range(s) for s in self.stride))], lead
        )
        if n == 2 and self.stride[0] == self.stride[1] and lead:  # the same, in one operator
            whole = F.pixel_shuffle(stacked.flatten(lead - 1, lead), self.stride[0])
        else:
            stacked = stacked.reshape(*leading, *self.stride, *self.blocks)
            order = [*range(lead), *(i for d in range(n) for i in (lead + n + d, lead + d))]
            sizes = [q * s for q, s in zip(self.blocks, self.stride, strict=True)]
            whole = stacked.permute(order).reshape(*leading, *sizes)
        return _first(whole, self.size, self.rests)


def known(*sizes: Any) -> bool:
    """Whether no size is free."""
    return all(isinstance(size, int) for size in sizes)


def _first(value: Tensor, sizes: list[Any], rests: list[int]) -> Tensor:
    """The first positions of the last dimensions that have a rest behind them."""
    for d, (size, rest) in enumerate(zip(sizes, rests, strict=True)):
        if rest:
            value = value.narrow_copy(d - len(sizes), 0, size)
    return value


def wide(value: Any, n: int) -> list[int]:
    """One number for each of n dimensions, of one for all or one for each."""
    values = [value] if isinstance(value, int) else list(value)
    return values * n if len(values) == 1 else values
