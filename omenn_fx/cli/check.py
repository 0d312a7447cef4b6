"""The commands that look at a model before it is trusted: `omenn-fx check` and `omenn-fx validate`."""

from __future__ import annotations

import math
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from rich.console import Console
from torch.export import ExportedProgram

import omenn_fx
from omenn_fx.cli import common
from omenn_fx.cli.common import COULD_NOT_RUN, FAILED, PICTURES, images_of, loaded_model, reported
from omenn_fx.loading import models as sources
from omenn_fx.loading.models import Loaded, Sizes
from omenn_fx.printable import printable


class Format(str, Enum):
    """How a report of check is written."""

    table = "table"
    json = "json"
    sarif = "sarif"
    svg = "svg"


class Table(str, Enum):
    """How a report of validate is written."""

    table = "table"
    json = "json"


ENDINGS = {
    "table": (".txt", ".log", ".md", ""),
    "json": (".json",),
    "sarif": (".sarif", ".json"),
    "svg": (".svg",),
}
LARGEST = 2**30  # bytes of an --input


def check(
    model: common.Model,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", help="An input, 1,3,224,224 (or ids:1,16: integers); again for more."),
    ] = None,
    form: Annotated[Format, typer.Option("--format", "-f", help="What to write.")] = Format.table,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A file for it instead of standard output.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as problems.")] = False,
    output: Annotated[str | None, typer.Option(help="The output or node to explain. Default: the logits.")] = None,
    rules: common.Rules = "omenn",
    one_sample: Annotated[bool, typer.Option("--one-sample", help="The inputs are one sample, no batch.")] = False,
    trust: common.Trust = False,
) -> None:
    """Say whether a model can be explained exactly, and by name what cannot. No weights, no data, nothing computed.

    Exit status: 0 supported, 1 not supported (with --strict: or warned of), 2 could not run.
    """
    common.require_ending("--out", out, ENDINGS[form.value])
    given = tuple(map(_input, inputs or ()))
    errors = Console(stderr=True)
    with reported(errors, COULD_NOT_RUN):
        loaded = loaded_model(model, errors, trusted=trust)
        common.require_free([out], sources.files_of(model))
        args = given or _own(loaded)
        report = omenn_fx.check(loaded.model, args, output=output, rules=rules, batched=not one_sample)
        if form is Format.table:
            _written(report, out)
        else:
            text = {Format.json: report.to_json, Format.sarif: report.to_sarif, Format.svg: report.to_svg}[form]()
            _put(text, out)
    raise typer.Exit(FAILED if not report.supported or (strict and report.warnings) else 0)


def validate(
    model: common.Model,
    image: Annotated[list[Path], typer.Option("--image", "-i", help="An image file; give it again for more.")],
    weights: common.Weights = None,
    pretrained: common.Pretrained = False,
    rules: common.Rules = "omenn",
    double: Annotated[bool, typer.Option("--double", help="In float64, where a wrong rule cannot hide.")] = False,
    form: Annotated[Table, typer.Option("--format", "-f", help="What to write.")] = Table.table,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A file for it instead of standard output.")] = None,
    plot: Annotated[Path | None, typer.Option(help="A picture of the errors of all nodes.")] = None,
    size: common.Size = None,
    resize: common.Resize = None,
    trust: common.Trust = False,
) -> None:
    """Measure every invariant at every node of a model on images: W h + b == h, the transpose, the sum, the biases.

    Exit status: 0 valid, 1 not valid, 2 could not run.
    """
    common.require_ending("--out", out, ENDINGS[form.value])
    common.require_ending("--plot", plot, PICTURES)
    errors = Console(stderr=True)
    with reported(errors, COULD_NOT_RUN):
        loaded = loaded_model(model, errors, weights, pretrained, Sizes(size, resize), trust)
        common.require_free([out, plot], [*image, weights, *sources.files_of(model)])
        x = images_of(loaded, image)
        if double:
            if isinstance(loaded.model, ExportedProgram):
                raise sources.SourceError("an exported program keeps its dtype: leave --double out")
            loaded.model.double()
            x = x.double()
        with errors.status("capturing, explaining and measuring"):
            report = omenn_fx.transform(loaded.model, rules=rules).validate(x)
        if plot is not None:
            report.plot(plot)
        if form is Table.table:
            _written(report, out)
        else:
            _put(report.to_json(), out)
    raise typer.Exit(0 if report.ok else FAILED)


def _input(text: str) -> torch.Tensor:
    kind, _, shape = text.rpartition(":")
    try:
        sizes = [int(part) for part in shape.split(",")]
        if kind not in ("", "ids") or min(sizes) < 0:
            raise ValueError
    except ValueError:
        raise typer.BadParameter(
            f"'{printable(text)}' is no shape: give 1,3,224,224, or ids:1,16 for integers", param_hint="--input"
        ) from None
    if math.prod(sizes) * 4 > LARGEST or len(sizes) > 64:
        raise typer.BadParameter(
            f"'{printable(text)}' does not fit in the memory; only shapes are looked at, so that a small batch and a "
            "small image of as many dimensions say the same",
            param_hint="--input",
        )
    return torch.zeros(sizes, dtype=torch.long if kind else torch.float32)


def _own(loaded: Loaded) -> tuple[Any, ...]:
    """What the model is known to read: an exported program's inputs, else a blank image as it is preprocessed."""
    if isinstance(loaded.model, ExportedProgram):
        return ()
    return (loaded.preprocess(Image.new("RGB", (512, 512))).to(loaded.dtype),)


def _written(report: Any, out: Path | None) -> None:
    if out is None:
        Console().print(report)
    else:
        _put(str(report), out)


def _put(text: str, out: Path | None) -> None:
    if out is None:
        typer.echo(printable(text))
    else:
        out.write_text(text + "\n", encoding="utf-8")
