"""Every rule keeps the invariants of the design on every sample of its operators, in the code that the product runs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import SAMPLES, N, Sample, T, Z, aten, name_of, of

import omenn_fx
from omenn_fx.algebra import invariants
from omenn_fx.algebra.aliases import canonical
from omenn_fx.algebra.bias_policy import POLICIES
from omenn_fx.algebra.form import Affine, Call, Slot
from omenn_fx.algebra.invariants import random_like
from omenn_fx.algebra.linear import Chain
from omenn_fx.algebra.mass import Even, Mass
from omenn_fx.algebra.ruleset import Rule, RuleSet, omenn, rule_set
from omenn_fx.testing import VARIANTS, called, measure

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
LIMIT = {F64: 1e-11, F32: 2e-5, BF16: 6e-2, torch.complex128: 1e-11, torch.complex64: 2e-5}
OPAQUE = sorted({name_of(rule.op) for rule in omenn if rule.form is None})


def _name(sample: Sample, content: tuple[Slot, ...]) -> str:
    slots = "+".join(s.name if s.index is None else f"{s.name}{s.index}" for s in content)
    return f"{name_of(sample.op)}-{of(sample.op).index(sample)}-{slots}"


CASES = [(sample, content) for sample in SAMPLES for content in sample.variants()]
each = pytest.mark.parametrize(("sample", "content"), CASES, ids=[_name(*case) for case in CASES])


REFUSES_GAPS = (aten.view.default, aten._unsafe_view.default, aten.view_as_complex.default)


def real(value: torch.Tensor) -> torch.Tensor:
    """A value that masses and magnitudes are like: they are real at complex values too."""
    return value.abs() if value.is_complex() else value


def form_of(sample: Sample, dtype: torch.dtype, content: tuple[Slot, ...] | None = None) -> tuple[Call, Affine]:
    call = sample.call(dtype, content)
    return call, omenn.table[sample.op].affine(call)


def like(value: torch.Tensor, seed: int) -> torch.Tensor:
    return random_like(value, torch.Generator().manual_seed(seed))


def assert_exact(rule: Rule, call: Call, tolerance: float) -> None:
    """All invariants of one call; `omenn_fx.testing.check_rule` takes the same measures."""
    with torch.no_grad():
        errors = measure(rule, call)
    assert {k: e for k, e in errors.items() if not e <= tolerance} == {}


# The table -----------------------------------------------------------------------------------------------------------


def test_every_operator_with_a_form_has_samples():
    sampled = {sample.op for sample in SAMPLES}
    named = {"transformers.grouped_mm_fallback.default"}  # of a library that may be absent: test_grouped_matrix
    ours = [rule for rule in omenn if str(rule.op).startswith(("aten.", "transformers."))]  # not those of other tests
    assert {str(rule.op) for rule in ours if rule.form is not None and rule.op not in sampled} == named
    few = [name_of(op) for op in sampled if len(of(op)) < 2]
    assert few == [], "a plain case and an edge at least"


def test_opaque_operators_are_these():
    """A form for one of them, or a new one, changes what is explained: it is to be written down here."""
    assert sorted(OPAQUE_OPERATORS.split()) == OPAQUE


OPAQUE_OPERATORS = """
    _embedding_bag _embedding_bag_forward_only affine_grid_generator all all.dim all.dims angle any any.dim any.dims
    argmax argmin argsort argsort.stable bernoulli.p bitwise_and.Tensor bitwise_not bitwise_or.Tensor
    bitwise_xor.Tensor bucketize.Tensor ceil div.Scalar_mode div.Tensor_mode embedding embedding_bag
    embedding_bag.padding_idx empty_like eq.Scalar eq.Tensor floor floor_divide fmod.Scalar fmod.Tensor full_like
    ge.Scalar ge.Tensor gt.Scalar gt.Tensor heaviside histc isclose isfinite isinf isnan le.Scalar le.Tensor
    logical_and logical_not logical_or logical_xor lt.Scalar lt.Tensor ne.Scalar ne.Tensor new_empty new_full
    new_ones new_zeros nonzero one_hot ones_like rand_like randn_like reciprocal remainder.Scalar remainder.Tensor
    round round.decimals rsqrt searchsorted.Tensor sgn sign signbit trunc zeros_like
"""


def test_content_operands_are_operands():
    for rule in omenn:
        if isinstance(rule.op, str):
            continue
        names = {argument.name for argument in rule.op._schema.arguments}
        assert set(rule.content) <= names, rule.op
        assert rule.product is True or rule.product is False or set(rule.product) <= set(rule.content), rule.op


def test_second_registration_raises():
    rules = RuleSet("another")
    rules.register(aten.relu.default)(lambda call: None)
    with pytest.raises(ValueError, match=r"'another' already has a rule for aten\.relu"):
        rules.register(aten.relu.default)(lambda call: None)
    with pytest.raises(ValueError, match="already has a rule"):
        rules.opaque(aten.relu.default)
    with pytest.raises(ValueError, match="already has a rule"):
        omenn.add(Rule(aten.relu.default, None))


def test_unknown_rule_set_names_the_known_ones():
    assert rule_set("omenn") is omenn
    with pytest.raises(ValueError, match=r"no rule set 'lrp'; known: .*, omenn"):
        rule_set("lrp")


# Invariants ----------------------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("variant", VARIANTS)
def test_invariants(sample, content, variant):
    """h = W h + b, W linear, <W u, v> = <u, W^T v>, mass kept, all finite, no backward operator: in every dtype."""
    if variant == "not contiguous" and sample.op in REFUSES_GAPS:
        pytest.skip("views take no gaps")
    for dtype in (F64, F32, BF16) if sample.low else (F64, F32):
        call = sample.call(dtype, content, variant)
        lowest = max((call.out.dtype, dtype), key=LIMIT.__getitem__)
        assert_exact(omenn.table[sample.op], call, LIMIT[lowest] * (sample.tolerance if lowest is not F64 else 1))


@each
def test_carrier_looks_at_positions_only(sample, content):
    """The sign and size of the mass do not change where it goes: the carrier is linear in it."""
    call, form = form_of(sample, F64, content)
    one, two = like(real(call.out), 1), like(real(call.out), 2)

    def carried(value):
        pieces = POLICIES["carrier"](call, form, Mass((Even(value),), call.out.shape))
        return {slot: piece.dense() for slot, piece in pieces.items()}

    first, second, both = carried(one), carried(two), carried(one - 3 * two)
    for slot in content:
        want = first[slot] - 3 * second[slot]
        tolerance = 1e-12 if call.out.dtype is F64 else LIMIT[call.out.dtype]
        torch.testing.assert_close(both[slot], want, rtol=0, atol=tolerance * (1 + float(want.abs().sum())))


def columns(linear, operand: torch.Tensor) -> torch.Tensor:
    """The dense matrix of a map, column by column."""
    basis = torch.eye(operand.numel(), dtype=operand.dtype)
    return torch.stack([linear.apply(e.reshape(operand.shape)).reshape(-1) for e in basis], 1)


@each
def test_magnitude(sample, content):
    """|W| |u| >= |W u|; the matrix of magnitude() is |W| itself, except where it bounds the product of a chain."""
    call, form = form_of(sample, F64, content)
    for slot, linear in form.terms.items():
        operand = call.at(slot)
        size = linear.magnitude()
        u = like(operand, 5)
        slack = 1e-12 if call.out.dtype is F64 else LIMIT[call.out.dtype]
        reached, bound = linear.apply(u).abs(), size.apply(u.abs())
        assert (reached <= bound + slack * (1 + bound.abs())).all()
        v = like(real(call.out), 6)
        assert invariants.dot(size.apply(u.abs()), v, u.abs(), size.transpose(v)) <= 20 * slack
        if (
            operand.numel() * call.out.numel() <= 1500
            and operand.numel()
            and call.out.numel()
            and call.out.dtype is operand.dtype is F64
        ):
            exact, bound = columns(linear, operand).abs(), columns(size, operand)
            assert (bound >= exact - 1e-12 * (1 + exact.max())).all()
            if not isinstance(linear, Chain) and name_of(sample.op) not in BOUNDED:
                torch.testing.assert_close(bound, exact, rtol=0, atol=1e-12 * (1 + float(exact.max())))


# Recurrences are products over time, and einsum sums products.
BOUNDED = {
    "grid_sampler",
    "grid_sampler_2d",
    "lstm.input",
    "gru.input",
    "rnn_tanh.input",
    "rnn_relu.input",
    "einsum",
    "bilinear",
}


# Numerical care ------------------------------------------------------------------------------------------------------

RATIOS = [
    sample.op for sample in SAMPLES
    if len(sample.args) == 1 and getattr(sample.args[0], "kind", "") == "near" and not sample.kwargs
]  # fmt: skip


@pytest.mark.parametrize("op", RATIOS, ids=name_of)
def test_ratio_near_zero(op):
    """(f(x) - f(0)) / x does not cancel at tiny x: in float32 it is that of float64."""
    x = torch.tensor([-1e-3, -1e-5, -1e-7, -1e-12, -1e-30, 0.0, 1e-30, 1e-9, 1e-6, 1e-4, 1e-2], dtype=F32)
    ratios = []
    for dtype in (F32, F64):
        call, form = _at(op, x.to(dtype))
        ratios.append(form.terms[call.content[0]].apply(torch.ones_like(call.x)).double())
    torch.testing.assert_close(ratios[0], ratios[1], rtol=2e-3, atol=2e-3)


def _at(op, x: torch.Tensor) -> tuple[Call, Affine]:
    operands = {a.name: a.default_value if a.has_default_value() else None for a in op._schema.arguments}
    operands["self"] = x
    call = Call(op, operands, op(x), (Slot("self"),))
    return call, omenn.table[op].affine(call)


@pytest.mark.parametrize("op", RATIOS, ids=name_of)
def test_slope_at_zero_is_the_limit(op):
    """W at 0 is between the slopes on both sides."""
    _, form = _at(op, torch.zeros(3, dtype=F64))
    at0 = form.terms[Slot("self")].apply(torch.ones(3, dtype=F64))
    sides = torch.stack([_at(op, torch.full((3,), h, dtype=F64))[1].terms[Slot("self")].apply(torch.ones(3, dtype=F64))
                         for h in (-1e-7, 1e-7)])  # fmt: skip
    assert (at0 <= sides.max(0).values + 1e-6).all()
    assert (at0 >= sides.min(0).values - 1e-6).all()


def test_grouped_matrix():
    """Rows sorted by expert, each group with its expert's matrix."""

    def grouped(u, weight, offsets):
        ends = [0, *offsets.tolist()]
        return torch.cat([u[a:b] @ w for a, b, w in zip(ends, ends[1:], weight, strict=False)])

    operands = {
        "input": torch.randn(5, 3, dtype=F64),
        "weight": torch.randn(2, 3, 4, dtype=F64),
        "offs": torch.tensor([2, 5]),
    }
    call = Call(grouped, operands, grouped(*operands.values()), (Slot("input"),))
    assert_exact(omenn.table["transformers.grouped_mm_fallback.default"], call, LIMIT[F64])
    linear = omenn.table["transformers.grouped_mm_fallback.default"].affine(call).terms[Slot("input")]
    torch.testing.assert_close(columns(linear.magnitude(), call.x), columns(linear, call.x).abs())
    v = like(call.out, 2)
    torch.testing.assert_close(linear.carry(Mass((Even(v),), v.shape)).dense().sum(-1), v.sum(-1))


def test_infinite_masks_hold_no_bias():
    """A mask of -inf that is added, filled in or padded with leaves 0 in the bias share, not NaN."""
    masked = [
        form_of(sample, F64)
        for sample in SAMPLES
        if sample.op in (aten.add.Tensor, aten.masked_fill.Scalar, aten.pad.default)
    ]
    masked = [(call, form) for call, form in masked if not call.out.isfinite().all()]
    assert len(masked) == 3
    for call, form in masked:
        assert form.bias.dense(call.out).isfinite().all(), call.op


# Shapes that no table foresees ---------------------------------------------------------------------------------------

shapes = settings(derandomize=True, deadline=None, max_examples=25)


def assert_invariants(op, *args, output=None, content=None, **kwargs) -> None:
    """All invariants of one call, in float64."""
    sample = Sample(op, args, kwargs, content=content, output=output)
    for slots in sample.variants():
        assert_exact(omenn.table[op], sample.call(F64, slots), LIMIT[F64])


@st.composite
def windows(draw, n):
    """Sizes, kernel, stride, padding and dilation of n dimensions with at least one window in each."""
    kernel = draw(st.lists(st.integers(1, 3), min_size=n, max_size=n))
    stride = draw(st.lists(st.integers(1, 3), min_size=n, max_size=n))
    dilation = draw(st.lists(st.integers(1, 2), min_size=n, max_size=n))
    padding = draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    size = [
        max(draw(st.integers(1, 6)), d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)
    ]
    return size, kernel, stride, padding, dilation


@pytest.mark.parametrize("n", [1, 2, 3])
@shapes
@given(data=st.data())
def test_conv_shapes(n, data):
    size, kernel, stride, padding, dilation = data.draw(windows(n))
    groups, each_in, each_out = (data.draw(st.integers(1, 2)) for _ in range(3))
    op = getattr(aten, f"conv{n}d").default
    weight = T(groups * each_out, each_in, *kernel)
    assert_invariants(
        op, T(2, groups * each_in, *size), weight, T(groups * each_out), stride, padding, dilation, groups
    )


@pytest.mark.parametrize("n", [1, 2, 3])
@shapes
@given(data=st.data())
def test_conv_transpose_shapes(n, data):
    size, kernel, stride, padding, dilation = data.draw(windows(n))
    groups, each_in, each_out = (data.draw(st.integers(1, 2)) for _ in range(3))
    extra = [data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
    size = [max(i, -(-(2 * p - d * (k - 1) - e) // s) + 1)
            for i, k, s, p, d, e in zip(size, kernel, stride, padding, dilation, extra, strict=True)]  # fmt: skip
    op = aten.conv_transpose1d.default if n == 1 else getattr(aten, f"conv_transpose{n}d").input
    weight = T(groups * each_in, each_out, *kernel)
    x = T(2, groups * each_in, *size)
    assert_invariants(op, x, weight, T(groups * each_out), stride, padding, extra, groups, dilation)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("kind", ["same", "valid"])
@shapes
@given(data=st.data())
def test_conv_padding_shapes(kind, n, data):
    kernel, size = (data.draw(st.lists(st.integers(1, 4), min_size=n, max_size=n)) for _ in range(2))
    dilation = data.draw(st.lists(st.integers(1, 2), min_size=n, max_size=n))
    size = [max(i, d * (k - 1) + 1) for i, k, d in zip(size, kernel, dilation, strict=True)]
    op = getattr(aten, f"conv{n}d").padding
    assert_invariants(op, T(2, 2, *size), T(2, 1, *kernel), T(2), [1] * n, kind, dilation, 2)


@pytest.mark.parametrize("n", [1, 2, 3])
@shapes
@given(data=st.data())
def test_average_pool_shapes(n, data):
    size, kernel, stride, padding, _ = data.draw(windows(n))
    padding = [min(p, k // 2) for p, k in zip(padding, kernel, strict=True)]
    size = [max(i, k - 2 * p) for i, k, p in zip(size, kernel, padding, strict=True)]
    ceil, counts = data.draw(st.booleans()), data.draw(st.booleans())
    divisor = [] if n == 1 else [data.draw(st.one_of(st.none(), st.integers(1, 5)))]
    if n == 3:  # torch asks for that in three dimensions only
        size = [max(i, k) for i, k in zip(size, kernel, strict=True)]
    op = getattr(aten, f"avg_pool{n}d").default
    assert_invariants(op, T(2, 2, *size), kernel, stride, padding, ceil, counts, *divisor)


@pytest.mark.parametrize("n", [1, 2, 3])
@shapes
@given(data=st.data())
def test_max_pool_shapes(n, data):
    size, kernel, stride, padding, dilation = data.draw(windows(n))
    padding = [min(p, k // 2) for p, k in zip(padding, kernel, strict=True)]
    size = [max(i, d * (k - 1) + 1 - 2 * p) for i, k, p, d in zip(size, kernel, padding, dilation, strict=True)]
    make = data.draw(st.sampled_from([T, N, Z]))
    op = getattr(aten, f"max_pool{n}d").default
    args = make(2, 2, *size), kernel, stride, padding, dilation, data.draw(st.booleans())
    if Sample(op, args, {}).call().out.isfinite().all():  # dilated windows may lie in the padding alone
        assert_invariants(op, *args)


@pytest.mark.parametrize("kind", ["avg", "max"])
@pytest.mark.parametrize("n", [1, 2, 3])
@shapes
@given(data=st.data())
def test_adaptive_pool_shapes(n, kind, data):
    size, out = (data.draw(st.lists(st.integers(1, 6), min_size=n, max_size=n)) for _ in range(2))
    op = getattr(aten, f"adaptive_{kind}_pool{n}d").default
    assert_invariants(op, T(2, 2, *size), out, output=0 if kind == "max" else None)


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
@shapes
@given(data=st.data())
def test_pad_shapes(mode, data):
    n = data.draw(st.integers(1, 3))
    size = data.draw(st.lists(st.integers(2, 5), min_size=n, max_size=n))
    low = -1 if mode == "constant" else 0
    most = 1 if mode in ("reflect", "circular") else 3
    pad = [data.draw(st.integers(low, most)) for _ in range(2 * n)]
    if mode == "constant" and any(s + a + b < 1 for s, a, b in zip(size[::-1], pad[::2], pad[1::2], strict=True)):
        return
    value = [data.draw(st.sampled_from([0.0, 1.5]))] if mode == "constant" else []
    assert_invariants(aten.pad.default, T(2, 2, *size), pad, mode, *value)


@pytest.mark.parametrize(
    "name", ["linear1d", "bilinear2d", "trilinear3d", "bicubic2d", "nearest1d", "nearest2d", "nearest3d"]
)
@shapes
@given(data=st.data())
def test_interpolation_shapes(name, data):
    n = int(name[-2])
    size, out = (data.draw(st.lists(st.integers(1, 6), min_size=n, max_size=n)) for _ in range(2))
    align = [] if "nearest" in name else [data.draw(st.booleans())]
    op = getattr(aten, f"upsample_{name}").vec
    if data.draw(st.booleans()):
        assert_invariants(op, T(2, 2, *size), out, *align, None)
    else:
        factors = [data.draw(st.sampled_from([1.0, 1.3, 2.0])) for _ in range(n)]
        assert_invariants(op, T(2, 2, *size), None, *align, factors)


@shapes
@given(data=st.data())
def test_slice_shapes(data):
    size, step = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    start, end = (data.draw(st.one_of(st.none(), st.integers(-7, 7))) for _ in range(2))
    sample = Sample(aten.slice.Tensor, (T(2, size, 2), 1, start, end, step), {})
    if sample.call().out.numel():
        assert_invariants(aten.slice.Tensor, T(2, size, 2), 1, start, end, step)


@shapes
@given(data=st.data())
def test_cat_shapes(data):
    sizes = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    content = tuple(Slot("tensors", i) for i, n in enumerate(sizes) if n and data.draw(st.booleans()))
    if content:
        dim = data.draw(st.sampled_from([1, -2]))
        assert_invariants(aten.cat.default, [T(2, n, 2) for n in sizes], dim, content=content)


@shapes
@given(data=st.data())
def test_fold_shapes(data):
    size, kernel, stride, padding, dilation = data.draw(windows(2))
    assert_invariants(aten.im2col.default, T(2, 2, *size), kernel, dilation, padding, stride)
    count = math.prod(
        (i + 2 * p - d * (k - 1) - 1) // s + 1
        for i, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    )
    columns = T(2, 2 * math.prod(kernel), count)
    assert_invariants(aten.col2im.default, columns, size, kernel, dilation, padding, stride)


@shapes
@given(data=st.data())
def test_part_shapes(data):
    size = data.draw(st.integers(1, 7))
    sections = data.draw(st.integers(1, 4))
    cuts = data.draw(st.lists(st.integers(-7, 8), min_size=1, max_size=3))
    calls = [(aten.tensor_split.sections, sections), (aten.tensor_split.indices, cuts), (aten.chunk.default, sections),
             (aten.split.Tensor, sections)]  # fmt: skip
    for op, how in calls:
        for i, part in enumerate(op(torch.empty(size), how, 0)):
            if part.numel():
                assert_invariants(op, N(2, size, 2), how, 1, output=i)


@shapes
@given(data=st.data())
def test_einsum_equations(data):
    """Two operands with any letters of b, i, j, k and any of them in the result."""
    letters = st.lists(st.sampled_from("ijk"), unique=True, max_size=3)
    one, two = "b" + "".join(data.draw(letters)), "b" + "".join(data.draw(letters))
    kept = "".join(c for c in "ijk" if c in one + two and data.draw(st.booleans()))
    size = {"b": 2, "i": 3, "j": 2, "k": 4}
    tensors = [T(*(size[c] for c in word)) for word in (one, two)]
    assert_invariants(aten.einsum.default, f"{one},{two}->b{kept}", tensors)


# In a model ----------------------------------------------------------------------------------------------------------


class Calls(torch.nn.Module):
    """The sum over the results of several operators, each called with content operands of its own."""

    def __init__(self, calls: list[Call]):
        super().__init__()
        self.calls = calls
        for i, call in enumerate(calls):
            for name, value in call.operands.items():
                for k, v in enumerate(value if isinstance(value, (list, tuple)) else [value]):
                    if isinstance(v, torch.Tensor):
                        self.register_buffer(f"{name}_{i}_{k}", v)

    def forward(self, *inputs):
        given = iter(inputs)
        total = 0
        for i, call in enumerate(self.calls):
            operands = {}
            for name, value in call.operands.items():
                several = isinstance(value, (list, tuple))
                made = [getattr(self, f"{name}_{i}_{k}") if isinstance(v, torch.Tensor) else v
                        for k, v in enumerate(value if several else [value])]  # fmt: skip
                operands[name] = made if several else made[0]
            for slot in call.content:
                if slot.index is None:
                    operands[slot.name] = next(given)
                else:
                    operands[slot.name][slot.index] = next(given)
            result = call.replay(**operands)
            total = total + result.reshape(result.shape[0], -1).sum(1, keepdim=True)
        return total


def _first_in_model(op) -> tuple[Sample, tuple[Slot, ...]] | None:
    for sample in of(op):
        for content in sample.variants() if sample.model else ():
            call = sample.call(F64, content)
            if any(v.is_complex() for v in (call.out, *(call.at(slot) for slot in content))):
                continue
            if all(call.shape(slot)[0] == call.out.shape[0] for slot in content):
                return sample, content
    return None


MODELS = [found for op in dict.fromkeys(sample.op for sample in SAMPLES) if (found := _first_in_model(op))]
GROUPS = [MODELS[i : i + 8] for i in range(0, len(MODELS), 8)]


@pytest.mark.parametrize("group", GROUPS, ids=[name_of(g[0][0].op) for g in GROUPS])
def test_in_a_model(group):
    """Eight operators at a time through capture, roles and the explainer graph: the explanation sums to the output."""
    calls = [sample.call(F64, content) for sample, content in group]
    calls = [c for c in calls if c.out.dtype is F64]
    inputs = tuple(call.at(slot) for call in calls for slot in call.content)
    model = Calls(calls).eval()
    explainer = omenn_fx.transform(model, inputs, dynamic_batch=False)  # constants have the batch's size
    explanation = explainer(*inputs)
    torch.testing.assert_close(explanation.outputs, model(*inputs), rtol=1e-12, atol=1e-12)
    assert (explanation.completeness_error <= 1e-10).all()
    assert len(explanation.inputs) == len(inputs)
    targets = {node.target for node in explainer.graph_module.graph.nodes}
    assert targets >= {canonical(call.op) for call in calls}


# What `check` says of an operator without data -----------------------------------------------------------------------


def _changed(call: Call) -> Call:
    """The same call at other content, with the same masks."""
    operands, generator = dict(call.operands), torch.Generator().manual_seed(3)
    for slot in call.content:
        value = call.at(slot)
        other = 0.2 + 0.5 * random_like(value, generator).abs()
        if (value < 0).any():
            other = torch.where(random_like(value, generator) < 0, -other, other)
        other = torch.where(value.isfinite(), other, value)
        if slot.index is None:
            operands[slot.name] = other
        else:
            operands[slot.name] = list(operands[slot.name])
            operands[slot.name][slot.index] = other
    return called(call.op, operands, call.content, call.output)


def _moves(call: Call) -> bool:
    """Whether W^T g or b are others at other content."""
    other = _changed(call)
    forms = [omenn.table[c.op].affine(c) for c in (call, other)]
    g = like(call.out, 9)
    adjoints = [torch.cat([f.terms[s].transpose(g).reshape(-1) for s in call.content]) for f in forms]
    biases = [g * 0 if f.bias is None else f.bias.dense(c.out) for f, c in zip(forms, (call, other), strict=True)]
    return not all(torch.allclose(a, b, equal_nan=True) for a, b in (adjoints, biases))


@pytest.mark.parametrize("op", list(dict.fromkeys(s.op for s in SAMPLES)), ids=name_of)
def test_dynamic_says_whether_the_map_depends_on_the_content(op):
    rule = omenn.table[op]
    calls = [sample.call(F64, content) for sample in of(op) for content in sample.variants()]
    calls = [c for c in calls if not any(c.at(slot).is_complex() for slot in c.content)]
    one = [c for c in calls if len(c.content) == 1] if rule.product else calls  # two factors are the policy's matter
    assert rule.dynamic == any(_moves(c) for c in one) or op == aten.hardsigmoid.default  # linear within 3 of 0
