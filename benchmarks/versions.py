"""Which versions of Python and torch omenn-fx works with: the fast tests and the coverage sample in each of them.

    python benchmarks/versions.py                                   # every cell, but for what the result file has
    python benchmarks/versions.py --torch 2.11.0 --again            # some of them, once more
    python benchmarks/versions.py --drawn 0.2                       # a fifth of the fast tests, drawn by name
    python benchmarks/versions.py --part sample --minutes 60        # the coverage sample alone, for an hour at most
    python benchmarks/versions.py --python /opt/py313/bin/python3   # an interpreter that is not on PATH; repeatable
    python benchmarks/versions.py --show                            # the table of the result file alone

A cell is one Python with one torch. Each has its own environment in build/versions, made by the rules of the Makefile
that make .venv. The result file is written after each part of a cell, and the same command continues where it was
stopped. A cell that is not available on this machine says why; results from other machines stay.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import time
import xml.etree.ElementTree as xml
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "versions.json"
BUILD = ROOT / "build" / "versions"
PYTHONS = ("3.11", "3.13")
TORCHVISIONS = {"2.11.0": "0.26.0", "2.12.1": "0.27.1", "2.13.0": "0.28.0"}  # torch -> what was built for it
PARTS = ("fast", "sample")  # of the suite
SAMPLE = "tests/test_coverage_sample.py"
UNAVAILABLE = "not available"
NAMED = 20  # failures that a row names
Row = dict[str, Any]


class NotAvailable(Exception):
    """A cell that cannot be run on this machine, and why."""


@dataclass(frozen=True)
class Cell:
    """One Python with one torch."""

    python: str
    torch: str

    @property
    def name(self) -> str:
        return f"Python {self.python}, torch {self.torch}"

    @property
    def folder(self) -> Path:
        return BUILD / f"py{self.python}-torch{self.torch}"


@dataclass(frozen=True)
class Options:
    """How the cells are run."""

    pythons: list[str]
    fast: str
    drawn: float
    workers: int
    minutes: float


# The environment of a cell -------------------------------------------------------------------------------------------


def version_of(python: str) -> str | None:
    """Major and minor version of an interpreter; None where it does not run (a version manager's stand-in may not)."""
    command = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def interpreter(version: str, given: list[str]) -> str:
    """The first interpreter of that version: of those given, then python3.x on PATH."""
    found = next((p for p in [*given, f"python{version}"] if version_of(p) == version), None)
    if found is None:
        raise NotAvailable(f"no python{version} on PATH, nor given with --python")
    return found


def constraints() -> Path:
    """constraints.txt without torch and torchvision, which a cell chooses itself."""
    lines = (ROOT / "constraints.txt").read_text().splitlines(keepends=True)
    text = "".join(line for line in lines if line.partition("==")[0] not in ("torch", "torchvision"))
    path = BUILD / "constraints.txt"
    if not path.exists() or path.read_text() != text:  # a newer file would make every environment anew
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return path


def environment(cell: Cell, python: str) -> Path:
    """The interpreter of the cell's own environment, which `make` finishes or has finished before."""
    folder = cell.folder.relative_to(ROOT)
    variables = {
        "VENV": folder,
        "PYTHON": python,
        "TORCH": cell.torch,
        "TORCHVISION": TORCHVISIONS[cell.torch],
        "CONSTRAINTS": constraints().relative_to(ROOT),
    }
    command = ["make", *(f"{name}={value}" for name, value in variables.items()), f"{folder}/.dev"]
    outer = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    made = subprocess.run(command, cwd=ROOT, env=outer, stderr=subprocess.PIPE, text=True)
    if made.returncode:
        errors = [line for line in made.stderr.splitlines() if line.startswith("ERROR")]
        raise NotAvailable(errors[-1] if errors else made.stderr.strip()[-300:])
    return cell.folder / "bin" / "python"


def installed(python: Path, name: str) -> str:
    """The installed version of a package, with its build: 2.13.0+cpu."""
    command = [python, "-c", f"import {name}; print({name}.__version__)"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return done.stdout.strip()
    command[-1] = f"import importlib.metadata as m; print(m.version({name!r}))"  # torchvision beside another build
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


# The tests of a cell -------------------------------------------------------------------------------------------------


def tests(python: Path, arguments: list[str], report: Path, minutes: float) -> Row:
    """One run of pytest: how many passed, failed and were skipped, in how many seconds."""
    report.unlink(missing_ok=True)
    command = [python, "-m", "pytest", f"--junit-xml={report}", *arguments]
    start = time.perf_counter()
    pytest = subprocess.Popen(command, cwd=ROOT, start_new_session=True, preexec_fn=_hears_interrupts)
    try:
        pytest.wait(minutes * 60)
        stopped = {}
    except subprocess.TimeoutExpired:
        stopped = {"stopped": f"after {minutes:g} minutes"}
    finally:
        if pytest.poll() is None:
            interrupt(pytest)
    lost = {"passed": 0, "failed": 1, "skipped": 0, "failures": ["pytest wrote no report"]}
    counts = counted(report) if report.exists() else lost
    return counts | {"seconds": round(time.perf_counter() - start)} | stopped


def _hears_interrupts() -> None:
    """A shell has its background jobs ignore interrupts, and a process would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupt(pytest: subprocess.Popen[bytes]) -> None:
    """Interrupt it and its workers, so that it still writes its report; kill them if they do not end."""
    os.killpg(pytest.pid, signal.SIGINT)
    try:
        pytest.wait(120)
    except subprocess.TimeoutExpired:
        os.killpg(pytest.pid, signal.SIGKILL)
        pytest.wait()


def counted(report: Path) -> Row:
    """What pytest's JUnit file says; a test that fails and then fails to clean up is one failure."""
    outcomes: dict[str, str] = {}
    for case in xml.parse(report).iter("testcase"):
        name = f"{case.get('classname', '')}::{case.get('name')}".removeprefix("::").removeprefix("tests.")
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        outcomes[name] = outcome if outcomes.get(name) != "failed" else "failed"
    counts = {kind: sum(o == kind for o in outcomes.values()) for kind in ("passed", "failed", "skipped")}
    return counts | {"failures": [name for name, o in outcomes.items() if o == "failed"][:NAMED]}


def run(cell: Cell, row: Row, parts: list[str], python: Path, options: Options) -> Iterator[Row]:
    """The row of a cell with each of these parts, as they are finished."""
    row = {name: value for name, value in row.items() if name != UNAVAILABLE}
    row |= {"python": cell.python} | {name: installed(python, name) for name in ("torch", "torchvision")}
    for part in parts:
        share = 1.0 if part == "sample" else options.drawn
        arguments = [SAMPLE] if part == "sample" else ["-m", options.fast, f"--ignore={SAMPLE}"]
        arguments += ["-n", str(options.workers), f"--drawn={share}"]
        row = row | {part: tests(python, arguments, cell.folder / f"{part}.xml", options.minutes) | {"drawn": share}}
        yield row


# The result file -----------------------------------------------------------------------------------------------------


def read(path: Path) -> Row:
    return json.loads(path.read_text()) if path.exists() else {"setting": {}, "cells": {}}


def write(path: Path, cell: Cell, row: Row) -> None:
    """The row of a cell, among the others in the order of their versions."""
    rows = read(path)["cells"] | {cell.name: row}
    setting = {"omenn_fx": version("omenn-fx"), "machine": platform.machine()}
    results = {"setting": setting, "cells": {c.name: rows[c.name] for c in every() if c.name in rows}}
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    temporary.replace(path)


def measure(cell: Cell, before: Row, parts: list[str], options: Options, out: Path) -> None:
    """Run these parts of a cell, and write its row after each."""
    try:
        python = environment(cell, interpreter(cell.python, options.pythons))
    except NotAvailable as reason:
        if not any(parts_of(before)):  # what was measured elsewhere stays
            write(out, cell, {"python": cell.python, "torch": cell.torch, UNAVAILABLE: str(reason)})
        return
    for row in run(cell, before, parts, python, options):
        write(out, cell, row)


def every() -> list[Cell]:
    return [Cell(python, torch) for python in PYTHONS for torch in TORCHVISIONS]


def show(results: Row, console: Console) -> None:
    """A line for each cell, then the failures by name."""
    table = Table("Python", "torch", "torchvision", "fast tests", "coverage sample", title="versions")
    table.add_column("minutes", justify="right")
    for cell in results["cells"].values():
        row = {"torchvision": "", **cell}
        minutes = sum(row[part]["seconds"] for part in PARTS if part in row) / 60
        shown = [f"{UNAVAILABLE}: {escape(row[UNAVAILABLE])}", ""] if UNAVAILABLE in row else map(said, parts_of(row))
        table.add_row(row["python"], row["torch"], row["torchvision"], *shown, f"{minutes:.0f}" if minutes else "")
    console.print(table)
    for name, row in results["cells"].items():
        for failure in [failure for part in parts_of(row) if part for failure in part["failures"]]:
            console.print(f"{name}: {failure}", markup=False, highlight=False)


def parts_of(row: Row) -> list[Row | None]:
    return [row.get(part) for part in PARTS]


def said(part: Row | None) -> str:
    """1200 passed, 3 skipped."""
    if part is None:
        return "not run"
    counts = ", ".join(f"{part[kind]} {kind}" for kind in ("passed", "failed", "skipped") if part[kind])
    counts += f" ({part['drawn']:.0%} drawn)" if part.get("drawn", 1) < 1 else ""
    return f"{counts or 'none ended'}; stopped {part['stopped']}" if "stopped" in part else counts


def main(
    python: Annotated[list[str] | None, typer.Option(help="an interpreter, for the cells of its version")] = None,
    torch: Annotated[list[str] | None, typer.Option(help=f"of {', '.join(TORCHVISIONS)}; default: all")] = None,
    only: Annotated[list[str] | None, typer.Option("--version", help="of Python, such as 3.13; default: all")] = None,
    part: Annotated[list[str] | None, typer.Option(help=f"{' or '.join(PARTS)}; default: both")] = None,
    fast: Annotated[str, typer.Option(help="the marker expression of the fast tests")] = "not slow",
    drawn: Annotated[float, typer.Option(help="share of the fast tests, drawn by name")] = 1.0,
    workers: Annotated[int, typer.Option(help="processes of pytest")] = 2,
    minutes: Annotated[float, typer.Option(help="for each part; what was run until then is counted")] = 180,
    out: Path = RESULTS,
    again: Annotated[bool, typer.Option("--again", help="also what the result file has")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="each environment after its cell: some take 6 GB")] = False,
    only_show: Annotated[bool, typer.Option("--show", help="run nothing")] = False,
) -> None:
    """Run the tests in every version of Python and torch and write the result as JSON."""
    console, options = Console(), Options(python or [], fast, drawn, workers, minutes)
    cells = [c for c in every() if c.torch in (torch or TORCHVISIONS) and c.python in (only or PYTHONS)]
    for cell in [] if only_show else cells:
        before = read(out)["cells"].get(cell.name, {})
        left = [p for p in part or PARTS if again or "stopped" in before.get(p, {"stopped": ""})]
        if left:
            console.print(f"[bold]{cell.name}: {' and '.join(left)}")
            measure(cell, before, left, options, out)
        if remove:
            shutil.rmtree(cell.folder, ignore_errors=True)
    show(read(out), console)


if __name__ == "__main__":
    typer.run(main)
