"""The algebra of affine forms: the one import for those who write rules.

In: tensors, or the values of a graph that is being built. Out: linear maps, biases and bias mass; tables of rules.
Imports `errors` alone; every other room may import it.
"""

from omenn_fx.algebra.form import Affine, Bias, Call, Form, Op, Slot
from omenn_fx.algebra.layer import CONVOLUTION, DENSE, EVERY, FIRST, LAST, Layer, Line, Treated, Treatment, Where
from omenn_fx.algebra.linear import (
    Cast,
    Centre,
    Chain,
    ComplexDiagonal,
    Diagonal,
    Linear,
    Matrix,
    Moves,
    Reduction,
    Sum,
    Weighted,
)
from omenn_fx.algebra.mass import Even, Mass, Product, Shape
from omenn_fx.algebra.rows import Rows
from omenn_fx.algebra.ruleset import (  # noqa: F401  (pickles of earlier versions name them)
    Reference,
    Rule,
    RuleSet,
    Variant,
    _derived,
    _relined,
    name_set,
    omenn,
    overload,
    rule,
    rule_set,
    rule_sets,
)

__all__ = [
    "CONVOLUTION",
    "DENSE",
    "EVERY",
    "FIRST",
    "LAST",
    "Affine",
    "Bias",
    "Call",
    "Cast",
    "Centre",
    "Chain",
    "ComplexDiagonal",
    "Diagonal",
    "Even",
    "Form",
    "Layer",
    "Line",
    "Linear",
    "Mass",
    "Matrix",
    "Moves",
    "Op",
    "Product",
    "Reduction",
    "Reference",
    "Rows",
    "Rule",
    "RuleSet",
    "Shape",
    "Slot",
    "Sum",
    "Treated",
    "Treatment",
    "Variant",
    "Weighted",
    "Where",
    "name_set",
    "omenn",
    "rule",
    "rule_set",
    "rule_sets",
]
