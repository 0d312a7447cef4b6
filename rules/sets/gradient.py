"""Gradient x input and its remainder: W is the Jacobian J of every operator at this input, b = h - J x.

C_w is autograd's gradient, C_w * X gradient x input (Simonyan et al. 2014; Shrikumar et al. 2016), and the shares of
the remainders make its sum the logit. Three kinds of rules, and nothing else is in the table:

* static: a form whose W depends on nothing held fixed is the Jacobian already. So are selections of winners;
* products: every factor gets its full coefficient, not a part, so b = (1 - n) h;
* derivatives: what the record of a dynamic operator states. A derivative that is infinite counts as 0: all of h is b.

No operand is held fixed silently: a call where content reaches an operand that has no derivative here has no rule. As
in autograd, nothing flows through a detach or a comparison; a block under `torch.no_grad` leaves no trace in what
torch.export captures, so what runs in it counts. LSTM, GRU and RNN are captured as the operators they are made of.
Where winners tie they share equally; autograd gives all to the first, of max pools and `max(dim)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from omenn_fx.algebra.form import Affine, Call, Form
from omenn_fx.algebra.ruleset import Rule, RuleSet, Table, Variant, omenn
from omenn_fx.rules.ops.forms import with_remainder

aten = torch.ops.aten


def of_derivative(rule: Rule) -> Rule | None:
    """The rule of an operator's record whose W is the Jacobian; None where there is none."""
    if rule.apart or rule.derivative == "none":
        return None
    if isinstance(rule.derivative, Variant):
        variant = rule.derivative
        return replace(
            rule, form=variant.form, gate=False, product=False, dynamic=True, total=True,
            **{"accepts": None} | dict(variant.traits),
        )  # fmt: skip
    if rule.form is None:
        return replace(rule, gate=False, total=bool(rule.source), accepts=_is_rounded)
    if rule.product:
        return replace(rule, form=partial(_of_factors, rule.form), product=False, dynamic=True, total=True)
    if rule.derivative == "form":
        return replace(rule, gate=False, total=True)
    if rule.dynamic is None:  # not stated: where W is found not to depend on the content, the form is the Jacobian
        return replace(rule, total=True, fixed=True)
    return None if rule.dynamic or rule.gate else replace(rule, total=True)


def _of_factors(form: Form, call: Call) -> Affine:
    """The whole product to each factor: the exact form with that one as its content."""
    affine: Any = {slot: form(replace(call, content=(slot,))) for slot in call.content}
    return with_remainder(call, {slot: affine[slot].terms[slot] for slot in call.content})


def _is_rounded(operands: Mapping[str, Any]) -> bool:
    """A division without a rounding mode is one, and not constant between jumps."""
    return operands.get("rounding_mode", "") is not None


gradient = RuleSet(
    "gradient", "gradient x input and its remainder: the Jacobian of every operator", Table(omenn.table, of_derivative)
)
gradient.opaque(aten.detach.default)
gradient.opaque(aten.affine_grid_generator.default, accepts=lambda operands: False)  # torch cannot take it apart
