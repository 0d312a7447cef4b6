"""Graph: the affine twin of a plan, on tensors or built into the explainer graph.

In: a tagged graph. Out: the explainer graph, its two halves, and `AffineMap`s.
Imports `analysis`, `capture` and `algebra`; may be imported by every room behind it, from `program` on.
"""
