"""The command line as a user types it: a table, a picture, and errors that say what to do."""

import re
import subprocess
import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import omenn_fx
from omenn_fx.cli.explain import app
from omenn_fx.loading import images
from omenn_fx.loading import models as sources

FACTORY = """
import torch
from torch import nn

def tiny():
    torch.manual_seed(1)
    body = [nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(4, 7))

def grey():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 10 * 10, 3))

def dense():
    return nn.Conv2d(3, 4, 3, padding=1)

def broken():
    return nn.Linear(3)

def number():
    return 42

def unsupported():
    class Svd(nn.Module):
        def forward(self, x):
            return torch.linalg.svdvals(x).flatten(1)
    return Svd()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a factory and two photographs; the test runs in it."""
    (tmp_path / "net.py").write_text(FACTORY)
    generator = np.random.default_rng(0)
    for name, shape in (("a.png", (40, 60, 3)), ("b.jpg", (50, 33, 3))):
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, code: int = 0):
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "100", "NO_COLOR": "1"})
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return result


def explain(model: str, *rest: str, image: str = "a.png", size: str = "24", code: int = 0):
    sizes = ("--size", size) if size else ()
    return run("explain", model, "--image", image, "--out", "out", *sizes, *rest, code=code)


def unwrapped(text: str) -> str:
    """Without the frames and line breaks of rich's panels."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


def rows(output: str) -> list[list[str]]:
    """The lines of the table whose first cell is a class."""
    lines = [line for line in output.splitlines() if re.match(r"^ *\d[\d,]* ", line) and "explanation" not in line]
    return [line.split() for line in lines]


def factory_model() -> nn.Module:
    return sources.load("net.py:tiny").model


# What is printed and written --------------------------------------------------------------------------------------


def test_explains_a_photograph(folder):
    output = explain("net.py:tiny").stdout
    model = factory_model()
    x = images.standard(24)(images.open_image(Path("a.png")))
    with torch.no_grad():
        logits = model(x)[0]
    table = rows(output)
    best = logits.topk(5)
    assert [int(r[0]) for r in table] == best.indices.tolist()
    np.testing.assert_allclose([float(r[1]) for r in table], best.values, atol=1e-4)
    logit, total, completeness, relative, share = table[0][1:6]
    explanation = omenn_fx.transform(model)(x)
    assert float(total) == pytest.approx(float(logit), abs=1e-4)
    assert float(completeness) < 1e-5
    assert float(relative) < 1e-3
    assert float(share) == pytest.approx(100 * float(explanation.bias.total / explanation.value), abs=0.06)
    assert all(len(r) == 2 for r in table[1:])
    with Image.open("out/a.png") as picture:
        assert picture.width > picture.height > 400


def test_two_photographs_of_one_name(folder):
    (folder / "more").mkdir()
    (folder / "b.jpg").rename(folder / "more" / "a.jpg")
    output = explain("net.py:tiny", "-i", "more/a.jpg").stdout
    assert sorted(p.name for p in Path("out").iterdir()) == ["a-2.png", "a.png"]
    assert "2 explanations" in output


def test_target_and_class_names(folder):
    Path("names.txt").write_text("\n".join(["ant, pismire", "bee", "cat", "dog", "elk", "fox", "gnu"]))
    table = rows(explain("net.py:tiny", "--target", "2", "--classes", "names.txt").stdout)
    explained = [r for r in table if len(r) > 3]
    assert [r[:2] for r in explained] == [["2", "cat"]]
    assert {r[1] for r in table} <= {"ant", "bee", "cat", "dog", "elk", "fox", "gnu"}


def test_a_target_outside_the_top_five_is_shown_too(folder):
    with torch.no_grad():
        logits = factory_model()(images.standard(24)(images.open_image(Path("a.png"))))[0]
    worst = int(logits.argmin())
    table = rows(explain("net.py:tiny", "--target", str(worst)).stdout)
    assert len(table) == 6
    assert int(table[-1][0]) == worst
    assert len(table[-1]) > 3


def test_a_position_of_a_dense_output(folder):
    table = rows(explain("net.py:dense", "--target", "1,5,6").stdout)
    assert table[-1][0] == "1,5,6"


@pytest.mark.parametrize("bias", ["contribution", "none"])
def test_bias_policies(folder, bias):
    table = rows(explain("net.py:tiny", "--bias", bias).stdout)
    assert table[0][1] == table[0][2]
    assert Path("out/a.png").exists()


def test_exported_program_says_its_own_size(folder):
    model = factory_model()
    torch.export.save(torch.export.export(model, (torch.randn(1, 3, 24, 20),)), "tiny.pt2")
    table = rows(explain("tiny.pt2", size="").stdout)
    with torch.no_grad():
        logits = model(images.standard((24, 20))(images.open_image(Path("a.png"))))[0]
    assert float(table[0][1]) == pytest.approx(float(logits.max()), abs=1e-4)
    assert table[0][1] == table[0][2]


def test_a_module_of_the_current_folder(folder):
    assert rows(explain("net:tiny").stdout) == rows(explain("net.py:tiny").stdout)


def test_one_channel(folder):
    model = sources.load("net.py:grey").model
    torch.export.save(torch.export.export(model, (torch.randn(1, 1, 12, 12),)), "grey.pt2")
    assert "1 channel" in explain("grey.pt2", size="", code=1).stderr
    assert rows(explain("net.py:grey", "--mean", "0.5", "--std", "0.5", "--resize", "12", size="12").stdout)


def test_torchvision_without_weights_says_so_loudly(folder):
    result = explain("torchvision:squeezenet1_1", size="64")
    assert "RANDOM weights" in result.stderr
    assert rows(result.stdout)


def test_timm_uses_its_own_preprocessing(folder):
    timm = sources.import_library("timm")
    loaded = sources.load("timm:test_vit")
    assert loaded.untrained
    image = images.open_image(Path("a.png"))
    config = timm.data.resolve_model_data_config(loaded.model)
    torch.testing.assert_close(loaded.preprocess(image)[0], timm.data.create_transform(**config)(image))
    changed = sources.load("timm:test_vit", sizes=sources.Sizes(mean=(0.0,) * 3, std=(1.0,) * 3))
    assert 0 <= changed.preprocess(image).min() <= changed.preprocess(image).max() <= 1


def test_a_report_beside_the_pictures(folder):
    result = explain("net.py:tiny", "-i", "b.jpg", "--target", "2", "--report", "new/page.html")
    assert "Report: new/page.html" in unwrapped(result.stdout)
    text = Path("new/page.html").read_text()
    for part in ("Sequential", "a.png", "b.jpg", "class 2"):
        assert part in text
    assert "dir" in unwrapped(explain("net.py:tiny", "--report", "out", code=2).stderr)


def test_pictures_and_report_share_their_explanations(folder, monkeypatch):
    images = ("-i", "b.jpg")
    alone, pictures = explain("net.py:tiny", *images).stdout, [Path(f"out/{n}.png").read_bytes() for n in "ab"]
    validation = omenn_fx.transform(nn.Linear(2, 2).eval()).validate(torch.ones(1, 2))
    explained, forward = [], omenn_fx.Explainer.forward

    def counted(self, *args, **kwargs):
        explained.append(args)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(omenn_fx.Explainer, "forward", counted)
    monkeypatch.setattr(omenn_fx.Explainer, "validate", lambda *args, **kwargs: validation)
    together = explain("net.py:tiny", *images, "--report", "page.html").stdout
    assert len(explained) == 2
    assert rows(together) == rows(alone)
    assert [Path(f"out/{n}.png").read_bytes() for n in "ab"] == pictures


def test_version():
    assert run("--version").stdout.strip() == f"omenn-fx {omenn_fx.__version__}"


# Images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(300, 400), (331, 257), (100, 80)])
def test_standard_is_torchvisions_transform(shape):
    transforms = pytest.importorskip("torchvision").transforms
    theirs = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(images.IMAGENET_MEAN, images.IMAGENET_STD),
        ]
    )
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    torch.testing.assert_close(images.standard()(image)[0], theirs(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b3", "convnext_small", "squeezenet1_1"])
def test_torchvision_models_get_the_transform_of_their_weights(name):
    models = pytest.importorskip("torchvision").models
    own = models.get_model_weights(name).DEFAULT.transforms()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (331, 401, 3), dtype=np.uint8))
    loaded = sources.load(f"torchvision:{name}")
    torch.testing.assert_close(loaded.preprocess(image)[0], own(image), rtol=0, atol=1e-6)
    smaller = sources.load(f"torchvision:{name}", sizes=sources.Sizes(size=64))
    assert smaller.preprocess(image).shape == (1, 3, 64, 64)


def test_undo_shows_what_the_model_saw():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
    preprocess = images.standard(24, resize=24)
    np.testing.assert_array_equal(preprocess.undo(preprocess(image)[0]), np.asarray(image))


def test_a_photograph_is_turned_the_way_its_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (30, 10)).save(tmp_path / "turned.jpg", exif=exif)
    assert images.open_image(tmp_path / "turned.jpg").size == (10, 30)


# Weights ----------------------------------------------------------------------------------------------------------


def other_weights() -> tuple[dict[str, torch.Tensor], str]:
    """A state_dict of the factory's model, and the logit that it gives as the table prints it."""
    model = factory_model()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
        logits = model(images.standard(24)(images.open_image(Path("a.png"))))
    return model.state_dict(), f"{float(logits.max()):.4f}"


def test_weights_of_every_kind(folder):
    state, logit = other_weights()
    torch.save(state, "w.pth")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, "wrapped.pt")
    sources.import_library("safetensors.torch").save_file(state, "w.safetensors")
    for file in ("w.pth", "wrapped.pt", "w.safetensors"):
        model = sources.load("net.py:tiny", Path(file)).model
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, state[name])
    assert rows(explain("net.py:tiny", "--weights", "w.pth").stdout)[0][1] == logit


def test_weights_that_do_not_fit(folder):
    state, _ = other_weights()
    state["more"] = state.pop("0.bias")
    state["5.weight"] = torch.zeros(9, 4)
    torch.save(state, "w.pth")
    error = explain("net.py:tiny", "--weights", "w.pth", code=1).stderr
    for part in (
        "missing (1): 0.bias",
        "not in the model (1): more",
        "5.weight (9, 4) in the file, (7, 4) in the model",
    ):
        assert part in error


class Custom:
    """Something that weights_only=True must not rebuild."""


def test_unreadable_weights(folder):
    torch.save({"x": Custom()}, "code.pth")
    torch.save([1, 2], "list.pth")
    Path("noise.pth").write_bytes(b"not a checkpoint")
    Path("noise.safetensors").write_bytes(b"not a checkpoint")
    for file, message in {
        "code.pth": "no plain state_dict",
        "list.pth": "holds a list",
        "noise.pth": "noise.pth",
        "noise.safetensors": "cannot be read",
        "none.pth": "no weights file",
    }.items():
        assert message in explain("net.py:tiny", "--weights", file, code=1).stderr


# Errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("torchvision:resnet81", "did you mean resnet"),
        ("timm:resnet81d", "did you mean resnet"),
        ("resnet18", "torchvision:NAME, timm:NAME"),
        ("w.pth", "then --weights w.pth"),
        ("none.py:tiny", "there is no file 'none.py'"),
        ("none.pt2", "there is no file 'none.pt2'"),
        ("a.png.pt2", "cannot be read as an exported program"),
        ("net.py:tinny", "did you mean tiny"),
        ("no_such_package:tiny", "cannot be imported"),
        ("net.py:broken", "net.py:17: return nn.Linear(3)"),
        ("net.py:number", "gave a int"),
        ("net.py:unsupported", "_linalg_svd"),
    ],
)
def test_models_that_cannot_be_explained(folder, model, message):
    (folder / "a.png.pt2").write_bytes(b"no archive")
    result = explain(model, code=1)
    assert message in result.stderr
    assert not Path("out").exists() or not list(Path("out").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "none.png"], "there is no image 'none.png'"),
        (["--image", "net.py"], "is not an image"),
        (["--image", "half.png"], "cannot be read as an image"),
        (["--target", "7"], "0 to 6"),
        (["--target", "0,1"], "does not select one value"),
        (["--pretrained"], "brings its own weights"),
        (["--pretrained", "--weights", "w.pth"], "give one of them"),
        (["--mean", "0.5", "--std", "0.5,0.5"], "give 3 values each"),
        (["--resize", "10"], "smaller than the crop"),
        (["--classes", "none.txt"], "class names"),
    ],
)
def test_arguments_that_do_not_fit(folder, arguments, message):
    Path("half.png").write_bytes(Path("a.png").read_bytes()[:2000])
    assert message in explain("net.py:tiny", *arguments, code=1).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--target", "cat"], "is no class"), (["--mean", "a,b"], "are not numbers"), (["--bias", "all"], "carrier")],
)
def test_arguments_that_are_no_arguments(folder, arguments, message):
    assert message in unwrapped(explain("net.py:tiny", *arguments, code=2).stderr)


def test_the_output_folder_is_a_file(folder):
    Path("out").write_text("")
    assert "cannot be made" in explain("net.py:tiny", code=1).stderr


def test_a_wrong_image_costs_no_explanation(folder):
    explain("net.py:tiny", "--image", "none.png", code=1)
    assert not Path("out").exists()


def test_missing_library_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "pip install timm" in explain("timm:resnet18", code=1).stderr


def test_pretrained_without_internet(folder, monkeypatch):
    models = sources.import_library("torchvision").models

    def offline(name, weights):
        assert weights is not None
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(models, "get_model", offline)
    error = explain("torchvision:resnet18", "--pretrained", code=1).stderr
    assert "no route to host" in error
    assert "--pretrained needs internet" in error


def test_torchvision_loads_without_its_compiled_operators():
    code = "from omenn_fx.loading.models import load; print(type(load('torchvision:squeezenet1_1').model).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "SqueezeNet", done.stderr


# check and validate --------------------------------------------------------------------------------------------------


def test_check_supported(folder):
    text = run("check", "net.py:tiny", "--input", "1,3,32,32").output
    assert "Sequential: supported" in text
    assert "conv2d 1" in text


def test_check_not_supported(folder):
    text = run("check", "net.py:unsupported", "--input", "1,3,8,8", code=1).output
    assert "not supported" in text
    assert "OMENN006" in text
    assert "net.py:" in text


def test_check_strict(folder):
    (folder / "soft.py").write_text(
        "from torch import nn\n\ndef soft():\n    return nn.Sequential(nn.Linear(4, 3), nn.Softmax(-1))\n"
    )
    assert "OMENN101" in run("check", "soft.py:soft", "--input", "2,4").output
    run("check", "soft.py:soft", "--input", "2,4", "--strict", code=1)
    assert "OMENN101" not in run("check", "soft.py:soft", "--input", "2,4", "--output", "linear", "--strict").output


@pytest.mark.parametrize(
    ("form", "part"), [("json", '"supported": true'), ("sarif", '"version": "2.1.0"'), ("svg", "<svg")]
)
def test_check_formats(folder, form, part):
    run("check", "net.py:tiny", "--format", form, "--out", f"report.{form}")
    assert part in (folder / f"report.{form}").read_text()
    assert part in run("check", "net.py:tiny", "--format", form).output


def test_check_that_cannot_run(folder):
    run("check", "net.py:nothing", code=2)
    run("check", "net.py:tiny", "--input", "1,x", code=2)


def test_rule_sets(folder):
    """Every command takes one by name, and an unknown one is an error that names them all."""
    model, image = ("net.py:tiny", "--rules", "epsilon_plus"), ("--size", "32", "--resize", "32", "--image", "a.png")
    nodes = run("check", *model, "--input", "1,3,32,32", "--format", "json").output
    assert "epsilon_plus: ZPlus" in nodes
    assert run("validate", *model, *image).output.startswith("valid:")
    run("explain", *model, *image, "--out", "pictures")
    assert (folder / "pictures" / "a.png").exists()
    run("export", *model, *image, "--out", "tiny.onnx")
    error = run("check", "net.py:tiny", "--rules", "lrp", code=2).stderr
    assert "epsilon_plus_flat" in error


def test_validate(folder):
    for more in ((), ("--double",)):
        text = run(
            "validate", "net.py:tiny", "--image", "a.png", "--image", "b.jpg", "--size", "32", "--resize", "32", *more
        ).output
        assert text.startswith("valid:")
        assert ("float64" if more else "float32") in text
    run(
        "validate",
        "net.py:tiny",
        "-i",
        "a.png",
        "--size",
        "32",
        "--resize",
        "32",
        "--plot",
        "e.png",
        "-f",
        "json",
        "-o",
        "v.json",
    )
    assert (folder / "e.png").exists()
    assert '"ok": true' in (folder / "v.json").read_text()
    run("validate", "net.py:unsupported", "--image", "a.png", code=2)
