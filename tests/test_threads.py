"""Several threads: one capture at a time, each once, and a model that others go on using meanwhile."""

import io
import logging
import sys
import threading
import warnings
from contextlib import redirect_stderr

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

import omenn_fx
from omenn_fx import programs
from omenn_fx.capture.exclusive import quiet

TIMEOUT = 60


def at_once(*works):
    """Run functions in threads that start together; raise what one of them raised."""
    barrier, errors = threading.Barrier(len(works)), []

    def run(work):
        barrier.wait(TIMEOUT)
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


def assert_exact(explanation, want):
    torch.testing.assert_close(explanation.outputs, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(explanation.C.flatten(1).sum(1), want[:, 1], rtol=1e-4, atol=1e-4)


class Shared(nn.Module):
    """A module with two names, a recurrent layer that keeps a list of its weights, and a result in an attribute."""

    def __init__(self):
        super().__init__()
        self.one, self.rnn, self.head = nn.Linear(6, 6), nn.LSTM(6, 6, batch_first=True), nn.Linear(6, 3)
        self.two, self.last = self.one, None

    def forward(self, x):
        y = self.two(torch.relu(self.one(x)))
        self.last = y  # written only: what a thread read of it may be another's
        return self.head(self.rnn(y)[0].mean(1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Shared().eval()


@pytest.fixture
def made(monkeypatch):
    """The shapes that are captured."""
    shapes, make = [], programs.make_program

    def counted(source, args, kwargs, request):
        shapes.append(tuple(args[0].shape[1:]))
        return make(source, args, kwargs, request)

    monkeypatch.setattr(programs, "make_program", counted)
    return shapes


@pytest.fixture(autouse=True)
def _nothing_process_wide():
    """What belongs to the process is afterwards what it was before."""

    def state():
        names = ("torch.fx", "torch.export", "torch._export", "torch._dynamo")
        levels = [logging.getLogger(name).level for name in names]
        return sys.stderr, list(warnings.filters), levels, nn.Module.__call__, torch.is_grad_enabled()

    omenn_fx.check(nn.Linear(2, 2).eval(), torch.ones(2, 2))  # what torch imports at the first capture
    before = state()
    yield
    assert state() == before


def test_eight_threads_and_four_shapes(model, made):
    explainer = omenn_fx.transform(model)

    def work(first):
        generator = torch.Generator().manual_seed(first)
        for i in range(12):
            x = torch.randn(2, 3 + (first + i) % 4, 6, generator=generator)
            explanation = explainer(x, target=1)
            with torch.no_grad():
                assert_exact(explanation, model(x))

    at_once(*[lambda i=i: work(i) for i in range(8)])
    assert sorted(made) == [(3, 6), (4, 6), (5, 6), (6, 6)]
    assert len(explainer._programs) == 4


def test_captures_of_one_model_by_several_explainers(model):
    x = torch.randn(2, 4, 6)
    with torch.no_grad():
        want = model(x)
    at_once(
        lambda: assert_exact(omenn_fx.transform(model, x)(x, target=1), want),
        lambda: assert_exact(omenn_fx.transform(model, x, rules="gradient")(x, target=1), want),
        lambda: omenn_fx.check(model, x),
    )
    assert not any(isinstance(p, FakeTensor) for p in model.parameters())
    assert_exact(omenn_fx.transform(model, x)(x, target=1), want)


def test_a_model_that_is_served_while_it_is_captured(model):
    x, done, served = torch.randn(2, 4, 6), threading.Event(), []
    with torch.no_grad():
        want = model(x)

    def serve():
        while not done.is_set():
            with torch.no_grad():
                got = model(x)
            assert type(got) is torch.Tensor
            assert type(model.last) is torch.Tensor
            torch.testing.assert_close(got, want)
            assert not any(isinstance(p, FakeTensor) for p in model.parameters())
            served.append(1)

    def capture():
        try:
            for size in (4, 5):
                omenn_fx.transform(model, torch.randn(2, size, 6))
        finally:
            done.set()

    at_once(capture, serve)
    assert len(served) > 2


def test_a_change_in_one_thread_is_seen_by_the_others(model):
    x = torch.randn(2, 4, 6)
    explainer = omenn_fx.transform(model, x)
    model.head = nn.Linear(6, 3).eval()
    with torch.no_grad():
        want = model(x)
    at_once(*[lambda: assert_exact(explainer(x, target=1), want)] * 4)
    assert len(explainer._programs) == 1


def test_what_other_threads_write_meanwhile_is_not_lost(capsys):
    """One thread stands in the middle of a capture while another uses what belongs to the process."""
    inside, written = threading.Event(), threading.Event()
    added = ("ignore", None, BytesWarning, None, 7)

    class Waits(nn.Module):
        def forward(self, x):
            if isinstance(x, FakeTensor) and not inside.is_set():
                print("from the model", file=sys.stderr)
                inside.set()
                assert written.wait(TIMEOUT)
            return 2 * x

    def other():
        assert inside.wait(TIMEOUT)
        try:
            print("from beside", file=sys.stderr)
            assert "from beside" in capsys.readouterr().err, "it is there at once"
            warnings.filters.insert(0, added)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with pytest.raises(UserWarning, match="mine"):
                    warnings.warn("mine", UserWarning, stacklevel=1)
        finally:
            written.set()

    explainers = []
    at_once(lambda: explainers.append(omenn_fx.transform(Waits().eval(), torch.randn(2, 3))), other)
    assert warnings.filters[0] is added
    warnings.filters.remove(added)
    assert "from the model" in capsys.readouterr().err


def test_streams_and_filters_taken_over_by_other_threads():
    """Another thread begins to redirect while we are quiet, and ends afterwards: our parts do not come back."""
    before, filters = sys.stderr, list(warnings.filters)
    theirs, catching = io.StringIO(), warnings.catch_warnings()
    redirecting = redirect_stderr(theirs)
    with quiet():
        redirecting.__enter__()
        catching.__enter__()
    print("on", file=sys.stderr)
    assert theirs.getvalue() == "on\n"
    catching.__exit__(None, None, None)
    redirecting.__exit__(None, None, None)
    assert list(warnings.filters) == filters
    sys.stderr, left = before, sys.stderr
    assert left is before or left.stream is before, "what their redirection puts back passes on what it is given"


def test_quiet_where_the_model_fails():
    class Fails(nn.Module):
        def forward(self, x):
            raise ZeroDivisionError

    with pytest.raises(omenn_fx.CaptureError, match="ZeroDivisionError"):
        omenn_fx.transform(Fails().eval(), torch.randn(2, 3))


def test_interfaces_of_metrics():
    pytest.importorskip("captum")
    from omenn_fx.integrations.captum import OMENN
    from omenn_fx.integrations.quantus import explain

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()
    method = OMENN(model)

    def work(seed):
        x = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            want = model(x)[:, 1]
        for _ in range(3):
            C = torch.as_tensor(explain(model, x.numpy(), torch.tensor([1, 1])))
            torch.testing.assert_close(C.flatten(1).sum(1), want, rtol=1e-4, atol=1e-4)
            attributions, delta = method.attribute(x, target=1, return_convergence_delta=True)
            torch.testing.assert_close(attributions.flatten(1).sum(1), want, rtol=1e-4, atol=1e-4)
            assert delta.abs().max() < 1e-4

    at_once(*[lambda i=i: work(i) for i in range(4)])


def test_saved_while_others_explain(tmp_path):
    """Writing a file traces too, and takes what was captured for its own inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    explainer = omenn_fx.transform(model)
    short = torch.randn(2, 6)
    explainer(short)
    with torch.no_grad():
        want = model(short)

    def save():
        explainer.save(tmp_path / "e.pt2", short)

    def call():
        for _ in range(3):
            assert_exact(omenn_fx.transform(model)(short, target=1), want)

    at_once(save, call)
    assert_exact(omenn_fx.load(tmp_path / "e.pt2")(short, target=1), want)
