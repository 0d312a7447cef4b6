"""Captum's LRP as an oracle of the composites, layer by layer; where it differs, the reason computed both ways."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("captum")
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from captum.attr import LRP
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule
from judge import rewrite

import omenn_fx
from omenn_fx.algebra.layer import CONVOLUTION, DENSE, EVERY, FIRST
from omenn_fx.rules.sets import composite
from omenn_fx.rules.sets.lrp import AlphaBeta, Epsilon, Gamma, Part, ZPlus, only, shared, stabilised

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor", "ignore:Setting backward hooks")
TINY = 1e-9  # Captum's stabiliser
TOLERANCE = 1e-5  # of the largest value


class Net(nn.Sequential):
    """Convolutions, activations, a max pool, average pools and dense layers: [N, 3, 20, 20] -> [N, 5]"""

    def __init__(self, bias=True):
        super().__init__(
            nn.Conv2d(3, 8, 3, 2, 1, bias=bias), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=bias), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1, bias=bias), nn.ReLU(), nn.AvgPool2d(3, 1), nn.AdaptiveAvgPool2d(2),
            nn.Flatten(), nn.Linear(48, 16, bias=bias), nn.ReLU(), nn.Linear(16, 5, bias=bias),
        )  # fmt: skip


def network(bias=True):
    model = Net(bias)
    for p in model.parameters():
        if p.ndim == 1:
            nn.init.normal_(p, 0, 0.3)
    return model.double().eval()


def images(signed=True, size=20):
    """Of both signs, or none negative."""
    x = torch.randn(3, 3, size, size, dtype=torch.float64)
    return x if signed else x.abs()


def captums(model, x, target, first=None, convolutions=None, dense=None):
    """Captum's LRP with a rule for the first layer, the convolutions and the dense layers; epsilon where None."""
    copied = rewrite.canonical(model, "captum")  # it has no rule for nn.Flatten
    layers = [m for m in copied.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for i, layer in enumerate(layers):
        rule = first if i == 0 else convolutions if isinstance(layer, nn.Conv2d) else dense
        if rule is not None:
            layer.rule = copy.copy(rule)
    return LRP(copied).attribute(x.clone(), target=target).detach()


def ours(model, x, *lines, target=None):
    """The map of a composite, and its target; biases are kept, as Captum loses what they take."""
    explanation = omenn_fx.transform(model, x, rules=composite("as Captum", "", *lines), bias="none")(x, target=target)
    assert explanation.completeness_error.max() < 1e-12
    return explanation.C, explanation.target


def apart(got, want):
    """The largest difference relative to the largest value."""
    return float((got - want).abs().max() / want.abs().max())


# The same ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [TINY, 0.1])
def test_epsilon(epsilon):
    model, x = network(), images()
    C, target = ours(model, x, (EVERY, Epsilon(epsilon)))
    rule = EpsilonRule(epsilon)
    assert apart(C, captums(model, x, target, rule, rule, rule)) < TOLERANCE
    if epsilon == TINY:
        assert apart(C, captums(model, x, target)) < TOLERANCE  # its default
        assert apart(C, omenn_fx.transform(model, x, bias="none")(x).C) < TOLERANCE  # on a network of ReLUs


def test_alpha_1_beta_0():
    """Its bias set to zero is ours absorbed: the operands get the whole relevance."""
    model, x = network(), images()
    C, target = ours(
        model, x, (FIRST, Epsilon(TINY)), (CONVOLUTION, ZPlus(absorb=True, stabiliser=TINY)), (DENSE, Epsilon(TINY))
    )
    rule = Alpha1_Beta0_Rule(set_bias_to_zero=True)
    assert apart(C, captums(model, x, target, convolutions=rule)) < TOLERANCE


def test_gamma():
    """Without biases, and on layers behind which negative values do not count."""
    model, x = network(bias=False), images()
    C, target = ours(
        model, x, (FIRST, Epsilon(TINY)), (CONVOLUTION, Gamma(0.25, TINY)), (DENSE, Epsilon(TINY))
    )  # fmt: skip
    assert apart(C, captums(model, x, target, convolutions=GammaRule(0.25))) < TOLERANCE


def test_all_three_at_once():
    model, x = network(bias=False), images(signed=False)
    C, target = ours(
        model, x, (FIRST, Gamma(0.5, TINY)), (CONVOLUTION, AlphaBeta(1, 0, TINY)), (DENSE, Epsilon(0.01))
    )  # fmt: skip
    assert apart(C, captums(model, x, target, GammaRule(0.5), Alpha1_Beta0_Rule(), EpsilonRule(0.01))) < TOLERANCE


def test_residual_network():
    """Batch norms folded, additions by its own module: in proportion to what each side adds, which ours do."""
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18(weights=None, num_classes=5, zero_init_residual=False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    model, x = model.double().eval(), images(size=48)
    first, absorbed = (FIRST, Epsilon(TINY)), (CONVOLUTION, ZPlus(absorb=True, stabiliser=TINY))
    C, target = ours(model, x, first, absorbed, (DENSE, Epsilon(TINY)))
    assert apart(C, captums(model, x, target, convolutions=Alpha1_Beta0_Rule(set_bias_to_zero=True))) < TOLERANCE


# Where it differs ----------------------------------------------------------------------------------------------------


def with_captums_weights(change):
    """A treatment as Captum writes it: changed weights whatever the sign of operand and result, the bias unchanged."""

    def treatment(call, form, layer):
        slot, linear = only(form)
        changed = linear.weighted(change)
        part = Part(changed, changed.apply(call.at(slot)), form.bias and form.bias.broadcast(len(call.out.shape)))
        return shared(call, form, (part, call.out / stabilised(part.whole, TINY)))

    return treatment


def favoured(w):
    return w + 0.25 * w.clamp(min=0)


def positive(w):
    return w.clamp(min=0)


DIFFERENT = {
    "gamma": (Gamma(0.25, TINY), GammaRule(0.25), favoured),
    "alpha 1 beta 0": (AlphaBeta(1, 0, TINY), Alpha1_Beta0_Rule(), positive),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_the_bias_is_not_changed_with_the_weights(kind):
    """The published rule treats a bias as a weight of an operand that is 1; with Captum's way ours agrees."""
    block, rule, change = DIFFERENT[kind]
    model, x = network(), images()
    rest = (FIRST, Epsilon(TINY)), (DENSE, Epsilon(TINY))
    C, target = ours(model, x, rest[0], (CONVOLUTION, block), rest[1])
    theirs = captums(model, x, target, convolutions=rule)
    assert apart(C, theirs) > 0.01
    C, _ = ours(model, x, rest[0], (CONVOLUTION, with_captums_weights(change)), rest[1])
    assert apart(C, theirs) < TOLERANCE


@pytest.mark.parametrize("kind", DIFFERENT)
def test_the_sign_of_an_operand_is_not_looked_at(kind):
    """A negative pixel times a positive weight is a negative part, which Captum favours; without biases."""
    block, rule, change = DIFFERENT[kind]
    model, rest = network(bias=False), ((CONVOLUTION, Epsilon(TINY)), (DENSE, Epsilon(TINY)))
    for signed in (False, True):
        x = images(signed)
        C, target = ours(model, x, (FIRST, block), *rest)
        theirs = captums(model, x, target, first=rule)
        assert (apart(C, theirs) < TOLERANCE) != signed
    C, _ = ours(model, x, (FIRST, with_captums_weights(change)), *rest)
    assert apart(C, theirs) < TOLERANCE


def test_gamma_of_a_negative_result_favours_positive_parts_all_the_same():
    """A negative logit: by the published rule its negative parts are favoured."""
    model, x = network(bias=False), images()
    logits, target = model(x).min(1)
    assert (logits < 0).all()
    C, _ = ours(model, x, (CONVOLUTION, Epsilon(TINY)), (DENSE, Gamma(0.25, TINY)), target=target)
    theirs = captums(model, x, target, dense=GammaRule(0.25))
    assert apart(C, theirs) > 0.01
    C, _ = ours(model, x, (CONVOLUTION, Epsilon(TINY)), (DENSE, with_captums_weights(favoured)), target=target)
    assert apart(C, theirs) < TOLERANCE


def test_what_a_bias_takes_is_lost_there():
    """Its delta is what the biases took; here it is a share of theirs, and nothing is missing."""
    model, x = network(), images()
    explanation = omenn_fx.transform(model, x, rules=composite("epsilon", "", (EVERY, Epsilon(TINY))), bias="none")(x)
    copied = rewrite.canonical(model, "captum")
    _, delta = LRP(copied).attribute(x.clone(), target=explanation.target, return_convergence_delta=True)
    torch.testing.assert_close(explanation.bias.total, delta.detach(), rtol=1e-5, atol=1e-6)
    assert delta.abs().min() > 1e-3
    carried = omenn_fx.transform(model, x, rules=composite("epsilon", "", (EVERY, Epsilon(TINY))))(x)
    torch.testing.assert_close(carried.C.sum((1, 2, 3)), carried.value)
