"""The rules of the `omenn` rule set, one room per family of operators. Importing this package fills the table."""

from omenn_fx.rules import (
    attention,
    bilinear,
    convolution,
    elementwise,
    normalization,
    opaque,
    pooling,
    recurrent,
    structural,
)

__all__ = [
    "attention",
    "bilinear",
    "convolution",
    "elementwise",
    "normalization",
    "opaque",
    "pooling",
    "recurrent",
    "structural",
]
