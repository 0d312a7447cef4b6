"""The rules of the `omenn` rule set, one room per family of operators. Importing this package fills the table."""

from omenn_fx.rules import (
    attention,
    bilinear,
    contraction,
    convolution,
    elementwise,
    experts,
    folding,
    indexing,
    normalization,
    opaque,
    pooling,
    recurrent,
    sampling,
    selection,
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
    "normalization",
    "opaque",
    "pooling",
    "recurrent",
    "sampling",
    "selection",
    "statistics",
    "structural",
]
