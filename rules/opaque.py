"""Operators that content never passes: what depends on the input through them is held fixed.

A comparison or an index has no linear part; a statistic (a norm, a variance) is the coefficient of the division that
reads it. Where such a value is added to content it is an input-dependent bias, and the report says so.
"""

from __future__ import annotations

import torch

from omenn_fx.registry import omenn

aten = torch.ops.aten

# Integer ids become content here: the result is the explained input itself.
omenn.opaque(aten.embedding.default, source=True)

omenn.opaque(
    aten.argmax.default,
    aten.argmin.default,
    aten.sign.default,
    aten.floor.default,
    aten.ceil.default,
    aten.round.default,
    aten.trunc.default,
    aten.floor_divide.default,
    aten.div.Tensor_mode,
    aten.remainder.Scalar,
    aten.remainder.Tensor,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.empty_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
    aten.eq.Scalar, aten.eq.Tensor, aten.ne.Scalar, aten.ne.Tensor,
    aten.lt.Scalar, aten.lt.Tensor, aten.le.Scalar, aten.le.Tensor,
    aten.gt.Scalar, aten.gt.Tensor, aten.ge.Scalar, aten.ge.Tensor,
    aten.logical_not.default, aten.logical_and.default, aten.logical_or.default,
    aten.bitwise_not.default, aten.bitwise_and.Tensor, aten.bitwise_or.Tensor,
    aten.isnan.default, aten.isinf.default,
)  # fmt: skip

# Statistics: in a product the coefficient, whatever the other operand is.
omenn.opaque(
    aten.rsqrt.default,
    aten.reciprocal.default,
    aten.linalg_vector_norm.default,
    aten.norm.ScalarOpt_dim,
    aten.var.correction,
    aten.var.dim,
    aten.std.correction,
    aten.std.dim,
    gate=True,
)
