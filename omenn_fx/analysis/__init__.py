"""Analysis: what every value of a captured graph is to the explanation, before any data.

In: a captured graph and a rule set. Out: a `Plan`: endpoints, roles, layers, where the batch lies, the reference.
Imports `capture` and `algebra`; may be imported by every room behind it, from `graph` on.
"""
