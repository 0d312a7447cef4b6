"""A sample of the coverage benchmark: forty small architectures of all its groups, under the same check.

`python benchmarks/coverage.py --rules` takes every rule set on every one of them; here each set has eight at least.
"""

import itertools
import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import coverage
import zoo
from zoo.check import DTYPES, check
from zoo.rule_sets import explained
from zoo.sample import SAMPLE

import omenn_fx
from omenn_fx.algebra.ruleset import rule_sets

pytestmark = pytest.mark.slow

# Every rule set is tried on these, the other models of the sample take one set each in turn.
SMALL = (
    "plain/GRU", "plain/TransformerEncoder_gelu_prenorm_nofast", "plain/STN", "plain/DeepFM", "pyg/SAGE_max",
)  # fmt: skip
SETS = [name for name in rule_sets() if name != "omenn"]
REST = [name for name in SAMPLE if name not in SMALL]
PAIRS = [*itertools.product(SMALL, SETS), *zip(REST, itertools.cycle(SETS), strict=False)]
NOT_EXPORTABLE = ("plain/LSTM_packed", "plain/Transformer_fast", "huggingface/vilt:eager")
CENSUS_GROUPS = {"torchvision_seg": "segmentation", "hf": "huggingface"}


def skip_without_libraries(name):
    missing = zoo.missing(name.partition("/")[0])
    if missing:
        pytest.skip(f"{name} needs {', '.join(missing)}, which is not installed")


@pytest.mark.parametrize(("name", "dtype"), zip(SAMPLE, itertools.cycle(DTYPES), strict=False))
def test_sample(name, dtype):
    """In float64 and in float32 in turn: the benchmark takes each in both."""
    skip_without_libraries(name)
    record = check(name, dtype)
    assert record["status"] == "passed", f"{dtype}: {record['reasons']}\n{record.get('error', '')}"


@pytest.mark.parametrize(("name", "rules"), PAIRS)
def test_rule_sets(name, rules):
    """Exact by every set, or refused; `check` names what the set has no rule for, and for what its base stands in."""
    skip_without_libraries(name)
    record = explained(name, rules)
    assert record["status"] in ("passed", "refused"), record["reasons"]
    if name in SMALL:
        model, args, kwargs = zoo.build(name, calibrated=False)
        report = omenn_fx.check(model, args, example_kwargs=kwargs, rules=rules)
        assert report.supported == (record["status"] == "passed")
        said = [w.reason for w in report.warnings if w.kind.code == "OMENN106"]
        assert len(said) == len(record.get("stand_ins", ()))
        for op, count in record.get("stand_ins", {}).items():
            assert any(f"for {op}: " in reason and f"at {count} nodes" in reason for reason in said)
        for problem in report.problems:
            assert problem.place.op in record["reasons"][0]


def test_every_set_has_eight_models():
    assert all(sum(rules == name for _, rules in PAIRS) >= 8 for name in SETS)


def test_what_a_set_refuses():
    """Torch has a derivative of affine_grid_generator, the set has none: that is said, and nothing stands in."""
    record = explained("plain/STN", "gradient")
    assert record["status"] == "refused"
    assert record["reasons"] == ["no rule for aten.affine_grid_generator.default (1), aten.grid_sampler.default (1)"]


def test_the_result_file_has_every_set():
    """`python benchmarks/coverage.py --rules` goes on where a set is new."""
    models = coverage.read(coverage.JOBS["rules"].out)
    assert set(models) == set(SAMPLE)
    assert all(coverage.JOBS["rules"].fine(line) for line in models.values())


@pytest.mark.parametrize("name", NOT_EXPORTABLE)
def test_what_cannot_be_exported_names_the_line(name):
    skip_without_libraries(name)
    record = check(name, "float32")
    assert record["status"] == "not exportable", record
    assert "What to change" in record["error"]


def test_names_are_the_census(shared):
    """names.json holds what shared/census/models.json does, in the zoo's own groups."""
    models = json.loads(shared("census", "models.json").read_text(encoding="utf-8"))
    groups = dict.fromkeys(zoo.GROUPS, 0)
    for entry in models.values():
        groups[CENSUS_GROUPS.get(entry["group"], entry["group"])] += 1
    names = list(zoo.census())
    assert groups == {g: sum(n.startswith(f"{g}/") for n in names) for g in groups}
    assert sum(e.exports for e in zoo.census().values()) == sum(m["exports"] for m in models.values()) == 571


def test_builds_are_the_same_every_time():
    import torch

    (one, (x,), _), (two, (y,), _) = zoo.build("plain/Conv1dNet"), zoo.build("plain/Conv1dNet")
    assert torch.equal(one(x), two(y))
    assert all(p.std() > 0 for p in one.parameters() if p.numel() > 1)
    norm = next(m for m in one if isinstance(m, torch.nn.BatchNorm1d))
    assert norm.running_mean.abs().min() > 0
    assert (norm.running_var - 1).abs().min() > 0
