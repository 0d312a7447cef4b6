"""Names of the user's and of files in HTML, SVG and figures: text there, whatever they hold."""

import json
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import omenn_fx
from omenn_fx import report, visualize
from omenn_fx.loading.images import Preprocess
from omenn_fx.loading.models import Loaded
from omenn_fx.printable import printable

HOSTILE = [
    "<script>alert(1)</script>",
    "]]></script><svg onload=alert(1)>",
    '" onmouseover="alert(1)',
    "</title>&lt;b&amp;'",
    "{{ 7 * 7 }}{% raw %}%s",
    r"$\frac{$ \undefined",
    "[red]markup[/] [/]",
    "\x1b[31mred\x07",
    "\x00null",
    "\udcffbytes",
    "\u202efdp.exe",
]
each = pytest.mark.parametrize("name", HOSTILE, ids=ascii)
X = torch.zeros(1, 3, 8, 8)


class Net(nn.Module):
    """One of its parts has a name of the user's."""

    def __init__(self, key):
        super().__init__()
        self.parts, self.key, self.head = nn.ModuleDict({key: nn.Conv2d(3, 2, 3)}), key, nn.Linear(72, 3)

    def forward(self, x):
        return self.head(torch.relu(self.parts[self.key](x)).flatten(1))


def built(name):
    """A model whose class and part are called so, as far as Python lets them."""
    possible = name.encode("utf-8", "ignore").decode().replace("\0", "").replace(".", "") or "x"
    return type("Net", (Net,), {"__module__": __name__})(possible).eval(), possible


@pytest.fixture(scope="module")
def explained():
    """An explanation of an image, and one of three tokens."""
    torch.manual_seed(0)
    explainer = omenn_fx.transform(built("plain")[0], X)

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(torch.relu(x).sum(1))

    tokens = torch.randn(1, 3, 4)
    return explainer, explainer(X + 1, target=1), omenn_fx.transform(Tokens().eval(), tokens)(tokens, target=1)


class Tags(HTMLParser):
    """The elements of a page, and the names of their attributes."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, *(key for key, _ in attrs)))

    def handle_data(self, data):
        self.text += data


@each
def test_the_picture_of_a_graph(name):
    """Class and module names are text in it; the script is the picture's own."""
    model, possible = built(name)
    type(model).__name__ = possible
    found = omenn_fx.check(model, X)
    assert found.supported, found.problems
    root = ElementTree.fromstring(found.to_svg())
    space = "{http://www.w3.org/2000/svg}"
    assert [child.tag for child in root.iter(f"{space}script")] == [f"{space}script"]
    assert not any(key.startswith("on") for element in root.iter() for key in element.attrib)
    assert printable(f"{possible}: supported") == root.find(f"{space}title").text
    plain = ElementTree.fromstring(omenn_fx.check(built("plain")[0], X).to_svg())
    assert [e.tag for e in root.iter()] == [e.tag for e in plain.iter()]
    assert possible in json.loads(found.to_json())["model"]
    assert json.loads(found.to_sarif())["runs"]
    str(found).encode()


@each
def test_figures(name, explained, tmp_path):
    """Titles, classes and tokens; what is drawn is an SVG that can be read."""
    explainer, image, tokens = explained
    path = tmp_path / "figure.svg"
    titled = {"title": name, "class_name": name, "path": path}
    drawn = [
        lambda: visualize.overlay_picture(X[0], image, **titled),
        lambda: visualize.bias_bars(image, **titled),
        lambda: visualize.layer_bars(image, explainer.nodes, **titled),
        lambda: visualize.token_bars([name, "b", "c"], tokens, **titled),
        lambda: visualize.token_text([name, "b", "c"], tokens, **titled),
    ]
    for draw in drawn:
        draw()
        ElementTree.fromstring(path.read_text(encoding="utf-8"))


@each
def test_tokens_in_html(name, explained):
    found = visualize.token_html([name, "b", "c"], explained[2], title=name, class_name=name)
    plain = visualize.token_html(["a", "b", "c"], explained[2], title="t", class_name="c")
    assert Tags(found).found == Tags(plain).found
    ElementTree.fromstring(found)


@pytest.fixture(scope="module")
def plain_page(explained, tmp_path_factory):
    return Tags(page(explained[0], "plain", tmp_path_factory.mktemp("plain")))


def page(explainer, name, folder):
    """A report of an image whose file, classes and model have a name."""
    file = folder / f"{name.replace('/', '_').replace(chr(0), '')}.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(file, "PNG")
    preprocess = Preprocess(
        lambda image: torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1), (0, 0, 0), (1, 1, 1)
    )
    loaded = Loaded(explainer.model, preprocess, classes=[name] * 3)
    report.write(folder / "page.html", loaded, [file], explainer=explainer)
    return (folder / "page.html").read_bytes().decode("utf-8")


@each
def test_a_report(name, explained, plain_page, tmp_path):
    """File and class names are text in it, and elements and attributes are those of any other page."""
    text = page(explained[0], name, tmp_path)
    assert Tags(text).found == plain_page.found
    assert not set(text) & set("\x00\x07\x1b\u202e")
    assert printable(name.partition(",")[0].replace("\0", "")).split()[0] in " ".join(Tags(text).text.split())
