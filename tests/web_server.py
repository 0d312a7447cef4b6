"""What the tests of the browser's package share: a small network, its page, a web server, and JavaScript in Node."""

import functools
import http.server
import json
import shutil
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path

import npm
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from omenn_fx.cli.explain import app

PACKAGE = Path(__file__).resolve().parent.parent / "export" / "web"
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
FACTORY = """
import torch
from torch import nn

def tiny():
    torch.manual_seed(1)
    body = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 12))
"""
TINY = ("net.py:tiny", "--size", "32", "--resize", "36", "--classes", "names.txt")
NAMES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibex", "jay", "kiwi", "lynx"]


def run(*arguments: str, code: int = 0):
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Soft shapes with an edge."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    pixels = 128 + 90 * np.sin(9 * x + 4 * y)[..., None] * [1, 0.6, -0.8] + 12 * noise
    pixels[height // 3 : height // 2, width // 4 : width // 2] = [230, 60, 20]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def lay_out(folder: Path) -> Path:
    """A factory of a network, the names of its classes, and two photographs."""
    (folder / "net.py").write_text(FACTORY)
    (folder / "names.txt").write_text("\n".join(NAMES))
    photograph(90, 70).save(folder / "coast.png")
    photograph(40, 64, 1).save(folder / "tower.png")
    return folder


def write_page(folder: Path, runtime: Path) -> Path:
    """The network's page, written by the command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        arguments = [*TINY, "--web", "page", "--runtime-dir", str(runtime), "-i", "coast.png", "-i", "tower.png"]
        output = run("export", *arguments).output
    assert "python -m http.server --directory page" in output
    return folder / "page"


def node_modules() -> Path:
    """Where npm put the packages; the test is skipped where it did not."""
    modules = npm.found()
    if modules is None:
        wanted = ", ".join(f"{name} {version}" for name, version in npm.WANTED.items())
        pytest.skip(f"needs {wanted} from npm: python tests/npm.py fetches them")
    return modules


def in_node(code: str, *arguments: object, folder: Path) -> object:
    """What a module prints as JSON. It may import "omenn-fx-web", and with `node_modules` also the runtime."""
    if shutil.which("node") is None:
        pytest.skip("needs Node.js: node is not on PATH")
    modules = folder / "node_modules"
    modules.mkdir(exist_ok=True)
    if not (modules / "omenn-fx-web").exists():
        shutil.copytree(PACKAGE, modules / "omenn-fx-web", ignore=shutil.ignore_patterns("*.py", "page", "__pycache__"))
    for package in npm.found().iterdir() if npm.found() else ():
        if not (modules / package.name).exists():
            (modules / package.name).symlink_to(package)
    (folder / "script.mjs").write_text(code, encoding="utf-8")
    command = ["node", "script.mjs", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@contextmanager
def served(folder: Path, headers: dict[str, str] | None = None):
    """The address of a web server for a folder: Python's own, as the documentation says."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def end_headers(self) -> None:
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            super().end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
