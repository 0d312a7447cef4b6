"""What every test needs: torchvision beside a CPU build of torch, one thread per worker, the shared files."""

import importlib.util
import logging
import os
import zlib
from pathlib import Path

import chromium
import pytest
import torch

from omenn_fx.loading.models import import_library

SHARED = Path(__file__).resolve().parents[2] / "shared"

if importlib.util.find_spec("torchvision"):
    import_library("torchvision")  # also the wheel beside a CPU build of torch, whose compiled operators do not load
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores


def pytest_addoption(parser):
    parser.addoption(
        "--drawn", type=float, default=1.0, metavar="SHARE", help="a drawn share of each test's cases, at least one"
    )


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config, items):
    """With --drawn 0.2, a fifth of the cases of each test function, the same ones in every run and process."""
    share, seen = config.getoption("drawn"), set()
    kept, left = [], []
    for item in items:
        function = item.nodeid.partition("[")[0]
        drawn = zlib.crc32(item.nodeid.encode()) % 1000 < 1000 * share
        (kept if drawn or function not in seen else left).append(item)
        seen.add(function)
    items[:] = kept
    if left:
        config.hook.pytest_deselected(items=left)


@pytest.fixture(autouse=True)
def _warnings_are_heard():
    """The commands that report by themselves silence the package's log for their process, which here goes on; a library
    may do so with the root's."""
    logging.getLogger("omenn_fx").setLevel(logging.WARNING)
    logging.disable(logging.NOTSET)  # benchmarks silence the process that their workers are forked from


@pytest.fixture(autouse=True)
def _same_random_numbers():
    torch.manual_seed(0)


def shared_path(*parts: str) -> Path:
    """A file of the folder shared/ beside the repository; the test is skipped where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs shared/{'/'.join(parts)} beside the repository, which is not here")
    return path


@pytest.fixture
def shared():
    """shared("assets", "models", ...) -> Path, or the test is skipped."""
    return shared_path


@pytest.fixture
def assets(shared):
    """The loaders beside the trained models."""
    spec = importlib.util.spec_from_file_location("shared_assets_load", shared("assets", "load.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, for tests that look at pages."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    found = chromium.found()
    if found is None:
        pytest.skip(f"needs a Chromium: none of {', '.join(chromium.NAMES)} is on PATH, and OMENN_CHROMIUM names none")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()
