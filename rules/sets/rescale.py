"""DeepLIFT (Shrikumar et al. 2017): what a node changed by against a reference input, shared among its operands.

`call.reference` is the call at the reference x0. With the multipliers W every node is an affine form of both inputs,

    h = W x + b   and   h0 = W x0 + b,

so sum(C) is the logit as in every set, and C_w * (x - x0) sums to f(x) - f(x0) ("summation to delta"). The rules:

* rescale: an element-wise f has W = diag((f(x) - f(x0)) / (x - x0)), its derivative where x = x0;
* max pool: what the maximum rose by goes to the winner at x, what it fell by to the winner at x0, as in Captum;
* products: each factor's change times a mean of the other's two values, a b - a0 b0 = B (a - a0) + A (b - b0);
* what is made of these (softmax, norms, attention, distances) has the form that they leave, in closed formulas: each
  is the Jacobian where x = x0, and none divides by a small difference.

Operators with a W that depends on neither input keep it. Of the others `check` says by name (OMENN106) where the form
of omenn stands in: there the sum is the logit too, but the summation to delta is not exact.
"""

from __future__ import annotations

from dataclasses import replace

from omenn_fx.algebra.ruleset import Rule, omenn


def of_difference(rule: Rule) -> Rule | None:
    """The rule of an operator's record with its multipliers against a reference; nothing is a gate there."""
    if rule.difference is not None:
        variant = rule.difference
        traits = {"gate": False} | dict(variant.traits)
        traits["complex"] = rule.complex and bool(variant.traits.get("complex"))
        return replace(rule, form=variant.form, **traits)
    return None if rule.apart else rule


deeplift = omenn.derive(
    "deeplift",
    "DeepLIFT: the rescale rule against a reference input (Shrikumar et al. 2017)",
    reading=of_difference,
    reference=0.0,
)
