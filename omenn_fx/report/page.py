"""One page from explained images: everything inside of one file, nothing fetched, no script but the graph's own."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from PIL import Image

from omenn_fx._version import __version__
from omenn_fx.analysis.plan import Plan
from omenn_fx.checking.check import report as check_report
from omenn_fx.checking.check_report import CheckReport
from omenn_fx.checking.validation_report import largest
from omenn_fx.errors import InputError
from omenn_fx.explainer import Explainer, transform
from omenn_fx.explanation import Explanation
from omenn_fx.loading.images import open_image
from omenn_fx.loading.models import Loaded
from omenn_fx.printable import printable
from omenn_fx.report.content import Subject, subject, top_classes
from omenn_fx.target import Target
from omenn_fx.visualize import Display, colours
from omenn_fx.visualize.parts import signed

SHOWN = 448  # pixels of a screen that a map fills, by a whole multiple of its own
THUMBNAIL = 128  # pixels, the longer side
TALLEST = 560  # pixels of a screen, of the graph


def write(
    path: str | Path,
    loaded: Loaded,
    files: Iterable[Path],
    *,
    explainer: Explainer | None = None,
    target: Target = None,
    classes: int = 5,
    display: Display | None = None,
) -> None:
    """Explain and validate image files and write one HTML page about them.

    For each image: the top classes with their logits and the sums of their maps, the maps (C over the image, C,
    C_w * X, C_b), the biases by node and the invariants measured at every node. For the model: its graph by verdict.

    Args:
        path: the file, written over. Its folder is made where it is missing.
        loaded: the model with its preprocessing and class names (sources.load makes one).
        files: image files.
        explainer: of that model. Default: made here.
        target: a class (or a position of a larger output) that is explained first, whatever its logit.
        classes: how many of the largest outputs are explained.
        display: how the maps are drawn; the numbers are those of the explanations. None: outliers cut and finely
            smoothed (`visualize.Display.default`); `visualize.Display()`: as they are.

    Raises:
        InputError: a file is no image, there is none, or the page cannot be written.
        TargetError: the model has no such target, or it is no single output.
        OmennError: the model cannot be captured or explained.
    """
    explainer = transform(loaded.model) if explainer is None else explainer
    device = next(explainer.parameters(), torch.empty(0)).device
    report = Report(loaded, explainer, target, classes, display)
    for file in files:
        x = loaded.preprocess(open_image(file)).to(device, loaded.dtype)
        report.add(file.name, x, explainer(x, target=report.target))
    report.write(path)


class Report:
    """What `write` does, image by image, for callers who already have explanations.

    Args:
        loaded, explainer, target, classes, display: as of `write`.

    Attributes:
        target: of the explanations that are added: the largest outputs at once, the user's own before them.
        subjects: the images so far.
    """

    def __init__(
        self,
        loaded: Loaded,
        explainer: Explainer,
        target: Target = None,
        classes: int = 5,
        display: Display | None = None,
    ):
        self.loaded, self.explainer, self.own, self.display = loaded, explainer, target, display
        self.target = top_classes(classes, target)
        self.subjects: list[Subject] = []

    def add(self, name: str, x: torch.Tensor, explanation: Explanation) -> None:
        """Validate one image and take it into the page.

        Args:
            name: of the image.
            x: the input, a batch of one [1, C, H, W].
            explanation: of x and `target`, values [1, T].
        """
        validation = self.explainer.validate(x, target=self.own)
        image = self.loaded.preprocess.undo(x[0].cpu())
        named = self.explainer.nodes, self.loaded.classes
        self.subjects.append(subject(name, image, explanation, validation, *named, self.display))

    def write(self, path: str | Path) -> None:
        """Write the page. Raises InputError: there is no image, or it cannot be written."""
        if not self.subjects:
            raise InputError("a report needs at least one image")
        check = model_report(self.explainer, type(self.loaded.model).__name__)
        text = page(self.subjects, check, self.explainer.bias, self.loaded.untrained)
        try:
            path = Path(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(f"the report '{path}' cannot be written: {error}") from error


def page(subjects: list[Subject], check: CheckReport, bias: str, untrained: bool = False) -> str:
    """The page as HTML.

    Args:
        subjects: at least one.
        check: of the model.
        bias: the bias policy of the explanations.
        untrained: the weights are random.
    """
    graph = check.to_svg()
    height = re.search(r'height="(\d+)"', graph)
    return _environment().get_template("page.html").render(
        subjects=subjects,
        check=check,
        graph=_link(graph.encode(), "image/svg+xml"),
        graph_height=min(TALLEST, int(height[1]) if height else TALLEST),
        bias=bias,
        untrained=untrained,
        worst=largest(e.error for s in subjects for e in s.classes),
        most=max(len(s.classes) for s in subjects),
        ramp=picture(colours(np.linspace(-1, 1, 256)[None], 1.0)[..., :3], exact=True),
        versions={"omenn-fx": __version__, "torch": torch.__version__},
    )  # fmt: skip


def model_report(explainer: Explainer, name: str) -> CheckReport:
    """The report that `check` makes, of what the explainer has captured already."""
    program = explainer.ready
    return check_report(Plan(explainer.request, program.captured, program.tagged), name)


def picture(pixels: np.ndarray, exact: bool = False) -> str:
    """A link that holds an image, uint8 [H, W, 3] or [H, W]; without any loss where `exact`."""
    file = io.BytesIO()
    if exact:
        Image.fromarray(pixels).save(file, "WEBP", lossless=True)  # a third of a map's PNG
        return _link(file.getvalue(), "image/webp")
    # Colours at full resolution: sharing them between neighbours would grey out a map of single pixels.
    Image.fromarray(pixels).save(file, "JPEG", quality=85, subsampling=0, optimize=True)
    return _link(file.getvalue(), "image/jpeg")


def _thumbnail(pixels: np.ndarray) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return picture(np.asarray(image))


def _link(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _width(pixels: np.ndarray) -> int:
    """Pixels of a screen: a whole multiple of the picture's own, so that every value is seen as a square."""
    height, width = pixels.shape[:2]
    return width * max(1, round(SHOWN / max(height, width)))


def _printable(value: Any) -> Any:
    """Text of the user's; what is a template's own stays as it is."""
    return printable(value) if type(value) is str else value


def _environment() -> jinja2.Environment:
    """Templates in which every value is escaped, and what no page can hold is shown as a code."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_printable,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"signed": signed, "picture": picture, "thumbnail": _thumbnail, "width": _width}
    return environment
