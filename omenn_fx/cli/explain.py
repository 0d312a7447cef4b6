"""The command line: `omenn-fx explain MODEL --image FILE --out DIR`; `cli.check` and `cli.export` have the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

import omenn_fx
from omenn_fx.checking.validation_report import largest
from omenn_fx.cli import check as cli_check
from omenn_fx.cli import common
from omenn_fx.cli import export as cli_export
from omenn_fx.cli.common import FAILED, images_of, logged, reported
from omenn_fx.errors import InputError
from omenn_fx.explanation import Explanation
from omenn_fx.loading import models as sources
from omenn_fx.loading.models import Loaded, Sizes
from omenn_fx.printable import Fitted, Printable, printable
from omenn_fx.report import Report, class_name
from omenn_fx.target import Target
from omenn_fx.visualize import Display, bias_share, number, percent, picture
from omenn_fx.visualize.parts import Row

app = typer.Typer(
    help="Explain what a PyTorch image model saw, exactly: one matrix whose sum is the logit.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


class BiasPolicy(str, Enum):
    """Where the biases' part of the logit goes."""

    carrier = "carrier"
    contribution = "contribution"
    none = "none"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"omenn-fx {omenn_fx.__version__}")
        raise typer.Exit


app.command()(cli_check.check)
app.command()(cli_check.validate)
app.command()(cli_export.export)


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Explain what a PyTorch image model saw, exactly: one matrix whose sum is the logit."""


@app.command()
def explain(
    model: common.Model,
    image: Annotated[list[Path], typer.Option("--image", "-i", help="An image file; give it again for more.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for the pictures; made where it is missing.")],
    target: Annotated[str | None, typer.Option(help="The class to explain. Default: each image's top class.")] = None,
    report: Annotated[
        Path | None, typer.Option(dir_okay=False, help="An HTML page about the top classes of all images.")
    ] = None,
    weights: common.Weights = None,
    pretrained: common.Pretrained = False,
    rules: common.Rules = "omenn",
    bias: Annotated[BiasPolicy, typer.Option(help="How C_b is made.")] = BiasPolicy.carrier,
    classes: common.Classes = None,
    size: common.Size = None,
    resize: common.Resize = None,
    mean: common.Mean = None,
    std: common.Std = None,
    as_is: Annotated[bool, typer.Option("--as-is", help="Draw maps with their outliers, not smoothed.")] = False,
    trust: common.Trust = False,
) -> None:
    """Explain one class of each image and write a picture: the input, C_w * X, C_b and C.

    Exit status: 0 explained, 1 could not, 2 the arguments are wrong.
    """
    common.require_ending("--report", report, (".html", ".htm"))
    console, errors = Console(), Console(stderr=True)
    sizes = Sizes(size, resize, common.floats("--mean", mean), common.floats("--std", std))
    wanted = _target(target)
    with logged(errors), reported(errors, FAILED):
        common.hush()
        with console.status("loading the model"):
            loaded = sources.load(model, weights, pretrained, sizes, trust)
            if classes:
                loaded = replace(loaded, classes=sources.read_names(classes))
        if loaded.untrained:
            errors.print(_untrained(model))
        given = [path for path in (weights, classes, *sources.files_of(model)) if path is not None]
        explain_images(
            loaded,
            image,
            out,
            target=wanted,
            rules=rules,
            bias=bias.value,
            report=report,
            display=Display() if as_is else None,
            console=console,
            kept=given,
        )


def explain_images(
    loaded: Loaded,
    files: Sequence[Path],
    out: Path,
    *,
    target: Target = None,
    rules: str = "omenn",
    bias: str = "carrier",
    report: Path | None = None,
    display: Display | None = None,
    console: Console | None = None,
    kept: Sequence[Path] = (),
) -> list[Path]:
    """Explain each image, print its table and write its picture, named after it, to the folder `out`.

    Args:
        loaded: the model with its preprocessing and class names (sources.load makes one).
        files: image files.
        out: a folder, made where it is missing.
        target, rules, bias: what is explained and how, as `transform` and `Explainer` take them.
        report: an HTML page about all images (see omenn_fx.report.write), which also validates each; None: none.
        display: how the maps of both are drawn. Default: `omenn_fx.visualize.Display.default`.
        console: where to print. Default: standard output.
        kept: more files that are not written over, as none of `files` is.

    Raises:
        OmennError: a file is no image or would be written over, or the model has no such target or explanation.
    """
    console = console or Console()
    batches, paths = images_of(loaded, files).split(1), _paths(files, out)  # first: an error should not cost a capture
    common.require_free([*paths, report], [*files, *kept])
    completeness: list[float] = []
    with _progress(console) as progress:
        task = progress.add_task("capturing the model", total=len(files))
        explainer = omenn_fx.transform(loaded.model, batches[0], rules=rules, bias=bias)
        page = Report(loaded, explainer, target, display=display)
        for file, x, path in zip(files, batches, paths, strict=True):
            name = printable(file.name)
            progress.update(task, description=f"explaining {name}")
            explanation = explainer(x, target=target if report is None else page.target)
            _check(explanation, loaded.classes, name)
            completeness.append(_show(loaded, explanation, x, name, path, display, console))
            if report is not None:
                progress.update(task, description=f"validating {name} for the report")
                page.add(name, x, explanation)
            progress.advance(task)
    if report is not None:
        page.write(report)
    console.print(_closing(paths, out, largest(completeness), report), soft_wrap=True)
    return paths


def _check(explanation: Explanation, classes: Sequence[str] | None, name: str) -> None:
    """Raise InputError where an explanation holds no numbers, or its classes have other names than are given."""
    shown = (explanation.value, explanation.sum, explanation.completeness_error)
    if not all(bool(values.isfinite().all()) for values in shown):
        value = float(explanation.value.flatten()[0])
        raise InputError(f"the explanation of '{name}' is not finite: the model computes {value} where it is explained")
    count = explanation.outputs.shape[1] if explanation.outputs.ndim == 2 else 0
    if classes and count and len(classes) != count:
        raise InputError(f"{len(classes)} class names are given for {count} classes: one line for each class is wanted")


def _show(
    loaded: Loaded,
    explanation: Explanation,
    x: torch.Tensor,
    title: str,
    path: Path,
    display: Display | None,
    console: Console,
) -> float:
    """Write the picture of one image and print its table; the completeness error of what both show."""
    at = _shown(explanation)
    name = _name(loaded.classes, explanation, int(explanation.target[at]))
    picture(loaded.preprocess.undo(x[0]), explanation, at, path, title, name, display=display)
    console.print(Printable(Fitted(table(explanation, title, loaded.classes))))
    return float(explanation.completeness_error[at])


def table(explanation: Explanation, title: str, classes: Sequence[str] | None = None) -> Table:
    """The top five outputs of the first row and, for the explained one, its proof.

    Args:
        explanation: of any targets; the first one of the row is shown.
        title: what is explained, such as the file's name.
        classes: a name for every output.
    """
    grid = Table(title=Text(printable(title), "bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("class", justify="right", no_wrap=True)
    if classes:
        grid.add_column("name")
    for heading in ("logit", "sum(C)", "completeness\nerror", "relative\nerror", "bias\nshare"):
        grid.add_column(heading, justify="right", no_wrap=True)
    flat = explanation.outputs[0].reshape(-1)
    at = _shown(explanation)
    explained = int(explanation.target[at])
    rows = flat.topk(min(5, flat.numel())).indices.tolist()
    for index in rows if explained in rows else [*rows, explained]:
        cells = [_position(index, explanation)]
        if classes:
            cells.append(_name(classes, explanation, index) or "")
        cells.append(number(float(flat[index])))
        if index == explained:
            cells += [
                number(float(explanation.sum[at])),
                f"{float(explanation.completeness_error[at]):.1e}",
                f"{float(explanation.relative_error[at]):.1e}",
                percent(bias_share(explanation, at)) if explanation.bias.known else "not known",
            ]
        grid.add_row(*(Text(c) for c in cells), style="bold green" if index == explained else None)
    return grid


def _name(classes: Sequence[str] | None, explanation: Explanation, index: int) -> str | None:
    name = class_name(classes, explanation, index)
    return None if name is None else printable(name)


def _shown(explanation: Explanation) -> Row:
    """The explained value of the first row; of several targets the first."""
    return (0, 0) if explanation.value.ndim == 2 else 0


def _position(index: int, explanation: Explanation) -> str:
    """A flat index of the outputs as a user gives it: a class, or a position of outputs [N, A, B, ...]."""
    shape = explanation.outputs.shape[1:]
    return ",".join(str(int(i)) for i in torch.unravel_index(torch.tensor(index), shape)) if shape else ""


def _paths(files: Sequence[Path], out: Path) -> list[Path]:
    """One name per image: images of the same name in different folders must not overwrite each other."""
    paths: list[Path] = []
    for file in files:
        path, count = out / f"{file.stem}.png", 2
        while path in paths:
            path, count = out / f"{file.stem}-{count}.png", count + 1
        paths.append(path)
    return paths


def _closing(paths: Sequence[Path], out: Path, worst: float, report: Path | None) -> Text:
    count = f"{len(paths)} explanation{'s' if len(paths) != 1 else ''}"
    said = Text.assemble(
        (count, "bold"), f", largest completeness error {worst:.1e}. Pictures: ", (f"{printable(out)}/", "bold"),
        f" ({', '.join(printable(p.name) for p in paths)})",
    )  # fmt: skip
    if report:
        said.append(". Report: ").append(printable(report), "bold")
    return said


def _untrained(spec: str) -> Panel:
    return Panel(
        Text(
            f"'{printable(spec)}' has RANDOM weights: its classes mean nothing. Give --weights FILE, or --pretrained "
            "to let the library download its own."
        ),
        title="untrained model",
        border_style="bold yellow",
    )


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


def _target(text: str | None) -> Target:
    if text is None:
        return None
    try:
        position = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"'{printable(text)}' is no class: give an integer (or several joined by commas, a position of a larger "
            "output)",
            param_hint="--target",
        ) from None
    return position[0] if len(position) == 1 else position


if __name__ == "__main__":
    app()
