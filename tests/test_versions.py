"""The test matrix: what it reads from pytest's reports, and what it writes and shows. No environment is made here."""

import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import versions

CELL = versions.every()[0]
REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_one" name="test_passes"/>
<testcase classname="tests.test_one" name="test_fails[3]"><failure/></testcase>
<testcase classname="tests.test_one" name="test_fails[3]"><error/></testcase>
<testcase classname="tests.test_one" name="test_is_skipped"><skipped/></testcase>
<testcase classname="" name="tests.test_two"><error/></testcase>
</testsuite></testsuites>"""
OPTIONS = versions.Options([], "not slow", drawn=1.0, workers=1, minutes=1)


def shown(path):
    console = Console(record=True, width=200)
    versions.show(versions.read(path), console)
    return console.export_text()


def test_a_report_is_counted_by_test(tmp_path):
    """A test that fails twice, itself and in its clean-up, is one; a file that cannot be imported is a failure."""
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    counts = versions.counted(report)
    assert (counts["passed"], counts["failed"], counts["skipped"]) == (1, 2, 1)
    assert counts["failures"] == ["test_one::test_fails[3]", "test_two"]


def test_only_what_a_cell_chooses_is_unpinned():
    pins = set((versions.ROOT / "constraints.txt").read_text().split())
    left = set(versions.constraints().read_text().split())
    assert {pin.partition("==")[0] for pin in pins - left} == {"torch", "torchvision"}
    assert left < pins


def test_the_pinned_torch_is_in_the_matrix():
    pins = dict(line.split("==") for line in (versions.ROOT / "constraints.txt").read_text().splitlines()[1:])
    assert versions.TORCHVISIONS[pins["torch"]] == pins["torchvision"]


def test_a_cell_without_its_interpreter_says_so_and_keeps_a_result(tmp_path, monkeypatch):
    monkeypatch.setattr(versions, "version_of", lambda python: None)
    out = tmp_path / "versions.json"
    versions.measure(CELL, {}, ["sample"], OPTIONS, out)
    assert "not available: no python3.11 on PATH" in shown(out)
    part = {"passed": 7, "failed": 0, "skipped": 1, "failures": [], "seconds": 120, "drawn": 0.2}
    row = {"python": "3.11", "torch": "2.11.0+cpu", "torchvision": "0.26.0", "sample": part}
    versions.write(out, CELL, row)
    versions.measure(CELL, row, ["fast"], OPTIONS, out)
    assert json.loads(out.read_text())["cells"] == {CELL.name: row}
    assert "7 passed, 1 skipped (20% drawn)" in shown(out)
    assert "not run" in shown(out)


@pytest.mark.parametrize(("minutes", "stopped"), [(5.0, False), (0.0, True)])
def test_pytest_is_run_and_stopped(tmp_path, minutes, stopped):
    test = tmp_path / "test_it.py"
    test.write_text(f"import time\ndef test_it():\n    time.sleep({60 if stopped else 0.1})\n")
    part = versions.tests(sys.executable, ["-c", "/dev/null", str(test)], tmp_path / "report.xml", minutes)
    assert ("stopped" in part) == stopped
    assert part["passed"] == (not stopped)


def test_a_drawn_share_is_the_same_in_every_process(pytester, monkeypatch):
    """The option --drawn of conftest.py, which a cell is given."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    pytester.makeconftest((Path(__file__).parent / "conftest.py").read_text())
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("case", range(500))
        def test_many(case): pass
        """
    )
    arguments = ["--collect-only", "-q", "--drawn=0.2"]
    drawn, again = ([line for line in pytester.runpytest_subprocess(*arguments).outlines if "::" in line] for _ in "ab")
    assert drawn == again
    assert 60 <= len(drawn) <= 140
