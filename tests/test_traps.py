"""Soundness: what `check` says without data is what `transform` and `validate` do with it, in both directions."""

import contextlib

import pytest
import torch
import torch.utils._pytree as pytree
from traps import TRAPS

import omenn_fx
from omenn_fx.algebra.ruleset import rule_set
from omenn_fx.analysis.plan import Request, make_plan
from omenn_fx.checking.check import verdicts
from omenn_fx.checking.verdict import PROBLEMS, WARNINGS, Verdict

SUPPORTED = [t for t in TRAPS if t.supported]
REFUSED = [t for t in TRAPS if not t.supported]


def checked(trap):
    return omenn_fx.check(trap.build(), trap.make(), **trap.options)


def test_there_are_enough_traps():
    assert len(TRAPS) >= 60
    assert len({t.name for t in TRAPS}) == len(TRAPS)
    met = {t.code for t in TRAPS}
    elsewhere = {"OMENN009", "OMENN110"}  # the second is of models without weights: test_agree.py
    assert {k.code for k in (*PROBLEMS, *WARNINGS)} - met <= elsewhere


@pytest.mark.parametrize("trap", TRAPS, ids=lambda t: t.name)
def test_what_check_says(trap):
    report = checked(trap)
    findings = [*report.problems, *report.warnings]
    assert report.supported == trap.supported, str(report)
    assert [f.kind.code for f in report.problems if not f.kind.code.startswith("OMENN0")] == []
    said = [f for f in findings if f.kind.code.startswith(trap.code) and trap.says in str(f)] if trap.code else []
    assert said if trap.code else not findings, str(report)
    for finding in findings:
        assert finding.reason
        assert finding.fix
    part, verdict = trap.verdict
    if part:
        assert verdict in [n.verdict.value for n in report.nodes if part in f"{n.op} {n.name}"], str(report.nodes)


@pytest.mark.parametrize("trap", SUPPORTED, ids=lambda t: t.name)
def test_supported_transforms_and_validates(trap):
    model, args = trap.build(), trap.make()
    report = omenn_fx.transform(model, args, **trap.options).validate(*args)
    assert report.ok, str(report)


@pytest.mark.parametrize("trap", REFUSED, ids=lambda t: t.name)
def test_refused_raises_the_same(trap):
    report = checked(trap)
    with pytest.raises((omenn_fx.OmennError, ValueError)) as caught:
        omenn_fx.transform(trap.build(), trap.make(), **trap.options)
    with contextlib.suppress(AttributeError):
        assert len(caught.value.places or (0,)) == len(report.problems)
    assert report.problems[0].reason.splitlines()[0][:60] in str(caught.value) or "has no rule" in str(caught.value)


@pytest.mark.parametrize("trap", TRAPS, ids=lambda t: t.name)
def test_same_verdict_without_weights(trap):
    """On the meta device: the same problems, and the same verdict of every node."""
    own = checked(trap)
    if own.problems and own.problems[0].kind.code in ("OMENN001", "OMENN003"):
        return  # the tensor that is meant is another one there
    meta = omenn_fx.check(trap.build().to("meta"), trap.make(), **trap.options)
    assert [(p.kind, p.place.op) for p in meta.problems] == [(p.kind, p.place.op) for p in own.problems]
    live = [[(n.op, n.verdict) for n in r.nodes if n.verdict is not Verdict.CONSTANT] for r in (meta, own)]
    assert live[0] == live[1]


@pytest.mark.parametrize("trap", TRAPS, ids=lambda t: t.name)
def test_a_single_sample_as_transform_captures_it(trap):
    """`check` captures one sample at fixed shapes, `transform` with a free batch: the same verdict, and the same nodes
    that are neither affine nor held fixed."""
    single = pytree.tree_map(lambda t: t[:1] if t.ndim else t, trap.make())
    report = omenn_fx.check(trap.build(), single, **trap.options)
    request = Request(**trap.options | {"rules": rule_set(trap.options.get("rules", "omenn"))})
    with torch.no_grad():
        free = make_plan(trap.build(), single, {}, request)
    assert report.supported == (free.error is None), str(report)
    plain = (Verdict.CONSTANT, Verdict.AFFINE, Verdict.COEFFICIENT)  # views and copies of these differ
    assert [(n.op, n.verdict) for n in report.nodes if n.verdict not in plain] == [
        (n.op, n.verdict) for n in (verdicts(free.tagged) if free.tagged else []) if n.verdict not in plain
    ]


def test_same_findings_twice():
    """Checking changes nothing: neither the model nor the random state."""
    trap = next(t for t in TRAPS if t.name == "buffer updated in eval")
    model, args = trap.build(), trap.make()
    before = torch.get_rng_state()
    first, second = (omenn_fx.check(model, args) for _ in range(2))
    assert str(first) == str(second)
    assert model.count.abs().max() == 0
    assert torch.equal(before, torch.get_rng_state())
