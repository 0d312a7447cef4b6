"""The rules: the operators with their exact forms (`rules.ops`), and the rule sets made of them (`rules.sets`).

Importing fills the tables and gives the sets their names. Imports `algebra`; no room behind it knows which set is used.
"""

from omenn_fx.algebra.ruleset import omenn
from omenn_fx.rules import ops, sets

omenn.table.filled()

__all__ = ["ops", "sets"]
