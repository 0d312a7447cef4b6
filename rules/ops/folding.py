"""Windows of an image as columns (unfold, im2col), columns summed into an image (fold, col2im): mutual transposes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from omenn_fx.algebra.form import Call
from omenn_fx.algebra.linear import Chain, Linear, Moves, Weighted
from omenn_fx.algebra.rows import last
from omenn_fx.rules.ops.forms import static
from omenn_fx.rules.ops.padding import Pad

aten = torch.ops.aten
Tensor = torch.Tensor


@static(aten.im2col.default, rows=last(3))
def _im2col(call: Call) -> Linear:
    """Padding reads nothing: it is a step of its own, which says where its mass goes."""
    shape, (down, right) = call.shape(), call["padding"]
    sides = [right, right, down, down]
    padded = [*shape[:-2], shape[-2] + 2 * down, shape[-1] + 2 * right]
    geometry = {name: call[name] for name in ("kernel_size", "dilation", "stride")}
    image: Any = padded[-2:]
    windows = Moves(lambda u: F.unfold(u, **geometry), lambda g: F.fold(g, image, **geometry), padded)
    return Chain(windows, Pad(sides, "constant", shape, call.x.device)) if any(sides) else windows


@static(aten.col2im.default, rows=last(2))
def _col2im(call: Call) -> Linear:
    geometry = {name: call[name] for name in ("kernel_size", "dilation", "padding", "stride")}
    return Weighted(
        lambda u: F.fold(u, call["output_size"], **geometry),
        lambda g: F.unfold(g, **geometry),
        call.shape(),
        call.out.shape,
    )
