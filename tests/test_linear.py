"""The algebra itself: linear primitives, bias masses, and the policies that carry them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from omenn_fx.algebra.bias_policy import POLICIES, carrier, contribution
from omenn_fx.algebra.form import Affine, Bias, Call, Slot
from omenn_fx.algebra.linear import Cast, Centre, Chain, Diagonal, Linear, Matrix, Moves, Reduction, Weighted
from omenn_fx.algebra.mass import Even, Mass, Product, contract, is_one, spread, sum_to

F64 = torch.float64


def x(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def dense(linear: Linear, *shape: int) -> Tensor:
    """The matrix of a map, column by column."""
    numel = torch.Size(shape).numel()
    basis = torch.eye(numel, dtype=F64)
    return torch.stack([linear.apply(e.reshape(shape)).reshape(-1) for e in basis], 1)


def transposed(linear: Linear, *shape: int) -> Tensor:
    """The matrix of a map's transpose, column by column."""
    basis = torch.eye(torch.Size(shape).numel(), dtype=F64)
    return torch.stack([linear.transpose(e.reshape(shape)).reshape(-1) for e in basis], 1)


WEIGHT = x(5, 4, seed=9)
PRIMITIVES = {  # name: (map, operand's shape, result's shape)
    "identity": (Diagonal(None, (2, 3), (2, 3)), (2, 3), (2, 3)),
    "diagonal": (Diagonal(x(2, 3), (2, 3), (2, 3)), (2, 3), (2, 3)),
    "number": (Diagonal(-1.5, (2, 3), (2, 3)), (2, 3), (2, 3)),
    "broadcast": (Diagonal(None, (3, 1), (2, 3, 4)), (3, 1), (2, 3, 4)),
    "broadcast diagonal": (Diagonal(x(2, 3, 1), (1, 4), (2, 3, 4)), (1, 4), (2, 3, 4)),
    "moves": (Moves(lambda u: u.flip(1), lambda g: g.flip(1), (2, 3)), (2, 3), (2, 3)),
    "weighted": (
        Weighted(lambda u: u.cumsum(1), lambda g: g.flip(1).cumsum(1).flip(1), (2, 3), (2, 3)),
        (2, 3),
        (2, 3),
    ),
    "matrix": (Matrix(WEIGHT, (2, 3, 4)), (2, 3, 4), (2, 3, 5)),
    "sum": (Reduction([1], False, (2, 3, 4)), (2, 3, 4), (2, 4)),
    "mean": (Reduction([-1, 1], True, (2, 3, 4), 1 / 12), (2, 3, 4), (2, 1, 1)),
    "sum of all": (Reduction([0, 1], False, (2, 3)), (2, 3), ()),
    "sum of a number": (Reduction([], False, ()), (), ()),
    "centre": (Centre([1], (2, 3, 4)), (2, 3, 4), (2, 3, 4)),
    "centre of two": (Centre([-1, -2], (2, 3, 4)), (2, 3, 4), (2, 3, 4)),
    "chain": (Chain(Diagonal(x(2, 3, 4), (2, 3, 4), (2, 3, 4)), Centre([2], (2, 3, 4))), (2, 3, 4), (2, 3, 4)),
}
each = pytest.mark.parametrize("name", PRIMITIVES)


@each
def test_transpose_is_the_transpose(name):
    linear, operand, result = PRIMITIVES[name]
    matrix = dense(linear, *operand)
    assert matrix.abs().sum() > 0
    torch.testing.assert_close(transposed(linear, *result), matrix.t())


@each
def test_magnitude_is_the_absolute_matrix(name):
    linear, operand, result = PRIMITIVES[name]
    size = linear.magnitude()
    matrix = dense(size, *operand)
    torch.testing.assert_close(matrix, dense(linear, *operand).abs())  # the chain's diagonal makes it exact too
    torch.testing.assert_close(transposed(size, *result), matrix.t())


KINDS = [
    (name, kind)
    for name in PRIMITIVES
    for kind in ("dense", "even", "product")
    if kind == "dense" or PRIMITIVES[name][2]
]


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_carry_keeps_the_sum(name, kind):
    linear, operand, result = PRIMITIVES[name]
    ndim = len(result)
    part = {
        "dense": lambda: Even(x(*result)),
        "even": lambda: Even(x(*result[:-1], 1), frozenset({ndim - 1})),
        "product": lambda: Product(x(*result), x(result[-1], seed=2), ndim - 1, ndim),
    }[kind]()
    mass = Mass((part,), result)
    carried = linear.carry(mass).dense()
    assert carried.shape == operand
    torch.testing.assert_close(carried.sum(), mass.dense().sum())


def test_carry_places():
    """A number stays where it is, a sum is shared evenly, a token keeps its own mass, a broadcast gathers it."""
    mass = Mass((Even(torch.tensor([[6.0, 0.0], [0.0, 2.0]], dtype=F64)),), (2, 2))
    assert Diagonal(x(2, 2), (2, 2), (2, 2)).carry(mass).dense().tolist() == [[6.0, 0.0], [0.0, 2.0]]
    assert Diagonal(None, (2, 1), (2, 2)).carry(mass).dense().tolist() == [[6.0], [2.0]]
    assert Matrix(x(2, 4), (2, 4)).carry(mass).dense().tolist() == [[1.5] * 4, [0.5] * 4]
    assert Reduction([1], False, (2, 3, 2)).carry(mass).dense()[0].tolist() == [[2.0, 0.0]] * 3
    sums = Weighted(lambda u: u.cumsum(1), lambda g: g.flip(1).cumsum(1).flip(1), (2, 2), (2, 2))
    assert sums.carry(mass).dense().tolist() == [[6.0, 0.0], [1.0, 1.0]]


def test_weighted_spreads_what_no_position_reads():
    """A row of zeros: its mass goes evenly to the positions that share its leading dimensions."""
    keep = torch.tensor([1.0, 0.0, 2.0], dtype=F64)
    linear = Weighted(
        lambda u: u.sum(1, keepdim=True) * keep, lambda g: (g * keep).sum(1, keepdim=True).expand(2, 4), (2, 4), (2, 3)
    )
    mass = Mass((Even(torch.tensor([[0.0, 8.0, 0.0], [4.0, 0.0, 0.0]], dtype=F64)),), (2, 3))
    assert linear.carry(mass).dense().tolist() == [[2.0] * 4, [1.0] * 4]


def test_masked_diagonal_takes_its_own_mass():
    own = torch.tensor([1.0, 0.0, 1.0], dtype=F64)
    mass = Mass((Even(torch.tensor([[1.0, 2.0, 3.0]], dtype=F64)),), (1, 3))
    assert Diagonal(own, (1, 3), (1, 3), carries=own).carry(mass).dense().tolist() == [[1.0, 0.0, 3.0]]


def test_cast_keeps_the_form_of_a_mass():
    cast = Cast((2, 3), torch.float32, F64)
    assert cast.apply(torch.ones(2, 3)).dtype is F64
    assert cast.transpose(x(2, 3)).dtype is torch.float32
    mass = Mass((Even(x(2, 1), frozenset({1})), Product(x(2, 3), x(3), 1, 2)), (2, 3))
    carried = cast.carry(mass)
    assert [part.even for part in carried.parts] == [frozenset({1}), frozenset()]
    assert carried.dense().dtype is torch.float32
    torch.testing.assert_close(carried.dense().double(), mass.dense(), rtol=1e-6, atol=1e-6)


# Masses --------------------------------------------------------------------------------------------------------------


def test_even_is_shared():
    part = Even(torch.tensor([[6.0], [3.0]], dtype=F64), frozenset({1}))
    assert part.dense((2, 3)).tolist() == [[2.0] * 3, [1.0] * 3]
    assert part.collapsed(1) is part
    assert part.collapsed(0).value.tolist() == [[9.0]]
    assert part.collapsed(0).even == {0, 1}
    assert part.scaled(0.5).dense((2, 3)).sum() == 4.5


@pytest.mark.parametrize("dim", [0, 1, 2, None])
def test_product_is_multiplied_when_it_is_seen(dim):
    g = x(2, 3, 4)
    b = x(*([g.shape[dim]] if dim is not None else [3, 1]), seed=2)
    wide = b.reshape([-1 if d == dim else 1 for d in range(3)]) if dim is not None else b
    part = Product(g, b, dim, 3).scaled(-2.0)
    torch.testing.assert_close(part.dense(g.shape), -2 * g * wide)
    for at in range(3):
        collapsed = part.collapsed(at)
        assert collapsed.even == {at}
        torch.testing.assert_close(collapsed.value, (-2 * g * wide).sum(at, keepdim=True))
        assert part.collapsed(at) is collapsed, "the contraction is kept"


def test_masses_of_one_form_are_added_at_once():
    shape = (2, 3)
    row, column = Even(x(2, 1), frozenset({1})), Even(x(1, 3), frozenset({0}))
    total = Mass((row,), shape) + Mass((column,), shape) + Mass((row,), shape)
    assert len(total.parts) == 2
    torch.testing.assert_close(total.dense(), 2 * row.dense(shape) + column.dense(shape))
    torch.testing.assert_close(total.collapsed(-1).dense(shape).sum(1), total.dense().sum(1))
    product = Product(x(2, 3), x(3), 1, 2)
    both = total + Mass((product,), shape)
    assert len(both.parts) == 3
    assert len(both.settled().parts) == 1
    torch.testing.assert_close(both.settled().dense(), both.dense())
    torch.testing.assert_close(both.scaled(3.0).dense(), 3 * both.dense())
    assert both.scaled(1.0) is both


def test_collapsed_total_of_unlike_parts():
    """One part even over all but the batch, one dense, one a product: each column's total is the sum of theirs."""
    shape = (2, 3, 4)
    parts = (Even(x(2, 1, 1), frozenset({1, 2})), Even(x(2, 3, 4)), Product(x(2, 3, 4, seed=3), x(3), 1, 3))
    mass = Mass(parts, shape)
    for dim in (1, 2, -1):
        collapsed = mass.collapsed(dim)
        assert collapsed.even == {dim % 3}
        torch.testing.assert_close(collapsed.value, mass.dense().sum(dim, keepdim=True))


@pytest.mark.parametrize(
    ("source", "target"), [((2, 3, 4), (3, 1)), ((2, 3), (2, 3)), ((2, 3), ()), ((1, 3), (1, 1)), ((2, 3), (1,))]
)
def test_sum_to_is_the_transpose_of_broadcasting(source, target):
    g, u = x(*source), x(*target, seed=2)
    back = sum_to(g, source, target)
    assert back.shape == target
    torch.testing.assert_close((u.expand(source) * g).sum(), (u * back).sum())


@pytest.mark.parametrize(
    ("source", "target"), [((2, 3, 4), (2, 5)), ((2, 3), (2, 3)), ((3, 2), (2, 3)), ((2,), (2, 3, 4)), ((2, 3), (2,))]
)
def test_spread_keeps_the_sum_of_each_leading_position(source, target):
    value = x(*source)
    result = spread(value, source, target)
    assert result.shape == target
    torch.testing.assert_close(result.sum(), value.sum())
    if source[0] == target[0]:
        torch.testing.assert_close(result.reshape(2, -1).sum(1), value.reshape(2, -1).sum(1))


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_contract(dim):
    g, b = x(2, 3, 4), x([2, 3, 4][dim])
    torch.testing.assert_close(
        contract(g, b, dim, 3), (g * b.reshape([-1 if d == dim else 1 for d in range(3)])).sum(dim, keepdim=True)
    )


def test_a_symbolic_size_is_never_one():
    assert is_one(1)
    assert not is_one(2)
    assert not is_one(object())


# Policies ------------------------------------------------------------------------------------------------------------


def addition(
    first: Tensor, second: Tensor, disjoint: bool = False, carries: tuple[Tensor, Tensor] | None = None
) -> tuple[Call, Affine]:
    out = first + second
    a, b = Slot("self"), Slot("other")
    masks = carries or (None, None)
    terms = {
        slot: Diagonal(None, v.shape, out.shape, m) for slot, v, m in zip((a, b), (first, second), masks, strict=True)
    }
    return Call(None, {"self": first, "other": second}, out, (a, b)), Affine(terms, None, disjoint)


def test_carrier_shares_equally_among_addends():
    call, form = addition(x(2, 3), x(3))
    mass = Mass((Product(x(2, 3), x(3), 1, 2),), (2, 3))
    carried = carrier(call, form, mass)
    torch.testing.assert_close(carried[Slot("self")].dense(), mass.dense() / 2)
    torch.testing.assert_close(carried[Slot("other")].dense(), mass.dense().sum(0) / 2)


def test_carrier_of_disjoint_terms_does_not_share():
    left = torch.tensor([1.0, 0.0, 1.0], dtype=F64).expand(2, 3)
    call, form = addition(x(2, 3), x(2, 3), True, (left, 1 - left))
    mass = Mass((Even(x(2, 3)),), (2, 3))
    carried = carrier(call, form, mass)
    torch.testing.assert_close(carried[Slot("self")].dense() + carried[Slot("other")].dense(), mass.dense())
    torch.testing.assert_close(carried[Slot("self")].dense(), mass.dense() * left)


def test_contribution_goes_where_the_value_comes_from():
    """|W h| decides: of 3 + 1 the first addend takes three quarters, of 0 + 0 each takes a half."""
    first = torch.tensor([[3.0, 0.0, -2.0]], dtype=F64)
    second = torch.tensor([[1.0, 0.0, 0.0]], dtype=F64)
    call, form = addition(first, second)
    mass = Mass((Even(torch.ones(1, 3, dtype=F64)),), (1, 3))
    carried = contribution(call, form, mass)
    torch.testing.assert_close(
        carried[Slot("self")].dense(), torch.tensor([[0.75, 0.5, 1.0]], dtype=F64), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(
        carried[Slot("other")].dense(), torch.tensor([[0.25, 0.5, 0.0]], dtype=F64), rtol=0, atol=1e-5
    )


def test_contribution_of_zeros_is_the_carrier():
    call, form = addition(torch.zeros(2, 3, dtype=F64), torch.zeros(2, 3, dtype=F64))
    mass = Mass((Even(x(2, 3)),), (2, 3))
    one, other = contribution(call, form, mass), carrier(call, form, mass)
    for slot in call.content:
        torch.testing.assert_close(one[slot].dense(), other[slot].dense())


def test_policies_by_name():
    assert {"carrier": carrier, "contribution": contribution, "none": None} == POLICIES


# Biases --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bias", "want"), [
    (Bias(2.0), 2.0), (Bias(x(3), dim=1), x(3)[:, None]), (Bias(x(4), dim=-1), x(4)), (Bias(x(3, 1)), x(3, 1)),
])  # fmt: skip
def test_bias_mass_is_g_times_b(bias, want):
    g = x(2, 3, 4, seed=5)
    torch.testing.assert_close(bias.mass(g, g.shape).dense(), g * want)
    torch.testing.assert_close(bias.dense(g), torch.zeros_like(g) + want)


def test_infinite_bias_holds_nothing():
    mask = torch.tensor([0.5, float("-inf"), float("inf")], dtype=F64)
    assert Bias(mask).finite().value.tolist() == [0.5, 0.0, 0.0]
    assert Bias(float("-inf")).finite().value == 0.0
    assert Bias(1.5).finite().value == 1.5
    assert Bias(mask, dim=1).finite().dim == 1
