"""AttnLRP (Achtibat et al. 2024) as affine forms: what it says beside the layers, whose rule is epsilon.

* softmax: its Jacobian, R = x (R_s - s sum R_s), what that leaves of s is the bias (Proposition 3.1);
* Q K^T, A V and element-wise products: half to each operand (Propositions 3.2 and 3.3), gates as any other factor. That
  is the omenn form of a product; epsilon only keeps LXT's relevance from a division by 0, which no affine form has;
* norms: the deviation is held fixed (Proposition 3.4), as in omenn;
* activations: relevance is passed on, as in omenn.
"""

from __future__ import annotations

import torch

from omenn_fx.algebra.form import Affine, Call
from omenn_fx.algebra.linear import Chain, Diagonal, Sum
from omenn_fx.algebra.ruleset import omenn
from omenn_fx.rules.ops.elementwise import quotient
from omenn_fx.rules.ops.jacobian import of_attention, of_softmax, scaled, with_remainder
from omenn_fx.rules.ops.structural import piece

aten = torch.ops.aten

attnlrp = omenn.derive(
    "attnlrp",
    "AttnLRP: softmax by its Jacobian, half to each factor, epsilon in layers (Achtibat et al. 2024)",
)

# What the omenn table has is the set's own rule.
NORMS = frozenset({
    aten.layer_norm.default, aten.native_layer_norm.default, aten.rms_norm.default, aten._fused_rms_norm.default,
    aten.group_norm.default, aten.instance_norm.default, aten.div.Tensor,
})  # fmt: skip
PRODUCTS = frozenset({
    aten.mul.Tensor, aten.mul.Scalar, aten.multiply.Tensor, aten.matmul.default, aten.bmm.default, aten.mm.default,
    aten.baddbmm.default, aten.addmm.default, aten.einsum.default,
})  # fmt: skip
ATTENTION = aten.scaled_dot_product_attention.default
SOFTMAX = (aten.softmax.int, aten._softmax.default, aten._safe_softmax.default)

attnlrp.mark(aten.sigmoid.default, aten.hardsigmoid.default, aten.exp.default, gate=False)


@attnlrp.register(*SOFTMAX, dynamic=True)
def _softmax(call: Call) -> Affine:
    return with_remainder(call, {call.content[0]: of_softmax(call.out, call["dim"], call.shape())})


@attnlrp.register(aten.glu.default, dynamic=True)
def _glu(call: Call) -> Affine:
    """Half of a sigmoid(b) to each half of x, the sigmoid with its omenn form."""
    dim, half = call["dim"] % len(call.shape()), call.out.shape[call["dim"]]
    first, second = (piece(call.shape(), dim, start, half) for start in (0, half))
    a, b = first.apply(call.x), second.apply(call.x)
    slope = quotient(0.5 * torch.tanh(0.5 * b), b, 0.25)
    halves = Sum(
        Chain(Diagonal(0.5 * torch.sigmoid(b), call.out.shape, call.out.shape), first),
        Chain(Diagonal(0.5 * a * slope, call.out.shape, call.out.shape), second),
    )
    return with_remainder(call, {call.content[0]: halves})


@attnlrp.register(
    ATTENTION, content=("query", "key", "value", "attn_mask"), dynamic=True, accepts=omenn.table[ATTENTION].accepts
)
def _attention(call: Call) -> Affine:
    """Half of A V to each of A and V, half of what A passes on to each of Q and K."""
    content = {slot.name for slot in call.content}
    product = 0.5 if "value" in content and len(content) > 1 else 1.0
    scores = 0.5 * product if content >= {"query", "key"} else product
    shares = {"query": scores, "key": scores, "value": product, "attn_mask": product}
    terms = of_attention(call)
    return with_remainder(call, {s: scaled(terms[s.name], shares[s.name], call) for s in call.content})
