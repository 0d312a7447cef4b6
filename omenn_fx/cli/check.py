"""The commands that look at a model before it is trusted: `omenn-fx check` and `omenn-fx validate`."""

from __future__ import annotations

import logging
import warnings
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from rich.console import Console
from rich.text import Text
from torch.export import ExportedProgram

import omenn_fx
from omenn_fx.algebra.ruleset import rule_set
from omenn_fx.errors import OmennError
from omenn_fx.loading import models as sources
from omenn_fx.loading.images import open_image
from omenn_fx.loading.models import Loaded, Sizes


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


FAILED, COULD_NOT_RUN = 1, 2


def _known(name: str) -> str:
    try:
        return rule_set(name).name
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Rules = Annotated[str, typer.Option(help="The rule set.", callback=_known)]


def check(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=sources.FORMS, show_default=False)],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", help="An input, 1,3,224,224 (or ids:1,16: integers); again for more."),
    ] = None,
    form: Annotated[Format, typer.Option("--format", "-f", help="What to write.")] = Format.table,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A file for it instead of standard output.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as problems.")] = False,
    output: Annotated[str | None, typer.Option(help="The output or node to explain. Default: the logits.")] = None,
    rules: Rules = "omenn",
    one_sample: Annotated[bool, typer.Option("--one-sample", help="The inputs are one sample, no batch.")] = False,
) -> None:
    """Say whether a model can be explained exactly, and by name what cannot. No weights, no data, nothing computed.

    Exit status: 0 supported, 1 not supported (with --strict: or warned of), 2 could not run.
    """
    errors = Console(stderr=True)
    try:
        loaded = loaded_model(model, errors)
        args = tuple(map(_input, inputs)) if inputs else _own(loaded)
        report = omenn_fx.check(loaded.model, args, output=output, rules=rules, batched=not one_sample)
    except OmennError as error:
        errors.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        raise typer.Exit(COULD_NOT_RUN) from None
    if form is Format.table:
        _written(report, out)
    else:
        text = {Format.json: report.to_json, Format.sarif: report.to_sarif, Format.svg: report.to_svg}[form]()
        _put(text, out)
    raise typer.Exit(FAILED if not report.supported or (strict and report.warnings) else 0)


def validate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=sources.FORMS, show_default=False)],
    image: Annotated[list[Path], typer.Option("--image", "-i", help="An image file; give it again for more.")],
    weights: Annotated[Path | None, typer.Option(help="A state_dict: .pth, .pt or .safetensors.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="The library's own weights (downloads).")] = False,
    rules: Rules = "omenn",
    double: Annotated[bool, typer.Option("--double", help="In float64, where a wrong rule cannot hide.")] = False,
    form: Annotated[Table, typer.Option("--format", "-f", help="What to write.")] = Table.table,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A file for it instead of standard output.")] = None,
    plot: Annotated[Path | None, typer.Option(help="A picture of the errors of all nodes.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Side of the square that the model reads.")] = None,
    resize: Annotated[int | None, typer.Option(min=1, help="Short side of the image before its centre crop.")] = None,
) -> None:
    """Measure every invariant at every node of a model on images: W h + b == h, the transpose, the sum, the biases.

    Exit status: 0 valid, 1 not valid, 2 could not run.
    """
    errors = Console(stderr=True)
    try:
        loaded = loaded_model(model, errors, weights, pretrained, Sizes(size, resize))
        x = torch.cat([loaded.preprocess(open_image(file)) for file in image]).to(loaded.dtype)
        if double:
            if isinstance(loaded.model, ExportedProgram):
                raise sources.SourceError("an exported program keeps its dtype: leave --double out")
            loaded.model.double()
            x = x.double()
        with errors.status("capturing, explaining and measuring"):
            report = omenn_fx.transform(loaded.model, rules=rules).validate(x)
    except OmennError as error:
        errors.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        raise typer.Exit(COULD_NOT_RUN) from None
    if plot is not None:
        report.plot(plot)
    if form is Table.table:
        _written(report, out)
    else:
        _put(report.to_json(), out)
    raise typer.Exit(0 if report.ok else FAILED)


def loaded_model(
    spec: str, errors: Console, weights: Path | None = None, pretrained: bool = False, sizes: Sizes | None = None
) -> Loaded:
    """Load a model for a command that reports by itself: warnings of ours would say it twice."""
    logging.getLogger("omenn_fx").setLevel(logging.ERROR)  # the report says it
    warnings.filterwarnings("ignore", category=FutureWarning)  # torch's own, about its own code
    with errors.status("loading the model"):
        return sources.load(spec, weights, pretrained, sizes)


def _input(text: str) -> torch.Tensor:
    kind, _, shape = text.rpartition(":")
    try:
        sizes = [int(part) for part in shape.split(",")]
        if kind not in ("", "ids") or min(sizes) < 0:
            raise ValueError
    except ValueError:
        raise typer.BadParameter(
            f"'{text}' is no shape: give 1,3,224,224, or ids:1,16 for integers", param_hint="--input"
        ) from None
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
        typer.echo(text)
    else:
        out.write_text(text + "\n", encoding="utf-8")
