"""The set `gradient`: every rule on every sample and whole models against autograd, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from models import build, image, randomise
from samples import SAMPLES, Sample, aten, name_of
from torch import nn

import omenn_fx
from omenn_fx import UnsupportedOpError
from omenn_fx.algebra.invariants import random_like
from omenn_fx.algebra.ruleset import Rule, omenn, rule_set
from omenn_fx.testing import called, content_of, measure

F64 = torch.float64
GRADIENT = rule_set("gradient")
TARGET, TOLERANCE = 3, 1e-10
UNROLLED = {"lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input"}  # captured as what they are made of


def assert_near(got, want, tolerance=TOLERANCE):
    error = float((got - want).abs().max() / want.abs().max().clamp(min=1e-30))
    print(f"  worst deviation {error:.1e}")  # shown by pytest -s
    assert got.shape == want.shape
    assert error <= tolerance


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# Every operator ------------------------------------------------------------------------------------------------------


def call_of(sample):
    """The call with every operand as content that the set has a derivative by."""
    operands, rule = sample.operands(F64), GRADIENT.get(sample.op)
    base = omenn.get(sample.op)
    known = sample.content if base is not None and base.content == rule.content else None
    return called(sample.op, operands, known or content_of(rule, operands), sample.output)


def autograd(call, g):
    """<g, h>'s gradient by each content operand."""
    leaves = [call.at(slot).clone().requires_grad_() for slot in call.content]
    operands = {k: list(v) if isinstance(v, (list, tuple)) else v for k, v in call.operands.items()}
    for slot, leaf in zip(call.content, leaves, strict=True):
        if slot.index is None:
            operands[slot.name] = leaf
        else:
            operands[slot.name][slot.index] = leaf
    return torch.autograd.grad(call.replay(**operands), leaves, g, materialize_grads=True)


def tied(call):
    """Whether winners tie, or a value is at a kink or a pole: at zeros, and small integers."""
    values = [call.at(slot).flatten() for slot in call.content]
    return any(v.numel() and (v.isinf().any() or (v == v.real.round()).any()) for v in values)


CASES = [s for s in SAMPLES if (rule := GRADIENT.get(s.op)) is not None and rule.form is not None]
# Not linear in omenn, so not in its table of samples; or there at ties alone.
MORE = {
    aten.pow.Tensor_Tensor: [(normal(2, 3).abs() + 0.1, normal(2, 3, seed=1)), (normal(3).abs(), normal(2, 3))],
    aten.max_unpool2d.default: [(normal(1, 2, 1, 2), torch.tensor([[[[0, 3]], [[5, 2]]]]), [2, 4])],
    aten.rsqrt.default: [(normal(2, 3).abs() + 0.1,)],
    aten.reciprocal.default: [(normal(2, 3),)],
    aten.remainder.Tensor: [(3 * normal(2, 3), normal(2, 3, seed=1).abs() + 0.3), (normal(2, 3), normal(3, seed=1))],
    aten.remainder.Scalar: [(3 * normal(2, 3), 0.7)],
    aten.fmod.Tensor: [(3 * normal(2, 3), normal(2, 3, seed=1))],
    aten.fmod.Scalar: [(3 * normal(2, 3), -0.7)],
}
CASES += [Sample(op, args, {}) for op, samples in MORE.items() for args in samples]
# Where several values are written to one place, autograd differentiates by all of them, though one remains; and its
# formula of `scatter` holds for an index as large as the values only. `copy` has none, and scatters of slices have none
# of complex values.
NOT_OURS = {(aten.scatter.src, 1), (aten.scatter.src, 2), (aten.scatter.src, 3), (aten.scatter_add.default, 2),
            (aten.index_put.default, 1), (aten.max_unpool2d.default, 0), (aten.copy.default, 0),
            (aten.copy.default, 1), (aten.copy.default, 2), (aten.scatter.src, 4), (aten.slice_scatter.default, 3),
            (aten.select_scatter.default, 2)}  # fmt: skip
ROUNDED = {aten.hardsigmoid.default, aten.celu.default}  # autograd has 1 / 6 and 1 / alpha in float32
LIMIT = {F64: 1e-10, torch.complex128: 1e-10}  # a cast to another dtype has that one's digits


def compared(sample, call):
    """Whether autograd has the same derivative: not at ties, kinks and poles."""
    number = [s for s in CASES if s.op is sample.op].index(sample)
    return not tied(call) and (sample.op, number) not in NOT_OURS


def test_every_operator_has_a_case():
    """So nothing stands in the table that is not compared with autograd; and what is not in it is written down here."""
    ours = [r for r in GRADIENT if not str(r.op).startswith("omenn_")]  # rules of other tests
    assert {str(r.op) for r in ours if r.form is not None and r.op not in {s.op for s in CASES}} <= {
        "transformers.grouped_mm_fallback.default", *(str(op) for op in MORE)
    }  # fmt: skip
    absent = {name_of(r.op) for r in omenn if r.op not in GRADIENT and str(r.op).startswith("aten.")}
    assert absent == UNROLLED | {"sgn", "angle"}
    assert {name_of(r.op) for r in omenn if r.form is not None} - {name_of(r.op) for r in GRADIENT if r.form} == {
        "detach", *UNROLLED
    }  # fmt: skip
    assert not [r.op for r in GRADIENT if r.gate or r.product]
    never = {s.op for s in CASES} - {s.op for s in CASES if compared(s, call_of(s))}
    assert never == {aten.copy.default}


@pytest.mark.parametrize("sample", CASES, ids=lambda s: name_of(s.op))
def test_every_rule_is_the_derivative(sample):
    call = call_of(sample)
    form = GRADIENT.get(sample.op).affine(call)
    assert form.terms.keys() == set(call.content)
    if compared(sample, call):
        g = random_like(call.out, torch.Generator().manual_seed(1))
        for slot, want in zip(call.content, autograd(call, g), strict=True):
            got = form.terms[slot].transpose(g)
            rtol = 1e-7 if sample.op in ROUNDED else 1e-9
            torch.testing.assert_close(got, want, rtol=rtol, atol=0.1 * rtol, msg=lambda m, s=slot: f"{s}: {m}")
    with torch.no_grad():
        errors = measure(GRADIENT.get(sample.op), call)
    assert {k: e for k, e in errors.items() if not e <= LIMIT.get(call.out.dtype, 1e-2)} == {}


KINKS = {
    aten.relu.default: (0.0,), aten.abs.default: (0.0,), aten.leaky_relu.default: (0.0,), aten.rrelu.default: (0.0,),
    aten.elu.default: (0.0,), aten.celu.default: (0.0,), aten.selu.default: (0.0,), aten.relu6.default: (0.0, 6.0),
    aten.hardtanh.default: (-1.0, 1.0), aten.hardswish.default: (-3.0, 3.0), aten.hardsigmoid.default: (-3.0, 3.0),
    aten.hardshrink.default: (-0.5, 0.5), aten.softshrink.default: (-0.5, 0.5), aten.softplus.default: (20.0, 25.0),
    aten.log_sigmoid.default: (-800.0, 800.0), aten.gelu.default: (-40.0, 40.0), aten.silu.default: (-800.0, 800.0),
    aten.mish.default: (-800.0, 100.0),
}  # fmt: skip


@pytest.mark.parametrize("op", KINKS, ids=name_of)
def test_at_kinks_and_far_out(op):
    """Which side of a kink counts is autograd's choice; and no formula overflows."""
    points = [v for kink in KINKS[op] for v in (kink - 1e-9, kink, kink + 1e-9)]
    call = call_of(Sample(op, (torch.tensor([[*points, 0.0]], dtype=F64),), {}))
    (want,) = autograd(call, torch.ones_like(call.out))
    got = GRADIENT.get(op).affine(call).terms[call.content[0]].transpose(torch.ones_like(call.out))
    torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)


POLES = [aten.sqrt, aten.rsqrt, aten.reciprocal, aten.log, aten.asin, aten.acos, aten.atanh, aten.erfinv]


@pytest.mark.parametrize("op", [p.default for p in POLES], ids=name_of)
def test_an_infinite_derivative_counts_as_0(op):
    """Autograd's infinity times 0 would be NaN: here W = 0, and what h has there is b."""
    call = call_of(Sample(op, (torch.tensor([[0.0, 1.0, -1.0]], dtype=F64),), {}))
    form = GRADIENT.get(op).affine(call)
    assert form.terms[call.content[0]].apply(torch.ones_like(call.x)).isfinite().all()
    assert form.bias.dense(call.out).isfinite().all()


# Whole models --------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A function of two layers' results, and a head."""

    def __init__(self, function, width=6):
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.one, self.two, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(width, 5)
        self.layers = nn.ModuleList(
            [
                nn.GroupNorm(2, 6),
                nn.InstanceNorm1d(6, affine=True),
                nn.RMSNorm(6),
                nn.LayerNorm(6),
                nn.Bilinear(6, 6, 6),
            ]
        )
        randomise(self)

    def forward(self, x):
        return self.head(self.function(self, self.one(x), self.two(x)))


def written_attention(net, a, b):
    hidden = torch.zeros(4, 4, dtype=a.dtype)
    hidden[:, 0] = -torch.inf
    return (a @ b.transpose(1, 2) + hidden).softmax(-1) @ (a + b)


def one_of(index):
    return lambda net, a, b: net.layers[index](a + a * b)


NETS = {
    "product": lambda net, a, b: torch.tanh(a) * F.gelu(b) * a,
    "square": lambda net, a, b: a * a + b**3 + a.square(),
    "division": lambda net, a, b: a / (1 + b * b) + 1 / (2 + torch.tanh(a)),
    "quotient of norms": lambda net, a, b: F.normalize(a, dim=-1) / (1 + b.norm(dim=-1, keepdim=True)),
    "softmax": lambda net, a, b: a.softmax(-1) * b.sigmoid(),
    "log softmax": lambda net, a, b: a.log_softmax(-1) + b.logsumexp(-1, keepdim=True),
    "statistics": lambda net, a, b: (a - a.mean(-1, keepdim=True)) / a.std(-1, keepdim=True) + b.var(-1, keepdim=True),
    "norm written out": lambda net, a, b: a * torch.rsqrt(a.pow(2).mean(-1, keepdim=True) + 1e-3) * b,
    "group norm": lambda net, a, b: net.layers[0]((a * b).transpose(1, 2)).transpose(1, 2),
    "instance norm": lambda net, a, b: net.layers[1]((a * b).transpose(1, 2)).transpose(1, 2),
    "rms norm": one_of(2),
    "layer norm": one_of(3),
    "bilinear": lambda net, a, b: net.layers[4](a, b),
    "einsum": lambda net, a, b: torch.einsum("nti,nsi,nsj->ntj", a, b, a),
    "winners": lambda net, a, b: torch.maximum(a, b) + a.sort(-1).values + b.amax(-1, keepdim=True) + a.cummax(1)[0],
    "bounds": lambda net, a, b: a.clamp(-0.3, 0.4) + F.hardswish(3 * b) + torch.where(a > b, a, b * b),
    "gated": lambda net, a, b: F.glu(torch.cat([a, b], -1), -1) + torch.lerp(a, b, 0.3),
    "attention": lambda net, a, b: F.scaled_dot_product_attention(a, b, a + b, is_causal=True),
    "masked attention": lambda net, a, b: F.scaled_dot_product_attention(a, b, a, a @ b.transpose(1, 2)),
    "written attention": written_attention,
    "detached": lambda net, a, b: a * b.detach() + (a * b).round() + (a > b) * a,
    "distances": lambda net, a, b: torch.cdist(a, b).softmax(-1) @ a,
    "fourier": lambda net, a, b: torch.fft.ifft(torch.fft.fft(a) * torch.fft.fft(b)).real,
    "remainder": lambda net, a, b: torch.remainder(a, 0.7) + torch.fmod(b, 0.4) + torch.frac(a),
}


def models_gradient(model, args, kwargs=None):
    """Autograd's, of one logit by every floating-point input."""
    kwargs = kwargs or {}
    leaves = [t.detach().clone().requires_grad_() for t in (*args, *kwargs.values()) if t.is_floating_point()]
    given = iter(leaves)
    args = [next(given) if t.is_floating_point() else t for t in args]
    kwargs = {k: next(given) if t.is_floating_point() else t for k, t in kwargs.items()}
    out = model(*args, **kwargs)
    return torch.autograd.grad(getattr(out, "logits", out)[:, TARGET].sum(), leaves)


@pytest.mark.parametrize("name", NETS)
def test_nets(name):
    model, x = nn.Sequential(Net(NETS[name]), nn.Flatten()).double().eval(), normal(3, 4, 6, seed=5)
    explainer = omenn_fx.transform(model, x, rules="gradient")
    explanation = explainer(x, target=TARGET)
    assert_near(explanation.C_w, models_gradient(model, (x,))[0])
    assert explanation.completeness_error.max() < 1e-10
    assert explainer.validate(x).ok
    assert [d.policy for d in explainer.decisions] == []


@pytest.mark.parametrize("name", ["small_cnn", "resnet18", "small_vit", "bert_eager", "bert_sdpa", "two_inputs", "lstm",
                                  "mobilenet_v3_small"])  # fmt: skip
def test_architectures(name):
    model, args, kwargs = build(name, F64)
    explanation = omenn_fx.transform(model, args, example_kwargs=kwargs, rules="gradient")(
        *args, target=TARGET, **kwargs
    )
    tolerance = 1e-7 if name == "mobilenet_v3_small" else TOLERANCE  # autograd has hardsigmoid's 1 / 6 in float32
    for mine, want in zip(explanation.inputs.values(), models_gradient(model, args, kwargs), strict=True):
        assert_near(mine.C_w, want, tolerance)
    assert explanation.completeness_error.max() < 1e-10


class LastState(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = kind(6, 5, batch_first=True, **options)

    def forward(self, x):
        out, state = self.rnn(x)
        return out[:, -1] + (state[1] if isinstance(state, tuple) else state).mean(0)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_captured_as_what_they_are_made_of(kind):
    model, x = LastState(kind).double().eval(), normal(2, 3, 6)
    explainer = omenn_fx.transform(model, x, rules="gradient")
    assert_near(explainer(x, target=TARGET).C_w, models_gradient(model, (x,))[0])
    assert explainer.validate(x).ok
    assert not [n for n in explainer.nodes if n.op.endswith(".input")]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_llama(attention):
    """The model computes norms in float32, its graph here does not: autograd through both."""
    model, _, kwargs = build(f"llama_{attention}", F64)
    explainer = omenn_fx.transform(model, example_kwargs=kwargs, rules="gradient")
    explanation = explainer(**kwargs, target=TARGET)
    assert_near(explanation.C_w, models_gradient(model, (), kwargs)[0], 1e-6)
    graph = explainer.ready.captured.module
    assert_near(explanation.C_w, models_gradient(lambda x: graph(x)[0], tuple(kwargs.values()))[0])


def test_a_softmax_as_the_output():
    model, x = nn.Sequential(small(), nn.Softmax(-1)).eval(), normal(3, 6)
    explanation = omenn_fx.transform(model, x, rules="gradient")(x, target=TARGET)
    assert_near(explanation.C_w, models_gradient(model, (x,))[0])


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Softplus(), nn.Linear(8, 5)).double().eval()


def test_two_evaluations_by_hand():
    """sigmoid at x: J = s (1 - s), b = s - J x."""
    x = torch.tensor([[0.5, -2.0]], dtype=F64)
    explanation = omenn_fx.transform(nn.Sigmoid().eval(), x, rules="gradient")(x, target=1)
    s = torch.sigmoid(x[0, 1])
    torch.testing.assert_close(explanation.C_w, torch.stack([0 * s, s * (1 - s)])[None])
    torch.testing.assert_close(explanation.bias.total, (s - s * (1 - s) * x[0, 1])[None])


# Exactness -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", ["carrier", "contribution", "none"])
def test_exact(bias):
    nets = build("small_cnn", F64)[0], nn.Sequential(Net(written_attention), nn.Flatten()).double().eval()
    for model, x in zip(nets, (image(16, 12)[0].double(), normal(3, 4, 6)), strict=True):
        explainer = omenn_fx.transform(model, x, rules="gradient", bias=bias)
        report = explainer.validate(x)
        assert report.ok, report
        several = explainer(x, target=torch.tensor([[0, 3]] * 3))
        assert several.completeness_error.max() < 1e-10
        torch.testing.assert_close(several.C[:, 1], explainer(x, target=3).C)


def test_in_float32_and_at_zero():
    model, x = build("small_vit")[0], image(16, 16)[0]
    explainer = omenn_fx.transform(model, x, rules="gradient")
    assert explainer.validate(x).ok
    assert explainer(torch.zeros_like(x)).C.isfinite().all()


def test_in_onnxruntime(tmp_path):
    pytest.importorskip("onnxruntime")
    model, x = nn.Sequential(Net(written_attention), nn.Flatten()).eval(), normal(3, 4, 6).float()
    written = omenn_fx.transform(model, x, rules="gradient").to_onnx(tmp_path / "set.onnx", x)
    assert written.proof.completeness < 1e-5


# Nothing stands in silently ------------------------------------------------------------------------------------------


class Made(nn.Module):
    """Weights, or positions, that are made of the input: no derivative by them is known here."""

    def __init__(self, function):
        super().__init__()
        self.function, self.linear = function, nn.Linear(6, 6)

    def forward(self, x):
        return self.function(self.linear(x))


def warped(x):
    grid = torch.tanh(x.reshape(-1, 3, 2, 1).expand(-1, 3, 2, 2))
    return F.grid_sample(x.reshape(-1, 1, 2, 3), grid, align_corners=False).flatten(1)


REFUSED = {
    "aten.linear.default": lambda x: F.linear(x, x[:, :6]),
    "aten.conv1d.default": lambda x: F.conv1d(x[:, None], x[:, None, :3]).flatten(1),
    "aten.grid_sampler.default": warped,
    "aten.layer_norm.default": lambda x: F.layer_norm(x, (6,), x[0]),
    "aten.affine_grid_generator.default": lambda x: F.affine_grid(x.reshape(-1, 2, 3), [3, 1, 2, 2], False).flatten(1),
}


@pytest.mark.parametrize("op", REFUSED)
def test_what_reaches_an_operand_that_is_held_fixed_is_refused(op):
    model, x = Made(REFUSED[op]).double().eval(), normal(3, 6)
    with pytest.raises(UnsupportedOpError, match=f"'gradient' has no rule for .*\n.*{op}"):
        omenn_fx.transform(model, x, rules="gradient", batched=False)
    report = omenn_fx.check(model, x, rules="gradient", batched=False)
    assert not report.supported
    assert any(op in str(p) for p in report.problems)


def test_a_constant_beside_is_no_reason_to_refuse():
    """The same operators with weights of the model; and a reshape like a live tensor reads no value of it."""
    model, x = Made(lambda x: x.sum(-1, keepdim=True).expand_as(x) * x.type_as(x)).double().eval(), normal(3, 6)
    explanation = omenn_fx.transform(model, x, rules="gradient")(x, target=TARGET)
    assert_near(explanation.C_w, models_gradient(model, (x,))[0])


def test_an_operator_held_fixed_by_the_user_is():
    model, x = Made(warped).double().eval(), normal(3, 6)
    explainer = omenn_fx.transform(model, x, rules="gradient", roles={"tanh*": "coefficient"})
    assert explainer.validate(x).ok


def test_a_rule_of_omenns_is_not_this_sets(monkeypatch):
    """What a user registers has the form that omenn asks for: it need not be a derivative."""
    exp = omenn[aten.exp.default]
    monkeypatch.setitem(omenn.table, aten.i0.default, Rule(aten.i0.default, exp.form, exp.content))
    model, x = Made(torch.i0).double().eval(), normal(3, 6)
    assert omenn_fx.check(model, x).supported
    with pytest.raises(UnsupportedOpError, match=r"aten\.i0\.default"):
        omenn_fx.transform(model, x, rules="gradient")
