"""The operators, one file for each family: all that is known of an operator stands in its family's file.

In: a call of an operator. Out: its affine form in the `omenn` set, with its traits. Importing fills the table.
Imports `algebra`; may be imported by `rules.sets`.
"""

from omenn_fx.rules.ops import (
    attention,
    bilinear,
    contraction,
    convolution,
    elementwise,
    experts,
    folding,
    indexing,
    jacobian,
    normalization,
    opaque,
    parts,
    pooling,
    recurrent,
    sampling,
    selection,
    signs,
    spectral,
    statistics,
    structural,
)

__all__ = [
    "attention",
    "bilinear",
    "contraction",
    "convolution",
    "elementwise",
    "experts",
    "folding",
    "indexing",
    "jacobian",
    "normalization",
    "opaque",
    "parts",
    "pooling",
    "recurrent",
    "sampling",
    "selection",
    "signs",
    "spectral",
    "statistics",
    "structural",
]
