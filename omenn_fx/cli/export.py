"""`omenn-fx export MODEL -o FILE`: model and explanation as one ONNX file; `--web DIR`: as a page for browsers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from rich.console import Console
from rich.text import Text

import omenn_fx
from omenn_fx.cli import common
from omenn_fx.cli.common import COULD_NOT_RUN, images_of, loaded_model, reported
from omenn_fx.errors import InputError
from omenn_fx.export.deployed import DEFAULT, OUTPUTS
from omenn_fx.loading import models as sources
from omenn_fx.loading.images import open_image
from omenn_fx.loading.models import Loaded, Sizes
from omenn_fx.loading.weights import require_values
from omenn_fx.printable import printable

PARTS = "logits,C,C_w,C_b,completeness"  # what a page shows


class Precision(str, Enum):
    """The dtype of an exported file."""

    float32 = "float32"
    float16 = "float16"


Out = Annotated[Path | None, typer.Option("--out", "-o", help="The file to write: model.onnx.")]
Web = Annotated[
    Path | None, typer.Option(help="A folder for a web page that explains in the browser, instead of --out.")
]
RuntimeDir = Annotated[
    Path | None, typer.Option(help="onnxruntime-web for --web. Default: node_modules, else npm fetches it.")
]
Images = Annotated[
    list[Path] | None, typer.Option("--image", "-i", help="Images to verify the file on; the page's examples.")
]
Outputs = Annotated[
    str | None,
    typer.Option(help=f"Of {', '.join(OUTPUTS)}. Default: {','.join(DEFAULT)}; with --web {PARTS}."),
]
AnySize = Annotated[bool, typer.Option("--any-size", help="Images of any height and width.")]


@dataclass(frozen=True)
class _Place:
    """Where to write: an ONNX file, and for a page the folder around it with the runtime."""

    file: Path
    web: Path | None = None
    runtime: Path | None = None

    def written(self, examples: int) -> list[Path]:
        """Every file that is written."""
        beside = self.file.with_name(self.file.name + ".data")  # where large weights go
        if self.web is None:
            return [self.file, beside]
        from omenn_fx.export.web.page import targets

        return [beside, *targets(self.web, examples)]


def export(
    model: common.Model,
    out: Out = None,
    web: Web = None,
    runtime_dir: RuntimeDir = None,
    image: Images = None,
    target: Annotated[str, typer.Option(help="input (chosen at run time), top1, a class, or classes 3,7.")] = "input",
    outputs: Outputs = None,
    rules: common.Rules = "omenn",
    dtype: Annotated[Precision, typer.Option(help="Of weights, inputs and outputs.")] = Precision.float32,
    any_size: AnySize = False,
    fixed_batch: Annotated[bool, typer.Option("--fixed-batch", help="One image at a time.")] = False,
    weights: common.Weights = None,
    pretrained: common.Pretrained = False,
    classes: common.Classes = None,
    size: common.Size = None,
    resize: common.Resize = None,
    mean: common.Mean = None,
    std: common.Std = None,
    trust: common.Trust = False,
) -> None:
    """Write model and explanation as one ONNX file for onnxruntime, and verify that it computes the same.

    With --web a page comes with it: drop an image or use the camera, and see in the browser what the model saw.
    Nothing leaves the machine that shows it.

    Exit status: 0 written and verified, 2 could not.
    """
    place = _place(out, web, runtime_dir, dtype)
    asked = {
        "rules": rules,
        "outputs": _outputs(outputs, web),
        "target": _target(target),
        "dtype": dtype.value,
        "dynamic": [*(() if fixed_batch else ("batch",)), *(("height", "width") if any_size else ())],
    }
    sizes = Sizes(size, resize, common.floats("--mean", mean), common.floats("--std", std))
    errors = Console(stderr=True)
    with reported(errors, COULD_NOT_RUN):
        loaded = loaded_model(model, errors, weights, pretrained, sizes, trust)
        if classes:
            loaded = replace(loaded, classes=sources.read_names(classes))
        images = image or []
        kept = [*images, weights, classes, *sources.files_of(model)]
        common.require_free(place.written(len(images)), kept)
        _write(loaded, model, place, images, asked, errors)


def _write(
    loaded: Loaded, name: str, place: _Place, images: Sequence[Path], asked: dict[str, Any], errors: Console
) -> None:
    """Export, and for a page fetch its runtime before that: it is quicker to fail."""
    runtime = None if place.web is None else _runtime(loaded, name, place, errors)
    x = _example(loaded, images).to(loaded.dtype)
    if "batch" not in asked["dynamic"]:
        x = x[:1]
    rules = asked.pop("rules")
    with errors.status("capturing, translating and verifying"):
        explainer = omenn_fx.transform(loaded.model, x, rules=rules)
        written = explainer.to_onnx(place.file, x, **asked, metadata=_metadata(loaded))
    console = Console()
    console.print(Text(printable(written)), soft_wrap=True, highlight=False)
    if place.web is None or runtime is None:
        return
    from omenn_fx.export.web import write_page

    examples = [(path.stem, open_image(path)) for path in images]
    page = write_page(place.web, runtime, title=name.rpartition(":")[2], examples=examples, untrained=loaded.untrained)
    console.print(Text(printable(page)), soft_wrap=True, highlight=False)


def _example(loaded: Loaded, images: Sequence[Path]) -> torch.Tensor:
    """The images, or noise of the size that the model reads."""
    if images:
        return images_of(loaded, images)
    require_values(loaded.model)
    blank = loaded.preprocess(Image.new("RGB", (512, 512)))
    return torch.randn(1, *blank.shape[1:], generator=torch.Generator().manual_seed(0))


def _metadata(loaded: Loaded) -> dict[str, str]:
    """What a consumer of the file needs to know of images and classes."""
    scale = {"mean": list(loaded.preprocess.mean), "std": list(loaded.preprocess.std)}
    steps = loaded.preprocess.steps
    return {
        **{key: json.dumps(value) for key, value in scale.items()},
        "preprocess": "" if steps is None else json.dumps(asdict(steps) | scale),
        "classes": json.dumps(list(loaded.classes or ()), ensure_ascii=False),
    }


def _runtime(loaded: Loaded, name: str, place: _Place, errors: Console) -> Mapping[str, bytes]:
    from omenn_fx.export.web import RUNTIME, runtime_files

    if loaded.preprocess.steps is None:
        raise InputError(f"'{name}' prepares its images in a way that a page does not know: resize and centre crop")
    with errors.status(f"looking for {RUNTIME}"):
        return runtime_files(place.runtime)


def _place(out: Path | None, web: Path | None, runtime: Path | None, dtype: Precision) -> _Place:
    if (out is None) == (web is None):
        raise typer.BadParameter("give one of them: a file, or the folder of a page", param_hint="--out / --web")
    if out is not None:
        common.require_ending("--out", out, (".onnx",))
        if runtime is not None:
            raise typer.BadParameter("it is for --web", param_hint="--runtime-dir")
        return _Place(out)
    assert web is not None
    if dtype is not Precision.float32:
        raise typer.BadParameter("a page computes in float32", param_hint="--dtype")
    return _Place(web / "model.onnx", web, runtime)


def _outputs(text: str | None, web: Path | None) -> list[str]:
    wanted = (text or (",".join(DEFAULT) if web is None else PARTS)).split(",")
    names = [name.strip() for name in wanted]
    if web is not None and not {"logits", "C"} <= set(names):
        raise typer.BadParameter("a page needs logits and C", param_hint="--outputs")
    return names


def _target(text: str) -> str | int | list[int]:
    if text in ("input", "top1"):
        return text
    try:
        classes = [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"'{printable(text)}' is not input, top1 or classes like 3,7", param_hint="--target"
        ) from None
    return classes if len(classes) > 1 else classes[0]
