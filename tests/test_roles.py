"""Roles: which operand of a product carries content, what was decided and why, and what the user can overrule."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import omenn_fx
from omenn_fx.algebra.ruleset import Rule, RuleSet, omenn

F64 = torch.float64


class Calls(nn.Module):
    """A function of its inputs as a module, with parameters."""

    def __init__(self, forward, **parameters):
        super().__init__()
        self.function = forward
        for name, shape in parameters.items():
            self.register_parameter(name, nn.Parameter(torch.randn(*shape, dtype=F64)))

    def forward(self, *inputs):
        return self.function(self, *inputs)


def explained(model, *inputs, **options):
    """The explainer of a module, after its explanation has proven complete."""
    explainer = omenn_fx.transform(model.eval(), inputs, **options)
    explanation = explainer(*inputs)
    torch.testing.assert_close(explanation.outputs, model(*inputs), rtol=1e-12, atol=1e-12)
    assert (explanation.completeness_error <= 1e-10).all()
    return explainer, explanation


def roles(explainer):
    return {info.name: info.role for info in explainer.nodes}


def x(*shape):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(1))


def only_decision(explainer):
    (decision,) = explainer.decisions
    return decision


# Gates ---------------------------------------------------------------------------------------------------------------


def test_squeeze_and_excitation_gate_is_the_coefficient():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up = nn.Conv2d(4, 2, 1, dtype=F64), nn.Conv2d(2, 4, 1, dtype=F64)

        def forward(self, u):
            scale = torch.sigmoid(self.up(F.relu(self.down(u.mean((2, 3), keepdim=True)))))
            return (u * scale).mean((2, 3))

    explainer, _ = explained(Block(), x(2, 4, 5, 5))
    assert (only_decision(explainer).node, only_decision(explainer).policy) == ("mul", "gate")
    assert "sigmoid" in only_decision(explainer).reason
    have = roles(explainer)
    assert have["sigmoid"] == have["relu"] == have["conv2d"] == "coefficient"
    assert have["mul"] == "content"
    assert explainer.opaque == []


def test_glu_needs_no_decision():
    explainer, explanation = explained(Calls(lambda m, u: F.glu(u @ m.w, -1), w=(3, 8)), x(2, 3))
    assert explainer.decisions == []
    assert roles(explainer)["glu"] == "content"
    assert len(explanation.bias) == 0


def test_swiglu_is_split():
    """SiLU is no gate: w1(x) silu and w3(x) carry content alike, and each takes half of the product."""
    explainer, explanation = explained(Calls(lambda m, u: F.silu(u @ m.a) * (u @ m.b), a=(3, 5), b=(3, 5)), x(2, 3))
    assert only_decision(explainer).policy == "split"
    assert {"silu", "matmul_1"} <= {w.strip(",") for w in only_decision(explainer).reason.split()}
    u, m = x(2, 3), explainer.model
    first, second = u @ m.a, u @ m.b
    index = explanation.target[:, None]
    ratio = (F.silu(first) / first).gather(1, index)
    want = 0.5 * (ratio * second.gather(1, index) * m.a.t()[explanation.target]
                  + F.silu(first).gather(1, index) * m.b.t()[explanation.target])  # fmt: skip
    torch.testing.assert_close(explanation.C_w, want.detach())


def test_gate_shifted_from_one_is_a_gate():
    """1 - sigmoid(z), reshaped and scaled, is as much a gate as sigmoid(z)."""

    def forward(m, u):
        z = torch.sigmoid(u @ m.z)
        return u * z + (1 - z.view(2, 1, 3) * 0.5).flatten(1) * torch.tanh(u @ m.h)

    explainer, _ = explained(Calls(forward, z=(3, 3), h=(3, 3)), x(2, 3), dynamic_batch=False)
    assert [d.policy for d in explainer.decisions] == ["gate", "gate"]
    assert roles(explainer)["rsub"] == "coefficient"


def test_two_gates_are_split():
    explainer, _ = explained(
        Calls(lambda m, u: torch.sigmoid(u @ m.a) * torch.sigmoid(u @ m.b), a=(3, 4), b=(3, 4)), x(2, 3)
    )
    assert only_decision(explainer).policy == "split"


def test_three_factors_of_an_einsum():
    """A gate among three factors is held fixed, the others share the product."""

    def forward(m, u):
        return torch.einsum("bi,bi,bi->bi", u @ m.a, torch.sigmoid(u), u)

    explainer, explanation = explained(Calls(forward, a=(3, 3)), x(2, 3))
    decided = {d.policy: d.reason for d in explainer.decisions}
    assert set(decided) == {"gate", "split"}
    assert "sigmoid" in decided["gate"]
    assert "equal part" in decided["split"]
    assert roles(explainer)["sigmoid"] == "coefficient"
    assert explanation.C_w.shape == (2, 3)


# Products ------------------------------------------------------------------------------------------------------------


def test_square_has_one_operand_and_no_decision():
    u = x(2, 3)
    explainer, explanation = explained(Calls(lambda m, u: u * u), u)
    assert explainer.decisions == []
    chosen = F.one_hot(explanation.target, 3).to(F64)
    torch.testing.assert_close(explanation.C_w, u * chosen)


@pytest.mark.parametrize("flavour", ["eager", "sdpa"])
def test_attention_weights_are_the_coefficient(flavour):
    def forward(m, u):
        q, k, v = (u @ m.qkv).chunk(3, -1)
        if flavour == "sdpa":
            return F.scaled_dot_product_attention(q, k, v).mean(1)
        return (torch.softmax(q @ k.transpose(1, 2) / 2, -1) @ v).mean(1)

    u = x(2, 5, 3)
    explainer, explanation = explained(Calls(forward, qkv=(3, 12)), u)
    if flavour == "eager":
        assert only_decision(explainer).policy == "gate"
        assert "softmax" in only_decision(explainer).reason
        assert roles(explainer)["matmul_1"] == "coefficient", "Q K^T"
    q, k, _ = (u @ explainer.model.qkv).detach().chunk(3, -1)
    weights = torch.softmax(q @ k.transpose(1, 2) / 2, -1).mean(1)  # how much each token is read
    to_v = explainer.model.qkv.detach()[:, 8:].t()[explanation.target]
    torch.testing.assert_close(explanation.C_w, weights[:, :, None] * to_v[:, None, :])


def test_scores_of_two_contents_are_split_where_no_softmax_follows():
    explainer, _ = explained(Calls(lambda m, u: (u @ m.a) @ (u @ m.b).transpose(1, 2), a=(3, 2), b=(3, 2)), x(2, 4, 3))
    assert only_decision(explainer).policy == "split"


# Statistics ----------------------------------------------------------------------------------------------------------


def test_subtracting_the_mean_is_linear():
    explainer, explanation = explained(Calls(lambda m, u: u - u.mean(-1, keepdim=True)), x(2, 4))
    assert explainer.decisions == []
    assert explainer.opaque == []
    want = F.one_hot(explanation.target, 4).to(F64) - 0.25
    torch.testing.assert_close(explanation.C_w, want)


def test_written_out_norm_equals_layer_norm():
    """(x - mean) * rsqrt(var + eps): the statistic is held fixed, as inside nn.LayerNorm."""

    def forward(m, u):
        centred = u - u.mean(-1, keepdim=True)
        return centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5) @ m.w

    u = x(2, 4)
    model = Calls(forward, w=(4, 3))
    explainer, explanation = explained(model, u)
    assert roles(explainer)["rsqrt"] == "coefficient"
    _, fused = explained(Calls(lambda m, u: F.layer_norm(u, (4,)) @ model.w), u)
    torch.testing.assert_close(explanation.C_w, fused.C_w)


def test_division_by_a_norm_of_the_content():
    """x / |x|: the divisor is held fixed, through the clamp that guards it."""
    u = x(2, 4)
    explainer, explanation = explained(Calls(lambda m, u: F.normalize(u, dim=1) @ m.w, w=(4, 3)), u)
    assert explainer.decisions == []
    want = explainer.model.w.detach().t()[explanation.target] / u.norm(dim=1, keepdim=True)
    torch.testing.assert_close(explanation.C_w, want)


def test_product_with_a_response_norm():
    """ConvNeXt's x * (norm / mean norm): a statistic through sums, means and divisions."""

    def forward(m, u):
        norm = torch.linalg.vector_norm(u, dim=1, keepdim=True)
        return (u * (norm / (norm.mean(-1, keepdim=True) + 1e-6))).sum(1)

    explainer, _ = explained(Calls(forward), x(2, 3, 4))
    assert only_decision(explainer).policy == "gate"


def test_a_distance_that_is_the_output_is_content():
    """A prototype network: minus the distances to constant points are the logits."""
    _, explanation = explained(Calls(lambda m, u: -torch.cdist(u[:, None], m.p[None])[:, 0], p=(5, 3)), x(2, 3))
    assert "cdist" in explanation.bias, "the distance's constant part"
    assert explanation.C_w.abs().sum() > 0


# Opaque values -------------------------------------------------------------------------------------------------------


def test_opaque_value_that_is_added_is_reported():
    """sign(x) has no linear part: added to content it is an input-dependent bias, and the explainer says so."""
    explainer, explanation = explained(Calls(lambda m, u: u @ m.w + torch.sign(u) @ m.v, w=(3, 4), v=(3, 4)), x(2, 3))
    assert explainer.opaque == [("add", "matmul_1")]
    assert roles(explainer)["matmul_1"] == "coefficient"
    assert (explanation.bias["add"] != 0).all()


def test_opaque_factor_is_a_coefficient_and_no_bias():
    explainer, explanation = explained(Calls(lambda m, u: u * torch.sign(u)), x(2, 3))
    assert explainer.opaque == []
    assert explainer.decisions == []
    assert len(explanation.bias) == 0


def test_addend_of_a_fused_product():
    """In addmm the added operand is a term of its own, not a factor: opaque, or content."""
    explainer, _ = explained(Calls(lambda m, u: torch.addmm(torch.sign(u), u, m.w), w=(3, 3)), x(2, 3))
    assert explainer.opaque == [("addmm", "sign")]
    explainer, explanation = explained(Calls(lambda m, u: torch.addmm(u, u, m.w), w=(3, 3)), x(2, 3))
    assert explainer.decisions == []
    assert len(explanation.bias) == 0
    want = (torch.eye(3, dtype=F64) + explainer.model.w.detach()).t()[explanation.target]
    torch.testing.assert_close(explanation.C_w, want)


# Overrides -----------------------------------------------------------------------------------------------------------


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 4, dtype=F64), nn.Linear(3, 4, dtype=F64)

    def forward(self, u):
        return self.left(u) * torch.sigmoid(self.right(u))


@pytest.mark.parametrize("pattern", ["sigmoid", "sigm*", "linear_1", "right", "ri*t"])
def test_override_content(pattern):
    """roles={...: "content"} makes the gate the content, by node name, by module path, or by a pattern of either."""
    if pattern in ("linear_1", "right", "ri*t"):
        explainer, _ = explained(Gated(), x(2, 3), roles={pattern: "coefficient"})
        assert roles(explainer)["linear_1"] == "coefficient"
        assert explainer.decisions == [], "one operand is left"
        return
    explainer, _ = explained(Gated(), x(2, 3), roles={pattern: "content"})
    assert (only_decision(explainer).policy, roles(explainer)["sigmoid"]) == ("override", "content")
    assert roles(explainer)["linear"] == "coefficient"


def test_override_leaves_one_factor():
    """(softmax(u a) b) * (u c) is split; with one factor held fixed the other has all of it."""

    def forward(m, u):
        return (torch.softmax(u @ m.a, -1) @ m.b) * (u @ m.c)

    model = Calls(forward, a=(3, 4), b=(4, 2), c=(3, 2))
    explainer, _ = explained(model, x(2, 3))
    assert only_decision(explainer).policy == "split"
    assert roles(explainer)["softmax"] == "content"
    explainer, explanation = explained(model, x(2, 3), roles={"softmax": "coefficient"})
    assert explainer.decisions == []
    u = x(2, 3)
    factor = (torch.softmax(u @ model.a, -1) @ model.b).detach().gather(1, explanation.target[:, None])
    torch.testing.assert_close(explanation.C_w, factor * model.c.detach().t()[explanation.target])


@pytest.mark.parametrize(("overrides", "message"), [
    ({"no_such_node": "content"}, r"no node or module path matches 'no_such_node' \(explainer.nodes lists them\)"),
    ({"sigmoid": "gate"}, r"roles\['sigmoid'\] = 'gate': a role is 'content' or 'coefficient'"),
])  # fmt: skip
def test_wrong_override(overrides, message):
    with pytest.raises(ValueError, match=message):
        omenn_fx.transform(Gated().eval(), x(2, 3), roles=overrides)


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("forward", "message"), [
    (
        lambda m, u: torch.sign(u),
        r"no floating-point path of content leads from .* to the output 'sign'; content ends at aten\.sign",
    ),
    (lambda m, u: 1 / u, r"content ends at aten\.reciprocal\.default \(node 'reciprocal'\)"),
    (lambda m, u: (u > 0).to(F64), r"content ends at aten\.gt\.Scalar"),
    (lambda m, u: torch.ones_like(u) * m.w, "content ends at aten.ones_like|does not depend on .* at all"),
])  # fmt: skip
def test_no_content_path(forward, message):
    with pytest.raises(omenn_fx.NoContentError, match=message):
        omenn_fx.transform(Calls(forward, w=(3,)).eval(), x(2, 3))


def test_forced_coefficient_leaves_no_content():
    with pytest.raises(omenn_fx.NoContentError):
        omenn_fx.transform(Gated().eval(), x(2, 3), roles={"linear*": "coefficient"})


def test_unsupported_operators_are_listed_at_once():
    def forward(m, u):
        steps = torch.cumprod(u, 1)
        spread = torch.special.i0(steps)
        gamma = torch.lgamma(u)
        return spread + u * torch.round(gamma)

    with pytest.raises(omenn_fx.UnsupportedOpError) as caught:
        omenn_fx.transform(Calls(forward).eval(), x(2, 3))
    places = caught.value.places
    assert [p.op for p in places] == ["aten.cumprod.default", "aten.i0.default"], "lgamma is no more than a coefficient"
    by_op = {p.op: p for p in places}
    assert "torch.cumprod(u, 1)" in by_op["aten.cumprod.default"].source
    assert "test_roles.py" in by_op["aten.i0.default"].source
    text = str(caught.value)
    assert "2 operator calls" in text
    assert "spread = torch.special.i0(steps)" in text
    assert "Nothing falls back to the plain gradient" in text


def test_call_that_a_rule_does_not_accept_is_unsupported():
    """scatter_reduce has forms for sums, means and extremes, and none for products."""
    index = torch.tensor([[0, 0, 1], [1, 0, 1]])

    def forward(reduce):
        return lambda m, u: torch.zeros(2, 2, dtype=F64).scatter_reduce(1, index, u, reduce, include_self=False)

    for reduce in ("sum", "mean", "amax"):
        explained(Calls(forward(reduce)), x(2, 3), dynamic_batch=False)
    with pytest.raises(omenn_fx.UnsupportedOpError, match=r"aten\.scatter_reduce\.two"):
        omenn_fx.transform(Calls(forward("prod")).eval(), x(2, 3), dynamic_batch=False)


def test_unsupported_value_can_be_held_fixed():
    """The way out that the message names: the value becomes an input-dependent bias, and is reported as one."""
    model = Calls(lambda m, u: u @ m.w + torch.special.i0(u) @ m.v, w=(3, 4), v=(3, 4))
    with pytest.raises(omenn_fx.UnsupportedOpError, match="i0"):
        omenn_fx.transform(model.eval(), x(2, 3))
    explainer = omenn_fx.transform(model.eval(), x(2, 3), roles={"*i0*": "coefficient"})
    assert (explainer(x(2, 3)).completeness_error < 1e-10).all()
    ((reader, operand),) = explainer.opaque
    assert reader.startswith("add")
    assert operand == "matmul_1"


def test_another_rule_set_decides_for_itself():
    """Roles read the rule set and nothing else: one that knows no gate splits what omenn gates."""
    rules = RuleSet("no gates")
    for rule in omenn:
        rules.add(Rule(rule.op, rule.form, rule.content, rule.product))
    explainer, _ = explained(Gated(), x(2, 3), rules=rules)
    assert only_decision(explainer).policy == "split"


# Sources -------------------------------------------------------------------------------------------------------------


def test_input_that_is_not_explained_is_a_coefficient():
    model = Calls(lambda m, u, v: u @ m.w + v, w=(3, 4))
    explainer, explanation = explained(model, x(2, 3), x(2, 4), explain=0)
    assert list(explanation.inputs) == [explainer.nodes[0].name]
    assert roles(explainer)[explainer.nodes[1].name] == "constant"
    assert "add" in explanation.bias


def test_product_of_two_explained_inputs_is_split():
    u, v = x(2, 3), x(2, 3) + 1
    explainer, explanation = explained(Calls(lambda m, u, v: u * v), u, v)
    assert only_decision(explainer).policy == "split"
    first, second = explanation.inputs.values()
    torch.testing.assert_close(first.C, second.C)


@pytest.mark.parametrize("bias", ["carrier", "contribution"])
@pytest.mark.parametrize("mask", ["filled", "added", "chosen"])
def test_masked_softmax_as_the_output(mask, bias):
    """Forbidden actions at -inf: they add nothing, and nothing becomes NaN."""
    forbidden = torch.tensor([[False, True, False, False], [True, False, False, True]])

    def forward(m, u):
        scores = u @ m.w + m.b
        if mask == "filled":
            scores = scores.masked_fill(forbidden, -math.inf)
        elif mask == "added":
            scores = scores + torch.zeros(2, 4, dtype=F64).masked_fill(forbidden, -math.inf)
        else:
            scores = torch.where(forbidden, torch.tensor(-math.inf, dtype=F64), scores)
        return torch.softmax(scores, -1)

    explainer, explanation = explained(Calls(forward, w=(3, 4), b=(4,)), x(2, 3), dynamic_batch=False, bias=bias)
    assert explanation.C.isfinite().all()
    torch.testing.assert_close(explanation.C_b.sum(1), explanation.bias.total)
    nothing = explainer(x(2, 3), target=torch.tensor([1, 0]))
    assert (nothing.value == 0).all()
    assert (nothing.C == 0).all()


def test_random_and_batch_statistics_are_unsupported():
    """Calls of known operators that have no fixed affine form."""
    calls = {
        "scaled_dot_product_attention": lambda m, u: F.scaled_dot_product_attention(u, u, u, dropout_p=0.5).mean(1),
        "batch_norm": lambda m, u: F.batch_norm(u.mean(1), None, None, training=True),
    }
    for name, forward in calls.items():
        with pytest.raises(omenn_fx.UnsupportedOpError, match=name):
            omenn_fx.transform(Calls(forward).eval(), x(2, 4, 3))


def test_sum_of_logits_with_softmax_output():
    """A softmax that is the output itself is content, not a gate."""
    explainer, explanation = explained(Calls(lambda m, u: torch.softmax(u @ m.w, -1), w=(3, 4)), x(2, 3))
    assert roles(explainer)["softmax"] == "content"
    assert math.isclose(float(explanation.outputs.sum()), 2.0)


# Several results ----------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """A linear layer of x times a factor that operators without a rule make of x."""

    def __init__(self, factor):
        super().__init__()
        self.factor, self.head = factor, nn.Linear(6, 3)
        self.eval()

    def forward(self, x):
        return self.head(x * self.factor(x))


def _matrix(x):
    return x[:, :, None] * x[:, None] + torch.eye(6)


@pytest.mark.parametrize("factor", [
    lambda x: torch.linalg.svd(_matrix(x))[1],
    lambda x: torch.frexp(x)[0] * torch.linalg.eigh(_matrix(x))[0],
    lambda x: torch.var_mean(x, 1, keepdim=True)[1],
    lambda x: torch.linalg.qr(_matrix(x))[1].diagonal(dim1=1, dim2=2),
], ids=["svd", "two operators", "var_mean", "qr"])  # fmt: skip
def test_the_way_out_holds_all_results_of_an_operator_fixed(factor):
    """What the report says is done until it says nothing more."""
    torch.manual_seed(0)
    model, x = Scaled(factor), torch.randn(4, 6)
    roles: dict[str, str] = {}
    while not (report := omenn_fx.check(model, x, roles=roles)).supported:
        named = {name: "coefficient" for p in report.problems for name in re.findall(r'"([^"<]+)": "coeff', p.fix)}
        assert named.keys() - roles.keys(), report.problems[0]
        roles |= named
    assert roles
    got = omenn_fx.transform(model, x, roles=roles)(x, target=1)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.head(leaf * factor(leaf).detach())[:, 1].sum(), leaf)
    torch.testing.assert_close(got.C_w, gradient, rtol=1e-4, atol=1e-5)
