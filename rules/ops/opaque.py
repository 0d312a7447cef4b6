"""Operators that content never passes: what depends on the input through them is held fixed.

A comparison or an index has no linear part. Where such a value is added to content it is an input-dependent bias, and
the report says so.
"""

from __future__ import annotations

import torch

from omenn_fx.algebra.ruleset import omenn

aten = torch.ops.aten

# No values of their own, only the shape of the operand.
omenn.opaque(
    aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.empty_like.default,
    aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.new_empty.default,
    aten.rand_like.default, aten.randn_like.default, aten.bernoulli.p,
    unread=("self",),
)  # fmt: skip

# Decisions and positions: no linear part.
omenn.opaque(
    aten.argmax.default, aten.argmin.default, aten.argsort.default, aten.argsort.stable, aten.nonzero.default,
    aten.bucketize.Tensor, aten.searchsorted.Tensor, aten.histc.default,
    aten.sign.default, aten.heaviside.default,
    aten.floor.default, aten.ceil.default, aten.round.default, aten.round.decimals, aten.trunc.default,
    aten.floor_divide.default, aten.div.Tensor_mode, aten.div.Scalar_mode,
    aten.eq.Scalar, aten.eq.Tensor, aten.ne.Scalar, aten.ne.Tensor,
    aten.lt.Scalar, aten.lt.Tensor, aten.le.Scalar, aten.le.Tensor,
    aten.gt.Scalar, aten.gt.Tensor, aten.ge.Scalar, aten.ge.Tensor, aten.isclose.default,
    aten.logical_not.default, aten.logical_and.default, aten.logical_or.default, aten.logical_xor.default,
    aten.bitwise_not.default, aten.bitwise_and.Tensor, aten.bitwise_or.Tensor, aten.bitwise_xor.Tensor,
    aten.any.default, aten.any.dim, aten.any.dims, aten.all.default, aten.all.dim, aten.all.dims,
    aten.isnan.default, aten.isinf.default, aten.isfinite.default, aten.signbit.default,
)  # fmt: skip

# With a derivative that has no formula here. The grid is made to be read as positions; torch decomposes sgn. An angle
# says where a complex value points, as a direction does: it is held fixed.
omenn.opaque(aten.affine_grid_generator.default, aten.sgn.default, aten.angle.default, derivative="none")
