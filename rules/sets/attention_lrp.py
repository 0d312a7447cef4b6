"""AttnLRP (Achtibat et al. 2024) as affine forms: what it says beside the layers, whose rule is epsilon.

* softmax: its Jacobian, R = x (R_s - s sum R_s), what that leaves of s is the bias (Proposition 3.1);
* Q K^T, A V and element-wise products: half to each operand (Propositions 3.2 and 3.3), gates as any other factor. That
  is the omenn form of a product; epsilon only keeps LXT's relevance from a division by 0, which no affine form has;
* norms: the deviation is held fixed (Proposition 3.4), as in omenn;
* activations: relevance is passed on, as in omenn.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from omenn_fx.algebra.form import Affine, Call
from omenn_fx.algebra.linear import Chain, Diagonal, Sum
from omenn_fx.algebra.rows import along, last
from omenn_fx.algebra.ruleset import omenn
from omenn_fx.rules.ops.attention import OPERANDS, draws_nothing, of_attention
from omenn_fx.rules.ops.forms import quotient, scaled, with_remainder
from omenn_fx.rules.ops.gated import halves_of
from omenn_fx.rules.sets.gradient import of_derivative

aten = torch.ops.aten

attnlrp = omenn.derive(
    "attnlrp",
    "AttnLRP: softmax by its Jacobian, half to each factor, epsilon in layers (Achtibat et al. 2024)",
)

# Kinds of operators for which what the omenn table has is the set's own rule.
SPOKEN_OF = frozenset({"activation", "max pool", "norm", "quotient", "product", "attention"})
ATTENTION = aten.scaled_dot_product_attention.default

attnlrp.change(aten.sigmoid.default, aten.hardsigmoid.default, aten.exp.default, gate=False)
for _rule in [rule for rule in omenn if rule.kind == "softmax"]:
    _jacobian = of_derivative(_rule)
    assert _jacobian is not None
    attnlrp.add(replace(_jacobian, total=False))


@attnlrp.register(aten.glu.default, dynamic=True, kind="gated", rows=along("dim"))
def _glu(call: Call) -> Affine:
    """Half of a sigmoid(b) to each half of x, the sigmoid with its omenn form."""
    first, second = halves_of(call)
    a, b = first.apply(call.x), second.apply(call.x)
    slope = quotient(0.5 * torch.tanh(0.5 * b), b, 0.25)
    halves = Sum(
        Chain(Diagonal(0.5 * torch.sigmoid(b), call.out.shape, call.out.shape), first),
        Chain(Diagonal(0.5 * a * slope, call.out.shape, call.out.shape), second),
    )
    return with_remainder(call, {call.content[0]: halves})


@attnlrp.register(ATTENTION, content=OPERANDS, dynamic=True, accepts=draws_nothing, kind="attention", rows=last(2))
def _attention(call: Call) -> Affine:
    """Half of A V to each of A and V, half of what A passes on to each of Q and K."""
    content = {slot.name for slot in call.content}
    product = 0.5 if "value" in content and len(content) > 1 else 1.0
    scores = 0.5 * product if content >= {"query", "key"} else product
    shares = {"query": scores, "key": scores, "value": product, "attn_mask": product}
    terms = of_attention(call)
    return with_remainder(call, {s: scaled(terms[s.name], shares[s.name], call) for s in call.content})
