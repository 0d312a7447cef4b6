"""An explainer explains the model as it is at the call, and leaves it as it was."""

import copy
import functools
import gc
import logging
import pickle
import types
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import omenn_fx
from omenn_fx.capture import model_state
from omenn_fx.capture.isolate import isolated
from omenn_fx.programs import Programs


class Options:
    """An object of the user's own."""

    def __init__(self):
        self.scale, self.names = 1.0, ["a"]


class Network(nn.Module):
    """Layers of several kinds, and attributes that steer forward."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(16, 3)
        self.gain, self.steps, self.options = 1.0, [1.0, 2.0], Options()
        self.shift = torch.tensor([0.5])
        self.calls, self.seen, self.last = 0, [], None

    def forward(self, x):
        self.calls += 1
        self.seen.append(tuple(x.shape))
        self.last = torch.relu(self.norm(self.conv(x)))
        y = self.last * self.gain * sum(self.steps) * self.options.scale + self.shift.item()
        return self.head(y.flatten(1))


def network():
    torch.manual_seed(0)
    model = Network()
    model.norm.running_mean.normal_()
    return model.eval()


X = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def output(model, x=X):
    with torch.no_grad():
        return model(x)


def said(caplog):
    """What we said in the log: torch writes to it too."""
    return [record.getMessage() for record in caplog.records if record.name == "omenn_fx"]


def assert_followed(explainer, model, x=X, tolerance=1e-4):
    want = output(model, x)
    got = explainer(x, target=1)
    torch.testing.assert_close(got.outputs, want, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(got.C.flatten(1).sum(1), want[:, 1], rtol=tolerance, atol=tolerance)


class Halved(nn.Module):
    def forward(self, w):
        return w / 2


def _parametrized(m):
    parametrize.register_parametrization(m.conv, "weight", Halved())
    m.eval()


def _round_trip(m):
    m.double()
    m.float()
    m.norm.running_mean.add_(1)


def _class_swapped(m):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    m.head.__class__ = Doubled


CHANGES = {
    "parameter": (lambda m: setattr(m.head, "bias", nn.Parameter(torch.ones(3))),
        "the parameter 'head.bias' was replaced"),
    "bias removed": (lambda m: setattr(m.head, "bias", None), "'head.bias'"),
    "buffer": (lambda m: setattr(m.norm, "running_mean", torch.ones(4)),
        "the buffer 'norm.running_mean' was replaced"),
    "assigned": (lambda m: m.load_state_dict({k: v + 1 for k, v in m.state_dict().items()}, assign=True),
        "'conv.weight'"),
    "data": (lambda m: setattr(m.head.weight, "data", m.head.weight.data + 1), "'head.weight' was changed"),
    "data flipped": (lambda m: setattr(m.conv.weight, "data", m.conv.weight.data.transpose(2, 3)), "'conv.weight'"),
    "round trip": (_round_trip, "'conv.weight' was changed"),
    "head": (lambda m: setattr(m, "head", nn.Linear(16, 5).eval()), "the module 'head' was replaced"),
    "other kind": (lambda m: setattr(m, "norm", nn.Identity().eval()),
        "the module 'norm' is a Identity, was a BatchNorm2d"),
    "class of a module": (_class_swapped, "the module 'head' is a Doubled, was a Linear"),
    "pruned": (lambda m: prune.l1_unstructured(m.conv, "weight", 0.5), "'conv.weight_orig' is new"),
    "parametrized": (_parametrized, "the module 'conv' is a ParametrizedConv2d"),
    "spectral norm": (lambda m: spectral_norm(m.head), "'head.weight_orig' is new"),
    "weight norm": (lambda m: (weight_norm(m.head), m.head.weight_g.data.add_(1)), "'head.weight_g' is new"),
    "forward": (lambda m: setattr(m, "forward", types.MethodType(lambda s, x: s.head(x.flatten(1)[:, :16]), m)),
        "'forward'"),
    "forward inside": (lambda m: setattr(m.norm, "forward", lambda x: 2 * x), "the attribute 'norm.forward' is new"),
    "hook": (lambda m: m.conv.register_forward_hook(lambda s, i, o: 2 * o), "a hook of 'conv' is new"),
    "hook before": (lambda m: m.register_forward_pre_hook(lambda s, i: (i[0] + 1,)), "a hook of the model is new"),
    "number": (lambda m: setattr(m, "gain", 3.0), "the attribute 'gain' is 3.0, was 1.0"),
    "list": (lambda m: m.steps.append(4.0), "'steps.2' is new"),
    "entry of a list": (lambda m: m.steps.__setitem__(1, 7.0), "'steps.1' is 7.0, was 2.0"),
    "attribute of an object": (lambda m: setattr(m.options, "scale", 2.0), "'options.scale' is 2.0, was 1.0"),
    "plain tensor": (lambda m: setattr(m, "shift", torch.tensor([2.0])), "the attribute 'shift' was replaced"),
    "plain tensor in place": (lambda m: m.shift.add_(1), "the attribute 'shift' was changed"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_named_and_captured(name, caplog):
    change, word = CHANGES[name]
    model = network()
    explainer = omenn_fx.transform(model, X)
    before = output(model)
    with torch.no_grad():
        change(model)
    after = output(model)
    assert after.shape != before.shape or (after - before).abs().max() > 1e-3, "the change matters"
    with caplog.at_level(logging.WARNING, "omenn_fx"):
        assert_followed(explainer, model)
    (message,) = said(caplog)
    assert word in message
    program = explainer.ready
    for _ in range(2):  # the model is called in between
        assert_followed(explainer, model)
    assert explainer.ready is program, "what forward writes is no change"


def test_what_was_put_on_comes_off():
    model = network()
    explainer = omenn_fx.transform(model, X)
    parametrizations.weight_norm(model.head)
    model.eval()
    model.head.parametrizations.weight.original0.data.mul_(2)
    assert_followed(explainer, model)
    parametrize.remove_parametrizations(model.head, "weight")
    assert_followed(explainer, model)
    prune.random_unstructured(model.head, "weight", 0.5)
    assert_followed(explainer, model)
    prune.remove(model.head, "weight")
    assert_followed(explainer, model)
    handle = model.head.register_forward_hook(lambda m, i, o: -o)
    assert_followed(explainer, model)
    handle.remove()
    assert_followed(explainer, model)


@pytest.mark.parametrize("rules", ["omenn", "deeplift", "gradient", "epsilon_plus"])
def test_changes_in_place_need_no_capture(rules, caplog):
    """Whatever a rule set makes of the weights, it makes at each call."""
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()
    explainer = omenn_fx.transform(model, X, rules=rules)
    program = explainer.ready
    with torch.no_grad():
        model[0].weight.add_(0.1)
        model[1].running_var.mul_(2)
        model[4].weight[0].fill_(1)
    model.load_state_dict({k: v * 1.5 if v.is_floating_point() else v for k, v in model.state_dict().items()})
    step = torch.optim.SGD(model.parameters(), lr=0.1)
    model(X).sum().backward()
    step.step()
    with caplog.at_level(logging.WARNING, "omenn_fx"):
        got = explainer(X, target=1)
    assert said(caplog) == []
    assert explainer.ready is program
    torch.testing.assert_close(got.outputs, output(model), rtol=1e-5, atol=1e-5)
    fresh = omenn_fx.transform(copy.deepcopy(model), X, rules=rules)(X, target=1)
    torch.testing.assert_close(got.C, fresh.C, rtol=1e-5, atol=1e-6)


def test_equal_values_are_no_change():
    model = network()
    explainer = omenn_fx.transform(model, X)
    program = explainer.ready
    model.gain, model.steps, model.options.names = float("1.0"), [1.0, 2.0], ["a"]
    model.requires_grad_(False)
    model.eval()
    model.conv.register_full_backward_hook(lambda m, i, o: None)
    assert_followed(explainer, model)
    assert explainer.ready is program


def test_train_mode_of_one_module():
    """Refused while it lasts, and what was captured serves again afterwards."""
    model = network()
    explainer = omenn_fx.transform(model, X)
    program = explainer.ready
    model.norm.train()
    with pytest.raises(omenn_fx.ModeError, match="'norm'"):
        explainer(X)
    with pytest.raises(omenn_fx.ModeError, match="'norm'"):
        explainer.validate(X)
    model.norm.eval()
    assert_followed(explainer, model)
    assert explainer.ready is program


def test_every_entrance_follows(tmp_path):
    """Each is the first to be used after a change."""
    model, changes = network(), iter(range(1, 20))
    explainer = omenn_fx.transform(model, X)

    def changed():
        model.head.weight = nn.Parameter(torch.randn(3, 16) + next(changes))
        return output(model)

    want = changed()
    torch.testing.assert_close(explainer.reference(X), want)
    changed()
    assert explainer.validate(X).ok
    want = changed()
    got = explainer.affine(X, to=explainer.ready.tagged.output.name)
    torch.testing.assert_close(got.matvec(X) + got.bias, want, rtol=1e-4, atol=1e-4)
    want = changed()
    explainer.save(tmp_path / "e.pt2", X)
    torch.testing.assert_close(omenn_fx.load(tmp_path / "e.pt2")(X).outputs, want, rtol=1e-4, atol=1e-4)
    want = changed()
    torch.testing.assert_close(explainer.in_float64()(X.double()).outputs, want.double(), rtol=1e-4, atol=1e-4)
    want = changed()
    explainer.prepare(X)
    torch.testing.assert_close(explainer(X).outputs, want, rtol=1e-4, atol=1e-4)
    want = changed()
    torch.testing.assert_close(explainer.with_request(explainer.request)(X).outputs, want, rtol=1e-4, atol=1e-4)
    want = changed()
    torch.testing.assert_close(pickle.loads(pickle.dumps(explainer))(X).outputs, want, rtol=1e-4, atol=1e-4)


def test_compiled_explainers_follow():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    x = torch.randn(2, 4)
    explainer = omenn_fx.transform(model, x)
    compiled = torch.compile(explainer, backend="eager", fullgraph=True)
    for change in (lambda: None, lambda: setattr(model[2], "weight", nn.Parameter(torch.randn(3, 6)))):
        change()
        assert_followed(compiled, model, x)


def test_a_call_without_changes_compares_identities_alone(monkeypatch):
    """The walk by names is for what changed: it costs a hundred times more."""
    model = network()
    explainer = omenn_fx.transform(model, X)
    explainer(X)

    def walk(*args):
        raise AssertionError("walked")

    monkeypatch.setattr(model_state, "Walk", walk)
    explainer(X)
    model.gain = 2.0
    with pytest.raises(AssertionError, match="walked"):
        explainer(X)


def test_a_state_does_not_keep_its_model():
    model = network()
    model.hooked = model.conv.register_forward_hook(types.MethodType(lambda s, m, i, o: None, model))
    model.forward = types.MethodType(Network.forward, model)
    state, gone = model_state.ModelState(model), weakref.ref(model)
    assert state.changes(model) == []
    assert state.changes(network()) == ["it is another model"]
    del model
    gc.collect()
    assert gone() is None


# How much is kept ----------------------------------------------------------------------------------------------------


def test_the_program_used_least_recently_is_dropped(monkeypatch, caplog):
    monkeypatch.setattr("omenn_fx.programs.LIMIT", 2)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
    explainer = omenn_fx.transform(model)
    one, two, three = (torch.randn(2, size, 4) for size in (5, 6, 7))
    explainer(one)
    explainer(two)
    first = explainer.program_for((one,), {})[0]
    with caplog.at_level(logging.WARNING, "omenn_fx"):
        explainer(three)
    assert any("is dropped" in m and "6" in m for m in said(caplog))
    assert len(explainer._programs) == 2
    assert explainer.program_for((one,), {})[0] is first
    torch.testing.assert_close(explainer(two).outputs, output(model, two))
    assert len(explainer._programs) == 2


def test_programs_start_empty():
    assert len(Programs()) == 0
    assert Programs().find((X,), {}) is None


# Nothing of the user's model is different afterwards -----------------------------------------------------------------

records = []
count = 0


def recording(module, inputs, output):
    """A hook with state of its own module."""
    global count
    count += 1
    records.append(output)


class Recorder:
    """A hook that is an object."""

    def __init__(self, module):
        self.module, self.got, self.last = module, [], None
        module.register_forward_hook(self.hook)

    def hook(self, module, inputs, output):
        assert module is self.module
        self.got.append(output)
        self.last = output


def test_hooks_record_nothing_of_a_capture():
    """Closures, globals, objects and partials: they get the tensors of real calls only."""
    records.clear()
    local, kept = [], {}
    model = network()
    model.conv.register_forward_hook(lambda m, i, o: local.append(o))
    model.norm.register_forward_hook(recording)
    model.head.register_forward_pre_hook(functools.partial(lambda store, m, i: store.update(x=i[0]), kept))
    recorder = Recorder(model.head)
    before = count
    explainer = omenn_fx.transform(model, X)
    explainer(X)
    omenn_fx.check(model, X)
    assert local == records == recorder.got == []
    assert (kept, recorder.last, count) == ({}, None, before)
    explainer.reference(X)  # runs a copy of the model, too
    assert (kept, recorder.last, count) == ({}, None, before)
    model(X)
    assert count == before + 1
    for value in (*local, *records, *recorder.got, kept["x"]):
        assert type(value) is torch.Tensor


class Skips(nn.Module):
    """What a hook keeps is read."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.kept = nn.Linear(4, 4), nn.Linear(4, 3), {}
        self.one.register_forward_hook(lambda m, i, o: self.kept.update(skip=o, mean=o.numpy().mean()))

    def forward(self, x):
        return self.two(torch.relu(self.one(x)) + self.kept["skip"])


def test_hooks_that_read_values():
    """They cannot be traced. Those that only watch are left out, the others are not."""
    model, got = network(), []
    model.conv.register_forward_hook(lambda m, i, o: got.append(o.mean().item()))
    model.head.register_forward_pre_hook(lambda m, i: got.append(i[0].numpy()))
    explainer = omenn_fx.transform(model, X)
    assert got == []
    assert_followed(explainer, model)
    program = explainer.ready
    assert_followed(explainer, model)
    assert explainer.ready is program
    model.head.register_forward_hook(lambda m, i, o: o * float(o.max()))
    with pytest.raises(omenn_fx.CaptureError, match="could not capture"):
        explainer(X)
    skips, x = Skips().eval(), torch.randn(2, 4)
    output(skips, x)
    with pytest.raises(omenn_fx.CaptureError, match="could not capture"):
        omenn_fx.transform(skips, x)


def described(model):
    """All of a model, by identity."""
    return [
        (name, type(m), {k: (id(v), copy.copy(v) if isinstance(v, (dict, list)) else None) for k, v in vars(m).items()})
        for name, m in model.named_modules()
    ]


def test_a_capture_leaves_the_model_as_it_was():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.table, self.store = nn.LSTM(4, 3, batch_first=True), {}, []

        def forward(self, x):
            if not hasattr(self, "mask"):
                self.mask = torch.ones_like(x)
            self.table["last"] = y = self.rnn(x * self.mask)[0]
            self.store.append(y)
            return y[:, -1]

    model, x = Lazy().eval(), torch.randn(2, 5, 4)
    before, state = described(model), torch.get_rng_state()
    explainer = omenn_fx.transform(model, x)
    explainer(x)
    omenn_fx.check(model, x)
    assert described(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert_followed(explainer, model, x)


def test_a_copy_shares_tensors_and_nothing_else():
    model = network()
    model.twin = model.conv  # a module with two names
    model.back = weakref.ref(model)
    model.parts = {"all": [model.conv, (model.head, model)]}
    inner = model.forward
    model.forward = types.MethodType(lambda self, x: inner(2 * x), model)
    copied = isolated(model)
    assert copied.twin is copied.conv is not model.conv
    assert copied.back() is copied
    assert copied.parts["all"][0] is copied.conv
    assert copied.parts["all"][1] == (copied.head, copied)
    assert copied.conv.weight is model.conv.weight
    assert copied.steps is not model.steps
    torch.testing.assert_close(output(copied), output(model))
    assert (copied.calls, model.calls) == (1, 1)


def test_what_lets_go_of_something_is_not_copied():
    class Held(nn.Module):
        closed = 0

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x)

        def __del__(self):
            Held.closed += 1

    model = Held().eval()
    explainer = omenn_fx.transform(model, torch.randn(2, 4))
    gc.collect()
    assert Held.closed == 0
    model.layer.bias = nn.Parameter(torch.ones(3))
    assert_followed(explainer, model, torch.randn(2, 4))


# Autocast ------------------------------------------------------------------------------------------------------------


def test_autocast_around_a_call_is_refused_by_name(tmp_path):
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(2, 6)
    explainer = omenn_fx.transform(model, x)
    explainer.save(tmp_path / "e.pt2", x)
    saved = omenn_fx.load(tmp_path / "e.pt2")
    calls = (explainer, explainer.validate, explainer.reference, saved, lambda x: omenn_fx.transform(model, x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for call in calls:
            with pytest.raises(omenn_fx.OmennError, match="autocast"):
                call(x)
        assert "autocast" in str(omenn_fx.check(model, x))
        with torch.autocast("cpu", enabled=False):
            assert_followed(explainer, model, x)
            assert omenn_fx.check(model, x).supported
    model.bfloat16()
    assert_followed(explainer, model, x.bfloat16(), tolerance=2e-2)


# Globals that a hook and forward share --------------------------------------------------------------------------------

collected: dict[str, torch.Tensor] = {}


def collect(module, inputs, output):
    collected["hidden"] = output


def hidden():
    return collected["hidden"]


class Collects(nn.Module):
    """As transformers collects hidden states: a hook writes what forward, or a function that it calls, reads."""

    def __init__(self, read):
        super().__init__()
        self.one, self.two, self.read = nn.Linear(4, 4), nn.Linear(4, 3), read
        self.one.register_forward_hook(collect)

    def forward(self, x):
        collected.clear()
        self.one(x)
        return self.two(torch.relu(hidden() if self.read else collected["hidden"]))


@pytest.mark.parametrize("read", [False, True])
def test_a_hook_that_writes_what_forward_reads(read):
    torch.manual_seed(0)
    model, x = Collects(read).eval(), torch.randn(3, 4)
    explainer = omenn_fx.transform(model, x)
    explanation = explainer(x, target=1)
    torch.testing.assert_close(explanation.outputs, model(x).detach())
    torch.testing.assert_close(explainer.reference(x), model(x).detach())
    torch.testing.assert_close(explanation.sum, explanation.value)
