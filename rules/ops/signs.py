"""Signs: which operators never return negative values, which return none where they read none, and which 0 for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from omenn_fx.algebra.ruleset import omenn

aten = torch.ops.aten

omenn.mark(aten.relu.default, aten.relu6.default, sign="rectified")
omenn.mark(
    aten.sigmoid.default, aten.hardsigmoid.default, aten.softplus.default,
    aten.abs.default, aten.square.default, aten.exp.default, aten.exp2.default, aten.sqrt.default,
    aten.softmax.int, aten._softmax.default,
    sign="positive",
)  # fmt: skip
omenn.mark(
    aten.clone.default, aten.contiguous.default, aten.alias.default, aten.detach.default, aten._to_copy.default,
    aten.to.dtype, aten.to.dtype_layout, aten.expand.default, aten.view.default, aten._unsafe_view.default,
    aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int, aten.squeeze.default, aten.squeeze.dim,
    aten.squeeze.dims, aten.unsqueeze.default, aten.permute.default, aten.transpose.int, aten.t.default,
    aten.slice.Tensor, aten.select.int, aten.narrow.default, aten.split.Tensor, aten.split_with_sizes.default,
    aten.chunk.default, aten.unbind.int, aten.flip.default, aten.roll.default, aten.cat.default, aten.stack.default,
    aten.pixel_shuffle.default, aten.pixel_unshuffle.default, aten.mul.Tensor, aten.sum.dim_IntList, aten.mean.dim,
    aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default, aten.avg_pool1d.default,
    aten.max_pool2d_with_indices.default, aten.avg_pool2d.default, aten.avg_pool3d.default,
    aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default,
    aten.adaptive_max_pool1d.default, aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default,
    sign="kept",
)  # fmt: skip


def _of_sum(operands: Mapping[str, Any]) -> str | None:
    """A constant that is added might be negative, and so might the factor."""
    return "kept" if operands["alpha"] == 1 and not isinstance(operands["other"], (int, float)) else None


def _of_bounds(operands: Mapping[str, Any]) -> str | None:
    low = operands.get("min", operands.get("min_val"))
    if not isinstance(low, (int, float)) or low < 0:
        return None
    return "rectified" if low == 0 else "positive"


omenn.mark(aten.add.Tensor, sign=_of_sum)
omenn.mark(aten.clamp.default, aten.clamp_min.default, aten.hardtanh.default, sign=_of_bounds)
