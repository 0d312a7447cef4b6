"""CONTRIBUTING.md: every recipe runs, each in a process of its own, and the map is the one that the imports draw."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"^## Add (a[\w ]+)\n.*?```python\n(.*?)```", TEXT, re.S | re.M))


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_there_is_a_recipe_for_each():
    assert list(RECIPES) == ["a rule", "a rule set", "a pass", "a model"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipe_runs(recipe):
    run("-c", RECIPES[recipe], PYTHONPATH=str(ROOT / "tests"))


def test_the_paths_that_it_names_exist():
    paths = set(re.findall(r"`((?:omenn_fx|rules|export|tests|benchmarks|docs)/[\w./]*)`", TEXT))
    paths |= set(re.findall(r"\]\(([\w./-]+)\)", TEXT))
    assert paths
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing


def test_the_map_is_the_one_that_the_imports_draw():
    run(".ci/house", "drawn")
