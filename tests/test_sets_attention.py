"""AttnLRP and CP-LRP: LXT's patches and explicit rules as oracles, exactness, and what the sets say of a model.

LXT's own maps of patches copy modules of transformers 4; its patches and rules are what is used here, put onto the
installed library's modules for the time of a test.
"""

import pickle
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from models import build, image, randomise, small_cnn, vision_transformer
from torch import nn

import omenn_fx
from omenn_fx.algebra.form import Slot
from omenn_fx.algebra.layer import DENSE, EVERY
from omenn_fx.algebra.ruleset import RuleSet, omenn, rule_set
from omenn_fx.rules import sets
from omenn_fx.rules.sets.attention_lrp import ATTENTION
from omenn_fx.rules.sets.lrp import Epsilon
from omenn_fx.testing import called

aten = torch.ops.aten
F64 = torch.float64
NAMES = ("cp_lrp", "attnlrp")
MAKE = {"cp_lrp": sets.cp_lrp, "attnlrp": sets.attnlrp}
TARGET, TINY = 3, 1e-12  # a stabiliser that leaves nothing to compare but the rules
TOLERANCE = 1e-5  # LXT and transformers compute norms and softmax in float32


# LXT -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def lxt(monkeypatch):
    """LXT's patches; `lxt.efficient` itself cannot be imported beside transformers 5, whose modules it copies."""
    package = pytest.importorskip("lxt")
    efficient = ModuleType("lxt.efficient")
    efficient.__path__ = [str(Path(package.__path__[0]) / "efficient")]
    monkeypatch.setitem(sys.modules, "lxt.efficient", efficient)
    from lxt.efficient import patches

    return Patcher(patches, monkeypatch)


class Patcher:
    """Puts LXT's patches onto classes and modules, as its maps do."""

    def __init__(self, patches, monkeypatch):
        self.patches, self.monkeypatch = patches, monkeypatch

    def forward(self, cls, name):
        self.monkeypatch.setattr(cls, "original_forward", cls.forward, raising=False)
        self.monkeypatch.setattr(cls, "forward", getattr(self.patches, name))

    def attention(self, module, rule):
        wrap = {"attnlrp": self.patches.wrap_attention_forward, "cp_lrp": self.patches.cp_wrap_attention_forward}[rule]
        self.monkeypatch.setattr(module, "eager_attention_forward", wrap(module.eager_attention_forward))

    def apply(self, model, rule, gate=True):
        """`gate=False`: the gated MLP of CP-LRP as in AttnLRP, half to each factor."""
        module = sys.modules[type(model).__module__]
        if isinstance(model, nn.Module) and "torchvision" in module.__name__:
            self.forward(nn.MultiheadAttention, "cp_multi_head_attention_forward")
        else:
            self.attention(module, rule)
        for cls in {type(m) for m in model.modules()}:
            if cls is nn.LayerNorm:
                self.forward(cls, "layer_norm_forward")
            elif cls.__name__.endswith("RMSNorm"):
                self.forward(cls, "rms_norm_forward")
            elif cls.__name__ == "LlamaMLP":
                self.forward(cls, "cp_gated_mlp_forward" if rule == "cp_lrp" and gate else "gated_mlp_forward")
            elif cls.__name__ in ("GELU", "GELUActivation", "Tanh"):
                self.forward(cls, "non_linear_forward")


def relevance(model, name, x):
    """LXT's: gradient x input of the patched model."""
    x = x.clone().requires_grad_()
    logits = model(**{name: x}) if name != "x" else model(x)
    logits = getattr(logits, "logits", logits)[:, TARGET]
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    return (x * gradient).detach(), logits.detach()


def assert_near(got, want, tolerance=TOLERANCE):
    error = float((got - want).abs().max() / want.abs().max())
    print(f"  worst deviation {error:.1e}")  # shown by pytest -s
    assert error <= tolerance


def hugging_face_vit():
    import transformers

    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=16, patch_size=4,
        num_labels=10, initializer_range=0.2, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).eval().requires_grad_(False)
    randomise(model)
    return model.double(), {"pixel_values": image(16, 16)[0].double()}


def language_model(name):
    model, _, kwargs = build(name, F64)
    return model, kwargs


MODELS = {
    "vit": hugging_face_vit,
    "bert": lambda: language_model("bert_eager"),
    "llama": lambda: language_model("llama_eager"),
}


@pytest.mark.parametrize("name", MODELS)
def test_attnlrp_is_lxts(name, lxt):
    model, inputs = MODELS[name]()
    explanation = omenn_fx.transform(model, example_kwargs=inputs, rules=sets.attnlrp(epsilon=TINY), bias="none")(
        **inputs, target=TARGET
    )
    lxt.apply(model, "attnlrp")
    theirs, logits = relevance(model, *next(iter(inputs.items())))
    assert_near(explanation.value, logits)
    assert_near(explanation.C, theirs)
    lost = (theirs.flatten(1).sum(1) - logits).abs()
    assert (lost > 1e-3).any(), "LXT's sum is not the logit: what biases and softmax take is lost"
    assert explanation.completeness_error.max() < 1e-12


@pytest.mark.parametrize("name", MODELS)
def test_cp_lrp_is_lxts(name, lxt):
    """LXT holds the gate of a gated MLP fixed too, of which Ali et al. say nothing: here a role does that."""
    model, inputs = MODELS[name]()
    roles = {"model.layers.*.mlp.act_fn": "coefficient"} if name == "llama" else None
    explanation = omenn_fx.transform(
        model, example_kwargs=inputs, rules=sets.cp_lrp(epsilon=TINY), bias="none", roles=roles
    )(**inputs, target=TARGET)
    lxt.apply(model, "cp_lrp")
    theirs, logits = relevance(model, *next(iter(inputs.items())))
    assert_near(explanation.value, logits)
    assert_near(explanation.C, theirs)


def test_cp_lrp_shares_a_gated_mlp_as_attnlrp(lxt):
    """Without that role, half of SwiGLU's product to each factor, by LXT's own rule for it."""
    model, inputs = language_model("llama_eager")
    explanation = omenn_fx.transform(model, example_kwargs=inputs, rules=sets.cp_lrp(epsilon=TINY), bias="none")(
        **inputs, target=TARGET
    )
    lxt.apply(model, "cp_lrp", gate=False)
    assert_near(explanation.C, relevance(model, *next(iter(inputs.items())))[0])


def test_cp_lrp_on_torchvisions_vit(lxt):
    """The one vision transformer that LXT has a map for: it patches nn.MultiheadAttention."""
    torch.manual_seed(0)
    model, x = vision_transformer(16, 4, 2, 4, 32).double().eval().requires_grad_(False), image(16, 16)[0].double()
    randomise(model)
    explanation = omenn_fx.transform(model, x, rules=sets.cp_lrp(epsilon=TINY), bias="none")(x, target=TARGET)
    lxt.apply(model, "cp_lrp")
    assert_near(explanation.C, relevance(model, "x", x)[0])


# LXT's explicit rules, operator by operator ---------------------------------------------------------------------------


def explicit():
    pytest.importorskip("lxt")
    import lxt.explicit.functional as functional

    return functional


def through(op, operands, content, given, epsilon=None):
    """Relevance of each content operand for relevance `given` at the result."""
    rule = rule_set("attnlrp").get(op)
    call = called(op, operands, tuple(Slot(name) for name in content))
    form = rule.affine(call)
    if epsilon is not None:
        form = Epsilon(epsilon)(call, form, None)
    g = torch.where(call.out == 0, 0, given / call.out)  # a masked position has no relevance
    return [form.terms[slot].transpose(g) * call.at(slot) for slot in call.content]


def lxts(function, *inputs, given):
    inputs = [x.clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*inputs), inputs, given)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_softmax_is_lxts():
    x, given = normal(2, 4, 5), normal(2, 4, 5, seed=1)
    x[0, 0, 2] = -torch.inf
    given[0, 0, 2] = 0
    (ours,) = through(aten.softmax.int, {"self": x, "dim": -1, "dtype": None}, ["self"], given)
    (theirs,) = lxts(lambda x: explicit().softmax(x, -1), x, given=given)
    assert_near(ours.masked_fill(x.isinf(), 0), theirs, 1e-12)


def test_products_are_lxts():
    a, b, given = normal(2, 4, 5), normal(2, 5, 3, seed=1), normal(2, 4, 3, seed=2)
    ours = through(aten.matmul.default, {"self": a, "other": b}, ["self", "other"], given)
    theirs = lxts(lambda a, b: explicit().matmul(a, b, False, 1e-14), a, b, given=given)
    for mine, other in zip(ours, theirs, strict=True):
        assert_near(mine, other, 1e-9)
    a, b, given = normal(3, 4), normal(3, 4, seed=1), normal(3, 4, seed=2)
    ours = through(aten.mul.Tensor, {"self": a, "other": b}, ["self", "other"], given)
    for mine, other in zip(ours, lxts(explicit().mul2, a, b, given=given), strict=True):
        assert_near(mine, other, 1e-12)


def test_epsilon_is_lxts_where_h_is_positive():
    """LXT adds epsilon whatever the sign of h is: below 0 it does not stabilise, ours does."""
    x, w, b, given = normal(3, 4), normal(5, 4, seed=1), normal(5, seed=2), normal(3, 5, seed=3)
    positive = F.linear(x, w, b) > 0
    (ours,) = through(aten.linear.default, {"input": x, "weight": w, "bias": b}, ["input"], given * positive, 0.125)
    (theirs,) = lxts(lambda x: explicit().linear_epsilon(x, w, b, 0.125), x, given=given * positive)
    assert_near(ours, theirs, 1e-12)
    (below,) = through(aten.linear.default, {"input": x, "weight": w, "bias": b}, ["input"], given * ~positive, 0.125)
    (theirs,) = lxts(lambda x: explicit().linear_epsilon(x, w, b, 0.125), x, given=given * ~positive)
    assert (below - theirs).abs().max() > 1e-2


# Attention, whole and in pieces --------------------------------------------------------------------------------------


class Attends(nn.Module):
    """Attention by scaled_dot_product_attention, or written out."""

    def __init__(self, eager=False, **options):
        super().__init__()
        self.eager, self.options = eager, options

    def forward(self, q, k, v, mask=None):
        if not self.eager:
            return F.scaled_dot_product_attention(q, k, v, mask, **self.options).flatten(1)
        if self.options.get("enable_gqa"):
            k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        scores = q @ k.transpose(-2, -1) * self.options.get("scale", q.shape[-1] ** -0.5)
        if self.options.get("is_causal"):
            hidden = ~torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
            scores = scores.masked_fill(hidden, -torch.inf)
        scores = scores if mask is None else scores + mask
        return (scores.softmax(-1) @ v).flatten(1)


QKV = normal(2, 4, 5, 3), normal(2, 4, 6, 3, seed=1), normal(2, 4, 6, 2, seed=2)
CASES = {
    "plain": (QKV, {}),
    "causal": (QKV, {"is_causal": True, "scale": 0.7}),
    "mask": ((*QKV, normal(2, 1, 5, 6, seed=3)), {}),
    "grouped": ((QKV[0], QKV[1][:, :2], QKV[2][:, :2]), {"enable_gqa": True}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("explain", [None, (0,), (2,), (0, 2), (0, 1)], ids=str)
def test_attention_is_its_pieces(case, explain):
    """With any of query, key, value (and a mask) as content, the fused operator has the form of the written one."""
    inputs, options = CASES[case]
    one, other = (
        omenn_fx.transform(Attends(eager, **options).eval(), inputs, rules=sets.attnlrp(TINY), explain=explain)(
            *inputs, target=7
        )
        for eager in (False, True)
    )
    assert one.inputs.keys() == other.inputs.keys()
    for name, mine in one.inputs.items():
        torch.testing.assert_close(mine.C_w, other.inputs[name].C_w, rtol=1e-9, atol=1e-12)
    assert one.completeness_error.max() < 1e-12


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_eager_and_fused_agree(family):
    found = []
    for attention in ("eager", "sdpa"):
        model, kwargs = language_model(f"{family}_{attention}")
        found.append(omenn_fx.transform(model, example_kwargs=kwargs, rules="attnlrp", bias="none")(**kwargs).C)
    assert_near(*found)


# Exactness -----------------------------------------------------------------------------------------------------------


class Gated(nn.Module):
    """Softmax, sigmoid and a gated unit as gates, a hand-written attention over a masked row, a softmax at the end."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three, self.head = (nn.Linear(6, n) for n in (6, 6, 12, 4))
        self.norm = nn.LayerNorm(6)

    def forward(self, x):
        x = self.one(x) * torch.sigmoid(self.two(x))
        x = self.norm(x + F.glu(self.three(x), -1))
        hidden = torch.zeros(x.shape[1], x.shape[1], dtype=x.dtype)
        hidden[:, 0] = -torch.inf
        x = x + (x @ x.transpose(1, 2) + hidden).softmax(-1) @ x
        return self.head(x.mean(1)).softmax(-1)


@pytest.mark.parametrize("bias", ["carrier", "contribution", "none"])
@pytest.mark.parametrize("name", NAMES)
def test_sets_are_exact(name, bias):
    for model, x in ((Gated(), normal(3, 5, 6)), (small_cnn()[0], image(16, 12)[0].double())):
        randomise(model)
        explainer = omenn_fx.transform(model.double().eval(), x, rules=name, bias=bias)
        report = explainer.validate(x)
        assert report.ok, report
        several = explainer(x, target=torch.tensor([[0, 3]] * 3))
        assert several.completeness_error.max() < 1e-12
        torch.testing.assert_close(several.C[:, 1], explainer(x, target=3).C)


@pytest.mark.parametrize("name", NAMES)
def test_at_zero_and_in_float32(name):
    model, x = Gated().eval(), normal(3, 5, 6).float()
    explainer = omenn_fx.transform(model, x, rules=name)
    assert explainer.validate(x).ok
    assert explainer(torch.zeros_like(x)).C.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_in_onnxruntime(name, tmp_path):
    pytest.importorskip("onnxruntime")
    model, x = Gated().eval(), normal(3, 5, 6).float()
    written = omenn_fx.transform(model, x, rules=name).to_onnx(tmp_path / "set.onnx", x)
    assert written.proof.completeness < 1e-5


# What the sets say of a model ----------------------------------------------------------------------------------------


def test_gates_are_factors_as_others():
    model, x = Gated().double().eval(), normal(3, 5, 6)
    policies = [{d.policy for d in omenn_fx.transform(model, x, rules=name).decisions} for name in ("omenn", "attnlrp")]
    assert policies == [{"gate"}, {"split"}]


def test_statistics_stay_coefficients():
    """A norm written out: its deviation is held fixed, as that of nn.LayerNorm."""

    class Written(nn.Module):
        def forward(self, x):
            x = x - x.mean(-1, keepdim=True)
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)

    x = normal(3, 6)
    ours = omenn_fx.transform(Written().eval(), x, rules="attnlrp")(x, target=2)
    torch.testing.assert_close(ours.C, omenn_fx.transform(nn.LayerNorm(6).double().eval(), x)(x, target=2).C)


def test_a_sigmoid_passes_on_what_it_has_beyond_its_value_at_0():
    """LXT's identity rule gives sigmoid(x) / x, which has no bound near 0; f(0) is a bias share here."""
    x = torch.tensor([[1e-9, 2.0]], dtype=F64)
    ours = omenn_fx.transform(nn.Sigmoid().eval(), x, rules="attnlrp")(x, target=0)
    torch.testing.assert_close(ours.C_w[0, 0], torch.tensor(0.25, dtype=F64))
    torch.testing.assert_close(ours.C_b.sum(), torch.tensor(0.5, dtype=F64))


@pytest.mark.parametrize("name", NAMES)
def test_check(name):
    model, _, kwargs = build("bert_sdpa")
    report = omenn_fx.check(model, example_kwargs=kwargs, rules=name)
    assert report.supported
    assert not [w for w in report.warnings if w.kind.code == "OMENN106"]
    assert any(n.reason.startswith(f"{name}: Epsilon") for n in report.nodes)
    lstm, args, _ = build("lstm")
    said = [str(w) for w in omenn_fx.check(lstm, args, rules=name).warnings if w.kind.code == "OMENN106"]
    assert len(said) == 1
    assert f"'{name}' has no rule for aten.lstm.input: the form of 'omenn' stands in" in said[0]


# Sets with rules of their own ----------------------------------------------------------------------------------------


def test_a_derived_set_may_have_its_own_rule_for_an_operator_of_its_base():
    own = omenn.derive("own")
    own.register(aten.relu.default)(omenn.get(aten.abs.default).form)
    assert list(own.own) == [aten.relu.default]
    assert own.get(aten.relu.default) is not omenn.get(aten.relu.default)
    assert own.get(aten.abs.default) is omenn.get(aten.abs.default)
    with pytest.raises(ValueError, match=r"'own' already has a rule for aten\.relu"):
        own.opaque(aten.relu.default)
    with pytest.raises(ValueError, match="'omenn' already has a rule"):
        omenn.opaque(aten.relu.default)
    assert RuleSet("empty").own == {}


def test_sets_of_other_parameters_travel():
    for name, make in MAKE.items():
        assert pickle.loads(pickle.dumps(rule_set(name))) is rule_set(name)
        own = make(epsilon=0.5)
        again = pickle.loads(pickle.dumps(own))
        assert (again.name, again.lines, again.same) == (name, ((EVERY, Epsilon(0.5)),), own.same)
        assert again.get(ATTENTION) is own.get(ATTENTION)
    dense = rule_set("attnlrp").relined((DENSE, Epsilon(0.1)))
    assert pickle.loads(pickle.dumps(dense)).lines == dense.lines


def test_the_omenn_table_is_untouched():
    assert omenn.get(aten.sigmoid.default).gate
    assert omenn.get(ATTENTION).content == ("value",)
    assert rule_set("cp_lrp").get(ATTENTION) is omenn.get(ATTENTION)
    assert rule_set("attnlrp").base is omenn
