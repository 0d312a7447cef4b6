"""Reading and writing by index. What is written over other values has a mask of the positions that stay; what is added
to them shares their mass in proportion to how much of each position it makes up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from omenn_fx.algebra.form import Affine, Bias, Call, Slot
from omenn_fx.algebra.linear import Chain, Diagonal, Linear, Moves, Weighted
from omenn_fx.algebra.mass import Shape, agree
from omenn_fx.algebra.rows import APART, INDEXED, Rows, along, last
from omenn_fx.rules.ops.forms import dynamic, real_dtype, static
from omenn_fx.rules.ops.structural import moves, zeros

aten = torch.ops.aten
Tensor = torch.Tensor
Map = Callable[[Tensor], Tensor]

# Reading -------------------------------------------------------------------------------------------------------------

moves(
    aten.index_select.default,
    back=lambda call, g: torch.index_add(zeros(g, call.shape()), call["dim"], call["index"], g),
    rows=along("dim"),
    complex=True,
    source="index",
)
moves(
    aten.gather.default,
    back=lambda call, g: torch.scatter_add(zeros(g, call.shape()), call["dim"], call["index"], g),
    rows=along("dim"),
    complex=True,
    source="index",
)
moves(
    aten.index.Tensor,
    back=lambda call, g: aten.index_put.default(zeros(g, call.shape()), call["indices"], g, True),
    rows=INDEXED,
    complex=True,
    source="indices",
)


# Writing -------------------------------------------------------------------------------------------------------------


def _onto(call: Call, name: str, kept: Tensor, put: Map, take: Map) -> Affine:
    """kept * self + put(values): `put` is linear, of non-negative entries, and `take` is its transpose."""
    both = len(call.content) == 2
    terms: dict[Slot, Linear] = {}
    for slot in call.content:
        shape = call.shape(slot)
        if slot.name != name:
            terms[slot] = Diagonal(kept, shape, call.out.shape)
        else:
            terms[slot] = Weighted(put, take, shape, call.out.shape)
    if both:
        whole = kept + put(torch.ones_like(call[name], dtype=real_dtype(call)))
        terms[Slot("self")] = Diagonal(kept, call.shape("self"), call.out.shape, carries=kept / whole)
        terms[Slot(name)] = Moves(put, take, call.shape(name), carry=lambda m: take(m / whole))
        return Affine(terms, disjoint=True)
    if Slot(name) in terms:
        return Affine(terms, Bias(call["self"].masked_fill(kept == 0, 0.0) * kept), disjoint=True)
    return Affine(terms, Bias(put(call[name])), disjoint=True)


def _numbered(like: Tensor) -> Tensor:
    """1, 2, 3, ... in the shape of a tensor of integers."""
    return torch.ones_like(like).flatten().cumsum(0).reshape(like.shape)


def _resized(value: Tensor, source: Shape, target: Shape) -> Tensor:
    """Cut or filled with zeros at the end of every dimension."""
    if agree(source, target) == len(target):
        return value
    return F.pad(value, [v for a, b in zip(reversed(source), reversed(target), strict=True) for v in (0, b - a)])


def _scattering(call: Call, name: str, coefficient: Any = None) -> tuple[Map, Map]:
    """values -> their sums at index positions along `dim`, and the transpose; `coefficient` of each index entry."""
    dim, index, size, source = call["dim"], call["index"], call.out.shape, call[name].shape

    def put(u: Tensor) -> Tensor:
        u = _resized(u, source, index.shape)
        return torch.scatter_add(zeros(u, size), dim, index, u if coefficient is None else u * coefficient)

    def take(g: Tensor) -> Tensor:
        g = torch.gather(g, dim, index)
        return _resized(g if coefficient is None else g * coefficient, index.shape, source)

    return put, take


def _last_written(call: Call) -> Tensor:
    """Which index entries of a scatter remain: where several write to one position, the one that torch let win."""
    number = _numbered(call["index"])
    ids = call["index"].new_zeros(tuple(call.out.shape)).scatter(call["dim"], call["index"], number)
    return (torch.gather(ids, call["dim"], call["index"]) == number).to(real_dtype(call))


@static(aten.scatter.src, content=("self", "src"), passes_gate=True, complex=True, rows=along("dim"))
def _scatter(call: Call) -> Affine:
    kept = torch.ones_like(call.out, dtype=real_dtype(call)).scatter(call["dim"], call["index"], 0.0)
    return _onto(call, "src", kept, *_scattering(call, "src", _last_written(call)))


@static(aten.scatter.value, passes_gate=True, complex=True, rows=along("dim"))
def _scatter_value(call: Call) -> tuple[Linear, Bias]:
    kept = torch.ones_like(call.out, dtype=real_dtype(call)).scatter(call["dim"], call["index"], 0.0)
    return Diagonal(kept, call.shape(), call.out.shape), Bias((1 - kept) * float(call["value"])).finite()


@static(aten.scatter_add.default, content=("self", "src"), passes_gate=True, complex=True, rows=along("dim"))
def _scatter_add(call: Call) -> Affine:
    return _onto(call, "src", torch.ones_like(call.out, dtype=real_dtype(call)), *_scattering(call, "src"))


@dynamic(
    aten.scatter_reduce.two,
    content=("self", "src"),
    passes_gate=True,
    rows=along("dim"),
    derivative="form",
    accepts=lambda operands: operands["reduce"] != "prod",
)
def _scatter_reduce(call: Call) -> Affine:
    """Sums and means of what is written to a position, or its largest or smallest, ties sharing equally."""
    dim, index, with_self = call["dim"], call["index"], call["include_self"]
    src = _resized(call["src"], call["src"].shape, index.shape)
    count, _ = _scattering(call, "src")
    touched = count(torch.ones_like(call["src"]))
    alone = torch.ones_like(call.out, dtype=real_dtype(call)) if with_self else (touched == 0).to(call.out.dtype)
    if call["reduce"] == "sum":
        return _onto(call, "src", alone, *_scattering(call, "src"))
    if call["reduce"] == "mean":
        wins, own = torch.ones_like(src), alone
    else:
        wins = (src == torch.gather(call.out, dim, index)).to(src.dtype)
        own = (call["self"] == call.out).to(src.dtype) * alone
    whole = torch.scatter_add(own, dim, index, wins)
    return _onto(call, "src", own / whole, *_scattering(call, "src", wins / torch.gather(whole, dim, index)))


@static(aten.index_add.default, content=("self", "source"), complex=True, rows=along("dim"))
def _index_add(call: Call) -> Affine:
    dim, index, size, alpha = call["dim"], call["index"], call.out.shape, call["alpha"]
    form = _onto(
        call,
        "source",
        torch.ones_like(call.out, dtype=real_dtype(call)),
        lambda u: torch.index_add(zeros(u, size), dim, index, u),
        lambda g: aten.index_select.default(g, dim, index),
    )
    if alpha == 1:
        return form
    slot = Slot("source")
    if slot not in form.terms:
        assert form.bias is not None
        return Affine(form.terms, Bias(form.bias.value * alpha), disjoint=True)
    scale = Diagonal(alpha, call.shape(slot), call.shape(slot))
    return Affine({**form.terms, slot: Chain(form.terms[slot], scale)}, form.bias, disjoint=True)


@static(aten.index_put.default, content=("self", "values"), complex=True, rows=INDEXED)
def _index_put(call: Call) -> Affine:
    """Values written to (or added at) index positions; they may be broadcast to all of them."""
    indices, size, values = call["indices"], call.out.shape, call["values"]
    masked = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)
    if masked and not call["accumulate"] and len(values.shape) == 0:  # y[mask] = value
        hit = aten.index_put.default(
            torch.zeros_like(call.out, dtype=real_dtype(call)),
            indices,
            torch.ones_like(values, dtype=real_dtype(call)),
            False,
        )
        return _onto(call, "values", 1 - hit, lambda u: u * hit, lambda g: (g * hit).sum())
    places = aten.index.Tensor(torch.zeros_like(call.out, dtype=torch.long), indices)
    spread = Diagonal(None, values.shape, places.shape)
    last = None
    kept = torch.ones_like(call.out, dtype=real_dtype(call))
    if not call["accumulate"]:
        kept = aten.index_put.default(kept, indices, torch.zeros_like(values, dtype=real_dtype(call)), False)
        number = _numbered(places)
        ids = aten.index_put.default(torch.zeros_like(call.out, dtype=torch.long), indices, number, False)
        last = (aten.index.Tensor(ids, indices) == number).to(real_dtype(call))

    def put(u: Tensor) -> Tensor:
        u = spread.apply(u)
        return aten.index_put.default(zeros(u, size), indices, u if last is None else u * last, True)

    def take(g: Tensor) -> Tensor:
        g = aten.index.Tensor(g, indices)
        return spread.transpose(g if last is None else g * last)

    return _onto(call, "values", kept, put, take)


@static(aten.slice_scatter.default, content=("self", "src"), passes_gate=True, complex=True, rows=APART)
def _slice_scatter(call: Call) -> Affine:
    where = [call[name] for name in ("dim", "start", "end", "step")]
    return _onto(
        call,
        "src",
        torch.slice_scatter(
            torch.ones_like(call.out, dtype=real_dtype(call)),
            torch.zeros_like(call["src"], dtype=real_dtype(call)),
            *where,
        ),
        lambda u: torch.slice_scatter(zeros(u, call.out.shape), u, *where),
        lambda g: aten.slice.Tensor(g, *where),
    )


@static(aten.select_scatter.default, content=("self", "src"), passes_gate=True, complex=True, rows=APART)
def _select_scatter(call: Call) -> Affine:
    where = call["dim"], call["index"]
    return _onto(
        call,
        "src",
        torch.select_scatter(
            torch.ones_like(call.out, dtype=real_dtype(call)),
            torch.zeros_like(call["src"], dtype=real_dtype(call)),
            *where,
        ),
        lambda u: torch.select_scatter(zeros(u, call.out.shape), u, *where),
        lambda g: aten.select.int(g, *where),
    )


IN_ORDER = Rows(
    "the source's values in their order", lambda operands, slot, ndim: range(ndim) if slot.name == "source" else ()
)


@static(aten.masked_scatter.default, content=("self", "source"), complex=True, rows=IN_ORDER)
def _masked_scatter(call: Call) -> Affine:
    """The masked positions take the values of `source` in order."""
    mask = call["mask"].expand(*call.out.shape)
    hit = mask.to(real_dtype(call))
    order = (mask.flatten().cumsum(0) - 1).clamp(min=0)
    shape, size = call["source"].shape, call.out.shape

    def put(u: Tensor) -> Tensor:
        return hit * aten.index_select.default(u.flatten(), 0, order).reshape(tuple(size))

    def take(g: Tensor) -> Tensor:
        flat = (g * hit).flatten()
        return torch.index_add(zeros(flat, shape).flatten(), 0, order, flat).reshape(tuple(shape))

    return _onto(call, "source", 1 - hit, put, take)


def _unpool(n: int) -> Callable[[Call], Linear]:
    def form(call: Call) -> Linear:
        """Every value at the position in its channel that `indices` names, zeros elsewhere."""
        lead, size = len(call.shape()) - n, call.out.shape
        index = call["indices"].flatten(lead)
        number = _numbered(index)
        ids = zeros(number, size).flatten(lead).scatter(lead, index, number)
        last = (torch.gather(ids, lead, index) == number).to(call.x.dtype)

        def put(u: Tensor) -> Tensor:
            flat = u.flatten(lead) * last
            return torch.scatter_add(zeros(u, size).flatten(lead), lead, index, flat).reshape(tuple(size))

        def take(g: Tensor) -> Tensor:
            return (torch.gather(g.flatten(lead), lead, index) * last).reshape(tuple(call.shape()))

        return Weighted(put, take, call.shape(), size)

    return form


static(aten.max_unpool2d.default, rows=last(2))(_unpool(2))
static(aten.max_unpool3d.default, rows=last(3))(_unpool(3))
