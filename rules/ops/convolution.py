"""Convolutions and transposed convolutions of 1, 2 and 3 dimensions: each is the other's transpose."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from omenn_fx.algebra.composites import pointwise_adjoint, zeros_between
from omenn_fx.algebra.form import Bias, Call
from omenn_fx.algebra.linear import Chain, Linear
from omenn_fx.algebra.mass import Even, Mass, Shape
from omenn_fx.algebra.rows import behind
from omenn_fx.rules.ops.forms import static
from omenn_fx.rules.ops.padding import Pad
from omenn_fx.rules.ops.windows import wide

aten = torch.ops.aten
Tensor = torch.Tensor
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@dataclass(frozen=True)
class Geometry:
    """One dimension of a convolution, with as many windows (`small`) over so many positions (`large`).

    A size may be free: a value of the graph that is built, of which only sums and products are known.
    """

    large: Any
    small: Any
    kernel: int
    stride: int
    padding: int
    dilation: int

    @property
    def known(self) -> bool:
        return isinstance(self.large, int) and isinstance(self.small, int)

    @property
    def span(self) -> int:
        """Positions from the first to the last that a window reads."""
        return self.dilation * (self.kernel - 1) + 1

    def too_many(self, forward: bool) -> bool:
        """Whether there is room for more windows: an output padding as long as the stride makes one too many."""
        if not self.known:
            return not forward
        return (self.large + 2 * self.padding - self.span) // self.stride + 1 > self.small

    def rest(self, forward: bool) -> int:
        """Positions behind the last window; where the size is free as many as there may be."""
        if self.known:
            return self.large - ((self.small - 1) * self.stride - 2 * self.padding + self.span)
        return self.stride - 1 if forward else max(self.stride, self.dilation) - 1

    def may_read_nothing(self, forward: bool) -> bool:
        """Whether a window may lie in the padding (`forward`), or a position between the windows."""
        if not self.known:
            gaps = self.kernel < self.stride or self.padding < self.stride - 1
            return self.dilation > 1 or (self.padding >= self.kernel if forward else gaps)
        k, s, p, d = self.kernel, self.stride, self.padding, self.dilation
        read = [(i * s + j * d - p, i) for i in range(self.small) for j in range(k)]
        inside = {(o, i) for o, i in read if 0 <= o < self.large}
        return len({pair[forward] for pair in inside}) < (self.small if forward else self.large)


class Convolution(Linear):
    """W u = conv(u, weight). `forward=False` is the transposed convolution, with the same weight layout and geometry.

    Mass at an output position is shared evenly by the valid input positions of its window and by all input channels:
    a convolution mixes channels, so after the next one no channel could be told from another anyway.
    """

    def __init__(
        self,
        weight: Tensor,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
        small: Shape,
        large: Shape,
        forward: bool = True,
    ):
        """`large` is the shape on the convolution's input side, `small` on its output side."""
        self.weight, self.stride, self.padding, self.dilation = weight, stride, padding, dilation
        self.groups, self.small, self.large, self.is_forward = groups, small, large, forward
        self.kernel = [int(k) for k in weight.shape[2:]]
        self.n = len(self.kernel)

    @property
    def _geometry(self) -> list[Geometry]:
        """One for each dimension."""
        sides = (self.large[2:], self.small[2:], self.kernel, self.stride, self.padding, self.dilation)
        return [Geometry(*dimension) for dimension in zip(*sides, strict=True)]

    def _down(self, u: Tensor, weight: Tensor, groups: int) -> Tensor:
        value = _CONV[self.n](u, weight, None, self.stride, self.padding, self.dilation, groups)
        for d, g in enumerate(self._geometry, 2):
            if g.too_many(self.is_forward):
                value = value.narrow_copy(d, 0, g.small)
        return value

    def _up(self, g: Tensor, weight: Tensor, groups: int) -> Tensor:
        rest = [d.rest(self.is_forward) for d in self._geometry]
        if all(r < max(s, d) for r, s, d in zip(rest, self.stride, self.dilation, strict=True)):
            value = _TRANSPOSED[self.n](g, weight, None, self.stride, self.padding, rest, groups, self.dilation)
            for d, dimension in enumerate(self._geometry, 2):
                if not dimension.known and rest[d - 2]:
                    value = value.narrow_copy(d, 0, dimension.large)
            return value
        g = _TRANSPOSED[self.n](g, weight, None, self.stride, self.padding, 0, groups, self.dilation)
        return F.pad(g, [v for r in reversed(rest) for v in (0, r)])  # positions that no window reads

    def _at_strides(self, g: Tensor) -> Tensor:
        """Each value at its stride's first position, zeros between."""
        if all(s == 1 for s in self.stride):
            return g
        g = zeros_between(g, self.stride)
        ends = [d.large - d.small * d.stride if d.known else 0 for d in self._geometry]
        for d, dimension in enumerate(self._geometry, 2):
            if not dimension.known:  # the last stride reaches the end, or beyond it
                g = g.narrow_copy(d, 0, dimension.large)
        return F.pad(g, [v for end in reversed(ends) for v in (0, end)]) if any(ends) else g

    def _map(self, value: Tensor, down: bool) -> Tensor:
        if down:
            return self._down(value, self.weight, self.groups)
        if self._pointwise and self.groups == 1:
            return self._at_strides(pointwise_adjoint(value, self.weight))
        return self._up(value, self.weight, self.groups)

    def apply(self, u: Tensor) -> Tensor:
        return self._map(u, down=self.is_forward)

    def transpose(self, g: Tensor) -> Tensor:
        return self._map(g, down=not self.is_forward)

    def carry(self, mass: Mass) -> Mass:
        total = mass.collapsed(1)
        source, result = (self.large, self.small) if self.is_forward else (self.small, self.large)
        value = Even(total.value, total.even - {1}).dense([result[0], 1, *result[2:]])
        if self.is_forward and self._pointwise:
            moved = self._at_strides(value)
        else:
            moved = self._shared(value, source)
        return Mass((Even(moved, frozenset({1})),), source)

    @property
    def _pointwise(self) -> bool:
        return math.prod(self.kernel) == 1 and not any(self.padding)

    def _shared(self, value: Tensor, source: Shape) -> Tensor:
        """One channel of mass, shared evenly by the positions of each window."""
        move, count = (self._up, self._down) if self.is_forward else (self._down, self._up)
        ones = torch.ones([1, 1, *self.kernel], dtype=self.weight.dtype, device=self.weight.device)
        everywhere = value.new_ones((1, 1, *source[2:])) if self._free else ones.new_ones([1, 1, *source[2:]])
        read = count(everywhere, ones, 1).round()  # positions read by each window
        lost = (read == 0).to(read.dtype)
        moved = move(value / (read + lost), ones, 1)
        if self._may_read_nothing():
            rest = (value * lost).sum(tuple(range(2, self.n + 2)), keepdim=True)
            moved = moved + rest / math.prod(source[2:])
        return moved

    @property
    def _free(self) -> bool:
        return not all(d.known for d in self._geometry)

    def _may_read_nothing(self) -> bool:
        """Whether there are windows wholly inside the padding, or gaps of a transposed convolution."""
        return any(d.may_read_nothing(self.is_forward) for d in self._geometry)

    def magnitude(self) -> Linear:
        return self.weighted(torch.abs)

    def weighted(self, change: Callable[[Tensor], Tensor]) -> Linear:
        return Convolution(
            change(self.weight),
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.small,
            self.large,
            self.is_forward,
        )


def _bias(call: Call) -> Bias | None:
    return None if call["bias"] is None else Bias(call["bias"], dim=1)


@static(
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, content="input", layer="convolution", rows=behind(1)
)
def _conv(call: Call) -> tuple[Linear, Bias | None]:
    n = len(call["weight"].shape) - 2
    geometry = [wide(call[name], n) for name in ("stride", "padding", "dilation")]
    return _between(call, geometry), _bias(call)


@static(
    aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding, content="input", layer="convolution", rows=behind(1)
)
def _conv_padding(call: Call) -> tuple[Linear, Bias | None]:
    """padding="same" puts the odd position on the right, which needs a padding of its own."""
    kernel = [int(k) for k in call["weight"].shape[2:]]
    n = len(kernel)
    stride, dilation = wide(call["stride"], n), wide(call["dilation"], n)
    total = [d * (k - 1) if call["padding"] == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
    if all(t % 2 == 0 for t in total):
        return _between(call, [stride, [t // 2 for t in total], dilation]), _bias(call)
    sides = [v for t in reversed(total) for v in (t // 2, t - t // 2)]
    shape = list(call.shape())
    padded = [*shape[:-n], *(s + t for s, t in zip(shape[-n:], total, strict=True))]
    inner = Convolution(call["weight"], stride, [0] * n, dilation, call["groups"], call.out.shape, padded)
    return Chain(inner, Pad(sides, "constant", shape, call.x.device)), _bias(call)


@static(
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
    content="input",
    layer="convolution",
    rows=behind(1),
)
def _conv_transpose(call: Call) -> tuple[Linear, Bias | None]:
    n = len(call["weight"].shape) - 2
    geometry = [wide(call[name], n) for name in ("stride", "padding", "dilation")]
    return _between(call, geometry, forward=False), _bias(call)


@static(aten.convolution.default, content="input", layer="convolution", rows=behind(1))
def _convolution(call: Call) -> tuple[Linear, Bias | None]:
    geometry = [list(call[name]) for name in ("stride", "padding", "dilation")]
    return _between(call, geometry, forward=not call["transposed"]), _bias(call)


def _between(call: Call, geometry: list[list[int]], forward: bool = True) -> Convolution:
    """The convolution between a call's operand and result; geometry is stride, padding, dilation."""
    stride, padding, dilation = geometry
    small, large = (call.out.shape, call.shape()) if forward else (call.shape(), call.out.shape)
    return Convolution(call["weight"], stride, padding, dilation, call["groups"], small, large, forward)
