"""Wrong rules are caught: `validate` fails and names the node when an operator's W, its transpose or b is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from samples import SAMPLES, name_of, of

import omenn_fx
from omenn_fx.algebra.aliases import canonical
from omenn_fx.algebra.form import Affine, Bias
from omenn_fx.algebra.invariants import finite
from omenn_fx.algebra.linear import Linear
from omenn_fx.algebra.ruleset import RuleSet, Table, omenn
from omenn_fx.testing import CallModule

OFF = 1.001  # wrong by 1e-3


class Wrong(Linear):
    """A map that is another one forwards, backwards, or both ways."""

    converts = True  # the right form has its casts already

    def __init__(self, right, apply=1.0, transpose=1.0):
        self.right, self.forth, self.back = right, apply, transpose

    def apply(self, u):
        return self.right.apply(u) * self.forth

    def transpose(self, g):
        return self.right.transpose(g) * self.back

    def carry(self, mass):
        return self.right.carry(mass)

    def magnitude(self):
        return Wrong(self.right.magnitude(), self.forth, self.back)


def scaled(form, out):
    return replace(form, terms={s: Wrong(t, OFF, OFF) for s, t in form.terms.items()})


def wrong_transpose(form, out):
    return replace(form, terms={s: Wrong(t, 1.0, OFF) for s, t in form.terms.items()})


def wrong_bias(form, out):
    """Dropped where there is one, invented where there is none."""
    if form.bias is not None and form.bias.dense(out).any():
        return replace(form, bias=None)
    return Affine(form.terms, Bias((OFF - 1) * out.abs().mean()), form.disjoint)


EXPORTED_AS_ANOTHER = {torch.ops.aten.conj_physical.default}  # _conj_physical, which is here too
MUTATIONS = (scaled, wrong_transpose, wrong_bias)


def calls_of(op):
    """Calls that can tell a wrong rule, one with a bias first: finite, with a W that is not zero."""
    for sample in of(op):
        for content in sample.variants():
            call = sample.call(torch.float64, content)
            form = omenn.table[op].affine(call)
            moved = sum(t.apply(finite(call.at(s))).abs().sum() for s, t in form.terms.items())
            if call.out.dtype in (torch.float64, torch.complex128) and call.out.isfinite().all() and moved > 0:
                yield form.bias is None, call


@pytest.mark.parametrize("op", list(dict.fromkeys(s.op for s in SAMPLES)), ids=name_of)
def test_wrong_rules_are_caught(op):
    call = min(calls_of(op), key=lambda pair: pair[0])[1]
    inputs = CallModule(call).inputs()
    rules = RuleSet("mutated", table=Table(omenn.table))
    explainer = omenn_fx.transform(CallModule(call), inputs, rules=rules, batched=False)
    assert explainer.validate(*inputs).ok
    if op in EXPORTED_AS_ANOTHER:
        return
    right = rules[op]
    for mutation in MUTATIONS:
        rules.table[op] = replace(right, form=lambda c, m=mutation: m(right.affine(c), c.out))
        report = explainer.validate(*inputs)
        assert not report.ok, mutation.__name__
        assert any(str(canonical(op)) in failure for failure in report.failures), (mutation.__name__, report.failures)
