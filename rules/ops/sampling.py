"""Interpolation, separable as the pools are, and sampling of an image at given positions."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch

from omenn_fx.algebra.form import Call
from omenn_fx.algebra.linear import Linear, Weighted
from omenn_fx.algebra.rows import behind, last
from omenn_fx.rules.ops.forms import static
from omenn_fx.rules.ops.pooling import Separable, matrix_of

aten = torch.ops.aten
Tensor = torch.Tensor

# Interpolation -------------------------------------------------------------------------------------------------------


# modes that torch has in two dimensions only: the other one of size 1
_PLANAR = {
    "cubic": aten.upsample_bicubic2d.default,
    "cubic, antialiased": aten._upsample_bicubic2d_aa.default,
    "linear, antialiased": aten._upsample_bilinear2d_aa.default,
}


def _interpolation(*ops: Any, mode: str, n: int) -> None:
    def along(unit: Tensor, out: Any, align: bool | None, scale: float | None) -> Tensor:
        """One dimension's interpolation of samples [size, 1, size]."""
        if mode in _PLANAR:
            return _PLANAR[mode](unit.unsqueeze(2), [1, out], align, None, scale).squeeze(2)
        if mode == "linear":
            return aten.upsample_linear1d.default(unit, [out], align, scale)
        kernel = aten.upsample_nearest1d if mode == "nearest" else aten._upsample_nearest_exact1d
        return kernel.default(unit, [out], scale)

    def form(call: Call) -> Linear:
        shape, align = call.shape(), call.operands.get("align_corners")
        factors = call.operands.get("scale_factors")
        if factors is None:
            names = {1: ["scales"], 2: ["scales_h", "scales_w"], 3: ["scales_d", "scales_h", "scales_w"]}[n]
            factors = [call.operands.get(name) for name in names]
        matrices = [
            matrix_of(lambda unit, o=out, f=factor: along(unit, o, align, f), size, call.x)  # type: ignore[misc]
            for size, out, factor in zip(shape[-n:], call.out.shape[-n:], factors, strict=True)
        ]
        return Separable(matrices, shape)

    content = ("input",) if all("input" in _names(op) for op in ops) else ("self",)
    static(*ops, content=content, rows=last(n))(form)


def _names(op: Any) -> set[str]:
    return {a.name for a in op._schema.arguments}


for _n, _name in ((1, "linear1d"), (2, "bilinear2d"), (3, "trilinear3d")):
    _interpolation(getattr(aten, f"upsample_{_name}").vec, mode="linear", n=_n)
    _interpolation(getattr(aten, f"upsample_{_name}").default, mode="linear", n=_n)
    _interpolation(getattr(aten, f"upsample_nearest{_n}d").vec, mode="nearest", n=_n)
    _interpolation(getattr(aten, f"upsample_nearest{_n}d").default, mode="nearest", n=_n)
    _interpolation(getattr(aten, f"_upsample_nearest_exact{_n}d").vec, mode="nearest-exact", n=_n)
    _interpolation(getattr(aten, f"_upsample_nearest_exact{_n}d").default, mode="nearest-exact", n=_n)
for _mode, _name in (("cubic", "upsample_bicubic2d"), ("cubic, antialiased", "_upsample_bicubic2d_aa"),
                     ("linear, antialiased", "_upsample_bilinear2d_aa")):  # fmt: skip
    _interpolation(getattr(aten, _name).vec, mode=_mode, n=2)
    _interpolation(getattr(aten, _name).default, mode=_mode, n=2)


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
