"""The set `deeplift`: every rule on every sample, whole models against Captum's DeepLift, and summation to delta."""

import pickle
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from models import build
from samples import SAMPLES, Sample, aten, name_of
from test_gradient import NETS, Net
from torch import nn

import omenn_fx
from omenn_fx import InputError
from omenn_fx.algebra.aliases import canonical
from omenn_fx.algebra.invariants import random_like
from omenn_fx.algebra.ruleset import omenn, rule_set
from omenn_fx.analysis.layers import stand_ins
from omenn_fx.rules import sets
from omenn_fx.rules.ops.forms import product
from omenn_fx.testing import called, content_of, measure

F64 = torch.float64
DEEPLIFT, GRADIENT = rule_set("deeplift"), rule_set("gradient")
TARGET = 3


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def lively(model):
    """Statistics and biases that are not 0 or 1; float64, eval; nothing in place, for hooks."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return model.double().eval()


# Every operator ------------------------------------------------------------------------------------------------------

CASES = [s for s in SAMPLES if DEEPLIFT.says(s.op) and s.op in DEEPLIFT]
CASES += [  # not linear in omenn, so not in its table of samples
    Sample(aten.rsqrt.default, (normal(2, 3).abs() + 0.1,), {}),
    Sample(aten.reciprocal.default, (normal(2, 3),), {}),
    Sample(aten.pow.Tensor_Tensor, (normal(2, 3).abs() + 0.1, normal(2, 3, seed=1)), {}),
]
REFERENCES = ("other", "near", "same")


def call_of(sample, reference):
    """The call with every operand as content that the set has a form for, and the same at other values of those."""
    operands = sample.operands(F64)
    rule, base = DEEPLIFT.get(sample.op), omenn.get(sample.op)
    known = sample.content if base.content == rule.content else None
    call = called(sample.op, operands, known or content_of(rule, operands), sample.output)
    others = replace(sample, seed=sample.seed + 1000).operands(F64)
    given = {k: 1.7 * v for k, v in others.items() if isinstance(v, torch.Tensor) and v is operands[k]}
    others |= given  # not described, so the same with every seed
    there = dict(operands)
    for slot in call.content:
        x = call.at(slot)
        value = others[slot.name] if slot.index is None else others[slot.name][slot.index]
        value = {"other": value, "near": x + 1e-9 * (value - x), "same": x}[reference]
        value = torch.where(x.isfinite() & value.isfinite(), value, x)  # a mask hides the same in both
        if slot.index is None:
            there[slot.name] = value
        else:
            there[slot.name] = [value if i == slot.index else v for i, v in enumerate(there[slot.name])]
    return replace(call, reference=called(sample.op, there, call.content, sample.output))


def test_every_rule_has_a_case():
    assert {rule.op for rule in DEEPLIFT if DEEPLIFT.says(rule.op)} == {canonical(s.op) for s in CASES}
    assert not [r.op for r in DEEPLIFT if r.gate]


def form_of(call):
    rule = DEEPLIFT.get(call.op)
    complex_ = any(call.at(slot).is_complex() for slot in call.content)
    if (rule.accepts is not None and not rule.accepts(call.operands)) or (complex_ and not rule.complex):
        pytest.skip("refused")
    return rule, rule.affine(call)


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("sample", CASES, ids=lambda s: name_of(s.op))
def test_every_rule_holds_at_both_inputs(sample, reference):
    """All invariants at x, and W (x - x0) = h - h0."""
    call = call_of(sample, reference)
    rule, form = form_of(call)
    found = measure(rule, call)
    assert all(error < 1e-9 for error in found.values()), found
    rest, size = call.out - call.reference.out, call.out.new_ones(()).real
    for slot, linear in form.terms.items():
        change = torch.nan_to_num(call.at(slot) - call.reference.at(slot)).to(call.out.dtype)
        rest = rest - linear.apply(change)
        size = size + linear.magnitude().apply(change.abs()).abs().amax()
    rest = rest[call.out.isfinite() & call.reference.out.isfinite()]
    assert not rest.numel() or float(rest.abs().max() / size) < 1e-12


@pytest.mark.parametrize("sample", CASES, ids=lambda s: name_of(s.op))
def test_at_the_reference_it_is_the_gradient(sample):
    """W is the Jacobian, as the limit of the multipliers."""
    call = call_of(sample, "same")
    _, form = form_of(call)
    jacobian = GRADIENT.get(sample.op).affine(call)
    g = random_like(call.out, torch.Generator().manual_seed(1))
    for slot, linear in form.terms.items():
        got, want = linear.transpose(g), jacobian.terms[slot].transpose(g)
        assert not want.numel() or (got - want).abs().max() <= 1e-10 * (1 + want.abs().max())


def test_no_term_of_a_product_is_larger_than_both_products():
    scales = 10.0 ** torch.randint(-9, 10, (4, 10000), generator=torch.Generator().manual_seed(1))
    a, a0, b, b0 = normal(4, 10000) * scales
    by_a, by_b = product(a, a0, b, b0)
    bound = (a * b).abs() + (a0 * b0).abs()
    for term in (by_a * (a - a0), by_b * (b - b0)):
        assert (term.abs() <= bound * (1 + 1e-12)).all()
    assert (0.5 * (b + b0) * (a - a0) / bound).abs().max() > 1e6  # the mean has no such bound


# Captum --------------------------------------------------------------------------------------------------------------


class Copy(nn.Module):
    """A tensor of its own between two modules: see `test_captum_needs_a_tensor_of_its_own`."""

    def forward(self, x):
        return x.clone()


class Block(nn.Module):
    """A residual block with a module for each activation: Captum refuses one that is used twice."""

    def __init__(self, block):
        super().__init__()
        self.block, self.relu1, self.relu2 = block, nn.ReLU(), nn.ReLU()

    def forward(self, x):
        b = self.block
        y = b.bn2(b.conv2(self.relu1(b.bn1(b.conv1(x)))))
        return self.relu2(y + (x if b.downsample is None else b.downsample(x)))


def squeezenet():
    from torchvision.models import squeezenet1_0

    return squeezenet1_0(weights=None, num_classes=10)


def vgg():
    from torchvision.models import vgg11_bn

    model = vgg11_bn(weights=None, num_classes=10)
    model.avgpool = nn.AdaptiveAvgPool2d(2)
    model.classifier = nn.Sequential(nn.Linear(2048, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10))
    return model


def resnet():
    from torchvision.models import resnet18

    model = resnet18(weights=None, num_classes=10)
    for name in ("layer1", "layer2", "layer3", "layer4"):
        setattr(model, name, nn.Sequential(*map(Block, getattr(model, name))))
    return model


def spaced(model):
    """A copy in front of every max pool."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.Sequential(Copy(), child))
    return model.eval()


@pytest.fixture
def unpool_that_adds(monkeypatch):
    """Captum's rule of max pools with an unpool that adds up what a position wins in several windows."""
    deep_lift = pytest.importorskip("captum.attr._core.deep_lift")

    def unpool(values, indices, kernel_size, stride, padding, size):
        flat = values.new_zeros(*size[:2], size[2] * size[3])
        return flat.scatter_add(2, indices.flatten(2), values.flatten(2)).reshape(size)

    def hook(module, *args, **kwargs):
        return deep_lift.maxpool(module, F.max_pool2d, unpool, *args, **kwargs)

    monkeypatch.setitem(deep_lift.SUPPORTED_NON_LINEAR, nn.MaxPool2d, hook)


def captums(model, x, x0, target):
    """DeepLift's attributions and its convergence delta."""
    attr = pytest.importorskip("captum.attr")
    baselines = x0.expand_as(x).clone()
    return attr.DeepLift(model).attribute(x, baselines, target=target, return_convergence_delta=True)


def ours(model, x, x0, target, rules=None):
    """C_w * (x - x0), and what its sum has too much."""
    explanation = omenn_fx.transform(model, x, rules=rules or sets.deeplift(x0))(x, target=target)
    assert explanation.completeness_error.max() < 1e-12
    attributions = (explanation.C_w * (x - x0)).detach()
    with torch.no_grad():
        risen = (model(x) - model(x0[None])).gather(1, target[:, None])[:, 0]
    return attributions, attributions.flatten(1).sum(1) - risen


def worst(got, want):
    return float((got - want).abs().max() / want.abs().max())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [squeezenet, vgg, resnet])
def test_convolutional_networks_are_captums(make, unpool_that_adds):
    """To 1e-10 of the largest value, with a reference that is not 0, for several targets, max pools included."""
    torch.manual_seed(0)
    model, x, x0, target = lively(make()), normal(3, 3, 64, 64), normal(3, 64, 64, seed=1), torch.tensor([1, 3, 7])
    attributions, delta = ours(model, x, x0, target)
    theirs, their_delta = captums(spaced(model), x, x0, target)
    assert worst(attributions, theirs) < 1e-10
    assert delta.abs().max() < 1e-12
    assert their_delta.abs().max() < 1e-12


@pytest.mark.filterwarnings("ignore")
def test_vgg_is_captums_as_it_is():
    """Windows that do not overlap, and a copy in front: nothing of Captum's is changed."""
    torch.manual_seed(0)
    model, x, x0, target = spaced(lively(vgg())), normal(2, 3, 64, 64), normal(3, 64, 64, seed=1), torch.tensor([1, 3])
    assert worst(ours(model, x, x0, target)[0], captums(model, x, x0, target)[0]) < 1e-10


def pooled(pool, *between):
    torch.manual_seed(0)
    size = pool(torch.empty(1, 4, 16, 16)).numel()
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), *between, pool, nn.Flatten(), nn.Linear(size, 5)]
    return nn.Sequential(*layers).double().eval()


@pytest.mark.filterwarnings("ignore")
def test_captum_needs_a_tensor_of_its_own():
    """Why a copy stands in front of max pools above: behind a ReLU, Captum takes the pool's plain gradient."""
    x, x0, target = normal(2, 3, 16, 16), normal(3, 16, 16, seed=1), torch.tensor([1, 3])
    bare, apart = pooled(nn.MaxPool2d(2)), pooled(nn.MaxPool2d(2), Copy())
    attributions, delta = ours(bare, x, x0, target)
    assert delta.abs().max() < 1e-12
    theirs, their_delta = captums(bare, x, x0, target)
    assert their_delta.abs().min() > 0.01
    assert worst(attributions, theirs) > 0.1
    theirs, their_delta = captums(apart, x, x0, target)
    assert their_delta.abs().max() < 1e-12
    assert worst(attributions, theirs) < 1e-12


@pytest.mark.filterwarnings("ignore")
def test_captum_loses_what_is_won_twice():
    """Why its unpool is made to add above: of overlapping windows that one position wins, it keeps the last."""
    x, x0, target = normal(2, 3, 16, 16), normal(3, 16, 16, seed=1), torch.tensor([1, 3])
    model = pooled(nn.MaxPool2d(3, 2, 1), Copy())
    assert ours(model, x, x0, target)[1].abs().max() < 1e-12
    assert captums(model, x, x0, target)[1].abs().min() > 0.01


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        n, t, w = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(q @ k.transpose(-2, -1) * (w // self.heads) ** -0.5, -1)
        return self.out((weights @ v).transpose(1, 2).reshape(n, t, w))


class Layer(nn.Module):
    def __init__(self, width, heads, activation):
        super().__init__()
        self.norm1, self.norm2, self.attention = nn.LayerNorm(width), nn.LayerNorm(width), Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), activation(), nn.Linear(2 * width, width))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A vision transformer whose activations are modules, as Captum needs them."""

    def __init__(self, activation, width=16, heads=2):
        super().__init__()
        torch.manual_seed(0)
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.positions, self.token = nn.Parameter(torch.randn(1, 17, width)), nn.Parameter(torch.randn(1, 1, width))
        self.layers = nn.Sequential(*(Layer(width, heads, activation) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)
        self.double().eval()

    def forward(self, x):
        patches = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], 1) + self.positions
        return self.head(self.norm(self.layers(tokens))[:, 0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU])
def test_a_vision_transformer_is_captums_but_for_what_captum_has_no_rule_for(activation):
    """It takes the plain gradient of norms, softmax, products and GELU, and its sum is far from f(x) - f(x0).

    With the Jacobian of these as rules the numbers are Captum's; with rules for them ours are exact.
    """
    model, x, x0, target = ViT(activation), normal(2, 3, 16, 16), normal(3, 16, 16, seed=1), torch.tensor([1, 3])
    theirs, their_delta = captums(model, x, x0, target)
    attributions, delta = ours(model, x, x0, target)
    assert delta.abs().max() < 1e-13
    assert their_delta.abs().max() > 0.03
    assert worst(attributions, theirs) > 0.1
    captum_like = sets.deeplift(x0).derive("the gradient where Captum has no rule")
    for op in (aten.layer_norm.default, aten.softmax.int, aten.matmul.default, aten.gelu.default):
        captum_like.add(GRADIENT.table[op])
    attributions, delta = ours(model, x, x0, target, captum_like)
    assert worst(attributions, theirs) < 1e-12
    assert (delta - their_delta).abs().max() < 1e-12


@pytest.mark.filterwarnings("ignore")
def test_a_softmax_sums_to_delta_and_captums_does_not():
    """Captum takes the mean over all values of the batch off, and with it the sum."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Softmax(1), nn.Linear(8, 5)).double().eval()
    x, x0, target = normal(2, 6), normal(6, seed=1), torch.tensor([1, 3])
    assert ours(model, x, x0, target)[1].abs().max() < 1e-14
    assert captums(model, x, x0, target)[1].abs().max() > 1e-3


# Summation to delta --------------------------------------------------------------------------------------------------

NOT_SUMMED = {  # net -> what stands in
    "winners": {"aten.sort.default", "aten.cummax.default"},
    "bounds": {"aten.where.self"},
    "detached": {"aten.mul.Tensor", "aten.add.Tensor"},
    "remainder": {"aten.add.Tensor"},
}


def summed(explainer, args, kwargs, reference):
    """The sum of C_w * (x - x0) over all inputs less f(x) - f(x0), and the sum of its magnitudes."""
    explanation = explainer(*args, target=TARGET, **kwargs)
    assert explanation.completeness_error.max() < 1e-12
    parts = [(i.C_w * (i.X - reference)).flatten(1) for i in explanation.inputs.values()]

    def moved(value):
        return torch.full_like(value, reference) if value.is_floating_point() else value

    graph = explainer.ready.captured.module  # some models compute parts in float32, the graph does not
    at = [graph(*map(given, (*args, *kwargs.values())))[0][:, TARGET] for given in (lambda v: v, moved)]
    return sum(p.sum(1) for p in parts) - (at[0] - at[1]), sum(p.abs().sum(1) for p in parts)


@pytest.mark.parametrize("name", NETS)
def test_nets(name):
    """Exact, and summed wherever `check` has nothing to say."""
    model, x = nn.Sequential(Net(NETS[name]), nn.Flatten()).double().eval(), normal(3, 4, 6, seed=5)
    explainer = omenn_fx.transform(model, x, rules=sets.deeplift(0.25))
    assert explainer.validate(x).ok
    delta, size = summed(explainer, (x,), {}, 0.25)
    assert set(stand_ins(explainer.ready.tagged)) == NOT_SUMMED.get(name, set())
    assert (delta.abs().max() > 1e-3) if name in NOT_SUMMED else (delta.abs() < 1e-13 * (1 + size)).all()


@pytest.mark.parametrize("name", ["small_cnn", "small_vit", "bert_sdpa", "two_inputs", "llama_eager"])
def test_architectures(name):
    """Convolutions, attention, several inputs, keyword inputs. No Llama is one without its zero embeddings."""
    model, args, kwargs = build(name, F64)
    explainer = omenn_fx.transform(model, args or None, example_kwargs=kwargs, rules="deeplift")
    assert not stand_ins(explainer.ready.tagged)
    explanation = explainer(*args, target=TARGET, **kwargs)
    assert explainer.validate(*args, **kwargs).ok
    assert explanation.scale.max() < 100 * explanation.value.abs().max()
    if all(n.op == "placeholder" for n in explainer.ready.tagged.sources.values()):
        delta, size = summed(explainer, args, kwargs, 0.0)
        assert (delta.abs() < 1e-13 * (1 + size)).all()


class LastState(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn = kind(6, 5, batch_first=True)

    def forward(self, x):
        return self.rnn(x)[0][:, -1]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_captured_as_what_they_are_made_of(kind):
    torch.manual_seed(0)
    model, x = LastState(kind).double().eval(), normal(2, 3, 6)
    explainer = omenn_fx.transform(model, x, rules=sets.deeplift(0.25))
    delta, _ = summed(explainer, (x,), {}, 0.25)
    assert delta.abs().max() < 1e-14
    assert not stand_ins(explainer.ready.tagged)


class WrittenOut(nn.Module):
    """An RMS norm and a GLU, of torch's operators or written out."""

    def __init__(self, fused):
        super().__init__()
        self.fused = fused

    def forward(self, x):
        if self.fused:
            return F.glu(F.rms_norm(x, (6,), eps=1e-6), -1)
        a, b = (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)).chunk(2, -1)
        return a * torch.sigmoid(b)


def test_an_operator_is_what_it_is_written_out():
    x = normal(2, 6)
    both = [omenn_fx.transform(WrittenOut(f).eval(), x, rules=sets.deeplift(0.1))(x, target=1) for f in (True, False)]
    torch.testing.assert_close(both[0].C_w, both[1].C_w, rtol=1e-12, atol=1e-12)


# The set -------------------------------------------------------------------------------------------------------------


def network():
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 6, 3, padding=1),
        nn.GELU(), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(24, 5),
    ]  # fmt: skip
    return lively(nn.Sequential(*layers))


@pytest.mark.parametrize("bias", ["carrier", "contribution", "none"])
def test_every_bias_policy(bias):
    model, x = network(), normal(3, 3, 16, 16)
    explainer = omenn_fx.transform(model, x, rules="deeplift", bias=bias)
    assert explainer.validate(x).ok
    several = explainer(x, target=torch.tensor([[0, 3]] * 3))
    assert several.completeness_error.max() < 1e-12
    torch.testing.assert_close(several.C[:, 1], explainer(x, target=3).C)


@pytest.mark.parametrize(
    "reference", [0.0, 0.5, (0.1, -0.2, 0.3), normal(3, 16, 16), normal(1, 3, 16, 16), normal(1, 1)]
)
def test_references(reference):
    """A number, channels, a sample, or what broadcasts to one; the batch may be of any size."""
    model, x = network(), normal(3, 3, 16, 16)
    explainer = omenn_fx.transform(model, x, rules=sets.deeplift(reference))
    channels = isinstance(reference, tuple)
    x0 = torch.tensor(reference, dtype=F64).reshape(3, 1, 1) if channels else torch.as_tensor(reference)
    for batch in (x, normal(5, 3, 16, 16, seed=2)):
        explanation = explainer(batch, target=2)
        delta = (explanation.C_w * (batch - x0)).flatten(1).sum(1)
        there = torch.zeros_like(batch) + x0
        torch.testing.assert_close(delta, (model(batch) - model(there))[:, 2], rtol=1e-10, atol=1e-12)
    assert len(explainer._programs) == 1


@pytest.mark.parametrize("reference", [(0.1, 0.2), normal(2, 3, 16, 16), normal(4)], ids=["channels", "batch", "width"])
def test_a_reference_that_does_not_fit(reference):
    with pytest.raises(InputError, match="does not fit the explained input 'input_1'"):
        omenn_fx.transform(network(), normal(2, 3, 16, 16), rules=sets.deeplift(reference))


def test_at_the_reference_itself():
    """C_w is the gradient where there are no kinks, and nothing is NaN where there are."""
    model, x = nn.Sequential(network(), nn.Tanh()).eval(), normal(2, 3, 16, 16)
    explanation = omenn_fx.transform(model, x, rules=sets.deeplift(x[0]))(x, target=1)
    gradient = omenn_fx.transform(model, x, rules="gradient")(x, target=1)
    torch.testing.assert_close(explanation.C_w[0], gradient.C_w[0])
    assert explanation.C.isfinite().all()


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.norm, self.head = nn.Embedding(10, 6), nn.LayerNorm(6), nn.Linear(6, 5)

    def forward(self, ids):
        h = self.table(ids)
        return self.head((h * self.norm(h + 1).sigmoid()).mean(1))


def test_token_ids():
    """The reference is of the embeddings."""
    model, ids = Tokens().double().eval(), torch.tensor([[1, 2, 3], [4, 4, 0]])
    explainer = omenn_fx.transform(model, ids, rules=sets.deeplift(0.1))
    explanation = explainer(ids, target=1)
    assert explainer.validate(ids).ok
    with torch.no_grad():
        model.table.weight.fill_(0.1)
        want = explanation.value - model(ids)[:, 1]
    torch.testing.assert_close((explanation.C_w * (explanation.X - 0.1)).flatten(1).sum(1), want)


def test_check_says_what_stands_in():
    model = nn.Sequential(Net(NETS["winners"]), nn.Flatten()).eval()
    report = omenn_fx.check(model, torch.empty(3, 4, 6), rules="deeplift")
    assert report.supported
    said = [str(w) for w in report.warnings if w.kind.code == "OMENN106"]
    assert len(said) == 2
    assert "'deeplift' has no rule for aten.sort.default: the form of 'omenn' stands in" in said[0]
    assert not omenn_fx.check(network().float(), torch.empty(2, 3, 16, 16), rules="deeplift").warnings


def test_what_is_held_fixed_is_said():
    """By the user's own word: the sum is exact, f(x) - f(x0) is not what C_w * (x - x0) sums to."""
    model, x = nn.Sequential(Net(NETS["softmax"]), nn.Flatten()).double().eval(), normal(3, 4, 6, seed=5)
    explainer = omenn_fx.transform(model, x, rules="deeplift", roles={"sigmoid": "coefficient"})
    assert set(stand_ins(explainer.ready.tagged)) == {"aten.mul.Tensor"}
    delta, _ = summed(explainer, (x,), {}, 0.0)
    assert delta.abs().max() > 1e-3


def test_it_is_sent_by_its_name_and_its_reference():
    assert pickle.loads(pickle.dumps(DEEPLIFT)) is DEEPLIFT
    again = pickle.loads(pickle.dumps(sets.deeplift((0.1, 0.2, 0.3))))
    assert again.reference == (0.1, 0.2, 0.3)
    assert again.table is DEEPLIFT.table
    assert again.same == DEEPLIFT.same


def test_float32():
    model, x = network().float(), normal(3, 3, 16, 16).float()
    explainer = omenn_fx.transform(model, x, rules="deeplift")
    assert explainer.validate(x).ok
    wide = omenn_fx.transform(network(), x.double(), rules="deeplift")(x.double(), target=1)
    assert worst(explainer(x, target=1).C.double(), wide.C) < 1e-4


def test_in_onnxruntime(tmp_path):
    """The reference's forward leaves with the graph, for a batch of any size: a max pool, attention, a norm, GELU."""
    ort = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten(2), Layer(36, 2, nn.GELU), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(288, 5)).eval()
    x, more = normal(3, 3, 16, 16).float(), normal(2, 3, 16, 16, seed=3).float()
    explainer = omenn_fx.transform(model, x, rules=sets.deeplift((0.1, -0.2, 0.3)))
    written = explainer.to_onnx(tmp_path / "set.onnx", x, outputs=("logits", "C", "C_w"))
    assert written.proof.completeness < 1e-5
    session, target = ort.InferenceSession(tmp_path / "set.onnx"), torch.tensor([1, 2])
    (C_w,) = session.run(["C_w"], {session.get_inputs()[0].name: more.numpy(), "target": target.numpy()})
    assert worst(torch.from_numpy(C_w), explainer(more, target=target).C_w) < 1e-4
