"""Pictures of image explanations: what each panel shows, and the numbers written beside it."""

import io
import re

import numpy as np
import pytest
import torch
from matplotlib._pylab_helpers import Gcf
from PIL import Image
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

import omenn_fx
from omenn_fx.cli.explain import app, table
from omenn_fx.visualize import (
    FINE,
    KINDS,
    OUTLIERS,
    PERCENTILE,
    Display,
    bias_share,
    colours,
    contrast_picture,
    number,
    overlay,
    overlay_picture,
    percent,
    picture,
    targets_picture,
)

AS_IT_IS = Display()


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


def printed(renderable) -> list[str]:
    """The lines of a table."""
    text = io.StringIO()
    Console(file=text, width=100).print(renderable)
    return [line.strip() for line in text.getvalue().splitlines()]


def panels(figure):
    """The axes that show an image, left to right."""
    return sorted((a for a in figure.axes if a.images), key=lambda a: a.get_position().x0)


def below(axes) -> str:
    """The second line of a panel's title, with an ASCII minus."""
    return axes.texts[0].get_text().replace("\N{MINUS SIGN}", "-")


def caption(figure) -> str:
    """All that is written outside of the panels, with ASCII signs."""
    lines = sorted((t.get_position()[::-1], t.get_text()) for t in figure.texts)
    return " ".join(text for _, text in reversed(lines)).replace("\N{MINUS SIGN}", "-")


def summed(values) -> np.ndarray:
    """[H, W]"""
    return values.double().sum(0).numpy()


def shown(axes) -> np.ndarray:
    return np.asarray(axes.images[0].get_array())


def assert_both_sums(axes, value) -> None:
    stated = re.fullmatch(r"sum = (\S+),  logit = (\S+)", below(axes)).groups()
    assert [float(s) for s in stated] == pytest.approx([float(value)] * 2, abs=2e-4)


def test_four_panels_show_the_maps_and_their_sums(x):
    explanation = omenn_fx.transform(network())(x, target=3)
    figure = picture(photograph(), explanation, row=1, display=AS_IT_IS)
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


def test_a_deployed_file_that_returns_c_alone(x, tmp_path):
    pytest.importorskip("onnxruntime")
    from omenn_fx.export import load

    explainer = omenn_fx.transform(network(), x)
    explainer.to_onnx(tmp_path / "net.onnx", x)
    explanation = load(tmp_path / "net.onnx")(x.numpy(), target=1)
    figure = explanation.plot(display=AS_IT_IS)
    assert [a.get_title() for a in panels(figure)] == ["input", "$C$"]
    np.testing.assert_allclose(shown(panels(figure)[1]), summed(explainer(x, target=1).C[0]), atol=1e-6)
    assert_both_sums(panels(figure)[1], explanation.value[0])
    assert "bias" not in caption(figure)
    with pytest.raises(ValueError, match="does not return them"):
        explanation.plot("bias")
    for part in ("C_w", "C_b"):
        with pytest.raises(AttributeError, match="returns C alone"):
            getattr(explanation, part)
    assert str(tuple(x.shape)) in repr(explanation)


def test_a_deployed_file_that_returns_c_without_biases(x, tmp_path):
    """Its map is C_w * X, and the biases that it returns by node make up the rest."""
    pytest.importorskip("onnxruntime")
    from omenn_fx.export import load

    explainer = omenn_fx.transform(network(), x, bias="none")
    explainer.to_onnx(tmp_path / "net.onnx", x, outputs=("C", "bias"))
    explanation, want = load(tmp_path / "net.onnx")(x, target=1), explainer(x, target=1)
    torch.testing.assert_close(explanation.sum, want.value)
    assert "biases (not carried to the input)" in caption(explanation.plot())
    explainer.to_onnx(tmp_path / "net.onnx", x, outputs=("C",))
    assert load(tmp_path / "net.onnx")(x, target=1).sum.isnan().all()  # the biases are not known


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
    with pytest.raises(ValueError, match="row=2 is out of range"):
        picture(photograph(), explanation, row=2)
    with pytest.raises(ValueError, match="the image is 16 × 16 and the explained input 16 × 20"):
        picture(photograph(16), explanation)
    with pytest.raises(ValueError, match=r"input='y': name one of the explained inputs, \w+"):
        picture(photograph(), explanation, input="y")
    with pytest.raises(ValueError, match=r"\(5,\)"):
        picture(np.zeros(5), explanation)


def test_without_an_image_the_explained_input_is_stretched(x):
    """To 0..1, in colours where it has three channels."""
    first = panels(picture(None, omenn_fx.transform(network())(x), row=1))[0]
    expected = ((x[1] - x[1].min()) / (x[1].max() - x[1].min())).permute(1, 2, 0)
    np.testing.assert_allclose(shown(first), expected, atol=1e-6)
    many = torch.randn(1, 5, 12, 12)
    assert shown(panels(picture(None, omenn_fx.transform(network(channels=5))(many)))[0]).shape == (12, 12)


def test_the_overlay_stands_beside_its_map(x):
    explanation = omenn_fx.transform(network())(x, target=1)
    figure = overlay_picture(photograph(), explanation, row=1, class_name="tabby", display=AS_IT_IS)
    _, plain, over = panels(figure)
    C = summed(explanation.C[1])
    np.testing.assert_array_equal(shown(plain), C)
    np.testing.assert_array_equal(shown(over), overlay(photograph(), C))
    assert_both_sums(plain, explanation.value[1])
    assert "tabby (class 1)" in caption(figure)


def test_several_targets_share_a_scale(x):
    explanation = omenn_fx.transform(network())(x, target=torch.tensor([[0, 1, 4]] * 2))
    names = ["cat", "dog", "$5 or $6"]
    figure = targets_picture(photograph(), explanation, row=1, class_name=names, display=AS_IT_IS)
    maps = panels(figure)[1:] if len({a.get_position().y0 for a in panels(figure)}) == 1 else []
    assert [a.get_title() for a in maps] == ["cat (class 0)", "dog (class 1)", "$5 or $6 (class 4)"]
    assert not maps[2].title.get_parse_math()
    for t, axes in enumerate(maps):
        np.testing.assert_array_equal(shown(axes), summed(explanation.C[1, t]))
        assert float(below(axes).partition("logit = ")[2]) == pytest.approx(float(explanation.value[1, t]), abs=1e-4)
    assert len({a.images[0].get_clim() for a in maps}) == 1
    with pytest.raises(ValueError, match="one name for each of the 3 targets"):
        targets_picture(photograph(), explanation, class_name=["cat", "dog"])


def test_more_targets_than_columns_go_into_rows(x):
    explanation = omenn_fx.transform(network())(x, target=torch.tensor([[0, 1, 2, 3, 4]] * 2))
    boxes = [a.get_position() for a in panels(targets_picture(photograph(), explanation))]
    assert len(boxes) == 6
    assert len({round(b.y0, 6) for b in boxes}) == 2
    assert min(b.y0 for b in boxes) > 0.05  # the caption is below


@pytest.mark.parametrize("bias", ["carrier", "none"])
def test_a_contrast_sums_to_the_difference_of_the_logits(x, bias):
    explanation = omenn_fx.transform(network(), bias=bias)(x, target=torch.tensor([[0, 1, 4]] * 2))
    figure = contrast_picture(photograph(), explanation, row=1, pair=(2, 0), display=AS_IT_IS)
    _, a, b, gap = panels(figure)
    np.testing.assert_array_equal(shown(gap), summed(explanation.C[1, 2].double() - explanation.C[1, 0].double()))
    assert a.images[0].get_clim() == b.images[0].get_clim() != gap.images[0].get_clim()
    difference = float(explanation.value[1, 2] - explanation.value[1, 0])
    if bias == "carrier":
        stated = re.fullmatch(r"sum = (\S+),  Δ logit = (\S+)", below(gap)).groups()
    else:
        assert "logit" not in below(gap)
        stated = re.search(r"\(not carried to the input\) = .*? = (\S+),  Δ logit = (\S+)", caption(figure)).groups()
    assert [float(s) for s in stated] == pytest.approx([difference] * 2, abs=2e-4)
    assert "class 4 rather than class 0" in caption(figure)


def test_a_contrast_needs_two_targets(x):
    with pytest.raises(ValueError, match=r"torch.tensor\(\[\[a, b\]\]\)"):
        contrast_picture(photograph(), omenn_fx.transform(network())(x))


class Pair(nn.Module):
    """Two images in."""

    def __init__(self):
        super().__init__()
        self.left, self.right = network(), network(channels=1)

    def forward(self, left, right):
        return self.left(left) + self.right(right)


@pytest.mark.parametrize("bias", ["carrier", "none"])
def test_of_several_inputs_one_is_named(x, bias):
    explanation = omenn_fx.transform(Pair().eval(), bias=bias)(x, torch.randn(2, 1, 20, 16), target=3)
    with pytest.raises(ValueError, match="name one of the explained inputs, left, right"):
        picture(photograph(), explanation)
    figure = picture(photograph(), explanation, row=1, input="right", display=AS_IT_IS)
    np.testing.assert_allclose(shown(panels(figure)[-1]), summed(explanation.inputs["right"].C[1]))
    assert not any("logit" in below(a) for a in panels(figure))  # alone it is not the logit
    terms, total, logit = re.search(r"sum of input 'left'.*? = (.*?) = (\S+),  logit = (\S+)", caption(figure)).groups()
    assert sum(float(t) for t in terms.split(" + ")) == pytest.approx(float(total), abs=2e-4)
    assert float(total) == pytest.approx(float(logit), abs=2e-4)
    assert float(logit) == pytest.approx(float(explanation.value[1]), abs=1e-4)


def test_what_is_explained_is_named(x):
    explainer = omenn_fx.transform(network())
    weights = torch.tensor([0.0, 1.0, -1.0, 0.0, 0.0])
    figure = picture(photograph(), explainer(x, target=weights))
    assert "weighted sum" in caption(figure)
    assert "value = " in below(panels(figure)[-1])
    grid = nn.Conv2d(3, 4, 3, padding=1).eval()
    figure = picture(photograph(), omenn_fx.transform(grid)(x, target=(3, 5, 7)))
    assert "output (3, 5, 7)" in caption(figure)


# Post-processing, for display only


@pytest.mark.parametrize("display", [Display(99), Display(80), Display(smooth=0.7), Display(95, 2), Display(smooth=30)])
@pytest.mark.parametrize("shape", [(20, 16), (1, 9), (64, 64)])
def test_display_keeps_the_sum(display, shape):
    values = np.random.default_rng(0).standard_normal(shape) ** 3
    drawn = display(values)
    assert drawn.sum() == pytest.approx(values.sum(), abs=1e-12 * np.abs(values).sum())
    assert display.smooth is None or np.abs(np.diff(drawn)).sum() < np.abs(np.diff(values)).sum()


def test_outliers_go_to_the_rest_of_their_sign():
    values = np.random.default_rng(0).standard_normal((30, 30)) ** 3
    values[0] = 0
    drawn = Display(percentile=90)(values)
    limit = np.percentile(np.abs(values), 90)
    for sign in (1, -1):
        part = np.clip(sign * values, 0, None)
        cut = np.minimum(part, limit)
        np.testing.assert_allclose(np.clip(sign * drawn, 0, None), cut * part.sum() / cut.sum(), rtol=1e-12)
    assert (drawn[0] == 0).all()
    few = np.zeros((10, 10))
    few[2, 2] = 1.0
    np.testing.assert_array_equal(Display(percentile=90)(few), few)


def test_smoothing_is_scipys_gaussian():
    ndimage = pytest.importorskip("scipy.ndimage")
    values = np.random.default_rng(0).standard_normal((24, 17))
    for sigma in (0.4, 1.5, 6.0):
        np.testing.assert_allclose(Display(smooth=sigma)(values), ndimage.gaussian_filter(values, sigma), atol=1e-12)


def test_display_changes_the_colours_and_not_the_numbers(x):
    explanation = omenn_fx.transform(network())(x)
    before = [t.clone() for t in (explanation.C_w, explanation.C_b, explanation.C)]
    display = Display(percentile=95, smooth=1.5)
    plain, drawn = (picture(photograph(), explanation, display=d) for d in (AS_IT_IS, display))
    assert [below(a) for a in panels(plain)] == [below(a) for a in panels(drawn)]
    for a, b in zip(panels(plain)[1:], panels(drawn)[1:], strict=True):
        np.testing.assert_array_equal(shown(b), display(shown(a)))
        assert shown(b).sum() == pytest.approx(shown(a).sum(), abs=1e-12)
    for a, b in zip(before, (explanation.C_w, explanation.C_b, explanation.C), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert "For display only: outliers cut at percentile 95" in caption(drawn)
    assert "Gaussian of 1.5 px" in caption(drawn)
    assert "display" not in caption(plain)


def test_the_default_is_that_of_the_benchmarks():
    """4 pixels at 224, a part of the shorter side at every other size."""
    assert Display.default((224, 224)) == Display(percentile=99, smooth=4)
    assert Display.default((20, 56)) == Display.default((56, 20)) == Display(percentile=OUTLIERS, smooth=20 * FINE)
    assert Display.default((1, 9))(np.eye(1, 9)).sum() == pytest.approx(1)


@pytest.mark.parametrize("kind", ["maps", "overlay", "targets", "contrast"])
def test_maps_are_drawn_by_the_default(kind):
    """And by Display() as they are; what is said of them is the same."""
    x = torch.randn(1, 3, 48, 56)
    several = kind in ("targets", "contrast")
    explanation = omenn_fx.transform(network())(x, target=torch.tensor([[0, 1]]) if several else 1)
    before = explanation.C.clone()
    usual, plain = explanation.plot(kind), explanation.plot(kind, display=AS_IT_IS)
    by_hand = Display(percentile=99, smooth=48 / 56)
    maps = [pair for pair in zip(panels(usual)[1:], panels(plain)[1:], strict=True) if shown(pair[0]).ndim == 2]
    assert len(maps) == {"maps": 3, "overlay": 1, "targets": 2, "contrast": 3}[kind]
    for drawn, itself in maps:
        np.testing.assert_array_equal(shown(drawn), by_hand(shown(itself)))
        assert np.abs(shown(drawn) - shown(itself)).max() > 0.1 * np.abs(shown(itself)).max()
        assert shown(drawn).sum() == pytest.approx(shown(itself).sum(), abs=1e-12)
        assert below(drawn) == below(itself)
    C = [summed(values) for values in (before[0] if several else before)]
    ours = C[0] - C[1] if kind == "contrast" else C[-1]
    np.testing.assert_allclose(shown(maps[-1][1]), ours, atol=1e-7)
    torch.testing.assert_close(explanation.C, before, rtol=0, atol=0)
    assert by_hand.caption in caption(usual)
    assert "smoothed by a Gaussian of 0.857 px" in by_hand.caption
    assert "For display only" not in caption(plain)


def test_an_overlay_has_the_colours_of_the_map_that_is_drawn(x):
    explanation = omenn_fx.transform(network())(x)
    _, drawn, over = panels(overlay_picture(photograph(), explanation))
    np.testing.assert_array_equal(shown(over), overlay(photograph(), shown(drawn)))


def test_the_command_line_draws_by_the_default(tmp_path):
    """And with --as-is the maps themselves, in the picture and on the page."""
    model = "nn.Sequential(nn.Conv2d(3, 2, 40), nn.Flatten())"
    (tmp_path / "net.py").write_text(f"from torch import nn\n\ndef one():\n    return {model}\n")
    Image.fromarray(photograph(40, 40)).save(tmp_path / "a.png")
    sizes, pages = {}, {}
    for name, options in (("usual", []), ("plain", ["--as-is"])):
        out = ["--out", str(tmp_path / name), "--report", str(tmp_path / f"{name}.html")]
        arguments = [f"{tmp_path / 'net.py'}:one", "--image", str(tmp_path / "a.png"), "--size", "40", *out, *options]
        result = CliRunner().invoke(app, ["explain", *arguments])
        assert result.exit_code == 0, result.output
        with Image.open(tmp_path / name / "a.png") as drawn:
            sizes[name] = drawn.size
        pages[name] = (tmp_path / f"{name}.html").read_text()
    assert Display.default((40, 40)).caption in pages["usual"]
    assert "For display only" not in pages["plain"]
    assert sizes["usual"][0] == sizes["plain"][0]
    assert sizes["usual"][1] > sizes["plain"][1]  # by the caption that says what was done


def test_display_out_of_range():
    for wrong in ({"percentile": 0}, {"percentile": 101}, {"smooth": 0}, {"smooth": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Display(**wrong)


# Pixels


def test_colours_are_symmetric_around_a_neutral_zero():
    values = np.array([[-5.0, -1.0, 0.0, 1.0, 5.0]])
    pixels = colours(values, scale=2.0).astype(int)
    assert pixels.shape == (1, 5, 4)
    assert (pixels[..., 3] == 255).all()
    blue, pale_blue, neutral, pale_red, red = pixels[0, :, :3]
    assert np.ptp(neutral) <= 2  # no hue
    assert min(neutral) > 240
    assert red[0] > red[2] + 60
    assert blue[2] > blue[0] + 60
    assert pale_red[0] > pale_red[2] > red[2]
    assert pale_blue[2] > pale_blue[0] > blue[0]
    np.testing.assert_array_equal(pixels, colours(values.clip(-2, 2), scale=2.0))
    noise = np.random.default_rng(0).standard_normal((40, 40))
    np.testing.assert_array_equal(colours(noise), colours(noise, np.percentile(np.abs(noise), PERCENTILE)))
    assert (colours(np.zeros((2, 3))) == [*neutral, 255]).all()


def test_an_overlay_shows_the_photograph_where_the_map_is_zero():
    image = photograph().astype(np.float64) / 255
    values = np.zeros((20, 16))
    values[3, 4], values[5, 6] = 2.0, -2.0
    pixels = overlay(image, values, scale=1.0).astype(int)
    assert pixels.shape == (20, 16, 3)
    untouched = pixels[values == 0]
    assert (np.ptp(untouched, 1) == 0).all()
    grey = image @ [0.299, 0.587, 0.114]
    assert np.corrcoef(untouched[:, 0], grey[values == 0])[0, 1] > 0.999
    assert pixels[3, 4, 0] > pixels[3, 4, 2] + 80
    assert pixels[5, 6, 2] > pixels[5, 6, 0] + 80
    np.testing.assert_array_equal(pixels, overlay(Image.fromarray(photograph()), values, scale=1.0))
    np.testing.assert_array_equal(pixels, overlay(torch.from_numpy(image).permute(2, 0, 1), values, scale=1.0))


def test_what_is_no_map_is_refused():
    with pytest.raises(ValueError, match="the image is 16 × 20 and the map 16 × 16"):
        overlay(photograph(), np.zeros((16, 16)))
    with pytest.raises(ValueError, match="sum over the channels first"):
        colours(np.zeros((3, 4, 4)))
    with pytest.raises(ValueError, match="finite"):
        colours(np.full((4, 4), np.nan))
    with pytest.raises(ValueError, match="positive"):
        colours(np.zeros((4, 4)), scale=0.0)


def test_the_guide_to_pictures_runs(tmp_path, monkeypatch):
    from test_readme import ROOT, run_blocks

    monkeypatch.chdir(tmp_path)
    path = ROOT / "docs" / "pictures.md"
    text = path.read_text(encoding="utf-8")
    session = run_blocks(path, text, 4)
    assert (tmp_path / "overlay.png").exists()
    assert (tmp_path / "review.svg").exists()
    assert "[PAD] × 2" in session["page"]
    listed = re.findall(r'^\| `"(\w+)"` \| `(\w+)`', text, re.M)
    assert listed == [(kind, function.__name__) for kind, function in KINDS.items()]


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
    assert np.isnan(bias_share(omenn_fx.transform(model)(x)))  # the value is 0


@pytest.mark.parametrize(("bias", "outputs", "share"), [
    (True, ("logits", "C"), "not known"), (True, ("logits", "C", "bias"), " %"), (False, ("logits", "C"), " 0.0 %"),
])  # fmt: skip
def test_the_bias_share_of_a_deployed_file(x, tmp_path, bias, outputs, share):
    """Biases that the file does not return are not known, which is not the same as none."""
    pytest.importorskip("onnxruntime")
    from omenn_fx.export import load

    explainer = omenn_fx.transform(network(bias=bias), x)
    explainer.to_onnx(tmp_path / "net.onnx", x, outputs=outputs, verify=False)
    explanation, want = load(tmp_path / "net.onnx")(x, target=1), explainer(x, target=1)
    assert explanation.bias.known == (share != "not known")
    expected = np.nan if share == "not known" else bias_share(want, 1)
    assert bias_share(explanation, 1) == pytest.approx(expected, rel=1e-4, nan_ok=True)
    assert explanation.bias.total.isnan().all() == (share == "not known")
    assert explanation.completeness_error.max() < 1e-6
    (explained,) = (row for row in printed(table(explanation, "x")) if row.startswith("1 "))
    assert explained.endswith(share)
