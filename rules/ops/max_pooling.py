"""Max pools select their windows' winners; ties share equally."""

from __future__ import annotations

import math
from functools import partial, reduce
from typing import Any

import torch

from omenn_fx.algebra.form import Call
from omenn_fx.algebra.linear import Linear
from omenn_fx.algebra.mass import Even, Mass, Shape
from omenn_fx.algebra.rows import last
from omenn_fx.rules.ops.forms import dynamic
from omenn_fx.rules.ops.pooling import adaptive_windows
from omenn_fx.rules.ops.selection import extreme_change, winner
from omenn_fx.rules.ops.windows import Windows, known, wide

aten = torch.ops.aten
Tensor = torch.Tensor


_POOLS: dict[str, Any] = {
    "kind": "max pool", "sign": "kept", "derivative": "form", "difference": extreme_change(),
}  # fmt: skip


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
        fixed = known(*self.windows.size)
        ones = torch.ones(everywhere, dtype=self.dtype, device=self.device) if fixed else value.new_ones(everywhere)
        inside = self.windows.phases(ones, 0.0)
        share = value / reduce(torch.add, (self.windows.view(inside, o, 0.0) for o in self.windows.offsets))
        leading = [1 if d in even else s for d, s in enumerate(self._leading)]
        moved = self.windows.overlap_add(dict.fromkeys(self.windows.offsets, share), leading)
        return Mass((Even(moved, even),), self.operand)

    def magnitude(self) -> Linear:
        return self


def _max_pool(call: Call, n: int) -> Linear:
    shape = call.shape()
    kernel = wide(call["kernel_size"], n)
    stride = wide(call["stride"], n) if call["stride"] else kernel
    windows = Windows(
        list(shape[-n:]),
        list(call.out.shape[-n:]),
        kernel,
        stride,
        wide(call["padding"], n),
        wide(call["dilation"], n),
    )
    return MaxPool(call.x, call.out, windows, shape)


dynamic(
    aten.max_pool1d.default, aten.max_pool1d_with_indices.default, rows=last("kernel_size"), **_POOLS
)(partial(_max_pool, n=1))  # fmt: skip
dynamic(
    aten.max_pool2d.default, aten.max_pool2d_with_indices.default, rows=last("kernel_size"), **_POOLS
)(partial(_max_pool, n=2))  # fmt: skip
dynamic(
    aten.max_pool3d.default, aten.max_pool3d_with_indices.default, rows=last("kernel_size"), **_POOLS
)(partial(_max_pool, n=3))  # fmt: skip


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


dynamic(aten.adaptive_max_pool1d.default, rows=last("output_size"), **_POOLS)(partial(_adaptive_max_pool, n=1))
dynamic(aten.adaptive_max_pool2d.default, rows=last("output_size"), **_POOLS)(partial(_adaptive_max_pool, n=2))
dynamic(aten.adaptive_max_pool3d.default, rows=last("output_size"), **_POOLS)(partial(_adaptive_max_pool, n=3))
