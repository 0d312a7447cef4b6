"""The guide: it builds without a network, nothing in it leads nowhere, every public name and every result is in it.

Pages are also opened in a real Chromium, as test_report.py says; screenshots are kept where it keeps them.
"""

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import torch
from chromium import listened
from filelock import FileLock
from test_readme import run_blocks

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
PACKAGES = (
    "omenn_fx",
    "omenn_fx.export",
    "omenn_fx.report",
    "omenn_fx.visualize",
    "omenn_fx.integrations.huggingface",
)
ALSO = (
    "omenn_fx.integrations.captum.OMENN",
    "omenn_fx.integrations.quantus.explain",
    "omenn_fx.testing.check_rule",
    "omenn_fx.testing.RuleError",
)

HTML = """
a article aside b body br button code details div em footer form g h1 h2 h3 h4 h5 head header hr html i img input
label li link main meta nav ol p path picture pre script section small source span strong sub summary sup svg table
tbody td th thead title tr ul
"""


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The built guide, once for all workers: every warning is an error, and no proxy lets anything through."""
    pytest.importorskip("mkdocs", reason="needs the guide's tools: pip install -e '.[docs]'")
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "guide"
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
            environment = {**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1"}
            built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            assert built.returncode == 0, built.stderr[-3000:]
    return folder


class Document(HTMLParser):
    """What a page refers to, what it can be referred to by, and its tables."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.loads, self.ids, self.tags, self.tables = [], [], set(), set(), []
        self._cell: list[str] | None = None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.add(tag)
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and given.get("rel") not in ("next", "prev", "canonical"):
            self.loads.append(given["href"])
        self.loads += [given[name] for name in ("src", "srcset") if name in given]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag):
        if tag in ("td", "th") and self._cell is not None:
            self.tables[-1][-1].append("".join(self._cell).strip())
            self._cell = None

    def handle_data(self, data):
        if self._cell is not None:
            self._cell.append(data)


@pytest.fixture(scope="session")
def documents(site):
    """The pages, without 404.html, which is served, and the demo, which test_web_page.py opens."""
    pages = {path.relative_to(site).as_posix(): path for path in site.rglob("*.html")}
    return {n: Document(path) for n, path in pages.items() if n != "404.html" and not n.startswith("demo/")}


def test_no_link_leads_nowhere(site, documents):
    assert len(documents) > 15
    for name, page in documents.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "mailto"):
                assert link in page.links, f"{name} loads {link}"
                continue
            path = (site / name).parent / unquote(parts.path) if parts.path else site / name
            assert path.resolve().is_relative_to(site.resolve()), f"{name}: {link} leaves the site"
            assert path.exists(), f"{name}: {link}"
            inside = documents.get(path.resolve().relative_to(site.resolve()).as_posix())
            if parts.fragment and inside is not None:
                assert unquote(parts.fragment) in inside.ids, f"{name}: {link}"


def test_no_sign_is_taken_for_a_tag(documents):
    """As <W u, v> would be."""
    known = set(HTML.split())
    for name, page in documents.items():
        assert page.tags <= known, f"{name}: {page.tags - known}"


def test_styles_load_nothing_from_elsewhere(site):
    styles = list(site.rglob("*.css"))
    assert styles
    for path in styles:
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", path.read_text(encoding="utf-8")), path


def test_every_public_name_is_in_the_reference(documents):
    reference = set().union(*(page.ids for name, page in documents.items() if name.startswith("reference/")))
    public = [f"{name}.{each}" for name in PACKAGES for each in importlib.import_module(name).__all__]
    missing = sorted({*public, *ALSO} - reference)
    assert not missing, f"add to a page of docs/reference: {', '.join(missing)}"


def test_the_command_line_has_every_command_and_option(documents, site):
    import typer.main

    from omenn_fx.cli.explain import app

    text = (site / "reference" / "cli.html").read_text(encoding="utf-8")
    for name, command in typer.main.get_command(app).commands.items():
        assert f'id="omenn-fx-{name}"' in text
        for parameter in command.params:
            assert all(option in text for option in parameter.opts if option.startswith("--"))


# Results -------------------------------------------------------------------------------------------------------------


def results(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def rows_of(page: Document, heading: str) -> list[dict[str, list[str]]]:
    """Name -> cells, of every table with that column."""
    found = [table for table in page.tables if table and heading in table[0]]
    return [{row[0]: row for row in table[1:]} for table in found]


def test_the_table_of_coverage_counts_the_models(documents):
    census, timm = rows_of(documents["results.html"], "passed in float64")
    for table, name in ((census, "coverage"), (timm, "timm")):
        models = results(name)["models"].values()
        fit = [m for m in models if m["float64"]["status"] != "not exportable"]
        passed = {d: sum(m[d]["status"] == "passed" for m in fit) for d in ("float64", "float32")}
        assert table["all"][1:3] == [str(len(models)), str(len(models) - len(fit))]
        assert table["all"][3:5] == [f"{passed[d]} / {len(fit)}" for d in ("float64", "float32")]


def test_the_tables_of_costs_have_the_ratios(documents):
    page = documents["results.html"]
    (growth,) = rows_of(page, "slope, forward")
    for cells, axis in zip(growth.values(), results("growth")["axes"].values(), strict=True):
        assert cells[2] == " ".join(f"{ratio:.2f}" for ratio in axis["ratios"])
    *_, check = rows_of(page, "ViT-B/16")  # the races before it have a column of that name
    for name, ratio in results("check")["vit"]["ratios"].items():
        assert check[name][1] == f"{ratio:.2f}"


def test_the_tables_of_speed_have_every_race(documents):
    text = [cell for table in documents["results.html"].tables for row in table for cell in row]
    for race in results("speed").get("races", {}).values():
        for row in race["rows"].values():
            assert "median" not in row or row["ratio"] == 1 or any(f"({row['ratio']:.2f})" in cell for cell in text)


def test_the_tables_of_faithfulness_have_the_means_best_first(documents):
    tables = rows_of(documents["faithfulness.html"], "relevance gain")
    models = results("faithfulness")["models"]
    assert len(tables) == len(models)
    for table, model in zip(tables, models.values(), strict=True):
        scores = {m: row["scores"] for m, row in model["methods"].items() if "scores" in row}
        shown = {name.removesuffix(" *"): cells for name, cells in table.items()}
        assert set(shown) == set(scores)
        gains = {m: float(np.mean(scores[m]["symmetric relevance gain"])) for m in shown}
        assert list(gains.values()) == sorted(gains.values(), reverse=True)
        for method, gain in gains.items():
            assert shown[method][1].split()[0] == f"{gain:.3f}"
            assert shown[method][5] == f"{np.mean(scores[method]['deletion']):.3f}"


def test_the_tables_of_funnybirds_have_the_means_best_first(documents):
    tables = rows_of(documents["faithfulness.html"], "contrastivity")
    models = [m for name in ("funnybirds", "funnybirds-held-out") for m in results(name)["models"].values()]
    assert len(tables) == len(models)
    for table, model in zip(tables, models, strict=True):
        means = {m: row["mean"] for m, row in model["methods"].items() if "mean" in row}
        assert set(table) == set(means)
        order = [means[method][0] for method in table]
        assert order == sorted(order, reverse=True)
        for method, (mean, low, high) in means.items():
            assert table[method][1] == f"{mean:.3f} ±{(high - low) / 2:.3f}"


def test_every_result_names_its_machine_and_its_file(site):
    text = "".join((site / f"{name}.html").read_text(encoding="utf-8") for name in ("results", "faithfulness"))
    for path in RESULTS.glob("*.json"):
        assert f'href="files/benchmarks/results/{path.name}"' in text, f"add {path.name} to docs/tables.py and a page"
        assert (site / "files" / "benchmarks" / "results" / path.name).read_bytes() == path.read_bytes()
    assert text.count("Measured with") == len(list(RESULTS.glob("*.json")))


# Pages ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["index.md", "explain.md"])
def test_the_code_of_the_guide_runs(page, tmp_path, monkeypatch):
    """At a smaller size."""
    pytest.importorskip("torchvision")
    monkeypatch.chdir(tmp_path)
    run_blocks(page, (ROOT / "docs" / page).read_text(encoding="utf-8").replace("224", "64"), 1)
    assert (tmp_path / "overlay.png").exists()


def test_the_picture_of_the_idea_shows_matrices_whose_product_sums_to_the_logit(tmp_path):
    pytest.importorskip("sklearn", reason="needs scikit-learn's digits")
    spec = importlib.util.spec_from_file_location("idea", ROOT / "docs" / "idea.py")
    idea = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(idea)
    x, y = torch.rand(20, 1, 8, 8), torch.arange(20) % 10
    model = idea.trained(x, y)
    layers, maps = idea.panels(model, x[:1])
    assert [below.replace("\n", " ") for _, below, _ in layers[1:6]] == [
        "W, b: 64 × 64", "0 or 1: 64 × 64", "W, b: 32 × 64", "0 or 1: 32 × 32", "W, b: 10 × 32",
    ]  # fmt: skip
    logit = float(model(x[:1])[0, idea.DIGIT].detach())
    sums = [float(re.search(r"sum (\S+)", below)[1].replace("−", "-")) for _, below, _ in maps[2:]]
    assert sums[0] + sums[1] == pytest.approx(logit, abs=1e-3)
    assert sums[2] == pytest.approx(logit, abs=1e-3)
    idea.draw([("a row", layers, "→" * 6), ("", maps, "∗=+=")], tmp_path / "idea.png", 11, 10)
    assert (tmp_path / "idea.png").stat().st_size > 10_000


@pytest.fixture
def page(browser):
    """A page that may read the disk alone, and says nothing on its console."""
    page, said, asked = listened(browser, viewport=DESKTOP)
    yield page
    page.context.close()
    assert not said
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:", "about:"))]


def test_pages_fit_a_desktop_and_a_phone(site, documents, page, tmp_path):
    kept = Path(os.environ.get("OMENN_ARTIFACTS") or tmp_path)
    kept.mkdir(parents=True, exist_ok=True)
    for label, size in (("desktop", DESKTOP), ("phone", PHONE)):
        page.set_viewport_size(size)
        for name in documents:
            page.goto((site / name).as_uri())
            wider = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wider <= 0, f"{name} on a {label}"
            if name in ("index.html", "idea.html", "faithfulness.html"):
                page.screenshot(path=kept / f"guide-{Path(name).stem}-{label}.png")


def test_every_picture_is_drawn_and_has_a_text(site, documents, page):
    for name in ("index.html", "idea.html", "pictures.html", "results.html"):
        page.goto((site / name).as_uri())
        pictures = page.evaluate("[...document.images].map(i => [i.src, i.complete && i.naturalWidth, i.alt])")
        assert pictures
        assert all(width and text for _, width, text in pictures), pictures


def test_the_search_works_from_the_disk(site, page):
    page.goto((site / "index.html").as_uri())
    page.fill(".md-search__input", "row of weights")
    page.wait_for_selector(".md-search-result__link")
    links = page.evaluate("[...document.querySelectorAll('.md-search-result__link')].map(a => a.href)")
    assert any("idea.html" in link and link.endswith("#one-row-of-weights-and-all-biases") for link in links)
