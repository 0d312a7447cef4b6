"""The benchmark of explanations: its metrics against Quantus, its methods against their own authors' ways, its file."""

import json
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

pytest.importorskip("captum")
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import faithfulness
from judge import bootstrap, metrics, rewrite, sanity
from judge.methods import METHODS, NotApplicable
from judge.models import Judged, randomised


class Net(nn.Module):
    """What peers stumble over: functional, reused and in-place activations, batch norm, a residual addition."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.act, self.linear = nn.ReLU(inplace=True), nn.Linear(8, 4)
        with torch.no_grad():
            for bn in (self.bn1, self.bn2):
                bn.running_mean.normal_(0, 0.3)
                bn.running_var.uniform_(0.5, 2)
                bn.bias.normal_(0, 0.3)

    def forward(self, x):
        x = self.act(self.bn1(self.conv1(x)))
        x = F.relu(self.act(self.bn2(self.conv2(x))) + x)
        return self.linear(x.mean((2, 3)))


def judged(model=None, images=6, size=16, channels=3):
    x = torch.randn(images, channels, size, size)
    return Judged((model or Net()).eval(), x, torch.zeros(images, dtype=torch.int64), patch=4)


def scene_of(given):
    return metrics.scene(given, torch.no_grad()(given.model))


# Metrics ------------------------------------------------------------------------------------------------------------


def test_faithfulness_correlation_is_that_of_quantus(monkeypatch):
    quantus = pytest.importorskip("quantus")
    scene = scene_of(judged())
    maps = METHODS["captum InputXGradient"].make(scene.judged.model)(scene.judged.x, scene.target)
    probe = metrics.probes(4)["elements"]
    for i in range(3):
        drawn = iter(probe.subsets(i, maps[i].numel()).numpy())
        monkeypatch.setattr(np.random, "choice", lambda n, size, replace, drawn=drawn: next(drawn))
        theirs = quantus.FaithfulnessCorrelation(disable_warnings=True, return_aggregate=False)(
            model=scene.judged.model,
            x_batch=scene.judged.x[i : i + 1].numpy(),
            y_batch=scene.target[i : i + 1].numpy(),
            a_batch=maps[i : i + 1].numpy(),
            channel_first=True,
        )
        ours = metrics.scores(scene, i, maps[i])["faithfulness correlation, elements"]
        assert ours == pytest.approx(theirs[0], abs=1e-4)


def test_pixel_flipping_is_that_of_quantus():
    quantus = pytest.importorskip("quantus")
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 3)).eval()
    scene = scene_of(judged(model, images=2, channels=1))
    maps = torch.randn(2, 1, 16, 16)
    counts = metrics.node_counts(256, metrics.PIXEL_NODES)
    scale = float((scene.full - scene.empty).mean())
    for i, x in enumerate(scene.judged.x):
        # Its "mean" is that of what is left after each step; the image's own is a number.
        flipping = quantus.PixelFlipping(features_in_step=1, perturb_baseline=float(x.mean()), disable_warnings=True)
        curve = flipping(
            model=model,
            x_batch=x[None].numpy(),
            y_batch=scene.target[i : i + 1].numpy(),
            a_batch=maps[i : i + 1].numpy(),
            channel_first=True,
            softmax=False,
        )[0]
        theirs = torch.cat([scene.full[i : i + 1], torch.tensor(curve)])[counts]
        expected = (metrics.area(theirs, counts) - float(scene.empty[i])) / scale
        assert metrics.scores(scene, i, maps[i])["pixel flipping"] == pytest.approx(expected, abs=1e-4)


def test_a_true_map_is_at_the_top_and_noise_near_zero():
    """In a linear model each pixel's part of what replacing does is known."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3)).eval()
    scene = scene_of(judged(model, images=30))
    x = scene.judged.x
    weights = model[1].weight[scene.target].view_as(x).detach()
    true = weights * (x - x.mean((2, 3), keepdim=True))
    noise = METHODS["random"].make(model)(x, scene.target)
    assert noise.shape == (30, 1, 16, 16)
    best, random, worst = (
        {k: [metrics.scores(scene, i, m[i])[k] for i in range(30)] for k in metrics.scores(scene, 0, m[0])}
        for m in (true, noise, -true)
    )
    for variant in ("pixels", "patches"):
        assert min(best[f"faithfulness correlation, {variant}"]) > 0.999
        assert max(worst[f"faithfulness correlation, {variant}"]) < -0.999
    for score in (k for k in random if "correlation" in k or k in ("symmetric relevance gain", "MoRF-LeRF gap")):
        assert bootstrap.interval(random[score]).low < 0.02, score
        assert bootstrap.interval(random[score]).high > -0.02, score
        assert np.mean(best[score]) > 3 * abs(np.mean(random[score])), score
    gains = [best, random, worst]
    assert sorted(gains, key=lambda g: -np.mean(g["symmetric relevance gain"])) == gains
    assert sorted(gains, key=lambda g: np.mean(g["deletion"])) == gains


def test_cells_and_replacement():
    values = torch.arange(3 * 4 * 4.0).view(3, 4, 4)
    assert metrics.cell_sums(values, 2).tolist() == [
        values[:, a : a + 2, b : b + 2].sum().item() for a in (0, 2) for b in (0, 2)
    ]
    changed = metrics.replaced(values, torch.tensor([[True, False, False, False]]), 2, metrics.mean_colour(values))[0]
    torch.testing.assert_close(changed[:, :2, :2], metrics.mean_colour(values).expand(3, 2, 2))
    torch.testing.assert_close(changed[:, 2:], values[:, 2:])
    torch.testing.assert_close(changed[:, :2, 2:], values[:, :2, 2:])


def test_a_map_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite"):
        metrics.scores(scene_of(judged(images=1)), 0, torch.full((3, 16, 16), torch.nan))


def test_bootstrap():
    values = np.random.default_rng(1).normal(3, 2, 400).tolist()
    found = bootstrap.interval(values)
    half = 1.96 * np.std(values) / 20
    assert (found.low, found.high) == pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=0.02)
    paired = bootstrap.difference([v + 1 for v in values], values)
    assert (paired.low, paired.mean, paired.high) == pytest.approx((1, 1, 1))


def test_sensitivity_and_randomisation():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(768, 3)).eval()
    x, target = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    assert sanity.max_sensitivity(METHODS["captum Saliency"].make(linear), x, target) == pytest.approx([0] * 4)
    changed = sanity.max_sensitivity(METHODS["captum InputXGradient"].make(linear), x, target)
    assert all(0 < c < 0.5 for c in changed)
    other = randomised(linear)
    assert not torch.equal(other[1].weight, linear[1].weight)
    assert torch.equal(other[1].weight.flatten().sort().values, linear[1].weight.flatten().sort().values)
    maps = [METHODS["omenn none"].make(m)(x, target) for m in (linear, linear, other)]
    assert sanity.rank_correlations(maps[0], maps[1])["signed"] == pytest.approx([1] * 4)
    assert max(map(abs, sanity.rank_correlations(maps[0], maps[2])["signed"])) < 0.3
    assert sanity.rank_correlations(maps[0], 0 * maps[1])["absolute"] == [0] * 4


# Methods ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_on_a_network_with_functional_parts(name):
    if name.startswith("zennit"):
        pytest.importorskip("zennit")
    model, x, target = Net().eval(), torch.randn(3, 3, 16, 16), torch.tensor([0, 1, 2])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    attribute = METHODS[name].make(model)
    maps = attribute(x, target)
    assert maps.shape in (x.shape, (3, 1, 16, 16))
    assert maps.isfinite().all()
    assert not maps.requires_grad
    torch.testing.assert_close(attribute(x, target), maps)  # the same random numbers
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())


def test_display_keeps_the_sum():
    model, x, target = Net().eval(), torch.randn(2, 3, 16, 16), torch.tensor([0, 1])
    plain, drawn = (METHODS[k].make(model)(x, target) for k in ("omenn", "omenn display"))
    torch.testing.assert_close(drawn.sum((1, 2, 3)), plain.sum((1, 2, 3)), rtol=1e-4, atol=1e-5)
    assert drawn.std() < plain.sum(1).std()


def test_the_rewritten_copy_computes_the_same():
    model, x = Net().eval(), torch.randn(2, 3, 16, 16)
    for copy in (rewrite.hookable(model), rewrite.folded(rewrite.hookable(model))):
        torch.testing.assert_close(copy(x), model(x))
        relus = [m for m in copy.modules() if isinstance(m, nn.ReLU)]
        assert len(relus) == 3
        assert not any(m.inplace for m in relus)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in copy.modules())


def test_deeplift_of_a_functional_network_sums_to_the_difference():
    """Captum's DeepLift on the model itself passes functional activations with the plain gradient."""
    model, x, target = Net().eval(), torch.randn(2, 3, 16, 16), torch.tensor([0, 1])
    with torch.no_grad():
        expected = (model(x) - model(0 * x))[range(2), target]
    sums = METHODS["captum DeepLift"].make(model)(x, target).sum((1, 2, 3))
    torch.testing.assert_close(sums, expected, rtol=1e-3, atol=1e-4)


def test_lrp_of_a_residual_network_is_input_x_gradient():
    """Epsilon alone, on ReLU networks (Ancona et al. 2018); a functional addition would double the relevance."""
    model, x, target = Net().eval(), torch.randn(2, 3, 16, 16), torch.tensor([0, 1])
    maps = [METHODS[name].make(model)(x, target) for name in ("captum LRP", "captum InputXGradient")]
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-3, atol=1e-3 * float(maps[1].abs().max()))


def test_lrp_passes_a_flatten_module():
    """For which Captum has no rule, so that its LRP alone raises."""
    from captum.attr import LRP

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(7), nn.Flatten(1, 3), nn.Linear(16, 3)).eval()
    x, target = torch.randn(2, 3, 16, 16), torch.tensor([0, 1])
    with pytest.raises(TypeError, match=r"Flatten.* has no rule"):
        LRP(deepcopy(model)).attribute(x, target)  # it leaves its rules behind
    maps = [METHODS[name].make(model)(x, target) for name in ("captum LRP", "captum InputXGradient")]
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-3, atol=1e-3 * float(maps[1].abs().max()))


def test_lrp_is_not_asked_for_shortcuts_by_functions():
    class Shortcut(Net):
        def forward(self, x):
            x = self.act(self.conv1(x))
            return self.linear((self.conv2(x) + x.flip(1)[:, ::1]).mean((2, 3)))

    class Sliced(Net):
        def forward(self, x):
            x = self.act(self.conv1(x))
            return self.linear((self.conv2(x) + F.pad(x[:, ::2], (0, 0, 0, 0, 2, 2))).mean((2, 3)))

    with pytest.raises(NotApplicable, match="no rule for flip"):
        METHODS["captum LRP"].make(Shortcut().eval())
    with pytest.raises(NotApplicable, match="both a layer and a function"):
        METHODS["captum LRP"].make(Sliced().eval())


def test_zennit_as_with_its_own_canonizer():
    pytest.importorskip("zennit")
    torchvision = pytest.importorskip("torchvision")
    from zennit.attribution import Gradient
    from zennit.composites import EpsilonPlusFlat
    from zennit.torchvision import ResNetCanonizer

    model = torchvision.models.resnet18(num_classes=5).eval()
    for bn in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(bn.running_var, 0.5, 2)
        nn.init.normal_(bn.running_mean, 0, 0.1)
    x, target = torch.randn(2, 3, 64, 64), torch.tensor([1, 3])
    with Gradient(model=model, composite=EpsilonPlusFlat(canonizers=[ResNetCanonizer()])) as attributor:
        expected = attributor(x.clone(), torch.eye(5)[target])[1].detach()
    found = METHODS["zennit EpsilonPlusFlat"].make(model)(x, target)
    assert (found - expected).abs().max() < 1e-2 * expected.abs().max()  # its merged norms keep their eps


def test_what_a_method_has_no_rule_for_is_said():
    attention = nn.Sequential(
        nn.Conv2d(3, 4, 4, 4), nn.ReLU(), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(64, 3)
    ).eval()
    for name in ("captum DeepLift", "captum LRP", "captum GuidedBackprop", "zennit EpsilonPlusFlat"):
        with pytest.raises(NotApplicable, match="no rule for GroupNorm"):
            METHODS[name].make(attention)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    attribute = METHODS["captum LayerGradCam"].make(flat)
    with pytest.raises(NotApplicable, match="feature map"):
        attribute(torch.randn(1, 3, 16, 16), torch.tensor([0]))


# The command --------------------------------------------------------------------------------------------------------


def test_a_run_writes_goes_on_and_shows_the_best_first(tmp_path, monkeypatch):
    given = judged(images=4)
    monkeypatch.setattr(faithfulness, "MODELS", {"net": lambda images: given})
    monkeypatch.setattr(faithfulness, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(faithfulness, "forward", lambda model, x: torch.no_grad()(model))
    out, console = tmp_path / "result.json", Console(width=200, record=True, quiet=False)
    names = ["omenn", "random", "captum Occlusion"]
    faithfulness.run(["net"], names[:2], 4, "cpu", out, False, console)
    first = json.loads(out.read_text())
    asked = []
    one = faithfulness.judge
    monkeypatch.setattr(faithfulness, "judge", lambda *a: asked.append(a[-1]) or one(*a))
    faithfulness.run(["net"], names, 4, "cpu", out, False, console)
    results = faithfulness.read(out)
    assert asked == ["net: captum Occlusion"]
    rows = results["models"]["net"]["methods"]
    assert list(rows) == names
    assert rows["omenn"] == first["models"]["net"]["methods"]["omenn"]
    assert all(len(v) == 4 for k, v in rows["omenn"]["scores"].items())
    table = faithfulness.table_of("net", results["models"]["net"])
    gains = [float(str(cell).split()[0]) for cell in table.columns[1].cells]
    assert gains == sorted(gains, reverse=True)
    held_out = faithfulness.held_out_table(results)
    cells = dict(zip(held_out.columns[0].cells, held_out.columns[1].cells, strict=True))
    half = rows["omenn"]["scores"][faithfulness.ORDER][1::2]
    assert cells["omenn"].startswith(f"{sum(half) / 2:.3f} ")
    assert cells["captum LRP"] == "-"
    faithfulness.show(results, console)
    assert "rank correlation with shuffled weights" in console.export_text()


def test_a_peer_that_fails_is_shown_and_tried_again(tmp_path):
    def broken(x, target):
        raise RuntimeError("a peer's own\nerror")

    scene = scene_of(judged(images=1))
    method = faithfulness.Method(lambda model: broken, "nobody")
    row = faithfulness.outcome(scene, method, faithfulness.Progress(disable=True), "broken")
    assert row == {"failed": "RuntimeError: a peer's own"}
    assert not faithfulness.finished(row, 1)
    assert faithfulness.finished({"not applicable": "why"}, 1)
