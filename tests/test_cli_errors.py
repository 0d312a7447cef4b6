"""Every mistake at the command line: a message that says what is wrong, an exit status, no traceback, nothing lost."""

import contextlib
import os
import re
import stat
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import omenn_fx
from omenn_fx.cli.explain import app
from omenn_fx.errors import InputError
from omenn_fx.loading import images
from omenn_fx.loading import models as sources
from omenn_fx.printable import printable

SOURCE = """
import sys
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Linear(4, 7)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))

def lost():
    net = Net()
    net.conv.weight.data[0, 0, 0, 0] = float("nan")
    return net

def infinite():
    net = Net()
    net.head.bias.data[2] = float("inf")
    return net

def lost_statistics():
    net = Net()
    net.norm.running_mean[1] = float("nan")
    return net

def overflows():
    net = Net()
    net.norm.running_mean[1] = float("inf")
    return net

def on_meta():
    with torch.device("meta"):
        return Net()

def ends():
    sys.exit(0)

def raises():
    raise KeyError("no such key")

def needs(argument):
    return Net()

class Escaped(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleDict({"a\\x1b[31m[red]": nn.Linear(3, 2)})

    def forward(self, x):
        return torch.linalg.svdvals(self.parts["a\\x1b[31m[red]"](x.mean((2, 3)))[:, :, None])
"""
ESCAPE = "\x1b[31mred"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with models and a photograph; the test runs in it."""
    (tmp_path / "net.py").write_text(SOURCE)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object, code: int, columns: int = 200) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": str(columns), "NO_COLOR": "1"})
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.output).split())


def explain(model: str = "net.py:Net", *rest: object, image: object = "a.png", code: int = 1) -> str:
    return run("explain", model, "--image", image, "--out", "out", "--size", 24, *rest, code=code)


def commands(model: str, *options: object, status: tuple[int, int, int] = (1, 2, 2)) -> list[str]:
    """The same model in each command that computes something."""
    given = (model, "--image", "a.png", "--size", 24, *options)
    named = {"explain": ("--out", "out"), "validate": (), "export": ("--out", "out.onnx")}
    return [run(name, *given, *named[name], code=code) for name, code in zip(named, status, strict=True)]


# Weights that are no numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("lost", "'conv.weight' (1 NaN of 108)"),
        ("infinite", "'head.bias' (1 inf of 7)"),
        ("lost_statistics", "'norm.running_mean' (1 NaN of 4)"),
        ("on_meta", "'conv.weight' (on the meta device"),
    ],
)
def test_weights_that_are_no_numbers(folder, model, named):
    for output in commands(f"net.py:{model}"):
        assert named in output
        assert "completeness" not in output
    assert not Path("out.onnx").exists()
    assert not list(Path().glob("out/*"))


def test_lost_weights_in_a_file(folder):
    state = sources.load("net.py:Net").model.state_dict()
    state["head.weight"][3] = float("-inf")
    torch.save(state, "w.pth")
    for output in commands("net.py:Net", "--weights", "w.pth"):
        assert "'head.weight' (4 inf of 28)" in output


def test_lost_weights_in_a_program(folder):
    model = sources.load("net.py:lost").model
    torch.export.save(torch.export.export(model, (torch.randn(1, 3, 24, 24),)), "m.pt2")
    assert "'conv.weight' (1 NaN of 108)" in run("explain", "m.pt2", "-i", "a.png", "-o", "out", code=1)


def test_an_explanation_that_is_not_finite(folder):
    assert "'a.png' is not finite" in explain("net.py:overflows")
    assert not list(Path("out").iterdir())


def test_a_mask_may_hold_infinity():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.full((3,), float("-inf")))

    omenn_fx.loading.weights.require_values(Masked())


# Weights that do not fit ----------------------------------------------------------------------------------------------


def broken_weights() -> dict[str, tuple[object, str]]:
    state = {name: value.clone() for name, value in sources.load("net.py:Net").model.state_dict().items()}
    weight = state["head.weight"]
    return {
        "meta": (state | {"head.weight": weight.to("meta")}, "head.weight (on the meta device"),
        "sparse": (state | {"head.weight": weight.to_sparse()}, "head.weight (torch.sparse_coo: save its .to_dense()"),
        "compressed": (state | {"head.weight": weight.to_sparse_csr()}, "torch.sparse_csr"),
        "quantized": (
            state | {"head.weight": torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)},
            "torch.qint8: save its .dequantize()",
        ),
        "whole": (state | {"head.weight": weight.to(torch.int8)}, "torch.int8 for torch.float32"),
        "complex": (state | {"head.weight": weight.to(torch.complex64)}, "torch.complex64 for torch.float32"),
        "integer keys": (dict(enumerate(state.values())), "not a state_dict"),
        "one integer key": (state | {3: weight}, "not a state_dict"),
        "missing": ({k: v for k, v in state.items() if k != "head.bias"}, "missing (1): head.bias"),
        "unexpected": (state | {"tail.bias": weight}, "not in the model (1): tail.bias"),
        "empty": ({}, "not a state_dict"),
        "a tensor": (weight, "not a state_dict"),
        "text": ("weights", "not a state_dict"),
    }


def test_weights_that_do_not_fit(folder):
    for kind, (content, message) in broken_weights().items():
        torch.save(content, "w.pth")
        assert message in explain("net.py:Net", "--weights", "w.pth"), kind


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.safetensors", "w.bin"])
@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04" + bytes(30), b"\x80\x02."])
def test_weights_that_are_no_weights(folder, name, content):
    Path(name).write_bytes(content)
    assert name in explain("net.py:Net", "--weights", name)


def test_a_folder_for_weights(folder):
    assert "no weights file" in explain("net.py:Net", "--weights", ".")


# Models that cannot be had --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("net.py:ends", "SystemExit"),
        ("ending.py:f", "SystemExit"),
        ("net.py:raises", "KeyError"),
        ("net.py:needs", "argument"),
        ("wrong.py:f", "SyntaxError"),
        ("none.py:f", "there is no file"),
        ("net.py:", "names no model"),
        (":f", "names no model"),
        ("", "names no model"),
        (".net:f", "cannot be imported"),
        ("net.py:Net.conv", "has no 'Net.conv'"),
        ("net.py:sys", "not callable"),
        ("bad.pt2", "cannot be read"),
        ("folder.pt2", "no file"),
    ],
)
def test_models_that_cannot_be_had(folder, model, message):
    Path("ending.py").write_text("import sys\nsys.exit(0)\n")
    Path("wrong.py").write_text("def f(:\n")
    Path("bad.pt2").write_bytes(b"nothing")
    Path("folder.pt2").mkdir()
    assert message in explain(model)
    assert run("check", model, code=2)


def test_a_saved_explainer_for_a_model(folder):
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval(), torch.randn(2, 3, 2, 2)
    omenn_fx.transform(model, x).save("m.pt2", x)
    assert "omenn_fx.load('m.pt2')" in run("explain", "m.pt2", "-i", "a.png", "-o", "out", code=1)
    assert "an explainer that Explainer.save wrote" in run("check", "m.pt2", code=2)
    assert len(omenn_fx.load("m.pt2").inputs) == 1


# Numbers that are too large -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", ["1000000,3,1000,1000", "1,3,99999999999999999999,5", "ids:9999999999", ",".join(["1"] * 65)]
)
def test_a_huge_input(folder, shape):
    assert "does not fit in the memory" in run("check", "net.py:Net", "--input", shape, code=2)


@pytest.mark.parametrize("shape", ["", "1,,3", "-1,3", "1.5,3", "ids:", "float:1,3", "1,3,x"])
def test_a_shape_that_is_none(folder, shape):
    assert "is no shape" in run("check", "net.py:Net", "--input", shape, code=2)


@pytest.mark.parametrize("shape", ["1,3", "1,3,8", "3", "1,4,8,8", "1,3,8,8,8", "1,3,1,1"])
def test_an_input_of_another_rank(folder, shape):
    assert "not supported" in run("check", "net.py:Net", "--input", shape, code=1)


@pytest.mark.parametrize("options", [["--size", 100_000], ["--resize", 10**9], ["--size", 100_000, "--resize", 10**6]])
def test_a_huge_size(folder, options):
    assert "give a smaller size" in explain("net.py:Net", *options)
    assert "give a smaller size" in run("export", "net.py:Net", "-o", "a.onnx", *options, code=2)


@pytest.mark.parametrize("option", ["--mean", "--std"])
@pytest.mark.parametrize("numbers", ["nan,0,0", "0.5,inf,0.5", "1e999,1,1"])
def test_preprocessing_that_is_no_number(folder, option, numbers):
    assert "std" in explain("net.py:Net", option, numbers) or "finite" in explain("net.py:Net", option, numbers)


@pytest.mark.parametrize("count", [0, 1, 6, 8, 1000])
def test_class_names_of_another_count(folder, count):
    Path("names.txt").write_text("\n".join(f"class {i}" for i in range(count)))
    output = explain("net.py:Net", "--classes", "names.txt", code=1 if count else 0)
    assert f"{count} class names are given for 7" in output or not count


def test_blank_lines_after_the_class_names(folder):
    Path("names.txt").write_text("\ufeff" + "\n".join(f"bird{i}" for i in range(7)) + "\n\n\n")
    assert "bird3" in explain("net.py:Net", "--classes", "names.txt", "--target", 3, code=0)


# Nothing is written over ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", [".", "here", "other/..", "absolute"])
def test_a_picture_is_not_written_over_its_photograph(folder, out):
    Path("other").mkdir()
    Path("here").symlink_to(Path())
    before = Path("a.png").read_bytes()
    text = run("explain", "net.py:Net", "-i", "a.png", "--size", 24, "-o", folder if out == "absolute" else out, code=1)
    assert "would be written over 'a.png'" in text
    assert Path("a.png").read_bytes() == before


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_picture_is_not_written_over_a_photograph_by_a_link(folder, link):
    Path("out").mkdir()
    link(Path("a.png").resolve(), "out/a.png")
    before = Path("a.png").read_bytes()
    assert "would be written over" in explain()
    assert Path("a.png").read_bytes() == before


def test_a_picture_of_one_image_is_not_written_over_another(folder):
    Path("out").mkdir()
    Image.new("RGB", (30, 30)).save("out/a.png")
    before = Path("out/a.png").read_bytes()
    assert "would be written over 'out/a.png'" in explain("net.py:Net", "-i", "out/a.png")
    assert Path("out/a.png").read_bytes() == before
    explain(code=0)
    explain(code=0)  # a picture of an earlier run may be


@pytest.mark.parametrize(
    "arguments",
    [
        ["explain", "net.py:Net", "-i", "a.png", "-o", "out", "--report", "a.png"],
        ["explain", "net.py:Net", "-i", "a.png", "-o", "out", "--report", "net.py"],
        ["export", "net.py:Net", "-o", "net.py"],
        ["export", "net.py:Net", "-o", "w.pth"],
        ["export", "net.py:Net", "-o", "."],
        ["check", "net.py:Net", "-o", "net.py"],
        ["check", "net.py:Net", "-f", "json", "-o", "a.png"],
        ["check", "net.py:Net", "-f", "svg", "-o", "a.json"],
        ["check", "net.py:Net", "-f", "sarif", "-o", "net.py"],
        ["validate", "net.py:Net", "-i", "a.png", "--plot", "net.py"],
        ["validate", "net.py:Net", "-i", "a.png", "-f", "json", "-o", "a.png"],
    ],
)
def test_an_output_of_another_ending(folder, arguments):
    Path("w.pth").write_bytes(b"weights")
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    assert "its ending should be" in run(*arguments, code=2)
    assert {path: path.read_bytes() for path in Path().iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("kept", "arguments", "code"),
    [
        (
            "n.html",
            ["explain", "net.py:Net", "-i", "a.png", "-o", "out", "--classes", "n.html", "--report", "n.html"],
            1,
        ),
        ("w.onnx", ["export", "net.py:Net", "--weights", "w.onnx", "-o", "./w.onnx"], 2),
        ("w.onnx.data", ["export", "net.py:Net", "--weights", "w.onnx.data", "-o", "w.onnx"], 2),
        ("w.json", ["validate", "net.py:Net", "-i", "a.png", "--weights", "w.json", "-f", "json", "-o", "w.json"], 2),
        ("a.png", ["validate", "net.py:Net", "-i", "a.png", "--plot", "a.png"], 2),
    ],
)
def test_what_is_given_is_kept_whatever_it_is_called(folder, kept, arguments, code):
    if kept.startswith("w"):
        torch.save(sources.load("net.py:Net").model.state_dict(), kept)
    if kept.startswith("n"):
        Path(kept).write_text("\n".join("abcdefg"))
    before = Path(kept).read_bytes()
    assert (
        f"would be written over '{kept}'" in run(*arguments, "--size", 24, code=code) if "check" not in arguments else 1
    )
    assert Path(kept).read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["check", "net.py:Net", "--input", "1,3,24,24", "-o", "a.png/report.txt"], 2),
        (["check", "net.py:Net", "--input", "1,3,24,24", "-f", "json", "-o", "folder.json"], 2),
        (["explain", "net.py:Net", "-i", "a.png", "-o", "a.png/pictures"], 1),
        (["explain", "net.py:Net", "-i", "a.png", "-o", "out", "--report", "a.png/new/page.html"], 1),
        (["export", "net.py:Net", "-o", "a.png/model.onnx"], 2),
        (["export", "net.py:Net", "-o", "folder.onnx"], 2),
        (["validate", "net.py:Net", "-i", "a.png", "--plot", "folder.svg"], 2),
        (["check", "net.py:Net", "--input", "1,3,24,24", "-o", "x" * 300], 2),
        (["explain", "net.py:Net", "-i", "x" * 300 + ".png", "-o", "out"], 1),
    ],
)
def test_where_nothing_can_be_written(folder, arguments, code):
    for name in ("folder.json", "folder.onnx", "folder.svg"):
        Path(name).mkdir()
    assert "error:" in run(*arguments, code=code)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(folder):
    Path("out").mkdir()
    Path("out").chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert "nothing can be written" in explain()


def test_reports_make_their_folders(folder):
    run("check", "net.py:Net", "--input", "1,3,24,24", "-f", "json", "-o", "new/deep/report.json", code=0)
    assert Path("new/deep/report.json").exists()


# Images ---------------------------------------------------------------------------------------------------------------


def opened(name: str) -> np.ndarray:
    return np.asarray(images.open_image(Path(name)))


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_become_eight(folder, kind):
    pixels = np.linspace(0, 65535, 32, dtype=np.uint16).reshape(4, 8)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels).save(f"g.{kind}")
    Image.fromarray(pixels).save(f"t.{kind}", exif=turned)
    expected = np.round(pixels / 257).astype(np.uint8)
    np.testing.assert_array_equal(opened(f"g.{kind}"), np.stack([expected] * 3, -1))
    np.testing.assert_array_equal(opened(f"t.{kind}")[..., 0], np.rot90(expected, -1))


@pytest.mark.parametrize(
    ("pixels", "named"),
    [
        (np.ones((4, 4), np.float32), "floating-point"),
        (np.full((4, 4), 70_000, np.int32), "32 bits"),
        (np.full((4, 4), -1, np.int32), "32 bits"),
    ],
)
def test_pixels_without_a_range(folder, pixels, named):
    Image.fromarray(pixels).save("a.tiff")
    assert named in explain(image="a.tiff")


def test_modes_of_images(folder):
    Image.new("CMYK", (8, 6), (0, 255, 255, 0)).save("c.tiff")
    Image.new("LA", (8, 6), (100, 50)).save("la.png")
    Image.new("1", (8, 6), 1).save("one.png")
    Image.new("RGB", (8, 6), (10, 200, 30)).quantize(4).save("p.png")
    expected = {"c.tiff": (255, 0, 0), "la.png": (100,) * 3, "one.png": (255,) * 3, "p.png": (10, 200, 30)}
    assert {name: tuple(opened(name)[0, 0].tolist()) for name in expected} == expected


def test_an_animation_says_that_its_first_frame_is_taken(folder, caplog):
    frames = [Image.new("RGB", (8, 6), (80 * i, 0, 0)) for i in range(3)]
    frames[1].save("a.gif", save_all=True, append_images=frames[2:])
    assert opened("a.gif")[0, 0, 0] == 80
    assert "first" in caplog.text


def test_a_bomb(folder):
    Image.new("1", (1, 1)).save("bomb.png")
    data = bytearray(Path("bomb.png").read_bytes())
    data[16:24] = (20_000).to_bytes(4) * 2  # its width and height
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    Path("bomb.png").write_bytes(data)
    output = explain(image="bomb.png")
    assert "bomb.png" in output
    assert "400000000 pixels" in output


@pytest.mark.parametrize("shape", [(60_000, 1), (1, 60_000), (9_000, 7)])
def test_a_very_long_image(folder, shape):
    """The centre crop needs its middle alone; as a whole it would be resized to gigabytes."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (shape[1], shape[0], 3), dtype=np.uint8))
    assert max(images.trimmed(image).size) <= 16 * min(image.size)
    assert images.standard(24, 24)(image).shape == (1, 3, 24, 24)
    middle = image.crop((shape[0] // 2 - 40, 0, shape[0] // 2 + 40, shape[1])) if shape == (9_000, 7) else None
    if middle is not None:
        torch.testing.assert_close(images.standard(7, 7)(image), images.standard(7, 7)(middle))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.tiff", "a.webp", "a.bmp"])
def test_damaged_images(folder, name):
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (30, 30, 3), dtype=np.uint8)).save(name)
    whole = Path(name).read_bytes()
    generator = np.random.default_rng(2)
    for cut in (1, 8, 30, len(whole) // 2):
        Path(name).write_bytes(whole[:cut])
        with pytest.raises(InputError, match=re.escape(name)):
            images.open_image(Path(name))
    for _ in range(40):
        noise = bytearray(whole)
        for at in generator.integers(0, len(whole), 10):
            noise[at] = generator.integers(256)
        Path(name).write_bytes(noise)
        with contextlib.suppress(InputError):
            assert opened(name).dtype == np.uint8


# What reaches the terminal --------------------------------------------------------------------------------------------


def test_printable_text():
    assert printable("a\x1b[31m\r\x07\x9b") == "a\\x1b[31m\\x0d\\x07\\x9b"
    assert printable("\u202eabc\u2066\u200f\u2028") == "\\u202eabc\\u2066\\u200f\\u2028"
    assert printable("\udcff \ufeff \U000e0001") == "\\udcff \\ufeff \\U000e0001"
    plain = "line\n\ttabs, é, 日本語, עברית, 👩\N{ZERO WIDTH JOINER}💻"
    assert printable(plain) == plain


def hostile(output: str) -> list[str]:
    return [c for c in output if printable(c) != c]


def raw(*arguments: object, code: int | None = None) -> str:
    """What a command writes to a terminal that knows colours: with the styles of our own taken away."""
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"})
    assert code is None or result.exit_code == code, result.output
    return result.output


def test_names_of_files(folder):
    names = [f"{ESCAPE}.png", "\u202egnp.a.png", "a[red]b.png", "a\rb\x07.png"]
    for name in names:
        Path(name).write_bytes(Path("a.png").read_bytes())
    given = [part for name in names for part in ("-i", name)]
    output = raw("explain", "net.py:Net", *given, "-o", "out", "--size", 24, "--report", "r.html", code=0)
    assert not hostile(output)
    for name in names:
        assert output.count(printable(name)) == 2
        missing = raw("explain", "net.py:Net", "-i", f"none{name}", "-o", "out", code=1)
        assert not hostile(missing)
        assert printable(name) in missing


def test_names_of_classes(folder):
    names = [ESCAPE, "\u202edrow", "[red]word[/red]", "[/]", "\x9b31m", "$\\frac{", "plain"]
    Path("names.txt").write_text("\n".join(names), encoding="utf-8")
    output = raw("explain", "net.py:Net", "-i", "a.png", "-o", "out", "--size", 24, "--classes", "names.txt", code=0)
    assert not hostile(output)
    shown = [name for name in names if printable(name) in output]
    assert len(shown) == 5
    assert {ESCAPE, "[/]"} & set(shown)


@pytest.mark.parametrize("option", ["--input", "--rules", "--output"])
def test_options(folder, option):
    output = raw("check", "net.py:Net", "--input", "1,3,24,24", option, f"{ESCAPE}[/]")
    assert not hostile(output)


def test_names_of_modules_and_models(folder):
    for form in ("table", "json", "sarif", "svg"):
        output = raw("check", "net.py:Escaped", "--input", "2,3,4,4", "-f", form, code=1)
        assert not hostile(output)
        assert "_linalg_svd" in output
    assert not hostile(raw("explain", "net.py:Escaped", "-i", "a.png", "-o", "out", code=1))
    for model in (
        f"{ESCAPE}.py:f",
        f"net.py:{ESCAPE}",
        f"{ESCAPE}:f",
        f"torchvision:{ESCAPE}",
        f"{ESCAPE}.pt2",
        ESCAPE,
    ):
        assert not hostile(raw("check", model, code=2))


def test_an_error_of_the_library(folder):
    error = InputError(f"a name {ESCAPE}")
    assert not hostile(str(error))
    report = omenn_fx.check(sources.load("net.py:Escaped").model, torch.randn(2, 3, 4, 4))
    assert not hostile(str(report))


def test_numbers_are_whole_in_a_narrow_terminal(folder):
    arguments = ("explain", "net.py:Net", "-i", "a.png", "-o", "out", "--size", 24)
    numbers = re.findall(r"(?<![\d.])-?\d+\.\d+(?:e[-+]\d+)?", run(*arguments, code=0))
    assert len(numbers) >= 8
    for columns in (20, 30, 45):
        narrow = run(*arguments, code=0, columns=columns)
        assert [number for number in numbers if number not in narrow] == []
        assert "…" not in narrow


def test_a_report_in_a_narrow_terminal(folder):
    text = run("validate", "net.py:Net", "-i", "a.png", "--size", 24, code=0, columns=30)
    assert len(re.findall(r"\d\.\de[-+]\d\d", text)) >= 6
    assert "…" not in text
