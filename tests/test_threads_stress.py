"""The benchmark of threads, for three seconds; it runs for thirty with `python benchmarks/threads.py`."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import threads

import omenn_fx


@pytest.mark.slow
def test_eight_threads_share_an_explainer_of_four_shapes():
    outcome = threads.stress(seconds=3)
    assert not outcome.faults
    assert dict(outcome.captures) == {(3, *size): 1 for size in threads.SIZES[:4]}
    assert outcome.calls >= 8 * 4


def test_one_thread_shares_with_none():
    outcome = threads.stress(seconds=0, threads=1, shapes=2)
    assert outcome.ok
    assert outcome.calls == 2


@pytest.mark.parametrize("part", ["value", "C"])
def test_a_wrong_answer_is_seen(part):
    torch.manual_seed(0)
    model = threads.network()
    (question,) = threads.questions(model, 1)
    explainer = omenn_fx.transform(model)
    assert threads.ask(explainer, question) == ""
    wrong = replace(question, **{part: getattr(question, part) + 1e-3})
    assert threads.ask(explainer, wrong) != ""


def test_an_error_and_a_second_capture_are_seen(monkeypatch):
    def twice(explainer, question):
        explainer.prepare(question.x).prepare(question.x)
        raise ValueError("no\nanswer")

    monkeypatch.setattr(threads, "ask", twice)
    outcome = threads.stress(seconds=0, threads=1, shapes=1)
    assert not outcome.ok
    assert dict(outcome.faults) == {"ValueError: no": 1}
    assert dict(outcome.captures) == {(3, 8, 8): 2}
