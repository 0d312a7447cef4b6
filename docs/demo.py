"""Builds the guide's live demo into build/demo: the trained SqueezeNet explains pictures in the reader's browser.

python docs/demo.py    # says what is missing where it cannot; docs/hooks.py takes what is there into the guide

The weights stand in the folder shared/ beside the repository, the photographs come from scikit-image, onnxruntime-web
from npm. It is built again where the code or the weights changed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))
import npm  # noqa: E402

DEMO = ROOT / "build" / "demo"
WEIGHTS = ROOT.parent / "shared" / "assets" / "models" / "squeezenet1_0_torchvision_rgb_fp16.pth"
MODEL, RULES = "torchvision:squeezenet1_0", "omenn_gamma"
PHOTOGRAPHS = ("coffee.png", "chelsea.png", "rocket.jpg")
SOURCES = ("omenn_fx", "rules", "export")
STAMP = ".made-from"


def missing() -> list[str]:
    """What the demo needs and is not here."""
    found = [] if WEIGHTS.exists() else [f"the trained weights, shared/assets/models/{WEIGHTS.name}"]
    found += [name for name in ("torchvision", "skimage", "onnxscript") if importlib.util.find_spec(name) is None]
    return found if npm.found() or shutil.which("npm") else [*found, "onnxruntime-web: python tests/npm.py fetches it"]


def digest() -> str:
    """Of everything that the demo is made of."""
    seen = hashlib.sha256(WEIGHTS.read_bytes())
    for path in sorted(path for folder in SOURCES for path in (ROOT / folder).rglob("*") if path.is_file()):
        if "__pycache__" not in path.parts:
            seen.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return seen.hexdigest()


def build() -> None:
    """Write the page with the command that the guide names."""
    photographs = Path(importlib.util.find_spec("skimage").origin).parent / "data"  # type: ignore[union-attr, arg-type]
    command = [sys.executable, "-m", "omenn_fx.cli", "export", MODEL, "--weights", str(WEIGHTS), "--rules", RULES]
    command += ["--fixed-batch", "--web", str(DEMO)]
    command += [part for name in PHOTOGRAPHS for part in ("--image", str(photographs / name))]
    place = npm.found()  # what the tests fetched spares a download
    command += [] if place is None else ["--runtime-dir", str(place)]
    shutil.rmtree(DEMO, ignore_errors=True)
    subprocess.run(command, check=True, cwd=ROOT)
    (DEMO / STAMP).write_text(digest(), encoding="utf-8")


def main() -> None:
    """Build the demo, or say why there is none."""
    lacking = missing()
    if lacking:
        print(f"the guide has no live demo: it needs {'; '.join(lacking)}")
    elif (DEMO / STAMP).exists() and (DEMO / STAMP).read_text(encoding="utf-8") == digest():
        print(f"the demo in {DEMO} is as the code makes it")
    else:
        build()


if __name__ == "__main__":
    main()
