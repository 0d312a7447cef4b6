"""Rule sets: composites of LRP against Zennit's, exactness of every set, and what a set says of a model."""

import math
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

import omenn_fx
from omenn_fx.algebra.layer import CONVOLUTION, DENSE, EVERY, FIRST, LAST, Where
from omenn_fx.algebra.ruleset import omenn, rule_set
from omenn_fx.analysis.layers import layers
from omenn_fx.rules import sets
from omenn_fx.rules.sets import lrp
from omenn_fx.rules.sets.shortcuts import split_by_size

COMPOSITES = ("epsilon_plus", "epsilon_plus_flat", "epsilon_alpha2_beta1", "epsilon_gamma_box")
OTHERS = ("deeplift", "omenn_gamma", "epsilon_plus_split")
BLOCKS = (
    lrp.Epsilon(0.1), lrp.ZPlus(), lrp.ZPlus(absorb=True), lrp.AlphaBeta(2, 1), lrp.AlphaBeta(1, 0), lrp.Gamma(0.5),
    lrp.Gamma(math.inf), lrp.Flat(), lrp.WSquare(), lrp.ZBox(-3.0, 3.0),
)  # fmt: skip
TINY = 1e-12  # a stabiliser that leaves nothing to compare but the rules


def network(seed=0):
    """Convolutions of all kinds, batch norms before and behind them, activations with and without negative values."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        nn.GELU(),
        nn.Conv2d(8, 6, 3, padding="same", dilation=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.ConvTranspose2d(6, 4, 2, 2),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Linear(16, 5),
    )
    return lively(model)


def lively(model, eps=1e-5):
    """Statistics and biases that are not 0 or 1; float64, eval."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.eps = eps
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.double().eval()


def images(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Peers ---------------------------------------------------------------------------------------------------------------


def squeezenet():
    from torchvision.models import squeezenet1_0

    return squeezenet1_0(weights=None), []


def vgg():
    from torchvision.models import vgg16_bn
    from zennit.torchvision import VGGCanonizer

    model = vgg16_bn(weights=None, num_classes=10)
    model.avgpool = nn.AdaptiveAvgPool2d(2)  # a head of 0.1 instead of 120 million weights
    model.classifier = nn.Sequential(nn.Linear(2048, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10))
    return model, [VGGCanonizer()]


def resnet():
    from torchvision.models import resnet18
    from zennit.torchvision import ResNetCanonizer

    return resnet18(weights=None, num_classes=10), [ResNetCanonizer()]


def zennits(kind, model, canonizers, x, target, stabiliser):
    """The relevance of the target's logit, as Zennit has it."""
    import zennit.composites
    from zennit.attribution import Gradient

    bounds = {"low": -3.0, "high": 3.0} if kind == "EpsilonGammaBox" else {}
    composite = getattr(zennit.composites, kind)(
        epsilon=stabiliser, stabilizer=stabiliser, canonizers=canonizers, **bounds
    )
    with Gradient(model=model, composite=composite) as attributor:
        return attributor(x.clone(), lambda out: nn.functional.one_hot(target, out.shape[1]) * out)[1]


KINDS = {
    "EpsilonPlus": sets.epsilon_plus,
    "EpsilonPlusFlat": sets.epsilon_plus_flat,
    "EpsilonAlpha2Beta1": sets.epsilon_alpha2_beta1,
    "EpsilonGammaBox": sets.epsilon_gamma_box,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [squeezenet, vgg, resnet])
def test_composites_are_zennits(make, kind):
    """To 1e-8 of the largest value; biases are kept, as Zennit loses what they take."""
    pytest.importorskip("zennit")
    torch.manual_seed(0)
    model, canonizers = make()
    model, x = lively(model, eps=1e-30), images(2, 3, 48, 48)  # torch 2.11 refuses 0
    rules = KINDS[kind](epsilon=TINY, stabiliser=TINY)
    explanation = omenn_fx.transform(model, x, rules=rules, bias="none")(x)
    theirs = zennits(kind, model, canonizers, x, explanation.target, TINY)
    assert (explanation.C - theirs).abs().max() <= 1e-8 * theirs.abs().max()
    assert explanation.completeness_error.max() < 1e-12


def test_zennits_canonizer_leaves_a_batch_norm_behind():
    """Why eps is next to 0 above: what it leaves divides by sqrt(1 + eps), so its logits are not the model's."""
    pytest.importorskip("zennit")
    from zennit.composites import EpsilonPlus

    torch.manual_seed(0)
    model, canonizers = vgg()
    model, x = lively(model), images(1, 3, 32, 32)
    explanation = omenn_fx.transform(model, x, rules="epsilon_plus")(x)
    wanted = model(x)
    with torch.no_grad(), EpsilonPlus(canonizers=canonizers).context(model) as canonical:
        off = float((canonical(x) - wanted).abs().max() / wanted.abs().max())
    assert 1e-6 < off < 1e-3
    torch.testing.assert_close(explanation.outputs, wanted, rtol=1e-12, atol=1e-12)


# Exactness -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", ["carrier", "contribution", "none"])
@pytest.mark.parametrize("name", [*COMPOSITES, *OTHERS])
def test_every_set_is_exact(name, bias):
    model, x = network(), images(3, 3, 16, 16)
    explainer = omenn_fx.transform(model, x, rules=name, bias=bias)
    report = explainer.validate(x)
    assert report.ok, report
    several = explainer(x, target=torch.tensor([[0, 3]] * 3))
    assert several.completeness_error.max() < 1e-12
    torch.testing.assert_close(several.C[:, 1], explainer(x, target=3).C)


@pytest.mark.parametrize("where", [EVERY, CONVOLUTION, FIRST, LAST], ids=str)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_is_exact(block, where):
    model, x = network(1), images(2, 3, 16, 16)
    rules = sets.composite("one block", "", (where, block))
    for bias in ("carrier", "none"):
        explainer = omenn_fx.transform(model, x, rules=rules, bias=bias)
        assert explainer(x).completeness_error.max() < 1e-12
    assert explainer.validate(x).ok  # W and b are those of both policies


def test_float32_and_zeros():
    model, x = network().float(), images(2, 3, 16, 16).float()
    for name in (*COMPOSITES, *OTHERS):
        explainer = omenn_fx.transform(model, x, rules=name)
        assert explainer.validate(x).ok
        assert explainer(torch.zeros_like(x)).C.isfinite().all()


def test_flat_gives_all_by_position():
    """C_w is 0, and C_b is the whole logit; with bias="none" it is what the biases left of it."""
    model, x = network(), images(2, 3, 16, 16)
    carried = omenn_fx.transform(model, x, rules="epsilon_plus_flat")(x)
    kept = omenn_fx.transform(model, x, rules="epsilon_plus_flat", bias="none")(x)
    assert not carried.C_w.any()
    torch.testing.assert_close(carried.C_b.sum((1, 2, 3)), carried.value)
    assert kept.bias.kept
    torch.testing.assert_close(kept.C.sum((1, 2, 3)) + kept.bias.remainder, kept.value)
    assert (kept.C.sum((1, 2, 3)) - kept.value).abs().min() > 1e-3


def test_a_block_does_what_its_formula_says():
    """gamma and w^2 on one layer, by hand."""
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 1).double().eval(), images(4, 6)
    (w,), b = layer.weight.detach(), layer.bias.detach()
    z = x * w

    def relevance(block, bias="none"):
        return omenn_fx.transform(layer, x, rules=sets.composite("one", "", (EVERY, block)), bias=bias)(x, target=0).C

    h = layer(x).detach()
    sign = h.sign()
    favoured = z + 0.5 * (sign * z).clamp(min=0) * sign
    whole = favoured.sum(1, keepdim=True) + b + 0.5 * (sign * b).clamp(min=0) * sign
    torch.testing.assert_close(relevance(lrp.Gamma(0.5, 0)), favoured / whole * h)
    alone = (sign * z).clamp(min=0)
    whole = alone.sum(1, keepdim=True) + (sign * b).clamp(min=0)
    torch.testing.assert_close(relevance(lrp.Gamma(math.inf, 0)), alone / whole * h)
    torch.testing.assert_close(relevance(lrp.WSquare()), w**2 / (w**2).sum() * h)
    absorbed = relevance(lrp.ZPlus(absorb=True, stabiliser=0))
    torch.testing.assert_close(absorbed, z.clamp(min=0) / z.clamp(min=0).sum(1, keepdim=True) * h)


def test_a_rectified_layer_needs_no_rule_for_negative_results():
    """Behind a ReLU no relevance comes back to a negative result."""
    model, x = network(), images(3, 3, 16, 16)

    def both_ways(call, form, layer):
        return lrp.Gamma(0.5)(call, form, replace(layer, rectified=False))

    one, other = (
        omenn_fx.transform(model, x, rules=sets.composite("one", "", (EVERY, block)))(x, target=2)
        for block in (lrp.Gamma(0.5), both_ways)
    )
    torch.testing.assert_close(one.C, other.C)
    torch.testing.assert_close(one.C_w, other.C_w)


class Residual(nn.Module):
    """A shortcut that cancels most of its branch."""

    def __init__(self):
        super().__init__()
        self.branch, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(torch.add(x, self.branch(x), alpha=-2))


def test_additions_split_by_size():
    torch.manual_seed(0)
    model, x = Residual().double().eval(), images(4, 6)
    split = omenn_fx.transform(model, x, rules=split_by_size(omenn, "split", "omenn, additions by size"), bias="none")
    assert split.validate(x).ok
    branch = model.branch(x).detach()
    h, w = x - 2 * branch, model.head.weight[1].detach()
    ratio = w * h / (x.abs() + 2 * branch.abs())
    expected = x.sign() * ratio + 2 * (branch.sign() * ratio) @ model.branch.weight.detach()
    torch.testing.assert_close(split(x, target=1).C_w, expected)
    assert omenn_fx.transform(model, x, rules="epsilon_plus_split")(torch.zeros_like(x)).C.isfinite().all()


def test_no_result_amplifies_what_its_parts_cancel():
    """A negative result of parts that are almost all negative: z+ divides by the little that is positive."""
    layer = nn.Linear(2, 1, bias=False).double().eval()
    layer.weight.data = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    x = torch.tensor([[1e-9, 1.0]], dtype=torch.float64)
    largest = {
        block: omenn_fx.transform(layer, x, rules=sets.composite("one", "", (EVERY, block)))(x).C_w.abs().max()
        for block in (lrp.ZPlus(stabiliser=0), lrp.Gamma(math.inf), lrp.Gamma(0.1))
    }
    assert [bool(value > 2) for value in largest.values()] == [True, False, False]


# Where a line applies ------------------------------------------------------------------------------------------------


def test_layers_are_found():
    explainer = omenn_fx.transform(network(), images(2, 3, 16, 16), rules="epsilon_plus")
    found = list(layers(explainer._current.tagged).values())
    assert [(one.kind, one.module) for one in found] == [
        ("convolution", "0"), ("convolution", "3"), ("convolution", "5"), ("convolution", "9"),
        ("dense", "13"), ("dense", "16"),
    ]  # fmt: skip
    assert [one.positive for one in found] == [False, True, False, True, True, True]
    assert [one.rectified for one in found] == [True, False, True, True, True, False]
    assert [one.first for one in found] == [True] + [False] * 5
    assert [one.last for one in found] == [False] * 5 + [True]
    assert [one.depth for one in found] == [0, 0.2, 0.4, 0.6, 0.8, 1]


def test_conditions():
    one = next(iter(layers(omenn_fx.transform(network(), images(2, 3, 16, 16))._current.tagged).values()))
    assert (FIRST & CONVOLUTION)(one)
    assert not DENSE(one)
    assert Where(module="[0-3]")(one)
    assert not Where(depth=(0.5, 1.0))(one)
    with pytest.raises(ValueError, match="both say which kind"):
        CONVOLUTION & DENSE


def test_both_of_two_first_layers():
    """Two ways from the input: each begins with a first layer, and the longer one decides the depth."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x):
            return self.d(self.a(x) + self.c(self.b(x).relu()))

    torch.manual_seed(0)
    tagged = omenn_fx.transform(Two().double().eval(), images(2, 4))._current.tagged
    assert {one.module: (one.first, one.last, one.depth) for one in layers(tagged).values()} == {
        "a": (True, False, 0), "b": (True, False, 0), "c": (False, False, 0.5), "d": (False, True, 1),
    }  # fmt: skip


# What a set says of a model ------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.LayerNorm(8), nn.Linear(8, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        y = self.norm(x)
        return self.out((x + self.attention(y, y, y, need_weights=False)[0]).mean(1))


def test_check_names_what_stands_in():
    x = torch.empty(2, 5, 8)
    report = omenn_fx.check(Block().eval(), x, rules="epsilon_plus")
    said = [str(w) for w in report.warnings if w.kind.code == "OMENN106"]
    assert report.supported
    assert len(said) == 2
    assert "says nothing of an operator: 'epsilon_plus' has no rule for aten.layer_norm.default" in said[0]
    assert "aten.scaled_dot_product_attention.default" in said[1]
    treated = [n for n in report.nodes if n.reason.startswith("epsilon_plus: Epsilon")]
    assert len(treated) == 3
    assert not omenn_fx.check(Block().eval(), x).warnings
    assert not omenn_fx.check(Block().eval(), x, rules="omenn_gamma").warnings  # all else as in omenn is its own rule
    assert not omenn_fx.check(network(), torch.empty(2, 3, 16, 16).double(), rules="epsilon_plus").warnings


def test_a_transformer_is_exact_too():
    torch.manual_seed(0)
    model, x = Block().double().eval(), images(2, 5, 8)
    for name in (*COMPOSITES, *OTHERS):
        assert omenn_fx.transform(model, x, rules=name).validate(x).ok


# Sets as values ------------------------------------------------------------------------------------------------------


def test_named_sets():
    assert rule_set("epsilon_plus_flat").lines == sets.epsilon_plus_flat().lines
    with pytest.raises(ValueError, match=r"no rule set 'epsilon'; known: .*epsilon_gamma_box.*omenn"):
        omenn_fx.transform(network(), rules="epsilon")
    with pytest.raises(ValueError, match="alpha - beta must be 1"):
        lrp.AlphaBeta(2, 0.5)


def test_a_set_of_ones_own():
    """A composite by module path; what it does not name keeps omenn's form. It pickles as its lines."""
    own = omenn.derive("own", "flat below, gamma above", (Where(module="0"), lrp.Flat()), (CONVOLUTION, lrp.Gamma(1.0)))
    again = pickle.loads(pickle.dumps(own))
    assert again.lines == own.lines
    assert pickle.loads(pickle.dumps(rule_set("epsilon_plus"))) is rule_set("epsilon_plus")
    model, x = network(), images(2, 3, 16, 16)
    explanation = omenn_fx.transform(model, x, rules=again)(x)
    torch.testing.assert_close(explanation.C, omenn_fx.transform(model, x, rules=own)(x).C)
    assert explanation.completeness_error.max() < 1e-12


@pytest.mark.parametrize("name", ["epsilon_plus", "omenn_gamma"])
@pytest.mark.parametrize("features", [6, 8])
def test_a_batch_norm_of_channels_behind_a_linear_layer_of_features(features, name):
    """On [N, C, F]: it scales C, the linear layer makes F, of as many or of others."""
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Linear(5, features), nn.BatchNorm1d(6), nn.Flatten(), nn.Linear(6 * features, 3))
    model, x = lively(linear), torch.randn(2, 6, 5, dtype=torch.float64)
    explainer = omenn_fx.transform(model, x, rules=name)
    explanation = explainer(x)
    torch.testing.assert_close(explanation.outputs, model(x))
    assert explanation.completeness_error.max() < 1e-12
    assert explainer.validate(x).ok


def test_batch_norms_fold_without_a_copy():
    """Weights are made in the graph: a change of the model's own is seen."""
    model, x = network(), images(2, 3, 16, 16)
    explainer = omenn_fx.transform(model, x, rules="epsilon_plus")
    assert "batch_norm" not in " ".join(n.op for n in explainer.nodes)
    with torch.no_grad():
        model[1].weight.mul_(2)
    torch.testing.assert_close(explainer(x).outputs, model(x))


# Deployed ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", [*COMPOSITES, "omenn_gamma"])
def test_sets_in_onnxruntime(name, tmp_path):
    pytest.importorskip("onnxruntime")
    model, x = network().float(), images(3, 3, 16, 16).float()
    written = omenn_fx.transform(model, x, rules=name).to_onnx(tmp_path / "set.onnx", x)
    assert written.proof.completeness < 1e-5
