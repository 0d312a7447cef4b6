"""Files take their place whole: they are written and verified out of sight, so that none is half done."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omenn_fx.errors import ExportError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file meanwhile: in a hidden folder in the folder of `path`.

    When the block ends well, what lies there takes its place: `path` itself last, for it may refer to the others. When
    it does not, whatever the reason (an interrupt, say), nothing of it stays, and what was at `path` is as it was.

    Raises:
        ExportError: it cannot be written there.
    """
    path = path.resolve() if path.is_symlink() else path
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        hidden = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", dir=path.parent))
    moved: list[Path] = []
    try:
        meanwhile = hidden / _unused(path)
        yield meanwhile
        with writing(path):
            for other in [file for file in hidden.iterdir() if file != meanwhile]:
                moved.append(path.with_name(other.name))
                os.replace(other, moved[-1])
            os.replace(meanwhile, path)
        moved.clear()
    finally:
        for other in moved:
            other.unlink(missing_ok=True)
        shutil.rmtree(hidden, ignore_errors=True)


def weights_name(name: str) -> str:
    """The file with the weights of an ONNX file of this name, where they are too large for the file itself."""
    return f"{name}.data"


def _unused(path: Path) -> str:
    """A name for the file meanwhile: its weights are named after it, and must not take the place of former ones."""
    name, count = path.name, 0
    while path.with_name(weights_name(name)).exists():
        count += 1
        name = f"{path.stem}.{count}{path.suffix}"
    return name


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within it, what the operating system refuses is an ExportError."""
    try:
        yield
    except OSError as error:
        raise ExportError(f"'{path}' cannot be written: {error}") from error
