"""Interpolation, separable as the pools are, and sampling of an image at given positions."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch

from omenn_fx.algebra.form import Call
from omenn_fx.algebra.linear import Linear, Weighted
from omenn_fx.algebra.mass import Shape, is_one
from omenn_fx.algebra.rows import behind, last
from omenn_fx.rules.ops.forms import static
from omenn_fx.rules.ops.pooling import Separable, unit_vectors
from omenn_fx.rules.ops.windows import known

aten = torch.ops.aten
Tensor = torch.Tensor

# Interpolation -------------------------------------------------------------------------------------------------------


def _interpolation(name: str, n: int, nearest: bool = False) -> None:
    """Register both overloads of an interpolation over the last n dimensions, which is separable.

    How torch computes positions differs from kernel to kernel (by the number of dimensions, the dtype, the layout in
    memory, equal sizes). So each matrix is what the operator itself makes along its dimension; where its kernels
    disagree, what it makes at this very call, on images of the operand's shape and layout.
    """
    packet = getattr(aten, name)
    matrices = _nearest if nearest else _weighted

    def form(call: Call) -> Linear:
        found = matrices(_Call(packet.default, call, n))
        return Separable([m.to(dtype=call.x.dtype, device=call.x.device) for m in found], call.shape())

    static(packet.vec, content=("input",), rows=last(n))(form)
    static(packet.default, content=("self",), rows=last(n))(form)


class _Call:
    """An interpolation of n dimensions: sizes before and after, and how it is called on other images."""

    def __init__(self, op: Any, call: Call, n: int):
        self.op, self.x, self.n = op, call.x, n
        self.sizes, self.outs = list(call.shape()[-n:]), list(call.out.shape[-n:])
        self.align = [call["align_corners"]] if "align_corners" in call.operands else []
        if "scale_factors" in call.operands:
            self.scales = list(call["scale_factors"] or [None] * n)
        else:
            names = {1: ["scales"], 2: ["scales_h", "scales_w"], 3: ["scales_d", "scales_h", "scales_w"]}[n]
            self.scales = [call[name] for name in names]
        self.known = known(*self.sizes, *self.outs)

    def __call__(self, images: Tensor, outs: Shape | None = None, scales: list[float | None] | None = None) -> Tensor:
        """The operator on images; to other sizes, or at other factors, where those are given."""
        return self.op(images, self.outs if outs is None else outs, *self.align, *(scales or self.scales))

    def along(self, dim: int, value: Tensor) -> Tensor:
        """A vector, or a stack of some, along one of the last dimensions, of size 1 in all others."""
        lead, size = value.shape[:-1], value.shape[-1]
        return value.reshape([*lead, *([1] if lead else []), *(size if d == dim else 1 for d in range(self.n))])

    @property
    def layouts(self) -> list[torch.memory_format]:
        """Those that torch has kernels for."""
        last = {1: (), 2: (torch.channels_last,), 3: (torch.channels_last_3d,)}[self.n]
        return [torch.contiguous_format, *last]


def _weighted(call: _Call) -> list[Tensor]:
    """What the operator makes of the unit vectors along each dimension, where the others are constant."""
    found = []
    for d, size in enumerate(call.sizes):
        units = unit_vectors(size, call.x)
        layouts = call.layouts if call.known else call.layouts[:1]
        first, *rest = (_short(call, d, units, layout) for layout in layouts)
        if all(torch.allclose(first, other) for other in rest):
            found.append(first)
            continue
        images = torch.cat([torch.zeros_like(call.x)[:1]] * size)  # which keeps the layout
        made = (
            call(images + call.along(d, units.to(dtype=call.x.dtype, device=call.x.device)))
            .movedim(d - call.n, 1)
            .flatten(2)
            .select(2, 0)
        )
        found.append(made.t())
    return found


def _short(call: _Call, dim: int, units: Tensor, layout: torch.memory_format) -> Tensor:
    """The matrix of one dimension. The others are short: 1 where they are, 2 to 2 where they stay, else 2 to 3."""
    wide = [1 if is_one(size) else 2 for size in call.sizes]
    stays = [call.known and size == out for size, out in zip(call.sizes, call.outs, strict=True)]
    narrow = [1 if is_one(o) else w if s else 3 for o, w, s in zip(call.outs, wide, stays, strict=True)]
    shape = [-1, 2, *(-1 if d == dim else w for d, w in enumerate(wide))]
    images = call.along(dim, units).expand(shape).contiguous(memory_format=layout)
    outs = [call.outs[d] if d == dim else o for d, o in enumerate(narrow)]
    made = call(images, outs, [scale if d == dim else None for d, scale in enumerate(call.scales)])
    return made.movedim(dim - call.n, 1).flatten(2).select(2, 0).t()


def _nearest(call: _Call) -> list[Tensor]:
    """Which position every result position reads, as a matrix for each dimension."""
    found = _agreed(call) if call.known else None
    if found is None:
        dtype = call.x.dtype if call.x.dtype.itemsize > 2 else torch.float32  # which counts far enough
        found = _positions(call, torch.zeros_like(call.x, dtype=dtype))
    matrices = []
    for size, read in zip(call.sizes, found, strict=True):
        at = read.new_ones((size,)).cumsum(0) - 1
        matrices.append((read.unsqueeze(1) == at).to(read.dtype))
    return matrices


def _positions(call: _Call, images: Tensor) -> list[Tensor]:
    """The position that each result position reads, of images of zeros. Without any image it is NaN."""
    found = []
    for d, size in enumerate(call.sizes):
        at = call.along(d, images.new_ones((size,)).cumsum(0) - 1)
        made = call(images + at).movedim(d - call.n, -1).flatten(0, -2)
        found.append(made.mean(0).round())
    return found


def _agreed(call: _Call) -> list[Tensor] | None:
    """The positions that are read, where all of torch's kernels read the same ones."""
    found = []
    for dtype, channels, layout in itertools.product((torch.float32, torch.float64), (1, 8), call.layouts):
        images = torch.zeros(1, channels, *call.sizes, dtype=dtype).contiguous(memory_format=layout)
        found.append([positions.double() for positions in _positions(call, images)])
    first, *rest = found
    same = all(torch.equal(a, b) for other in rest for a, b in zip(first, other, strict=True))
    return first if same else None


for _n, _linear in ((1, "linear1d"), (2, "bilinear2d"), (3, "trilinear3d")):
    _interpolation(f"upsample_{_linear}", _n)
    _interpolation(f"upsample_nearest{_n}d", _n, nearest=True)
    _interpolation(f"_upsample_nearest_exact{_n}d", _n, nearest=True)
for _planar in ("upsample_bicubic2d", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa"):
    _interpolation(_planar, 2)


# Sampling at positions -----------------------------------------------------------------------------------------------

Tap = tuple[Tensor, Tensor]  # the position that is read, and its weight


def _folded(at: Tensor, low: float, high: float) -> Tensor:
    """Positions reflected at the ends of low .. high until they lie between."""
    span = high - low
    if span <= 0:
        return torch.zeros_like(at)
    rest = torch.remainder(at - low, 2 * span)
    return low + torch.where(rest > span, 2 * span - rest, rest)


def _within(at: Tensor, size: int, padding: int, align: bool) -> Tensor:
    """Positions outside the image brought to its edge (1: border) or reflected (2); as they are with zeros (0)."""
    if padding == 2:
        at = _folded(at, 0.0, size - 1.0) if align else _folded(at, -0.5, size - 0.5)
    return at.clamp(0, size - 1) if padding else at


def _cubic(t: Tensor) -> list[Tensor]:
    """The weights of the four neighbours at -1, 0, 1, 2 of a position t in 0 .. 1 (a = -0.75, as in torch)."""
    a = -0.75

    def far(x: Tensor) -> Tensor:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    def near(x: Tensor) -> Tensor:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]


def _taps(at: Tensor, size: int, mode: int, padding: int, align: bool) -> list[Tap]:
    """The positions that one dimension reads at grid coordinates -1 .. 1, with their weights; 0 outside the image."""
    at = (at + 1) / 2 * (size - 1) if align else ((at + 1) * size - 1) / 2
    if mode != 2:
        at = _within(at, size, padding, align)
    if mode == 1:
        taps = [(torch.round(at), torch.ones_like(at))]
    else:
        low = torch.floor(at)
        rest = at - low
        if mode == 0:
            taps = [(low, 1 - rest), (low + 1, rest)]
        else:
            taps = [
                (_within(low + k, size, padding, align), w) for k, w in zip((-1, 0, 1, 2), _cubic(rest), strict=True)
            ]
    return [(p.clamp(0, size - 1).long(), w * ((p >= 0) & (p <= size - 1)).to(w.dtype)) for p, w in taps]


@static(
    aten.grid_sampler.default, aten.grid_sampler_2d.default, aten.grid_sampler_3d.default,
    content="input", rows=behind(1),
)  # fmt: skip
def _grid_sampler(call: Call) -> Linear:
    """Each position of the grid reads its neighbours in the image; the grid is held fixed."""
    shape, grid = call.shape(), call["grid"]
    sizes = [int(s) for s in shape[2:]]
    options = call["interpolation_mode"], call["padding_mode"], call["align_corners"]
    taps = [_taps(grid[..., -1 - d], size, *options) for d, size in enumerate(sizes)]
    corners = []
    for corner in itertools.product(*taps):
        index, weight = corner[0]
        for (i, w), size in zip(corner[1:], sizes[1:], strict=True):
            index, weight = index * size + i, weight * w
        corners.append((index.flatten(1).unsqueeze(1), weight.flatten(1).unsqueeze(1)))
    return _sampled(corners, call)


def _sampled(corners: list[Tap], call: Call) -> Weighted:
    shape, result = call.shape(), call.out.shape
    channels = int(shape[1])

    def apply(u: Tensor) -> Tensor:
        flat = u.flatten(2)
        total: Any = 0
        for index, weight in corners:
            total = total + torch.gather(flat, 2, index.expand(-1, channels, -1)) * weight
        return total.reshape(tuple(result))

    def transpose(g: Tensor) -> Tensor:
        flat, total = g.flatten(2), g.new_zeros((*shape[:2], math.prod(int(s) for s in shape[2:])))
        for index, weight in corners:
            total = torch.scatter_add(total, 2, index.expand(-1, channels, -1), flat * weight)
        return total.reshape(tuple(shape))

    return Weighted(apply, transpose, shape, result, lambda: _sampled([(i, torch.abs(w)) for i, w in corners], call))
