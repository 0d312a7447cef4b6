"""Nothing of the user's model or process differs after a call, for every public entry point.

Each is called once, on a model with everything that a capture could disturb: a forward of the instance, hooks,
attributes and lists that forward fills, shared and frozen parameters, gradients. A public name without a case fails.
"""

import inspect
import logging
import random
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner
from unchanged import It, differences, of_tensor, settle, snapshot, unchanged

import omenn_fx
from omenn_fx import export, report, testing, visualize
from omenn_fx.algebra import Call, Diagonal, Linear
from omenn_fx.algebra.ruleset import omenn
from omenn_fx.cli import app
from omenn_fx.explainer import Explainer
from omenn_fx.loading import images
from omenn_fx.loading.models import Loaded

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
matplotlib.use("agg")

FACTORY = """
import torch
from torch import nn

def tiny():
    with torch.random.fork_rng(devices=[]):
        return made()

def made():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
"""


@torch.library.custom_op("unchanged::halve", mutates_args=())
def halve(x: torch.Tensor) -> torch.Tensor:
    return x / 2


halve.register_fake(torch.empty_like)


class Halve(nn.Module):
    def forward(self, x):
        return halve(x)


class Users(nn.Module):
    """A model that keeps notes of its runs."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.shared = self.head.weight
        self.runs, self.features, self.options = 0, None, {"sizes": [1, 2], "names": {"a"}}
        self.history: list[Tensor] = []
        self.config = types.SimpleNamespace(classes=5)

    def forward(self, x):
        self.runs += 1
        self.features = self.norm(self.conv(x)).relu()
        self.history.append(self.features)
        self.options["sizes"].append(self.runs)
        self.attention = self.features.sigmoid()  # the first to set it
        return self.head(self.features.mean((2, 3)))


def users_model() -> nn.Module:
    torch.manual_seed(0)
    model = Users().eval()
    plain = Users.forward
    model.forward = types.MethodType(lambda self, x: plain(self, x), model)
    model(torch.randn(2, 3, 6, 5)).sum().backward()
    model.conv.bias.requires_grad_(False)
    model.conv.register_forward_hook(lambda module, args, out: None)
    model.norm.register_forward_pre_hook(lambda module, args: None)
    model.head.register_full_backward_hook(lambda module, given, got: None)
    model.register_state_dict_post_hook(lambda module, state, prefix, local: None)
    return model


@dataclass
class Subject:
    """What a case gets: the user's model, an input, the model's explainer with one capture, and a folder."""

    model: nn.Module
    x: Tensor
    explainer: Explainer
    folder: Path
    cache: dict[str, Any] = field(default_factory=dict)

    def explanation(self, **options: Any) -> omenn_fx.Explanation:
        return self.explainer(self.x, **options)

    def file(self, name: str) -> Path:
        return self.folder / name

    def photograph(self) -> Path:
        Image.fromarray(np.arange(60 * 40 * 3, dtype=np.uint8).reshape(60, 40, 3)).save(self.file("a.png"))
        return self.file("a.png")

    def loaded(self) -> Loaded:
        return Loaded(self.model, images.standard(6), [f"class {i}" for i in range(5)])


CASES: dict[str, Callable[[Subject], Any]] = {}


def case(*names: str) -> Callable[[Callable[[Subject], Any]], Callable[[Subject], Any]]:
    """A case for one or several public names."""

    def register(function: Callable[[Subject], Any]) -> Callable[[Subject], Any]:
        CASES.update(dict.fromkeys(names, function))
        return function

    return register


# Capturing -----------------------------------------------------------------------------------------------------------

case("omenn_fx.transform", "Explainer")(lambda s: omenn_fx.transform(s.model, s.x))
case("transform at the first call")(lambda s: omenn_fx.transform(s.model, rules="gradient", bias="none")(s.x, target=1))
case("omenn_fx.check", "CheckReport", "NodeVerdict")(lambda s: _used(omenn_fx.check(s.model, s.x)))
case("Explainer.prepare", "Explainer.program_for")(lambda s: omenn_fx.transform(s.model).prepare(s.x[:1]))
case("Explainer.with_request")(lambda s: s.explainer.with_request(s.explainer.request)(s.x))
case("Explainer.in_float64", "Explainer.converted")(lambda s: s.explainer.in_float64()(s.x.double()))
case("Explainer.train")(lambda s: s.explainer.train(True))


@case("a capture that fails")
def _(s: Subject) -> None:
    with pytest.raises(omenn_fx.CaptureError):
        omenn_fx.transform(s.model, torch.ones(2, 7, 6, 5))


# Explaining ----------------------------------------------------------------------------------------------------------

case("Explainer.forward")(lambda s: [s.explanation(), s.explanation(target=torch.tensor([[0, 1], [2, 3]]))])
case("Explanation", "InputExplanation", "BiasTable")(lambda s: _used(s.explanation()))


@case("a target that there is not")
def _(s: Subject) -> None:
    with pytest.raises(omenn_fx.TargetError):
        s.explanation(target=99)


case("Explainer.validate", "ValidationReport")(lambda s: _used(s.explainer.validate(s.x)))
case("validate in float64")(lambda s: s.explainer.validate(s.x, double=True))
case("Explainer.reference")(lambda s: s.explainer.reference(s.x))
case("Explainer.affine", "AffineMap")(lambda s: _used(s.explainer.affine(s.x, s.explainer.nodes[-2].name)))
case(
    *(f"Explainer.{name}" for name in ("bias", "ready", "graph_module", "nodes", "decisions", "opaque", "extra_repr"))
)(lambda s: _used(s.explainer))
case("NodeInfo")(lambda s: list(map(str, s.explainer.nodes)))


@case("omenn_fx.rule", "omenn_fx.opaque")
def _(s: Subject) -> None:
    for register in (omenn_fx.opaque, lambda op: omenn_fx.rule(op)(_a_half)):
        register(halve)
        try:
            omenn_fx.check(nn.Sequential(s.model, Halve()).eval(), s.x)
        finally:
            del omenn.table[halve._opoverload]


def _a_half(call: Call) -> Linear:
    return Diagonal(0.5, call.shape(), call.out.shape)


@case("testing.check_rule")
def _(s: Subject) -> None:
    testing.check_rule(torch.ops.aten.relu.default, [torch.linspace(-1, 1, 12).view(3, 4)])


def _used(thing: Any) -> None:
    """Everything that a result offers without arguments, and what it prints."""
    for name, member in inspect.getmembers(type(thing)):
        if name.startswith("_") or name in dir(nn.Module):
            continue
        value = getattr(thing, name)
        needed = (
            [p for p in inspect.signature(value).parameters.values() if p.default is p.empty] if callable(value) else 0
        )
        if inspect.isfunction(member) and needed == []:
            value()
    repr(thing), str(thing)


# Files ---------------------------------------------------------------------------------------------------------------


@case("Explainer.to_onnx", "export.load", "export.OnnxExplainer")
def _(s: Subject) -> None:
    s.explainer.to_onnx(s.file("a.onnx"), s.x)
    export.load(s.file("a.onnx"))(s.x.numpy(), target=1)


@case("Explainer.save", "omenn_fx.load")
def _(s: Subject) -> None:
    s.explainer.save(s.file("a.pt2"), s.x)
    omenn_fx.load(s.file("a.pt2"))(s.x)


case("export.to_program")(lambda s: export.to_program(s.explainer, s.x))

# Pictures and pages --------------------------------------------------------------------------------------------------

PICTURES = {
    "picture": "maps",
    "overlay_picture": "overlay",
    "bias_bars": "bias",
    "layer_bars": "layers",
}
for _name, _kind in PICTURES.items():
    case(f"visualize.{_name}")(lambda s, kind=_kind: visualize.plot(s.explanation(), kind, **_given(s, kind)))


@case("visualize.targets_picture", "visualize.contrast_picture")
def _(s: Subject) -> None:
    explanation = s.explanation(target=torch.tensor([[0, 1], [2, 3]]))
    for kind in ("targets", "contrast"):
        visualize.plot(explanation, kind, path=s.file(f"{kind}.png"))


def _given(s: Subject, kind: str) -> dict[str, Any]:
    given = {"overlay": {"image": s.x[0]}, "layers": {"nodes": s.explainer.nodes}}
    return given.get(kind, {"path": s.file("a.pdf")})


case("visualize.plot")(lambda s: s.explanation().plot())
case("visualize.token_bars", "visualize.token_text", "visualize.token_html")(lambda s: _tokens())


def _tokens() -> None:
    model = nn.Sequential(nn.GELU(), nn.Flatten()).eval()
    explanation = omenn_fx.transform(model)(torch.ones(1, 3, 4))
    for draw in (visualize.token_bars, visualize.token_text, visualize.token_html):
        draw(["a", "b", "c"], explanation)


@case(
    *(
        f"visualize.{name}"
        for name in ("Display", "bias_share", "colours", "number", "overlay", "percent", "symmetric_scale")
    )
)
def _(s: Subject) -> None:
    values = s.explanation().C[0].sum(0).numpy()
    visualize.colours(values, visualize.symmetric_scale(values))
    visualize.overlay(s.x[0], values)
    visualize.percent(visualize.bias_share(s.explanation()))
    visualize.number(0.5), visualize.Display()


case("report.write", "report.Report", "report.class_name")(
    lambda s: report.write(s.file("page.html"), s.loaded(), [s.photograph()], classes=2)
)

# Integrations and the command line -----------------------------------------------------------------------------------


@case("integrations.captum")
def _(s: Subject) -> None:
    captum = pytest.importorskip("omenn_fx.integrations.captum")
    captum.OMENN(s.model).attribute(s.x, target=1, return_convergence_delta=True)


@case("integrations.quantus", "integrations.live")
def _(s: Subject) -> None:
    from omenn_fx.integrations.quantus import explain

    explain(s.model, s.x.numpy(), np.array([0, 1]))


@case("integrations.huggingface", "integrations.results")
def _(s: Subject) -> None:
    s.cache["explain"](s.cache["image"])


case("cli.check")(lambda s: _run("check", "net.py:tiny", "--input", "1,3,8,8"))
case("cli.validate")(lambda s: _run("validate", "net.py:tiny", "--image", str(s.photograph()), "--size", "8"))
case("cli.explain")(
    lambda s: _run("explain", "net.py:tiny", "--image", str(s.photograph()), "--size", "8", "--out", "out")
)
case("cli.export")(lambda s: _run("export", "net.py:tiny", "--size", "8", "--out", "net.onnx"))


# A command has a process of its own: it reports by itself instead of warning, and imports the user's file.
OF_A_COMMAND = ("sys.path",)


def _run(*arguments: str) -> None:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output


# The tests -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def captured():
    """The user's model and its explainer; what torch and others set up once at their first use is set up."""
    settle()
    model, x = users_model(), torch.randn(2, 3, 6, 5)
    return model, x, omenn_fx.transform(model, x)


@pytest.fixture
def subject(captured, tmp_path, monkeypatch):
    """A user's process: own filters, levels and states of random numbers, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    Path("net.py").write_text(FACTORY)
    levels = {name: logging.getLogger(name).level for name in ("torch.fx", "torch.export", "torch._dynamo")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR - 1)
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.filterwarnings("once", message="of the user")
        yield Subject(*captured, tmp_path)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture(scope="module")
def pipeline():
    """A pipeline of transformers with a small model, an image, and the module of it."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, image_size=8, patch_size=4)).eval()
    processor = transformers.ViTImageProcessor(size={"height": 8, "width": 8})
    return transformers.pipeline("image-classification", model=model, image_processor=processor)


@pytest.mark.parametrize("name", {id(f): name for name, f in reversed(CASES.items())}.values())
def test_nothing_of_the_users_differs_after(name, subject, request):
    model = subject.model
    if "huggingface" in name or "results" in name:
        from omenn_fx.integrations.huggingface import PipelineExplainer

        pipeline = request.getfixturevalue("pipeline")
        model, image = pipeline.model, Image.new("RGB", (9, 9), "red")
        subject.cache = {"explain": PipelineExplainer(pipeline), "image": image}
    apart = OF_A_COMMAND if name.startswith("cli.") else ()
    with unchanged(model, subject.x, apart=apart):
        CASES[name](subject)


def test_every_public_name_has_a_case():
    records = (omenn_fx.Verdict,)
    names = {n for n in omenn_fx.__all__ if isinstance(getattr(omenn_fx, n), type)}
    names -= {n for n in names if issubclass(getattr(omenn_fx, n), (Exception, *records))}
    names |= {f"omenn_fx.{n}" for n in omenn_fx.__all__ if inspect.isroutine(getattr(omenn_fx, n))}
    names |= {f"Explainer.{n}" for n in vars(Explainer) if not n.startswith("_")}
    for module, short in ((visualize, "visualize"), (report, "report"), (export, "export")):
        names |= {f"{short}.{n}" for n in module.__all__ if callable(getattr(module, n))}
    names |= {f"cli.{command.callback.__name__}" for command in app.registered_commands}
    folder = Path(omenn_fx.__file__).parent / "integrations"
    names |= {f"integrations.{file.stem}" for file in folder.glob("[!_]*.py")}
    names |= {"testing.check_rule"}
    assert names <= set(CASES), sorted(names - set(CASES))


# Models that write, and what the comparison itself sees --------------------------------------------------------------


class Steps(nn.Module):
    """A model whose buffers count its runs, in place and by assignment."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("runs", torch.zeros(()))
        self.register_buffer("largest", torch.zeros(()))
        self.seen = set()

    def forward(self, x):
        self.runs.add_(1)
        self.largest = torch.maximum(self.largest, x.abs().amax())
        self.seen.add(x.shape[-1])
        return self.linear(x)


@pytest.mark.parametrize("entry", ["transform", "validate", "reference"])
def test_buffers_that_forward_writes_are_as_before(entry):
    model, x = Steps().eval(), torch.randn(2, 3)
    runs, largest, seen = model.runs, model.largest, model.seen
    explainer = omenn_fx.transform(model, x)
    if entry != "transform":
        getattr(explainer, entry)(x)
    assert model.runs is runs
    assert model.largest is largest
    assert float(runs) == float(largest) == 0
    assert model.seen is seen
    assert seen == set()


def test_lists_of_a_model_stay_those_that_others_hold():
    """torch.export puts copies in their place, and fake tensors into the originals."""
    model, x = users_model(), torch.randn(2, 3, 6, 5)
    history, sizes = model.history, model.options["sizes"]
    before = list(history)
    explainer = omenn_fx.transform(model, x)
    explainer(x)
    assert model.history is history
    assert model.options["sizes"] is sizes
    assert all(type(v) is Tensor for v in history)
    assert [id(v) for v in history] == [id(v) for v in before]
    model(x)
    assert len(history) == len(before) + 1  # the user's own run writes as ever


def _rewrite(model: nn.Module) -> None:
    with torch.no_grad():
        model.head.bias.copy_(model.head.bias.clone())


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "a bit of a parameter": lambda m: m.head.bias.data.view(torch.int32)[0].bitwise_xor_(1),
    "another parameter": lambda m: setattr(m.head, "bias", nn.Parameter(m.head.bias.detach().clone())),
    "the same values once more": _rewrite,
    "requires_grad": lambda m: m.head.bias.requires_grad_(False),
    "a gradient": lambda m: setattr(m.head.bias, "grad", torch.zeros(5)),
    "a buffer": lambda m: m.norm.running_mean.add_(1),
    "train mode of a module": lambda m: m.norm.train(),
    "a hook": lambda m: m.conv.register_forward_hook(print),
    "a new attribute": lambda m: setattr(m, "note", 1),
    "a missing attribute": lambda m: delattr(m, "config"),
    "the forward of the instance": lambda m: vars(m).pop("forward"),
    "a copy of a list": lambda m: setattr(m, "history", list(m.history)),
    "an element of a list": lambda m: m.history.append(None),
    "a module": lambda m: setattr(m, "head", nn.Linear(4, 5)),
    "random numbers of torch": lambda m: torch.rand(1),
    "random numbers of numpy": lambda m: np.random.rand(),
    "random numbers of Python": lambda m: random.random(),
    "a filter": lambda m: warnings.simplefilter("always"),
    "a level": lambda m: logging.getLogger("torch.fx").setLevel(logging.CRITICAL),
    "threads": lambda m: torch.set_num_threads(torch.get_num_threads() + 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_comparison_sees(change, subject):
    """What a case would never notice would make all of them pass."""
    model, threads = users_model(), torch.get_num_threads()
    with pytest.raises(AssertionError, match="changed:"), unchanged(model):
        CHANGES[change](model)
    torch.set_num_threads(threads)


def test_the_comparison_sees_inputs_and_modes():
    x = torch.zeros(3)
    before = snapshot(None, (x,))
    assert differences(before, snapshot(None, (x,))) == []
    x += 1
    with torch.no_grad():
        found = differences(before, snapshot(None, (x,)))
    assert [line.split(" was ")[0] for line in found] == ["input 0", "gradients enabled"]
    assert It(x) == It(x)
    assert of_tensor(x) != of_tensor(x.clone())
