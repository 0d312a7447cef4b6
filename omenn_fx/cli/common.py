"""What all commands share: options, errors as one message and an exit status, and files that are never written over."""

from __future__ import annotations

import logging
import os
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from omenn_fx.algebra.ruleset import rule_set
from omenn_fx.errors import InputError, OmennError
from omenn_fx.loading import models as sources
from omenn_fx.loading.images import open_image
from omenn_fx.loading.models import Loaded, Sizes
from omenn_fx.loading.weights import require_values
from omenn_fx.printable import printable

FAILED, COULD_NOT_RUN = 1, 2
PICTURES = (".png", ".pdf", ".svg")


def _known(name: str) -> str:
    try:
        return rule_set(name).name
    except ValueError as error:
        raise typer.BadParameter(printable(error)) from None


Model = Annotated[str, typer.Argument(metavar="MODEL", help=sources.FORMS, show_default=False)]
Rules = Annotated[str, typer.Option(help="The rule set.", callback=_known)]
Weights = Annotated[Path | None, typer.Option(help="A state_dict: .pth, .pt or .safetensors.")]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="The library's own weights (downloads).")]
Size = Annotated[int | None, typer.Option(min=1, help="Side of the square that the model reads.")]
Resize = Annotated[int | None, typer.Option(min=1, help="Short side of the image before its centre crop.")]
Mean = Annotated[str | None, typer.Option(help="Mean per channel for pixels in 0..1: 0.485,0.456,0.406")]
Std = Annotated[str | None, typer.Option(help="Standard deviation per channel: 0.229,0.224,0.225")]
Classes = Annotated[Path | None, typer.Option(help="A text file of class names, one a line.")]
Trust = Annotated[
    bool, typer.Option("--trust", help="Load a .pt2 file that could run code, as you would start a program.")
]


def floats(option: str, text: str | None) -> tuple[float, ...] | None:
    """Numbers like 0.485,0.456,0.406. Raises BadParameter: they are none."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise typer.BadParameter(
            f"'{printable(text)}' are not numbers like 0.485,0.456,0.406", param_hint=option
        ) from None


# Errors ---------------------------------------------------------------------------------------------------------------


@contextmanager
def reported(errors: Console, status: int) -> Iterator[None]:
    """What goes wrong, as one message and an exit status: a traceback helps nobody at a command line."""
    try:
        with _own_settings():
            yield
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except Exception as error:
        errors.print(Text.assemble(("error: ", "bold red"), printable(_message(error))), soft_wrap=True)
        raise typer.Exit(status) from None


@contextmanager
def _own_settings() -> Iterator[None]:
    """Loggers and filters are as before after a command, which may run in a process that goes on."""
    levels = {name: logging.getLogger(name).level for name in ("omenn_fx", *_TORCHS)}
    try:
        with warnings.catch_warnings():
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


_TORCHS = ("torch.export", "torch._export")


def _message(error: Exception) -> str:
    if isinstance(error, OmennError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"'{error.filename}': {error.strerror}"
    if isinstance(error, MemoryError):
        return "the memory does not suffice: give a smaller model, a smaller --size or fewer images"
    lines = str(error).strip().splitlines()
    frames = traceback.extract_tb(error.__traceback__)
    at = f"\n  at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {lines[0] if lines else ''}{at}"


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextmanager
def logged(errors: Console) -> Iterator[None]:
    """The package's own warnings on the console."""
    logger = logging.getLogger("omenn_fx")
    handler = RichHandler(console=errors, show_time=False, show_path=False)
    handler.setFormatter(_PrintableFormatter())
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


# Models and images ----------------------------------------------------------------------------------------------------


def hush() -> None:
    """What torch says of its own code, and tracebacks that it logs beside the errors that it raises: not for users."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in _TORCHS:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def loaded_model(
    spec: str,
    errors: Console,
    weights: Path | None = None,
    pretrained: bool = False,
    sizes: Sizes | None = None,
    trusted: bool = False,
) -> Loaded:
    """Load a model for a command that reports by itself: warnings of ours would say it twice."""
    logging.getLogger("omenn_fx").setLevel(logging.ERROR)  # the report says it
    hush()
    with errors.status("loading the model"):
        return sources.load(spec, weights, pretrained, sizes, trusted)


def images_of(loaded: Loaded, files: Sequence[Path]) -> torch.Tensor:
    """Image files as one batch, for a model whose weights are numbers."""
    require_values(loaded.model)
    return torch.cat([loaded.preprocess(open_image(file)) for file in files]).to(loaded.dtype)


# Files that are written -----------------------------------------------------------------------------------------------


def require_ending(option: str, path: Path | None, endings: Sequence[str]) -> None:
    """Raise BadParameter where a file's name has another ending than what is written into it."""
    if path is not None and path.suffix.lower() not in endings:
        known = " or ".join(ending or "none" for ending in endings)
        raise typer.BadParameter(
            f"'{printable(path)}' is no name for what is written there: its ending should be {known}",
            param_hint=option,
        )


def require_free(outputs: Iterable[Path | None], inputs: Iterable[Path | None]) -> None:
    """Raise InputError where an output is a file that was given, by whatever name, or cannot be written."""
    kept = [path for path in inputs if path is not None]
    for path in outputs:
        if path is None:
            continue
        same = next((one for one in kept if _is_same(one, path)), None)
        if same is not None:
            raise InputError(f"'{path}' would be written over '{same}', which is read: give another name or folder")
        if path.is_dir():
            raise InputError(f"'{path}' is a folder: give the name of a file")
        make_folder(path.parent)


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file: by links, by another case, or by another way through the folders."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def make_folder(folder: Path) -> None:
    """Make a folder where it is missing. Raises InputError: it cannot be made, or nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder '{folder}' cannot be made: {error}") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"nothing can be written into the folder '{folder}'")
