"""The rule sets: what another attribution method says differently of operators and layers; nothing is said twice.

In: the table of `rules.ops`. Out: named sets, and functions that make them with other parameters.
Imports `rules.ops` and `algebra`.
"""

from omenn_fx.rules.sets.named import (
    PASSED,
    attnlrp,
    composite,
    cp_lrp,
    deeplift,
    epsilon_alpha2_beta1,
    epsilon_gamma_box,
    epsilon_plus,
    epsilon_plus_flat,
    epsilon_plus_split,
    name_all,
    omenn_gamma,
)

name_all()

__all__ = [
    "PASSED",
    "attnlrp",
    "composite",
    "cp_lrp",
    "deeplift",
    "epsilon_alpha2_beta1",
    "epsilon_gamma_box",
    "epsilon_plus",
    "epsilon_plus_flat",
    "epsilon_plus_split",
    "omenn_gamma",
]
