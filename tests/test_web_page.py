"""The page of `omenn-fx export --web` in a real browser, handed out by Python's own web server.

It may ask its own server alone; the tests see every request. Screenshots are kept where test_report.py keeps them.
"""

import base64
import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from chromium import listened
from PIL import Image
from web_server import ISOLATED, NAMES, lay_out, node_modules, photograph, served, write_page

from omenn_fx.export import load
from omenn_fx.loading import images

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
DROP = """(bytes) => {
  const data = new DataTransfer();
  data.items.add(new File([Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0))], "dropped.png", {type: "image/png"}));
  for (const kind of ["dragenter", "dragover", "drop"]) {
    document.body.dispatchEvent(new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}));
  }
}"""
CAMERA = """navigator.mediaDevices.getUserMedia = async () => {
  const canvas = Object.assign(document.createElement("canvas"), {width: 64, height: 48});
  const context = canvas.getContext("2d");
  const paint = (time) => {
    context.fillStyle = `hsl(${time / 20} 80% 50%)`;
    context.fillRect(0, 0, 64, 48);
    requestAnimationFrame(paint);
  };
  paint(0);
  window.filmed = canvas.captureStream();
  return window.filmed;
};"""


@pytest.fixture(scope="module")
def folder(browser, tmp_path_factory):
    """The page's folder, with the real runtime."""
    return write_page(lay_out(tmp_path_factory.mktemp("web")), node_modules())


@pytest.fixture(scope="module")
def address(folder):
    with served(folder) as address:
        yield address


class Shown:
    """A page in a browser, and what it says."""

    def __init__(self, page):
        self.page = page

    def explained(self, *parts: str) -> None:
        """Wait until it is said that a class was explained."""
        for part in ("Explained in", *parts):
            self.page.locator("#status", has_text=part).wait_for(timeout=60_000)

    def choose(self, file: Path) -> None:
        """Give a picture to the file input, and wait until it is explained."""
        self.page.set_input_files("#file", file)
        self.page.locator("#examples button[aria-pressed=true]").wait_for(state="detached")
        self.explained()

    def text(self, place: str) -> str:
        return self.page.text_content(place)

    def number(self, place: str) -> float:
        return float(self.text(place).replace("−", "-"))

    @property
    def target(self) -> int:
        return int(self.page.get_attribute("input[name=class]:checked", "value"))

    def stage(self) -> np.ndarray:
        """The large picture's pixels."""
        url = self.page.evaluate("document.getElementById('stage').toDataURL()")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")).astype(int)

    def fits(self) -> bool:
        return self.page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.fixture
def opened(browser, address):
    """The page after it explained its first example. It asks its own server alone, and the console stays empty."""
    page, said, asked = listened(browser, viewport=DESKTOP)
    page.add_init_script(CAMERA)
    page.goto(address)
    shown = Shown(page)
    shown.explained()
    yield shown
    page.context.close()
    assert not said
    assert any(url.endswith(".wasm") for url in asked)  # the worker's requests are seen, too
    assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))]


def python(folder, image, target):
    """Python's explanation of an image by the same file."""
    return load(folder / "model.onnx")(images.standard(32, 36)(image).numpy(), target=target)


def agrees(shown, expected) -> None:
    """The numbers on the page are Python's, to the digits shown."""
    value = float(expected.value)
    assert shown.target == int(expected.target)
    assert shown.number("#logit") == pytest.approx(value, abs=1.1e-4)
    assert shown.text("#sum") == shown.text("#logit")
    for name, part in (("Cw", expected.C_w * expected.X), ("Cb", expected.C_b), ("C", expected.C)):
        assert shown.number(f"#sum-{name}") == pytest.approx(float(part.sum()), abs=1.1e-4)
    assert shown.number("#for") == pytest.approx(float(expected.C.clamp_min(0).sum()), abs=1.1e-4)
    assert shown.number("#against") == pytest.approx(float(expected.C.clamp_max(0).sum()), abs=1.1e-4)
    assert float(shown.text("#error").replace("−", "-")) < 1e-5
    assert shown.text("#verdict") == "adds up"


def test_a_chosen_file_is_explained_as_python_explains_it(opened, folder):
    opened.choose(folder.parent / "tower.png")
    expected = python(folder, Image.open(folder.parent / "tower.png"), None)
    opened.page.locator("#logit", has_text=f"{abs(float(expected.value)):.3f}").wait_for()
    agrees(opened, expected)
    assert opened.text("label.class:has(:checked) > span:nth-of-type(2)") == NAMES[opened.target]


def test_a_dropped_file_is_explained(opened, folder, tmp_path):
    image = photograph(80, 80, 7)
    file = io.BytesIO()
    image.save(file, "PNG")
    opened.page.evaluate(DROP, base64.b64encode(file.getvalue()).decode())
    expected = python(folder, image, None)
    opened.page.locator("#logit", has_text=f"{abs(float(expected.value)):.3f}").wait_for()
    agrees(opened, expected)
    assert opened.page.is_hidden("#drop")


def test_targets_and_maps_are_switched_by_keys(opened, folder):
    page = opened.page
    opened.choose(folder.parent / "tower.png")
    image = Image.open(folder.parent / "tower.png")
    order = python(folder, image, None).outputs[0].argsort(descending=True).tolist()
    for key, target in (("2", order[1]), ("3", order[2])):
        page.keyboard.press(key)
        opened.explained(f"{NAMES[target]}:")
        agrees(opened, python(folder, image, target))
    page.focus("input[name=class]:checked")
    page.keyboard.press("ArrowDown")
    opened.explained(f"{NAMES[order[3]]}:")
    agrees(opened, python(folder, image, order[3]))
    assert page.evaluate("document.activeElement.value") == str(order[3])  # the focus stays at what was chosen
    before = opened.stage()
    page.keyboard.press("w")
    assert page.is_checked("input[name=map][value=Cw]")
    assert page.get_attribute("#stage", "aria-label") == f"C w times X over the picture, explaining {NAMES[order[3]]}"
    after = opened.stage()
    assert (before != after).any()
    page.keyboard.press("v")
    assert page.is_checked("input[name=view][value=map]")
    page.uncheck("#keys", force=True) if page.is_visible("#keys") else page.evaluate("keys.checked = false")
    page.keyboard.press("b")
    assert page.is_checked("input[name=map][value=Cw]")


def test_targets_and_maps_are_switched_by_the_mouse(opened):
    page = opened.page
    second = int(page.locator("input[name=class]").nth(1).get_attribute("value"))
    page.locator("label.class").nth(1).click()
    opened.explained(f"{NAMES[second]}:")
    assert opened.target == second
    page.locator("label.map").nth(1).click()
    assert page.is_checked("input[name=map][value=Cb]")
    page.locator("#views label").nth(2).click()
    assert page.get_attribute("#stage", "aria-label").startswith("the picture")
    page.hover("#stage", position={"x": 40, "y": 40})
    assert re.fullmatch(r"pixel \d+, \d+: [+−]?[\d.]+", opened.text("#readout"))


def test_any_class_is_explained_by_its_name_or_number(opened):
    page = opened.page
    shown = {int(each.get_attribute("value")) for each in page.locator("input[name=class]").all()}
    hidden = sorted(set(range(len(NAMES))) - shown)
    for text, index in ((NAMES[hidden[0]], hidden[0]), (str(hidden[1]), hidden[1])):
        page.fill("#other", text)
        page.keyboard.press("Enter")
        opened.explained(f"{NAMES[index]}:")
        assert opened.target == index
        assert page.locator("input[name=class]").count() == 6
    page.fill("#other", "zebra")
    page.keyboard.press("Enter")
    assert opened.text("#other-said") == "no such class"


def test_the_map_is_drawn_as_python_draws_it(opened, folder):
    from omenn_fx.visualize import Display, colours

    page = opened.page
    opened.choose(folder.parent / "tower.png")
    page.check("input[name=view][value=map]")
    C = python(folder, Image.open(folder.parent / "tower.png"), opened.target).C[0].sum(0).double().numpy()
    expected = colours(Display.default(C.shape)(C))[..., :3].astype(int)
    found = opened.stage()[10::21, 10::21]  # 672 / 32 pixels each
    assert np.abs(found - expected).max() <= 4
    page.fill("#smooth", "0")
    found = opened.stage()[10::21, 10::21]
    assert np.abs(found - colours(C)[..., :3].astype(int)).max() <= 4


def test_the_camera_is_explained_frame_by_frame_until_it_is_held(opened):
    page = opened.page
    page.click("#camera")
    page.locator("#camera[aria-pressed=true]").wait_for()
    first = opened.text("#logit")
    page.locator(f"#logit:not(:text-is('{first}'))").wait_for()
    page.click("#camera")
    page.locator("#camera[aria-pressed=false]").wait_for()
    assert not page.evaluate("window.filmed.active")
    page.locator("#status", has_text="the map sums to").wait_for()
    assert opened.text("#sum") == opened.text("#logit")


def test_what_is_no_picture_is_said(opened, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    opened.page.set_input_files("#file", tmp_path / "notes.txt")
    opened.page.locator("#status.fails", has_text="notes.txt is not a picture").wait_for()


def test_the_page_fits_a_desktop_and_a_phone_by_day_and_night(opened, tmp_path):
    kept = Path(os.environ.get("OMENN_ARTIFACTS") or tmp_path)
    kept.mkdir(parents=True, exist_ok=True)
    for label, size in (("desktop", DESKTOP), ("phone", PHONE)):
        for scheme in ("light", "dark"):
            opened.page.set_viewport_size(size)
            opened.page.emulate_media(color_scheme=scheme)
            assert opened.fits(), f"{label}, {scheme}"
            opened.page.screenshot(path=kept / f"web-{label}-{scheme}.png", full_page=True)
    paper = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", paper)[:3])) < 150


def test_every_control_has_a_name_and_a_size_for_a_finger(opened):
    page = opened.page
    page.set_viewport_size(PHONE)
    for control in page.locator("main :is(button, input):visible").all():
        named = control.evaluate(
            "e => e.ariaLabel || [...(e.labels ?? [])].map(l => l.textContent).join('').trim() || e.textContent.trim()"
            " || e.querySelector('img')?.alt"
        )
        assert named
    for label in page.locator("label.class, label.map, .button, #camera, #examples button").all():
        assert label.bounding_box()["height"] >= 44
    assert page.locator("[role=status][aria-live=polite]").count() == 1
    assert page.get_attribute("html", "lang") == "en"
    seen = set()
    for _ in range(30):  # Tab reaches every group, and where it is, is seen
        page.keyboard.press("Tab")
        seen.add(
            page.evaluate("document.activeElement.id || document.activeElement.name || document.activeElement.tagName")
        )
    assert {"file", "camera", "view", "class", "map", "other", "smooth"} <= seen


def test_threads_are_used_where_the_server_allows_them(browser, folder):
    """With the two headers of the documentation; the explanation is the same."""
    with served(folder, ISOLATED) as address:
        page = browser.new_page()
        page.goto(address)
        shown = Shown(page)
        shown.explained()
        threads = min(4, page.evaluate("navigator.hardwareConcurrency"))
        assert shown.text("#threads") == f", {threads} thread{'s' if threads > 1 else ''}"
        assert shown.text("#sum") == shown.text("#logit")
        page.close()


def test_from_the_disk_the_page_says_what_it_needs(browser, folder):
    page = browser.new_page()
    page.goto((folder / "index.html").as_uri())
    assert "python -m http.server" in page.text_content("#unstarted")
    assert page.is_visible("#unstarted")
    page.close()


def test_a_wrong_map_is_not_passed_over(browser, folder, tmp_path):
    """A runtime that computes another map is named in red."""
    import shutil

    import onnx

    wrong = tmp_path / "page"
    shutil.copytree(folder, wrong)
    model = onnx.load(wrong / "model.onnx")
    (node,) = [node for node in model.graph.node if "C" in node.output]
    node.output[list(node.output).index("C")] = "right"
    model.graph.initializer.append(onnx.numpy_helper.from_array(torch.tensor(1.01).numpy(), "factor"))
    model.graph.node.append(onnx.helper.make_node("Mul", ["right", "factor"], ["C"]))
    onnx.save(model, wrong / "model.onnx")
    with served(wrong) as address:
        page = browser.new_page()
        page.goto(address)
        shown = Shown(page)
        shown.explained()
        assert "does not add up" in shown.text("#verdict")
        assert page.locator("#verdict.fails").is_visible()
        page.close()
