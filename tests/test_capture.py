"""Capture: what users' models do to tensors, and the ways to hand a model over. The explanation is always complete."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import omenn_fx
from omenn_fx.explainer import Explainer

F64 = torch.float64


class Calls(nn.Module):
    """A function of its inputs as a module; parts=... are its submodules, tensors its buffers."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def x(*shape):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(3))


def linear(*size):
    return nn.Linear(*size, dtype=F64)


def conv(*size, **options):
    return nn.Conv2d(*size, dtype=F64, **options)


def explained(model, *args, tolerance=1e-10, options=None, **kwargs) -> tuple[Explainer, omenn_fx.Explanation]:
    """Explain; neither the model nor the inputs have changed, and the outputs and their sum are right."""
    model = model.eval()
    state = copy.deepcopy(model.state_dict())
    kept = copy.deepcopy((args, kwargs))
    with torch.no_grad():
        want = copy.deepcopy(model)(*copy.deepcopy(args), **copy.deepcopy(kwargs))
    explainer = omenn_fx.transform(model, args, example_kwargs=kwargs, **(options or {}))
    explanation = explainer(*args, **kwargs)
    torch.testing.assert_close(explanation.outputs, want, rtol=tolerance, atol=tolerance)
    assert (explanation.completeness_error <= tolerance).all()
    torch.testing.assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)
    torch.testing.assert_close((args, kwargs), kept, rtol=0, atol=0)
    again = explainer(*args, **kwargs)
    torch.testing.assert_close(again.outputs, explanation.outputs, rtol=0, atol=0)
    return explainer, explanation


# In place ------------------------------------------------------------------------------------------------------------


def relu_chain(m, u):
    y = F.relu_(m.one(u))
    y += 1.0
    y.mul_(0.5).add_(u.sum(1, keepdim=True)).sub_(0.1)
    return F.silu(y, inplace=True)


def residual_read_later(m, u):
    """The value before the write is read by name before it, the one after it afterwards."""
    y = m.one(u)
    kept = y * 2
    y.relu_()
    return y + kept


def residual_add(m, u):
    y = m.one(u)
    y += u @ m.w
    return F.relu_(y)


def write_through_a_view(m, u):
    y = m.one(u)
    y[:, 1:3].add_(10.0)
    return y * m.w.sum(0)


def view_read_after_a_write(m, u):
    y = m.one(u)
    seen = y.view(-1, 2, 2)
    y.relu_()
    return seen.sum(2)


def part_written(m, u):
    y = m.one(u)
    first, _ = y.chunk(2, 1)
    first.tanh_()
    return y


def unbound_part_written(m, u):
    y = m.one(u)
    for i, row in enumerate(y.unbind(1)):
        row.mul_(i)
    return y


def slices_assigned(m, u):
    y = torch.zeros(u.shape[0], 4, dtype=u.dtype)
    y[:, :2] = u[:, 1:]
    y[:, 3] = u.sum(1)
    return y


def positions_assigned(m, u):
    y = m.one(u)
    y[:, torch.tensor([0, 2])] = u[:, :2] * 2
    y[:, 1] *= 3
    return y


def masked(m, u):
    y = m.one(u)
    y[y > 0.5] = 0.0
    return y.masked_fill_(m.w.sum(0) > 0, 2.0)


def filled(m, u):
    y = m.one(u)
    z = y + 1
    y.zero_()
    return y + z


def detached_write(m, u):
    """A detached tensor is the same memory."""
    y = m.one(u)
    y.detach().mul_(2.0)
    return y


def input_written(m, u):
    u.mul_(2.0)
    return m.one(u)


def reshaped_write(m, u):
    y = m.one(u)
    y.reshape(-1, 2, 2).transpose(1, 2).relu_()
    return y


def scattered(m, u):
    y = torch.zeros(u.shape[0], 4, dtype=u.dtype)
    y = y.scatter_add_(1, torch.tensor([[0, 2, 2]]).expand(u.shape[0], 3), u)
    return y.index_add_(1, torch.tensor([1]), u[:, :1])


WRITES = [relu_chain, residual_read_later, residual_add, write_through_a_view, view_read_after_a_write, part_written,
          unbound_part_written, slices_assigned, positions_assigned, masked, filled, detached_write, input_written,
          reshaped_write, scattered]  # fmt: skip


@pytest.mark.parametrize("forward", WRITES, ids=lambda f: f.__name__)
def test_in_place(forward):
    explained(Calls(forward, one=linear(3, 4), w=x(3, 4)), x(2, 3))


def test_in_place_modules_keep_their_names():
    """relu_ after a convolution needs no decomposition: the graph keeps the user's operators."""
    layers = conv(2, 3, 3), nn.BatchNorm2d(3, dtype=F64), nn.ReLU(inplace=True), nn.Flatten(), linear(48, 4)
    model = nn.Sequential(*layers)
    explainer, _ = explained(model, x(2, 2, 6, 6))
    assert [info.name for info in explainer.nodes if info.role == "content"] == [
        "input_1", "conv2d", "batch_norm", "relu_", "flatten", "linear",
    ]  # fmt: skip
    assert [info.op for info in explainer.nodes if info.name == "relu_"] == ["aten.relu.default"]


def test_mask_built_in_place_from_constants():
    """As in Swin: no input reaches the mask, so it may stay as it is written."""

    def forward(m, u):
        mask = torch.zeros(4, 4, dtype=u.dtype)
        for i, part in enumerate((slice(0, 2), slice(2, 4))):
            mask[part, part] = i + 1
        mask = mask.masked_fill(mask == 0, -100.0)
        return (torch.softmax(u @ u.transpose(1, 2) + mask, -1) @ u).mean(1)

    explainer, _ = explained(Calls(forward), x(2, 4, 3))
    assert any(info.op == "aten.copy_.default" or info.op == "aten.fill_.Tensor" for info in explainer.nodes)


def test_parameter_written_in_forward():
    """RWKV rescales a weight in forward: explaining must not do it to the user's model, call after call."""

    class Rescaling(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = linear(3, 4)
            self.register_buffer("seen", torch.zeros((), dtype=torch.long))

        def forward(self, u):
            self.one.weight.div_(2.0)
            self.seen += 1
            return self.one(u)

    model = Rescaling().eval()
    weight = model.one.weight.detach().clone()
    explainer = omenn_fx.transform(model, x(2, 3))
    for _ in range(3):
        explanation = explainer(x(2, 3))
        torch.testing.assert_close(explanation.outputs, F.linear(x(2, 3), weight / 2, model.one.bias))
    torch.testing.assert_close(model.one.weight.detach(), weight, rtol=0, atol=0)
    assert int(model.seen) == 0


# What stands in a model ----------------------------------------------------------------------------------------------


def test_dropout_disappears():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = conv(2, 4, 3)
            drops = nn.Dropout2d(0.5), nn.Dropout(0.5, inplace=True), nn.AlphaDropout(0.5), nn.FeatureAlphaDropout()
            self.drops = nn.ModuleList(drops)

        def forward(self, u):
            y = self.features(u)
            for drop in self.drops:
                y = drop(y)
            return F.dropout(y, 0.3, self.training).flatten(1)

    explainer, _ = explained(Dropping(), x(2, 2, 5, 5))
    assert [info.name for info in explainer.nodes if "dropout" in info.op] == []


def test_reused_module_and_tied_weights():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.act = linear(3, 5), nn.GELU()
            self.out = linear(5, 5)
            self.out.weight = nn.Parameter(self.embed.weight.new_ones(5, 5))
            self.again = linear(5, 5)
            self.again.weight = self.out.weight

        def forward(self, u):
            y = self.act(self.embed(u))
            y = self.act(self.out(y))
            return self.again(self.act(self.out(y)))

    explainer, explanation = explained(Tied(), x(2, 3))
    assert [info.name for info in explainer.nodes if info.op == "aten.linear.default"] == [
        "linear", "linear_1", "linear_2", "linear_3",
    ]  # fmt: skip
    assert set(explanation.bias) == {"linear", "linear_1", "linear_2", "linear_3"}


def test_shared_submodule_under_two_names():
    class Siamese(nn.Module):
        def __init__(self):
            super().__init__()
            self.left = self.right = nn.Sequential(linear(3, 4), nn.Tanh())

        def forward(self, u, v):
            return self.left(u) - self.right(v)

    explainer, explanation = explained(Siamese(), x(2, 3), x(2, 3) * 2)
    assert list(explanation.inputs) == ["u", "v"]
    assert [info.module for info in explainer.nodes if info.op == "aten.linear.default"] == ["left.0", "right.0"]


def test_buffers_and_constants_made_in_forward():
    def forward(m, u):
        positions = torch.arange(3, dtype=u.dtype) / 3 + torch.tensor([0.0, 1.0, 2.0], dtype=u.dtype)
        return m.one((u - m.mean) / m.std + positions)

    model = Calls(forward, one=linear(3, 4), mean=x(3), std=x(3).abs() + 1)
    model.register_buffer("hidden", torch.ones(1, dtype=F64), persistent=False)
    _, explanation = explained(model, x(2, 3))
    assert len(explanation.bias) == 3, "the mean, the positions and the layer's bias"


def test_widening_of_float32_islands():
    """A norm that casts to float32 would lose half of the digits of a float64 model."""

    def forward(m, u):
        y = u.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return m.one(y.type_as(u)) + torch.softmax(u, -1, dtype=torch.float32).to(u.dtype).sum(-1, keepdim=True)

    model = Calls(forward, one=linear(3, 4)).eval()
    explainer = omenn_fx.transform(model, x(2, 3))
    explanation = explainer(x(2, 3))
    assert (explanation.completeness_error <= 1e-12).all()
    torch.testing.assert_close(explanation.outputs, model(x(2, 3)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(explanation.C.sum(1), explanation.value, rtol=1e-12, atol=1e-12)
    assert all(v.meta["val"].dtype is not torch.float32 for v in explainer.graph_module.graph.nodes
               if isinstance(v.meta.get("val"), torch.Tensor))  # fmt: skip


def test_widening_reaches_behind_a_tuple():
    """Mixtral's router: top-k of a softmax in float32."""

    def forward(m, u):
        weights, chosen = torch.topk(torch.softmax(m.one(u), -1, dtype=torch.float32), 2)
        weights = weights / weights.sum(-1, keepdim=True)
        return torch.gather(m.two(u), 1, chosen) * weights.to(u.dtype) + weights.max(1, keepdim=True)[0]

    explainer = omenn_fx.transform(Calls(forward, one=linear(3, 4), two=linear(3, 4)).eval(), x(2, 3))
    assert (explainer(x(2, 3)).completeness_error <= 1e-12).all()


def test_half_precision_islands_of_a_float32_model():
    """A part in bfloat16, as under autocast: adjoints and bias masses cross the casts with the values."""

    def forward(m, u):
        y = m.one(u.to(torch.bfloat16))
        return m.two(torch.relu(y).float()) + u.mean(1, keepdim=True)

    model = Calls(forward, one=nn.Linear(6, 8, dtype=torch.bfloat16), two=nn.Linear(8, 4))
    explained(model, torch.randn(2, 6), tolerance=2e-2)


def test_type_promotion():
    """bfloat16 + float32 is float32: the adjoint returns in each operand's own dtype."""

    def forward(m, u):
        return m.two((m.one(u) + m.scale * m.one(u)).to(torch.bfloat16))

    one, two = nn.Linear(3, 4, dtype=torch.bfloat16), nn.Linear(4, 2, dtype=torch.bfloat16)
    model = Calls(forward, one=one, two=two, scale=torch.rand(4))
    explained(model, torch.randn(2, 3).to(torch.bfloat16), tolerance=5e-2)


# Inputs --------------------------------------------------------------------------------------------------------------


def test_nested_containers():
    def forward(m, batch, *, extra):
        first, (second, third) = batch["image"], batch["pair"]
        return {"logits": m.one(first + second) * extra["scale"], "other": (third,)}

    model = Calls(forward, one=linear(3, 4)).eval()
    batch = {"image": x(2, 3), "pair": (x(2, 3) * 2, x(2, 3) * 3)}
    extra = {"scale": torch.full((2, 1), 1.5, dtype=F64)}
    explainer = omenn_fx.transform(model, (batch,), example_kwargs={"extra": extra}, output="logits")
    explanation = explainer(batch, extra=extra)
    torch.testing.assert_close(explanation.outputs, model(batch, extra=extra)["logits"])
    assert (explanation.completeness_error <= 1e-10).all()
    assert len(explanation.inputs) == 4
    with pytest.raises(omenn_fx.CaptureError, match="not enough values to unpack"):
        explainer({"image": batch["image"], "pair": batch["pair"][:1]}, extra=extra)


def test_keyword_order_is_free():
    model = Calls(lambda m, u, *, mask, shift: m.one(u * mask) + shift, one=linear(3, 4)).eval()
    u, mask, shift = x(2, 3), torch.tensor([[1, 0, 1], [1, 1, 0]], dtype=F64), x(2, 4)
    explainer = omenn_fx.transform(model, (u,), example_kwargs={"mask": mask, "shift": shift}, explain=0)
    one = explainer(u, mask=mask, shift=shift)
    other = explainer(u, shift=shift, mask=mask)
    torch.testing.assert_close(one.C, other.C, rtol=0, atol=0)
    torch.testing.assert_close(one.outputs, model(u, mask=mask, shift=shift))
    assert len(explainer._programs) <= 2, "no new capture"
    with pytest.raises(omenn_fx.CaptureError, match="missing 1 required keyword-only argument: 'shift'"):
        explainer(u, mask=mask)


def test_integer_bool_and_none_inputs():
    def forward(m, u, ids, mask, scale=None, flag=True):
        picked = torch.gather(u, 1, ids)
        y = torch.where(mask, picked, torch.zeros_like(picked))
        return m.one(y) if flag and scale is None else y

    model = Calls(forward, one=linear(3, 4))
    ids = torch.tensor([[0, 0, 2], [1, 2, 2]])
    mask = torch.tensor([[True, False, True], [True, True, False]])
    _, explanation = explained(model, x(2, 3), ids, mask, None, True)
    assert len(explanation.inputs) == 1, "integers and booleans carry no content"


def test_several_inputs_of_different_rank():
    model = Calls(lambda m, image, table: m.one(image.mean((2, 3))) + m.two(table), one=linear(3, 4), two=linear(5, 4))
    _, explanation = explained(model, x(2, 3, 4, 4), x(2, 5))
    assert [tuple(i.C.shape) for i in explanation.inputs.values()] == [(2, 3, 4, 4), (2, 5)]


def test_batch_of_one_then_five(caplog):
    """A capture at one sample serves any number, and every row is explained as it would be alone."""
    layers = conv(2, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(4, 3)
    model = nn.Sequential(*layers).eval()
    u = x(5, 2, 6, 6)
    with caplog.at_level(logging.WARNING, "omenn_fx"):
        explainer = omenn_fx.transform(model, u[:1])
        several = explainer(u)
    assert caplog.messages == []
    torch.testing.assert_close(several.outputs, model(u))
    for i in range(5):
        torch.testing.assert_close(several.C[i], explainer(u[i : i + 1]).C[0], rtol=1e-10, atol=1e-12)


def test_model_that_fixes_its_batch():
    """A batch size written into the code: captured as it is, and captured anew for another."""
    fixed = Calls(lambda m, u: (m.one(u).view(2, 2, 2) + m.table).flatten(1), one=linear(3, 4), table=x(2, 2, 2))
    explainer, _ = explained(fixed, x(2, 3))
    assert explainer.ready.captured.dynamic_batch is False
    explainer, _ = explained(Calls(lambda m, u: m.one(u), one=linear(3, 4)), x(3, 3), options={"dynamic_batch": False})
    assert explainer.ready.captured.batch == 3


# Sources -------------------------------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = linear(3, 5), linear(5, 4)

    def forward(self, u):
        return self.two(torch.relu_(self.one(u)))


@pytest.fixture
def small():
    model = Small().eval()
    return model, omenn_fx.transform(model, x(2, 3))(x(2, 3))


def test_graph_module(small):
    model, want = small
    traced = torch.fx.symbolic_trace(model).eval()
    _, explanation = explained(traced, x(2, 3))
    torch.testing.assert_close(explanation.C, want.C)


def test_exported_program_is_not_changed(small):
    model, want = small
    program = torch.export.export(model, (x(2, 3),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    before = str(program.graph), {k: v.clone() for k, v in program.state_dict.items()}
    explanation = omenn_fx.transform(program, x(2, 3))(x(2, 3))
    torch.testing.assert_close(explanation.C, want.C)
    assert str(program.graph) == before[0]
    torch.testing.assert_close(dict(program.state_dict), before[1], rtol=0, atol=0)
    torch.testing.assert_close(program.module()(x(2, 3)), model(x(2, 3)))


@pytest.mark.parametrize("decomposed", [False, True])
def test_path_of_a_program(small, tmp_path, decomposed):
    model, want = small
    program = torch.export.export(model, (x(2, 3),))
    program = program.run_decompositions() if decomposed else program
    path = tmp_path / "small.pt2"
    torch.export.save(program, path)
    for source in (path, str(path)):
        explanation = omenn_fx.transform(source)(x(2, 3))
        torch.testing.assert_close(explanation.C, want.C)


def test_program_fits_only_its_own_shapes(small):
    model, _ = small
    program = torch.export.export(model, (x(2, 3),))
    explainer = omenn_fx.transform(program, x(2, 3))
    with pytest.raises(omenn_fx.InputError, match=r"do not fit the exported program: .*\(5, 3\)"):
        explainer(x(5, 3))


def test_missing_file_and_foreign_objects(tmp_path):
    with pytest.raises(omenn_fx.CaptureError, match=r"there is no file .*none\.pt2"):
        omenn_fx.transform(tmp_path / "none.pt2")
    with pytest.raises(TypeError, match="cannot transform a dict"):
        omenn_fx.transform({"weights": x(2)})
