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
from omenn_fx.cli.check import COULD_NOT_RUN, Rules, loaded_model
from omenn_fx.errors import OmennError
from omenn_fx.loading import models as sources
from omenn_fx.loading.images import open_image
from omenn_fx.loading.models import Sizes


class Precision(str, Enum):
    """The dtype of an exported file."""

    float32 = "float32"
    float16 = "float16"


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=sources.FORMS, show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write: model.onnx.")],
    image: Annotated[list[Path] | None, typer.Option("--image", "-i", help="Images to verify the file on.")] = None,
    target: Annotated[str, typer.Option(help="input (chosen at run time), top1, a class, or classes 3,7.")] = "input",
    outputs: Annotated[str, typer.Option(help="Of logits, C, C_w, C_b, X, bias, target.")] = "logits,C",
    rules: Rules = "omenn",
    dtype: Annotated[Precision, typer.Option(help="Of weights, inputs and outputs.")] = Precision.float32,
    any_size: Annotated[bool, typer.Option("--any-size", help="Images of any height and width.")] = False,
    fixed_batch: Annotated[bool, typer.Option("--fixed-batch", help="One image at a time.")] = False,
    weights: Annotated[Path | None, typer.Option(help="A state_dict: .pth, .pt or .safetensors.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="The library's own weights (downloads).")] = False,
    size: Annotated[int | None, typer.Option(min=1, help="Side of the square that the model reads.")] = None,
    resize: Annotated[int | None, typer.Option(min=1, help="Short side of the image before its centre crop.")] = None,
) -> None:
    """Write model and explanation as one ONNX file for onnxruntime, and verify that it computes the same.

    Exit status: 0 written and verified, 2 could not.
    """
    errors = Console(stderr=True)
    try:
        loaded = loaded_model(model, errors, weights, pretrained, Sizes(size, resize))
        if image:
            x = torch.cat([loaded.preprocess(open_image(file)) for file in image])
        else:
            blank = loaded.preprocess(Image.new("RGB", (512, 512)))
            x = torch.randn(1, *blank.shape[1:], generator=torch.Generator().manual_seed(0))
        with errors.status("capturing, translating and verifying"):
            written = omenn_fx.transform(loaded.model, x.to(loaded.dtype), rules=rules).to_onnx(
                out,
                x.to(loaded.dtype),
                outputs=[o.strip() for o in outputs.split(",")],
                target=_target(target),
                dtype=dtype.value,
                dynamic=[*(() if fixed_batch else ("batch",)), *(("height", "width") if any_size else ())],
                metadata={
                    "mean": json.dumps(list(loaded.preprocess.mean)),
                    "std": json.dumps(list(loaded.preprocess.std)),
                    "classes": json.dumps(list(loaded.classes or ())),
                },
            )
    except OmennError as error:
        errors.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        raise typer.Exit(COULD_NOT_RUN) from None
    Console().print(str(written), soft_wrap=True, highlight=False)


def _target(text: str) -> str | int | list[int]:
    if text in ("input", "top1"):
        return text
    try:
        classes = [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not input, top1 or classes like 3,7", param_hint="--target") from None
    return classes if len(classes) > 1 else classes[0]
