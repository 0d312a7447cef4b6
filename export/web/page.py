"""Writes the page: static files, which any web server hands out, and nothing from elsewhere."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from PIL import Image

from omenn_fx._version import __version__
from omenn_fx.errors import ExportError

MODEL = "model.onnx"
PACKAGE = ("index.js", "index.d.ts", "metadata.js", "preprocess.js", "package.json", "README.md")
PAGE = ("index.html", "page.css", "page.js", "view.js", "maps.js", "pictures.js", "worker.js")
LARGEST = 2**31  # bytes: a file that a browser's 32-bit memory cannot hold
EXAMPLE = 960  # pixels, the longer side of an example


@dataclass(frozen=True)
class Page:
    """What was written: where, and how many bytes a browser loads."""

    folder: Path
    size: int

    def __repr__(self) -> str:
        return (
            f"{self.folder} ({self.size / 2**20:.1f} MiB): a web page; "
            f"to see it: python -m http.server --directory {self.folder}"
        )


def targets(folder: Path, examples: int = 0) -> list[Path]:
    """Every file that `write_page` writes into a folder, and the model, which stands there before."""
    names = [*PAGE, MODEL, "page.json", *(f"explain/{name}" for name in PACKAGE), "onnxruntime/LICENSE"]
    return [folder / name for name in (*names, *(_example(i) for i in range(examples)))]


def write_page(
    folder: Path,
    runtime: Mapping[str, bytes],
    *,
    title: str,
    examples: Sequence[tuple[str, Image.Image]] = (),
    untrained: bool = False,
) -> Page:
    """Write a page around the file `model.onnx` that stands in a folder.

    Args:
        folder: where `Explainer.to_onnx` wrote `model.onnx`, with `classes` and `preprocess` in its metadata.
        runtime: what `runtime_files` found.
        title: the model's name.
        examples: pictures to begin with, each with its name; they become files of the page.
        untrained: the model's weights are random, which the page says.

    Raises:
        ExportError: there is no model, or it is too large for a browser.
    """
    model = folder / MODEL
    if not model.is_file():
        raise ExportError(f"there is no '{model}' to make a page of")
    if (folder / f"{MODEL}.data").exists() or model.stat().st_size >= LARGEST:
        raise ExportError(f"'{model}' is too large for a browser, which holds less than 2 GB")
    source = resources.files("omenn_fx.export.web")
    shown = [{"name": name, "file": _example(i)} for i, (name, _) in enumerate(examples)]
    about = {"title": title, "untrained": untrained, "examples": shown, "version": __version__}
    files: dict[str, bytes] = {"page.json": (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode()}
    files |= {name: source.joinpath("page", name).read_bytes() for name in PAGE}
    files |= {f"explain/{name}": source.joinpath(name).read_bytes() for name in PACKAGE}
    files |= {f"onnxruntime/{name}": content for name, content in runtime.items()}
    files["onnxruntime/LICENSE"] = source.joinpath("onnxruntime-LICENSE").read_bytes()
    files |= {_example(i): _jpeg(image) for i, (_, image) in enumerate(examples)}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return Page(folder, model.stat().st_size + sum(map(len, files.values())))


def _example(index: int) -> str:
    return f"examples/{index + 1}.jpg"


def _jpeg(image: Image.Image) -> bytes:
    """A picture of a size for a page, without what its camera wrote about place and time."""
    small = image.convert("RGB")
    small.thumbnail((EXAMPLE, EXAMPLE))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=92)
    return file.getvalue()
