"""Complex values: what is linear is explained by the conjugate transpose, what is not is refused as what it is."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import omenn_fx

F64, C128 = torch.float64, torch.complex128


class Spectral(nn.Module):
    """A function of a spectrum with complex weights, and a real head."""

    def __init__(self, function, *weights):
        super().__init__()
        torch.manual_seed(0)
        self.weights = nn.ParameterList(torch.randn(shape, dtype=C128) for shape in weights)
        self.function = function
        self.eval()

    def forward(self, x):
        y = self.function(torch.fft.rfft(x), *self.weights)
        return (torch.view_as_real(torch.resolve_conj(y)) if y.is_complex() else y).flatten(1)


def modes(z, low, high):
    """A Fourier layer in one dimension: two bands of frequencies with a matrix each, written into zeros."""
    out = torch.zeros(z.shape[0], low.shape[1], z.shape[2], dtype=z.dtype)
    out[..., :2] = torch.einsum("bik,iok->bok", z[..., :2], low)
    out[..., -2:] = torch.einsum("bik,iok->bok", z[..., -2:], high)
    return torch.fft.irfft(out, n=8)


def one_by_one(z, weight):
    out = torch.zeros_like(z)
    for k in (0, 3):
        out[:, :, k] = z[:, :, k] @ weight[..., k]
    return out


def chosen(z, weight):
    """The frequencies that a list names, each times its own matrix, put back by index."""
    at = torch.tensor([1, 3])
    out = z.clone()
    out[:, :, at] = torch.einsum("bik,iok->bok", z[:, :, at], weight)
    return out


def replaced(z, weight):
    out = z.clone()
    out[:, 1] = z[:, 0] * weight
    return out


LINEAR = {  # of the spectrum [N, 3, 5]: a name -> function, shapes of weights
    "Fourier layer": (modes, [(3, 4, 2), (3, 4, 2)]),
    "one mode after the other": (one_by_one, [(3, 3, 5)]),
    "chosen frequencies": (chosen, [(3, 3, 2)]),
    "linear layer": (lambda z, w, b: F.linear(z, w, b) - b, [(4, 5), (4,)]),
    "matrices of both sides": (lambda z, w, v: w @ z @ v, [(2, 3), (5, 2)]),
    "batched matrices": (lambda z, w: torch.bmm(z, w.expand(z.shape[0], -1, -1)), [(5, 2)]),
    "tensordot": (lambda z, w: torch.tensordot(z, w, dims=2), [(3, 5, 2)]),
    "outer product": (lambda z, w: z[:, 0, :, None] * w, [(4,)]),
    "added product": (lambda z, w, v: torch.addmm(z[:, 0], z[:, 1], w, beta=0.5, alpha=2) + z[:, 2] @ v,
                      [(5, 5), (5, 5)]),
    "padded and cut": (lambda z, w: F.pad(z, (1, -2)) * w, [(4,)]),
    "wrapped": (lambda z, w: F.pad(z, (2, 2), mode="circular") * w, [(9,)]),
    "masked": (lambda z, w: torch.where(torch.arange(5) < 3, z, w * z), [(5,)]),
    "filled": (lambda z, w: (z * w).masked_fill(torch.arange(5) > 2, 0.0), [(5,)]),
    "replaced": (replaced, [(5,)]),
    "running sums": (lambda z, w: (z * w).cumsum(-1), [(5,)]),
    "conjugate": (lambda z, w: (z * w).conj() + z.conj(), [(5,)]),
    "parts": (lambda z, w: (z * w).real + 2 * (z / w).imag, [(5,)]),
    "moved": (lambda z, w: torch.roll(z.flip(-1) * w, 2, -1).repeat(1, 2, 1), [(5,)]),
    "stacked": (lambda z, w: torch.stack([z, z * w], 1).mean(2), [(5,)]),
    "transformed twice": (lambda z, w: torch.fft.fft2(z * w), [(5,)]),
    "centred": (lambda z, w: torch.fft.fftshift(torch.fft.ifft(z * w), -1), [(5,)]),
}  # fmt: skip


@pytest.mark.parametrize("name", LINEAR)
def test_what_is_linear_in_a_spectrum_has_its_gradient(name):
    function, shapes = LINEAR[name]
    model, x = Spectral(function, *shapes), torch.randn(2, 3, 8, dtype=F64)
    report = omenn_fx.check(model, x)
    assert report.supported, [p.reason for p in report.problems]
    explainer = omenn_fx.transform(model, x)
    leaf = x.clone().requires_grad_()
    value = model(leaf)[:, 1]
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    got = explainer(x, target=1)
    torch.testing.assert_close(got.C_w, gradient, rtol=0, atol=1e-12)
    torch.testing.assert_close(got.sum, value.detach(), rtol=0, atol=1e-12)
    result = explainer.validate(x, target=1)
    assert result.ok, str(result)


def test_products_of_two_spectra_and_phases_sum_to_the_value():
    """A correlation by its spectra; a modulus that is changed at its phase."""
    x = torch.randn(2, 3, 8, dtype=F64)
    for function in (
        lambda z: torch.einsum("bik,bjk->bij", z, z.conj()),
        lambda z: torch.fft.irfft(z[:, 0] * z[:, 1].conj(), n=8),
        lambda z: torch.polar(torch.relu(z.abs() - 1), z.angle()),
    ):
        explainer = omenn_fx.transform(Spectral(function), x)
        assert explainer.validate(x, target=1).ok
        assert float(explainer(x, target=1).completeness_error.max()) < 1e-12


@pytest.mark.parametrize("rules", ["omenn_gamma", "epsilon_plus", "gradient", "deeplift"])
def test_other_sets_treat_real_layers_alone(rules):
    model = nn.Sequential(Spectral(*LINEAR["Fourier layer"][:1], *LINEAR["Fourier layer"][1]), nn.ReLU())
    model.append(nn.Linear(32, 3, dtype=F64)).eval()
    x = torch.randn(2, 3, 8, dtype=F64)
    assert float(omenn_fx.transform(model, x, rules=rules)(x, target=1).completeness_error.max()) < 1e-9


# Refused as what they are -------------------------------------------------------------------------------------------


def refused(model, x):
    report = omenn_fx.check(model, x)
    assert not report.supported
    with pytest.raises(omenn_fx.UnsupportedOpError) as caught:
        omenn_fx.transform(model, x)
    return report.problems, str(caught.value)


@pytest.mark.parametrize(
    "function",
    [torch.tanh, torch.exp, torch.sigmoid, torch.sqrt, lambda z: z**3],
    ids=["tanh", "exp", "sigmoid", "sqrt", "cube"],
)
def test_a_nonlinearity_of_a_spectrum_is_refused_as_complex(function):
    (problem,), message = refused(Spectral(function), torch.randn(2, 3, 8, dtype=F64))
    assert "complex" in problem.reason
    assert "complex" in message
    assert "view_as_real" in problem.fix


def test_one_finding_for_a_layer_of_many_and_its_way_out():
    """What the fix says, done, explains the model."""

    class Many(nn.Module):
        def forward(self, z):
            return z * torch.stack([torch.tanh(z[:, i]) for i in range(3)], 1)

    x = torch.randn(2, 3, 8, dtype=F64)
    model = Spectral(Many())
    (problem,), _ = refused(model, x)
    assert "(3 calls)" in problem.reason
    said = re.search(r"roles=\{(.*)\}", problem.fix).group(1)
    roles = dict(re.findall(r'"([^"]+)": "(coefficient)"', said))
    assert len(roles) == 3
    assert omenn_fx.transform(model, x, roles=roles).validate(x, target=1).ok


@pytest.mark.parametrize("norm", [
    nn.BatchNorm1d(6, track_running_stats=False),
    nn.BatchNorm1d(6, affine=False, track_running_stats=False),
], ids=["affine", "plain"])  # fmt: skip
def test_statistics_of_the_batch_are_named(norm):
    model = nn.Sequential(nn.Linear(4, 6), norm, nn.Linear(6, 2)).eval()
    (problem,), message = refused(model, torch.randn(5, 4))
    for said in (f"{problem.reason} {problem.fix}", message):
        assert "statistics of the batch" in said
        assert "samples" in said
    assert "track_running_stats=True" in problem.fix
    mended = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=True), nn.Linear(6, 2)).eval()
    assert omenn_fx.check(mended, torch.randn(5, 4)).supported


def test_a_functional_norm_in_training_mode_is_refused_and_one_of_each_sample_is_not():
    class Norm(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function, self.head = function, nn.Linear(18, 2)

        def forward(self, x):
            return self.head(self.function(x).flatten(1))

    x = torch.randn(2, 3, 6)
    problems, _ = refused(Norm(lambda x: F.batch_norm(x, None, None, training=True)).eval(), x)
    assert "statistics of the batch" in problems[0].reason
    for own in (nn.InstanceNorm1d(3), nn.InstanceNorm1d(3, affine=True), lambda x: F.instance_norm(x)):
        model = Norm(own).eval()
        explainer = omenn_fx.transform(model, x)
        both, first = explainer(x, target=1), explainer(x[:1], target=1)
        torch.testing.assert_close(both.C[:1], first.C, rtol=1e-4, atol=1e-5)
