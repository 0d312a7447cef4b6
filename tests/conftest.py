"""What every test needs: torchvision beside a CPU build of torch, one thread per worker, the shared files."""

import hashlib
import importlib.util
import logging
import os
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
    parser.addoption("--drawn", type=float, default=1.0, metavar="SHARE", help="this share of the tests, drawn by name")


def pytest_collection_modifyitems(config, items):
    """With --drawn 0.2 a fifth of all cases, the same ones in every run, process and environment."""
    share = config.getoption("drawn")
    drawn = [int(hashlib.md5(item.nodeid.encode()).hexdigest(), 16) < share * 2**128 for item in items]
    if not all(drawn):
        config.hook.pytest_deselected(items=[item for item, kept in zip(items, drawn, strict=True) if not kept])
        items[:] = [item for item, kept in zip(items, drawn, strict=True) if kept]


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
