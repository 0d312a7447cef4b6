"""Targets beyond one class: regions of a map, tokens of a sequence, directions, regression, several at once."""

import pytest
import torch
from torch import nn

import omenn_fx

F64 = torch.float64


class Segment(nn.Module):
    """[N, 3, H, W] -> [N, 4, H, W]"""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        return self.head(torch.relu(self.stem(x)))


class Tokens(nn.Module):
    """[N, T] ids -> logits [N, T, 11], the last position hidden from the others"""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11)

    def forward(self, ids):
        h = self.embed(ids)
        return self.head(h + torch.tanh(self.mix(h)).cumsum(1))


def made(model, seed=0):
    torch.manual_seed(seed)
    return model().eval().double()


@pytest.fixture
def segment():
    return omenn_fx.transform(made(Segment)), torch.randn(2, 3, 5, 6, dtype=F64)


def assert_explains(explanation, wanted):
    torch.testing.assert_close(explanation.value, wanted, rtol=0, atol=1e-12)
    assert explanation.completeness_error.max() < 1e-12
    torch.testing.assert_close(explanation.sum, wanted, rtol=0, atol=1e-12)


def test_class_at_a_pixel_sees_its_window_only(segment):
    explainer, x = segment
    e = explainer(x, target=(2, 1, 3))
    assert_explains(e, explainer.model(x)[:, 2, 1, 3])
    reached = e.C_w.abs().sum((0, 1)) > 0
    assert reached[0:3, 2:5].all()
    assert reached.sum() == 9


def test_class_over_a_mask(segment):
    explainer, x = segment
    mask = torch.zeros(5, 6, dtype=torch.bool)
    mask[2:4, 1:3] = True
    outputs = explainer.model(x)
    e = explainer(x, target=(1, mask))
    assert_explains(e, outputs[:, 1, mask].sum(1))
    assert "weights of (2, 4, 5, 6)" in repr(e)
    assert_explains(explainer(x, target=(1, slice(2, 4), slice(1, 3))), outputs[:, 1, mask].sum(1))
    assert_explains(explainer(x, target=(1, ...)), outputs[:, 1].sum((1, 2)))


def test_region_is_the_sum_of_its_pixels(segment):
    explainer, x = segment
    whole = explainer(x, target=(3, 0, ...))
    parts = [explainer(x, target=(3, 0, i)) for i in range(6)]
    torch.testing.assert_close(whole.C, sum(p.C for p in parts))


def test_callable_may_look_at_the_outputs(segment):
    """Each row's own predicted region of a class."""
    explainer, x = segment

    def predicted(outputs):
        return torch.nn.functional.one_hot(outputs.argmax(1), 4).movedim(-1, 1).to(outputs.dtype)

    assert_explains(explainer(x, target=predicted), explainer.model(x).amax(1).sum((1, 2)))
    assert_explains(explainer(x, target=lambda outputs: (0, 0, 0)), explainer.model(x)[:, 0, 0, 0])


def test_token_at_a_position():
    model = made(Tokens)
    explainer = omenn_fx.transform(model)
    ids = torch.tensor([[1, 5, 2, 9], [3, 3, 0, 10]])
    e = explainer(ids, target=(2, 7))
    assert_explains(e, model(ids)[:, 2, 7])
    assert e.C.shape == (2, 4, 8)
    assert e.C_w[:, 3].abs().max() == 0, "a later token does not reach it"


def test_direction_of_an_embedding():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 5)).eval().double()
    x, other = torch.randn(3, 6, dtype=F64), torch.randn(3, 5, dtype=F64)
    explainer = omenn_fx.transform(model)
    assert_explains(explainer(x, target=other), (model(x) * other).sum(1))
    assert_explains(explainer(x, target=other[0]), model(x) @ other[0])
    difference = torch.tensor([1.0, 0, 0, -1.0, 0])
    e = explainer(x, target=difference)
    torch.testing.assert_close(e.C, explainer(x, target=0).C - explainer(x, target=3).C)


def test_several_directions_at_once():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 5)).eval().double()
    x, directions = torch.randn(3, 6, dtype=F64), torch.randn(3, 2, 5, dtype=F64)
    explainer = omenn_fx.transform(model)
    e = explainer(x, target=directions)
    assert e.C.shape == (3, 2, 6)
    assert_explains(e, torch.einsum("nk,ntk->nt", model(x), directions))
    torch.testing.assert_close(e.C[:, 1], explainer(x, target=directions[:, 1]).C)


def test_regression_without_a_class_dimension():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 1), nn.Flatten(0)).eval().double()
    x = torch.randn(3, 6, dtype=F64)
    assert_explains(omenn_fx.transform(model)(x), model(x))
    assert_explains(
        omenn_fx.transform(model)(x, target=torch.tensor([2.0, 0.0, -1.0])), model(x) * torch.tensor([2.0, 0, -1])
    )


def test_weight_zero_hides_masked_logits():
    """Logits at -inf have weight 0: the sum over the others is finite."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(x).masked_fill(torch.tensor([False, True, False]), -torch.inf)

    model = made(Masked)
    x = torch.randn(2, 4, dtype=F64)
    e = omenn_fx.transform(model)(x, target=torch.tensor([1.0, 0.0, 1.0]))
    assert_explains(e, model(x)[:, [0, 2]].sum(1))
