"""Pools. Every averaging pool is separable: one small matrix per dimension. Max pools select their windows' winners;
ties share equally."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import torch
import torch.nn.functional as F

from omenn_fx.algebra import composites
from omenn_fx.algebra.form import Call
from omenn_fx.algebra.linear import Linear, Reduction
from omenn_fx.algebra.mass import Even, Mass, Shape
from omenn_fx.algebra.ruleset import rule
from omenn_fx.rules.ops.selection import winner

aten = torch.ops.aten
Tensor = torch.Tensor


class Separable(Linear):
    """W = P_1 x ... x P_n over the last n dimensions, P_d of shape [out_d, in_d]. Mass goes in proportion to |P|."""

    def __init__(self, matrices: list[Tensor], operand: Shape):
        self.matrices, self.operand = matrices, operand
        self.first = len(operand) - len(matrices)

    def _through(self, value: Tensor, matrices: list[Tensor]) -> Tensor:
        """Multiply dimension first + d by matrices[d]."""
        for d, matrix in enumerate(matrices):
            axis = d - len(matrices)
            if axis == -1:
                value = torch.matmul(value, matrix.t())
            elif axis == -2:
                value = torch.matmul(matrix, value)
            else:
                value = torch.matmul(value.transpose(axis, -1), matrix.t()).transpose(axis, -1)
        return value

    def apply(self, u: Tensor) -> Tensor:
        return self._through(u, self.matrices)

    def transpose(self, g: Tensor) -> Tensor:
        return self._through(g, [m.t() for m in self.matrices])

    def carry(self, mass: Mass) -> Mass:
        shares = [_shares(m).t() for m in self.matrices]
        parts = mass.parts
        if len(parts) == 1 and isinstance(parts[0], Even) and all(d < self.first for d in parts[0].even):
            return Mass((Even(self._through(parts[0].value, shares), parts[0].even),), self.operand)
        return Mass((Even(self._through(mass.dense(), shares)),), self.operand)

    def magnitude(self) -> Linear:
        return Separable([m.abs() for m in self.matrices], self.operand)


def _shares(matrix: Tensor) -> Tensor:
    """Rows of |P| that sum to 1; a row of zeros (a window of padding) reads all positions alike."""
    size = matrix.abs()
    size = torch.where(size.sum(1, keepdim=True) == 0, torch.ones_like(size), size)
    return size / size.sum(1, keepdim=True)


def _wide(value: Any, n: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * n if len(values) == 1 else values


# Averages ------------------------------------------------------------------------------------------------------------


def unit_vectors(size: Any, like: Tensor) -> Tensor:
    """The identity matrix, float64; of a free size in the dtype of a value of the graph that is built."""
    if isinstance(size, int):
        return torch.eye(size, dtype=torch.float64)
    at = like.new_ones((size,)).cumsum(0)
    return (at.unsqueeze(1) == at).to(like.dtype)


def matrix_of(kernel: Callable[[Tensor], Tensor], size: Any, like: Tensor) -> Tensor:
    """P [out, size] of a linear map along one dimension: what it makes of the unit vectors, samples [size, 1, size]."""
    matrix = kernel(unit_vectors(size, like).unsqueeze(1)).squeeze(1).t()
    return matrix.contiguous().to(dtype=like.dtype, device=like.device)


def adaptive_windows(size: int, out: int) -> list[tuple[int, int]]:
    """Where the windows of an adaptive pool start and end."""
    return [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]


def _avg_pool(call: Call, n: int) -> Linear:
    shape = call.shape()
    kernel, padding = _wide(call["kernel_size"], n), _wide(call["padding"], n)
    stride = _wide(call["stride"], n) if call["stride"] else kernel
    how = call["ceil_mode"], call["count_include_pad"]
    matrices = [
        matrix_of(lambda unit, k=k, s=s, p=p: aten.avg_pool1d.default(unit, [k], [s], [p], *how), size, call.x)  # type: ignore[misc]
        for size, k, s, p in zip(shape[-n:], kernel, stride, padding, strict=True)
    ]
    if call.operands.get("divisor_override"):
        matrices = [(m != 0).to(m.dtype) for m in matrices]
        matrices[0] = matrices[0] / call["divisor_override"]
    return Separable(matrices, shape)


rule(aten.avg_pool1d.default)(partial(_avg_pool, n=1))
rule(aten.avg_pool2d.default)(partial(_avg_pool, n=2))
rule(aten.avg_pool3d.default)(partial(_avg_pool, n=3))


@rule(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default)
def _adaptive_avg_pool(call: Call) -> Linear:
    shape, n = call.shape(), len(call["output_size"])
    sizes, outs = shape[-n:], call.out.shape[-n:]
    if all(isinstance(o, int) and o == 1 for o in outs):
        dims = range(len(shape) - n, len(shape))
        return Reduction(list(dims), True, shape, 1 / math.prod(sizes))
    pool = aten.adaptive_avg_pool1d.default
    return Separable(
        [matrix_of(lambda unit, o=o: pool(unit, [int(o)]), int(s), call.x) for s, o in zip(sizes, outs, strict=True)],  # type: ignore[misc]
        shape,
    )


# Max pools -----------------------------------------------------------------------------------------------------------


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
            -(-n // s) - o if _known(n, o) else -(-(d * (k - 1) - 2 * p) // s) for n, o, k, s, p, d in dimensions
        ]
        self.blocks = [o + m for o, m in zip(out, self.more, strict=True)]
        self.rests = [
            q * s - n if _known(n, o) else 0 if s == 1 else (m + 1) * s + p
            for q, m, (n, o, _, s, p, _) in zip(self.blocks, self.more, dimensions, strict=True)
        ]
        # An offset at which every window reads padding (a window larger than the image) is none.
        self.offsets = [o for o in itertools.product(*(range(k) for k in kernel)) if self._reads(o)]

    def _reads(self, offset: tuple[int, ...]) -> bool:
        ends = zip(self._at(offset)[1], self.blocks, self.out, strict=True)
        return all(-o < shift < q for shift, q, o in ends if _known(q, o))

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
            free = [0 if _known(size) else r for r, size in zip(self.rests, self.size, strict=True)]
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


def _known(*sizes: Any) -> bool:
    return all(isinstance(size, int) for size in sizes)


def _first(value: Tensor, sizes: list[Any], rests: list[int]) -> Tensor:
    """The first positions of the last dimensions that have a rest behind them."""
    for d, (size, rest) in enumerate(zip(sizes, rests, strict=True)):
        if rest:
            value = value.narrow_copy(d - len(sizes), 0, size)
    return value


class MaxPool(Linear):
    """Selection of the winners of each window, ties sharing equally. Mass is shared by the window's valid positions."""

    def __init__(self, x: Tensor, out: Tensor, windows: Windows, operand: Shape):
        self.windows, self.operand, self.dtype, self.device = windows, operand, x.dtype, x.device
        phases = windows.phases(x, -math.inf)
        views = {o: windows.view(phases, o, -math.inf) for o in windows.offsets}
        if x.dtype in (torch.float16, torch.bfloat16):  # a runtime may keep the pool's result in a wider type
            out = reduce(torch.maximum, views.values())
        self.wins = {o: (view == out).to(x.dtype) for o, view in views.items()}
        self.ties = reduce(torch.add, self.wins.values())

    @property
    def _leading(self) -> Shape:
        return self.operand[: len(self.operand) - len(self.windows.size)]

    def apply(self, u: Tensor) -> Tensor:
        phases = self.windows.phases(u, 0.0)
        total: Any = reduce(torch.add, (w * self.windows.view(phases, o, 0.0) for o, w in self.wins.items()))
        return total / self.ties

    def transpose(self, g: Tensor) -> Tensor:
        g = g / self.ties
        return self.windows.overlap_add({o: w * g for o, w in self.wins.items()}, self._leading)

    def carry(self, mass: Mass) -> Mass:
        first = len(self._leading)
        part = mass.parts[0]
        even = part.even if len(mass.parts) == 1 and isinstance(part, Even) else frozenset()
        if any(d >= first for d in even) or not even:
            value, even = mass.dense(), frozenset()
        else:
            assert isinstance(part, Even)
            value = part.value
        everywhere: Any = [1] * first + self.windows.size
        known = _known(*self.windows.size)
        ones = torch.ones(everywhere, dtype=self.dtype, device=self.device) if known else value.new_ones(everywhere)
        inside = self.windows.phases(ones, 0.0)
        share = value / reduce(torch.add, (self.windows.view(inside, o, 0.0) for o in self.windows.offsets))
        leading = [1 if d in even else s for d, s in enumerate(self._leading)]
        moved = self.windows.overlap_add(dict.fromkeys(self.windows.offsets, share), leading)
        return Mass((Even(moved, even),), self.operand)

    def magnitude(self) -> Linear:
        return self


def _max_pool(call: Call, n: int) -> Linear:
    shape = call.shape()
    kernel = _wide(call["kernel_size"], n)
    stride = _wide(call["stride"], n) if call["stride"] else kernel
    windows = Windows(
        list(shape[-n:]),
        list(call.out.shape[-n:]),
        kernel,
        stride,
        _wide(call["padding"], n),
        _wide(call["dilation"], n),
    )
    return MaxPool(call.x, call.out, windows, shape)


rule(aten.max_pool1d.default, aten.max_pool1d_with_indices.default, dynamic=True)(partial(_max_pool, n=1))
rule(aten.max_pool2d.default, aten.max_pool2d_with_indices.default, dynamic=True)(partial(_max_pool, n=2))
rule(aten.max_pool3d.default, aten.max_pool3d_with_indices.default, dynamic=True)(partial(_max_pool, n=3))


class AdaptiveMaxPool(Linear):
    """As MaxPool, with windows of unequal sizes: each dimension is laid out window by window, padded to one length."""

    def __init__(self, x: Tensor, out: Tensor, operand: Shape, n: int):
        self.operand, self.first = operand, len(operand) - n
        self.windows = [
            adaptive_windows(int(size), int(count))
            for size, count in zip(operand[self.first :], out.shape[self.first :], strict=True)
        ]
        self.length = [max(end - start for start, end in windows) for windows in self.windows]
        self.like = x
        self.valid = self._valid()
        self.wins = (self._lay_out(x) == self._repeated(out)).to(x.dtype) * self.valid
        self.ties = self._summed(self.wins)

    def _reads(self, d: int) -> list[int]:
        """The positions along dimension d, window by window; beyond a window's end its first position."""
        return [s + k if s + k < e else s for s, e in self.windows[d] for k in range(self.length[d])]

    def _valid(self) -> Tensor:
        valid = self.like.new_ones([1] * len(self.operand))
        for d, windows in enumerate(self.windows):
            inside = [1.0 if s + k < e else 0.0 for s, e in windows for k in range(self.length[d])]
            shape = [-1 if axis == self.first + d else 1 for axis in range(len(self.operand))]
            valid = valid * torch.tensor(inside, dtype=self.like.dtype, device=self.like.device).reshape(shape)
        return valid

    def _lay_out(self, value: Tensor) -> Tensor:
        for d in range(len(self.windows)):
            reads = self._reads(d)
            if reads != list(range(self.operand[self.first + d])):
                index = torch.tensor(reads, device=self.like.device)
                value = aten.index_select.default(value, self.first + d, index)
        return value

    def _gathered(self, value: Tensor) -> Tensor:
        """The transpose of `_lay_out`."""
        shape = list(value.shape)
        for d in range(len(self.windows)):
            reads, axis = self._reads(d), self.first + d
            if reads != list(range(self.operand[axis])):
                shape[axis] = self.operand[axis]
                index = torch.tensor(reads, device=self.like.device)
                value = torch.index_add(value.new_zeros(tuple(shape)), axis, index, value)
        return value

    def _repeated(self, value: Tensor) -> Tensor:
        """The value of a window at each of its positions."""
        for d, length in enumerate(self.length):
            value = torch.repeat_interleave(value, length, self.first + d)
        return value

    def _summed(self, value: Tensor) -> Tensor:
        """The transpose of `_repeated`."""
        for d, length in enumerate(self.length):
            value = value.unflatten(self.first + d, (-1, length)).sum(self.first + d + 1)
        return value

    def apply(self, u: Tensor) -> Tensor:
        return self._summed(self._lay_out(u) * self.wins) / self.ties

    def transpose(self, g: Tensor) -> Tensor:
        return self._gathered(self._repeated(g / self.ties) * self.wins)

    def carry(self, mass: Mass) -> Mass:
        share = self._repeated(mass.dense() / self._summed(self.valid))
        return Mass((Even(self._gathered(share * self.valid)),), self.operand)

    def magnitude(self) -> Linear:
        return self


def _adaptive_max_pool(call: Call, n: int) -> Linear:
    shape = call.shape()
    if all(isinstance(s, int) and s == 1 for s in call.out.shape[-n:]):
        return winner(call, call.out, list(range(len(shape) - n, len(shape))), keepdim=True)
    return AdaptiveMaxPool(call.x, call.out, shape, n)


rule(aten.adaptive_max_pool1d.default, dynamic=True)(partial(_adaptive_max_pool, n=1))
rule(aten.adaptive_max_pool2d.default, dynamic=True)(partial(_adaptive_max_pool, n=2))
rule(aten.adaptive_max_pool3d.default, dynamic=True)(partial(_adaptive_max_pool, n=3))
