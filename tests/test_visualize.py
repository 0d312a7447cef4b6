"""The picture of an explanation: what each panel shows, and the numbers written above it."""

import numpy as np
import pytest
import torch
from matplotlib._pylab_helpers import Gcf
from PIL import Image
from torch import nn

import omenn_fx
from omenn_fx.visualize import PERCENTILE, bias_share, number, percent, picture


def network(bias: bool = True, channels: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, stride=2, padding=1, bias=bias),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5, bias=bias),
    ).eval()


@pytest.fixture
def x():
    return torch.randn(2, 3, 20, 16)


def photograph(height: int = 20, width: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def panels(figure):
    """The axes that show an image, left to right."""
    return sorted((a for a in figure.axes if a.images), key=lambda a: a.get_position().x0)


def below(axes) -> str:
    """The second line of a panel's title, with an ASCII minus."""
    return axes.texts[0].get_text().replace("\N{MINUS SIGN}", "-")


def test_four_panels_show_the_maps_and_their_sums(x):
    explanation = omenn_fx.transform(network())(x, target=3)
    figure = picture(photograph(), explanation, row=1)
    shown = panels(figure)
    assert [a.get_title() for a in shown] == ["input", "$C_w * X$", "$C_b$", "$C$"]
    maps = [m[1].double().sum(0).numpy() for m in (explanation.C_w * x, explanation.C_b, explanation.C)]
    for axes, values in zip(shown[1:], maps, strict=True):
        np.testing.assert_allclose(axes.images[0].get_array(), values, rtol=1e-12)
    sums = [float(below(a).removeprefix("sum = ").partition(",")[0]) for a in shown[1:]]
    np.testing.assert_allclose(sums, [m.sum() for m in maps], atol=1e-4)
    assert sums[0] + sums[1] == pytest.approx(sums[2], abs=2e-4)
    logit = float(below(shown[3]).partition("logit = ")[2])
    assert logit == pytest.approx(float(explanation.value[1]), abs=1e-4)
    assert logit == pytest.approx(sums[2], abs=2e-4)


def test_every_map_has_a_symmetric_scale_and_a_colour_bar(x):
    explanation = omenn_fx.transform(network())(x)
    figure = picture(photograph(), explanation)
    for axes in panels(figure)[1:]:
        low, high = axes.images[0].get_clim()
        assert low == -high
        assert high == pytest.approx(np.percentile(np.abs(np.asarray(axes.images[0].get_array())), PERCENTILE))
        assert axes.images[0].colorbar is not None
    assert any(f"{PERCENTILE}th percentile" in t.get_text() for t in figure.texts)


def test_writes_a_png_without_pyplot(x, tmp_path):
    explanation = omenn_fx.transform(network())(x, target=2)
    path = tmp_path / "p.png"
    figure = picture(photograph(), explanation, path=path, title="cat.png", class_name="tabby")
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.size == pytest.approx(figure.get_size_inches() * figure.dpi, abs=1)
        assert np.asarray(image.convert("L")).std() > 5  # something is drawn
    assert any(t.get_text() == "cat.png:  tabby (class 2)" for t in figure.texts)
    assert not Gcf.figs


def test_a_map_pixel_is_a_whole_number_of_picture_pixels():
    explanation = omenn_fx.transform(network())(torch.randn(1, 3, 32, 32))
    figure = picture(photograph(32, 32), explanation)
    width = panels(figure)[1].get_position().width * figure.get_size_inches()[0] * figure.dpi
    assert width / 32 == pytest.approx(round(width / 32), abs=1e-6)
    assert width >= 400


def test_without_carried_biases_the_picture_says_so(x):
    explanation = omenn_fx.transform(network(), bias="none")(x)
    figure = picture(photograph(), explanation)
    assert [a.get_title() for a in panels(figure)] == ["input", "$C_w * X$"]
    assert any("not carried" in t.get_text() for t in figure.texts)


def test_several_targets_take_a_pair(x):
    explanation = omenn_fx.transform(network())(x, target=torch.tensor([[0, 1], [2, 3]]))
    figure = picture(photograph(), explanation, row=(1, 0))
    assert any(t.get_text() == "class 2" for t in figure.texts)
    expected = (explanation.C_w[1, 0] * x[1]).sum().item()
    assert below(panels(figure)[1]) == f"sum = {number(expected)}"
    with pytest.raises(ValueError, match=r"\(row, target\)"):
        picture(photograph(), explanation, row=0)


def test_a_map_of_zeros_is_drawn(x):
    figure = picture(photograph(), omenn_fx.transform(network(bias=False))(x))
    assert below(panels(figure)[2]) == "sum = 0.0000"


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (1000, 500)])
def test_any_proportions(shape):
    explanation = omenn_fx.transform(network())(torch.randn(1, 3, *shape))
    figure = picture(photograph(*shape), explanation)
    for axes in panels(figure):
        box = axes.get_position()
        assert 0 <= box.x0 < box.x1 <= 1
        assert 0 <= box.y0 < box.y1 <= 1
    assert max(figure.get_size_inches()) < 20


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(photograph()),
        torch.rand(3, 20, 16),
        torch.from_numpy(photograph()).permute(2, 0, 1),
        np.zeros((20, 16)),
        torch.zeros(1, 20, 16),
    ],
    ids=["PIL", "float tensor", "uint8 tensor", "grey array", "grey tensor"],
)
def test_kinds_of_image(image, x):
    figure = picture(image, omenn_fx.transform(network())(x))
    assert panels(figure)[0].images[0].get_array().shape[:2] == (20, 16)


def test_grey_input():
    explanation = omenn_fx.transform(network(channels=1))(torch.randn(1, 1, 12, 12))
    assert len(panels(picture(np.zeros((12, 12)), explanation))) == 4


def test_low_precision_is_drawn(x):
    explanation = omenn_fx.transform(network().bfloat16())(x.bfloat16())
    assert len(panels(picture(photograph(), explanation))) == 4


def test_errors(x):
    flat = omenn_fx.transform(nn.Linear(6, 2).eval())(torch.randn(1, 6))
    with pytest.raises(ValueError, match=r"shape \(6,\)"):
        picture(photograph(), flat)
    explanation = omenn_fx.transform(network())(x)
    with pytest.raises(ValueError, match="give an int"):
        picture(photograph(), explanation, row=(0, 1))
    with pytest.raises(ValueError, match=r"\(5,\)"):
        picture(np.zeros(5), explanation)


def test_numbers():
    assert [number(v) for v in (0.0, 1.5, -12.34567, 1e-5, 2e6)] == [
        "0.0000",
        "1.5000",
        "-12.3457",
        "1.000e-05",
        "2.000e+06",
    ]
    assert [percent(v) for v in (0.5, float("nan"))] == ["50.0 %", "-"]


def test_bias_share(x):
    model = network()
    explanation = omenn_fx.transform(model)(x)
    assert bias_share(explanation, 1) == pytest.approx(float(explanation.bias.total[1] / explanation.value[1]))
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert bias_share(omenn_fx.transform(model)(x)) != bias_share(explanation)  # NaN: the value is 0
