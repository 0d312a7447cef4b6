"""`omenn-fx export MODEL -o FILE`: model and explanation as one ONNX file."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from rich.console import Console
from rich.text import Text

import omenn_fx
from omenn_fx.cli import common
from omenn_fx.cli.common import COULD_NOT_RUN, images_of, loaded_model, reported
from omenn_fx.loading import models as sources
from omenn_fx.loading.models import Sizes
from omenn_fx.loading.weights import require_values
from omenn_fx.printable import printable


class Precision(str, Enum):
    """The dtype of an exported file."""

    float32 = "float32"
    float16 = "float16"


def export(
    model: common.Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write: model.onnx.")],
    image: Annotated[list[Path] | None, typer.Option("--image", "-i", help="Images to verify the file on.")] = None,
    target: Annotated[str, typer.Option(help="input (chosen at run time), top1, a class, or classes 3,7.")] = "input",
    outputs: Annotated[str, typer.Option(help="Of logits, C, C_w, C_b, X, bias, target.")] = "logits,C",
    rules: common.Rules = "omenn",
    dtype: Annotated[Precision, typer.Option(help="Of weights, inputs and outputs.")] = Precision.float32,
    any_size: Annotated[bool, typer.Option("--any-size", help="Images of any height and width.")] = False,
    fixed_batch: Annotated[bool, typer.Option("--fixed-batch", help="One image at a time.")] = False,
    weights: common.Weights = None,
    pretrained: common.Pretrained = False,
    size: common.Size = None,
    resize: common.Resize = None,
    trust: common.Trust = False,
) -> None:
    """Write model and explanation as one ONNX file for onnxruntime, and verify that it computes the same.

    Exit status: 0 written and verified, 2 could not.
    """
    common.require_ending("--out", out, (".onnx",))
    wanted = _target(target)
    errors = Console(stderr=True)
    with reported(errors, COULD_NOT_RUN):
        loaded = loaded_model(model, errors, weights, pretrained, Sizes(size, resize), trust)
        beside = out.with_name(out.name + ".data")  # where large weights go
        common.require_free([out, beside], [*(image or ()), weights, *sources.files_of(model)])
        if image:
            x = images_of(loaded, image)
        else:
            require_values(loaded.model)
            blank = loaded.preprocess(Image.new("RGB", (512, 512)))
            x = torch.randn(1, *blank.shape[1:], generator=torch.Generator().manual_seed(0))
        with errors.status("capturing, translating and verifying"):
            written = omenn_fx.transform(loaded.model, x.to(loaded.dtype), rules=rules).to_onnx(
                out,
                x.to(loaded.dtype),
                outputs=[o.strip() for o in outputs.split(",")],
                target=wanted,
                dtype=dtype.value,
                dynamic=[*(() if fixed_batch else ("batch",)), *(("height", "width") if any_size else ())],
                metadata={
                    "mean": json.dumps(list(loaded.preprocess.mean)),
                    "std": json.dumps(list(loaded.preprocess.std)),
                    "classes": json.dumps(list(loaded.classes or ())),
                },
            )
        Console().print(Text(printable(written)), soft_wrap=True, highlight=False)


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
