"""Pictures of tokens and of biases: bars and coloured text, and that they sum to what is explained."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from matplotlib._pylab_helpers import Gcf
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyBboxPatch, Rectangle
from torch import nn

import omenn_fx
from omenn_fx.visualize import KINDS, bias_bars, layer_bars, plot, token_bars, token_html, token_text

TOKENS = ["[CLS]", "a", "##b", "$5", "<&>", "[SEP]", "[PAD]", "[PAD]", "[PAD]"]
SHOWN = [*TOKENS[:6], "[PAD] × 3"]


class Reader(nn.Module):
    """Ids in, through embeddings and a layer with biases, mean over the tokens."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.mixer = nn.Sequential(nn.Linear(9, 9), nn.ReLU())
        self.head = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3))

    def forward(self, ids):
        return self.head(self.mixer(self.embed(ids).mT).mean(-1))


@pytest.fixture
def explainer():
    return omenn_fx.transform(Reader().eval(), torch.arange(18).reshape(2, 9))


@pytest.fixture
def explanation(explainer):
    return explainer(torch.arange(18).reshape(2, 9), target=1)


def columns(figure):
    """The lengths of the bars of each column, left to right."""
    axes = sorted((a for a in figure.axes if a.patches), key=lambda a: a.get_position().x0)
    return [np.array([p.get_width() for p in a.patches if isinstance(p, Rectangle)]) for a in axes]


def texts(figure) -> list[str]:
    return [t.get_text().replace("\N{MINUS SIGN}", "-") for t in figure.texts]


def labels(figure) -> list[str]:
    """Those of the bars, from the top."""
    aligned = [t for t in figure.texts if t.get_ha() == "right" and t.get_fontsize() == 8.5]
    return [t.get_text() for t in sorted(aligned, key=lambda t: -t.get_position()[1])]


def folded(values) -> np.ndarray:
    """Of 9 positions [9], the last three together."""
    values = values.double().numpy()
    return np.array([*values[:6], values[6:].sum()])


# Tokens


def test_a_bar_for_each_token(explanation):
    figure = token_bars(TOKENS, explanation, row=1)
    (lengths,) = columns(figure)
    assert labels(figure) == SHOWN
    np.testing.assert_allclose(lengths, folded(explanation.C[1].sum(-1)), rtol=1e-5, atol=1e-8)
    assert lengths.sum() == pytest.approx(float(explanation.value[1]), rel=1e-5)
    stated = re.search(r"sum\(C\) = (\S+),  logit = (\S+)", " ".join(texts(figure))).groups()
    assert [float(s) for s in stated] == pytest.approx([float(explanation.value[1])] * 2, abs=1e-4)
    ticks = [s[0, 0] for c in figure.axes[0].collections for s in c.get_segments() if s[0, 0] == s[1, 0]]
    product = explanation.C_w[1] * explanation.X[1]
    np.testing.assert_allclose(ticks, folded(product.sum(-1)), rtol=1e-5, atol=1e-8)


def test_bars_are_red_above_zero_and_blue_below(explanation):
    for bar in token_bars(TOKENS, explanation).axes[0].patches:
        red, _, blue = to_rgb(bar.get_facecolor())
        assert (red > blue) == (bar.get_width() > 0)


def test_the_numbers_beside_the_bars_are_theirs(explanation):
    figure = token_bars(TOKENS, explanation)
    beside = [t for t in figure.texts if t.get_ha() == "right" and t.get_fontsize() == 8 and t.get_va() != "baseline"]
    numbers = [float(t.get_text().replace("\N{MINUS SIGN}", "-")) for t in beside]
    np.testing.assert_allclose(numbers, columns(figure)[0], atol=1e-3 * np.abs(columns(figure)[0]).max())


def test_targets_stand_side_by_side_at_one_scale(explainer):
    explanation = explainer(torch.arange(18).reshape(2, 9), target=torch.tensor([[0, 1, 2]] * 2))
    figure = token_bars(TOKENS, explanation, row=1, class_name=["x", "y", "z"])
    for t, lengths in enumerate(columns(figure)):
        np.testing.assert_allclose(lengths, folded(explanation.C[1, t].sum(-1)), rtol=1e-5, atol=1e-8)
    assert len({a.get_xlim() for a in figure.axes}) == 1
    assert {"x (class 0)", "y (class 1)", "z (class 2)"} <= set(texts(figure))
    assert len(columns(token_bars(TOKENS, explanation, row=(1, 2)))) == 1


def test_of_many_tokens_the_smallest_share_a_bar(explanation):
    figure = token_bars(None, explanation, most=5)
    (lengths,) = columns(figure)
    values = explanation.C[0].sum(-1).double().numpy()
    largest = sorted(np.argsort(-np.abs(values))[:4])
    assert labels(figure) == [*map(str, largest), "the other 5 positions"]
    np.testing.assert_allclose(lengths[:4], values[largest], rtol=1e-5)
    assert lengths.sum() == pytest.approx(values.sum(), rel=1e-5)
    with pytest.raises(ValueError, match="most=1"):
        token_bars(None, explanation, most=1)


def test_values_without_an_embedding_have_bars():
    model, x = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.randn(2, 5)
    explanation = omenn_fx.transform(model, bias="none")(x)
    figure = token_bars(["age", "height", "weight", "sex", "dose"], explanation, row=1)
    np.testing.assert_allclose(columns(figure)[0], explanation.C[1], rtol=1e-5, atol=1e-8)
    assert "C_w * X of each value; red raises the logit, blue lowers it." in texts(figure)
    assert any("biases (not carried to the input)" in t for t in texts(figure))


def test_a_map_of_zeros_has_bars(explanation):
    with torch.no_grad():
        model = Reader().eval()
        for p in model.parameters():
            p.zero_()
    assert (columns(token_bars(TOKENS, omenn_fx.transform(model)(torch.zeros(1, 9, dtype=torch.long))))[0] == 0).all()


@pytest.mark.parametrize("draw", [token_bars, token_text, token_html])
def test_tokens_that_do_not_fit(draw, explanation):
    with pytest.raises(ValueError, match="7 tokens for 9 positions"):
        draw(TOKENS[1:-1], explanation)
    image = omenn_fx.transform(nn.Conv2d(3, 4, 3).eval())(torch.randn(1, 3, 5, 5), target=(0, 0, 0))
    with pytest.raises(ValueError, match=r"shape \(3, 5, 5\): tokens need"):
        draw(None, image)
    with pytest.raises(ValueError, match="out of range"):
        draw(TOKENS, explanation, row=2)


def test_a_deployed_reader(explainer, explanation, tmp_path):
    pytest.importorskip("onnxruntime")
    from omenn_fx.export import load

    ids = torch.arange(18).reshape(2, 9)
    explainer.to_onnx(tmp_path / "reader.onnx", ids)
    figure = load(tmp_path / "reader.onnx")(ids.numpy(), target=1).plot(tokens=TOKENS, row=1)
    np.testing.assert_allclose(columns(figure)[0], columns(token_bars(TOKENS, explanation, row=1))[0], atol=1e-6)
    assert not any("tick" in t for t in texts(figure))  # C_w * X is not known


def test_text_in_a_figure(explanation, tmp_path):
    figure = token_text(TOKENS, explanation, path=tmp_path / "text.svg")
    assert (tmp_path / "text.svg").stat().st_size > 1000
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.texts] == ["[CLS]", "a", "b", "$5", "<&>", "[SEP]", "[PAD] × 3"]
    values = folded(explanation.C[0].sum(-1))
    boxes = [p for p in axes.patches if isinstance(p, FancyBboxPatch)]
    for box, value in zip(boxes, values, strict=True):
        red, _, blue = to_rgb(box.get_facecolor())
        assert abs(value) < 0.02 * np.abs(values).max() or (red > blue) == (value > 0)
    assert boxes[2].get_x() - boxes[1].get_x() - boxes[1].get_width() < 0.1  # ##b continues a


def test_long_text_is_wrapped_inside_of_the_page():
    model = nn.Sequential(nn.Linear(300, 2)).eval()
    figure = token_text([f"word{i}" for i in range(300)], omenn_fx.transform(model)(torch.randn(1, 300)))
    width, height = figure.get_size_inches()
    for box in figure.axes[0].patches:
        assert 0.1 < box.get_x() < box.get_x() + box.get_width() < width - 0.1
        assert 0.4 < box.get_y() < height - 0.4
    assert len({box.get_y() for box in figure.axes[0].patches}) > 20


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["[CLS]", "play", "##ing", "!", "[SEP]"], "[CLS] playing ! [SEP]"),
        (["<s>", "▁Hel", "lo", "▁world", "</s>"], "<s> Hello world </s>"),
        (["Hel", "lo", "Ġwor", "ld", "."], "Hello world."),
    ],
)
def test_words_are_joined_as_their_tokenizer_splits_them(tokens, text):
    explanation = omenn_fx.transform(nn.Linear(5, 2).eval())(torch.randn(1, 5))
    assert parsed(token_html(tokens, explanation)).text == text


def test_blank_tokens_are_seen():
    explanation = omenn_fx.transform(nn.Linear(5, 2).eval())(torch.randn(1, 5))
    figure = token_bars(["a", "\n", " ", "", "\n\n"], explanation)
    assert labels(figure) == ["a", "↵", "␣", "␣", "↵↵"]
    assert token_text(["\t", "\n", " ", "", "Ġ"], explanation).axes[0].texts[-1].get_text() == "␣"


class Spans(HTMLParser):
    def __init__(self):
        super().__init__()
        self.titles, self.text, self.caption, self.open = [], "", "", []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "span":
            self.titles.append(dict(attrs)["title"].replace("\N{MINUS SIGN}", "-"))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "figcaption" in self.open:
            self.caption += data
        else:
            self.text += data


def parsed(page: str) -> Spans:
    spans = Spans()
    spans.feed(page)
    spans.close()
    assert not spans.open
    return spans


def test_html(explanation):
    spans = parsed(token_html(TOKENS, explanation, row=1, class_name="<good>", title="review & co"))
    assert spans.text == "[CLS] ab $5 <&> [SEP] [PAD] × 3"
    assert [t.rpartition(": ")[0] for t in spans.titles] == SHOWN
    numbers = [float(t.rpartition(": ")[2]) for t in spans.titles]
    assert sum(numbers) == pytest.approx(float(explanation.value[1]), abs=1e-3)
    assert "review & co:  <good> (class 1). sum(C) = " in spans.caption


# Biases


def test_bias_bars_sum_to_the_total(explanation):
    figure = bias_bars(explanation, row=1)
    (lengths,) = columns(figure)
    expected = {name: float(share[1]) for name, share in explanation.bias.items()}
    assert dict(zip(labels(figure), lengths, strict=True)) == pytest.approx(expected, rel=1e-5)
    assert (np.diff(np.abs(lengths)) <= 0).all()
    assert len(lengths) >= 3
    stated = re.search(
        r"bars sum to (\S+),  bias.total = (\S+): (\S+) % of the logit", " ".join(texts(figure))
    ).groups()
    total = float(explanation.bias.total[1])
    assert float(stated[0]) == pytest.approx(total, abs=1e-4)
    assert float(stated[1]) == pytest.approx(total, abs=1e-4)
    assert float(stated[2]) == pytest.approx(100 * total / float(explanation.value[1]), abs=0.06)


def test_small_biases_share_a_bar(explanation):
    (all_of_them,), figure = columns(bias_bars(explanation)), bias_bars(explanation, most=2)
    (lengths,) = columns(figure)
    assert labels(figure)[1] == f"the other {len(all_of_them) - 1} nodes"
    np.testing.assert_allclose(lengths, [all_of_them[0], all_of_them[1:].sum()])


def test_layers_are_module_paths_in_order(explainer, explanation):
    modules = {node.name: node.module for node in explainer.nodes}
    figure = layer_bars(explanation, explainer.nodes, depth=1)
    assert labels(figure) == ["mixer", "head"]
    for layer, length in zip(labels(figure), columns(figure)[0], strict=True):
        shares = [float(v[0]) for n, v in explanation.bias.items() if modules[n].split(".")[0] == layer]
        assert length == pytest.approx(sum(shares), rel=1e-5)
    assert columns(figure)[0].sum() == pytest.approx(float(explanation.bias.total[0]), rel=1e-5)
    deep = layer_bars(explanation, explainer.nodes)  # as deep as there is room
    assert labels(deep)[0] == "mixer.0"
    assert set(labels(deep)[1:]) == {"head.0", "head.1"}
    assert labels(layer_bars(explanation, explainer.nodes, most=2)) == ["mixer", "head"]


def test_biases_that_cannot_be_drawn(explainer, explanation):
    unbiased = omenn_fx.transform(nn.Linear(4, 2, bias=False).eval())(torch.randn(1, 4))
    with pytest.raises(ValueError, match="no biases by node"):
        bias_bars(unbiased)
    with pytest.raises(ValueError, match="give the nodes of the explainer that made this explanation"):
        layer_bars(explanation, explainer.nodes[:3])
    with pytest.raises(ValueError, match="depth=0"):
        layer_bars(explanation, explainer.nodes, depth=0)
    with pytest.raises(ValueError, match="out of range"):
        bias_bars(explanation, row=7)


def test_biases_of_several_targets(explainer):
    explanation = explainer(torch.arange(18).reshape(2, 9), target=torch.tensor([[0, 2]] * 2))
    for figure in (bias_bars(explanation, row=1), layer_bars(explanation, explainer.nodes, row=1)):
        np.testing.assert_allclose([c.sum() for c in columns(figure)], explanation.bias.total[1], rtol=1e-5)


# explanation.plot


def test_plot_draws_what_fits(explainer, explanation):
    def first(figure):
        return [a.get_title() for a in figure.axes if a.images]

    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)).eval()
    x = torch.randn(2, 1, 8, 8)
    image, pair = omenn_fx.transform(net)(x), omenn_fx.transform(net)(x, target=torch.tensor([[0, 1]] * 2))
    assert first(image.plot()) == ["input", "$C_w * X$", "$C_b$", "$C$"]
    assert first(pair.plot()) == ["input", "class 0", "class 1"]
    assert first(pair.plot(row=(1, 0))) == ["input", "$C_w * X$", "$C_b$", "$C$"]
    assert first(pair.plot("contrast", row=1)) == ["input", "class 0", "class 1", "difference"]
    assert first(image.plot("overlay", row=1, image=np.zeros((8, 8)))) == ["input", "$C$", "$C$"]
    assert labels(explanation.plot()) == [str(i) for i in range(9)]
    assert labels(explanation.plot(tokens=TOKENS)) == SHOWN
    assert explanation.plot("text", tokens=TOKENS).axes[0].texts
    assert len(columns(explanation.plot("bias"))) == 1
    assert labels(explanation.plot("layers", nodes=explainer.nodes, depth=1)) == ["mixer", "head"]
    grey = omenn_fx.transform(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval())(x[:, 0])
    assert len(first(grey.plot(image=np.zeros((8, 8))))) == 4  # [H, W] is an image where there is one
    assert not first(grey.plot())
    assert plot(image, row=1).axes
    assert not Gcf.figs


def test_plot_of_what_has_no_picture(explanation):
    with pytest.raises(ValueError, match=f"a picture is one of {', '.join(KINDS)}"):
        explanation.plot("map")
    video = omenn_fx.transform(nn.Conv3d(2, 3, 3).eval())(torch.randn(1, 2, 4, 5, 5), target=(0, 0, 0, 0))
    with pytest.raises(ValueError, match=r"shape \(2, 4, 5, 5\)"):
        video.plot()
    assert len(columns(video.plot("bias"))) == 1
    with pytest.raises(ValueError, match="a picture needs"):
        omenn_fx.transform(nn.Linear(4, 2).eval())(torch.randn(1, 4)).plot("maps")


def test_explanations_come_without_matplotlib():
    code = "import sys, omenn_fx; assert 'matplotlib' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 0


def test_a_trained_reader_of_sentiment(assets):
    """MiniLM's padding takes part: a little of the biases ends there, and the bars hold it."""
    pytest.importorskip("transformers")
    network, tokenise = assets.model_sentiment()
    batch = tokenise(["a gripping, funny and intelligent film", "dull"])
    explanation = omenn_fx.transform(network)(**batch, target=1)
    words = (assets.HERE / "text" / "vocab_pruned.txt").read_text(encoding="utf-8").splitlines()
    tokens = [words[i] for i in batch["input_ids"][1].tolist()]
    figure = explanation.plot(tokens=tokens, row=1)
    assert labels(figure)[0] == "[CLS]"
    assert labels(figure)[-1].startswith("[PAD] × ")
    assert columns(figure)[0].sum() == pytest.approx(float(explanation.value[1]), rel=1e-4)
