"""Inputs that a file is verified on: those given, and more like them that the model takes.

Inputs have a domain, which nobody states: positive numbers under a logarithm, the codes of categories, adjacency
matrices. So further inputs are made of the given ones, and the model itself says whether they are some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils._pytree as pytree

from omenn_fx.capture.sizes import batch_size, hint
from omenn_fx.compat import FakeTensor
from omenn_fx.export.free import nearby
from omenn_fx.export.sizes import FileSizes
from omenn_fx.program import Live

Tensor = torch.Tensor
Inputs = tuple[Any, Any]  # args, kwargs
JITTER = 0.1  # relative


def inputs_to_try(explainer: Live, given: Inputs, sizes: FileSizes) -> list[Inputs]:
    """The given inputs, others like them, and some of other sizes that the file is the model at.

    Of the last two there is none where the model takes none that could be thought of.
    """
    rows = batch_size(pytree.tree_leaves(given)) if explainer.request.batched else None
    drawn = first_taken(explainer, _like(given, rows))
    found = [given] if drawn is None else [given, drawn]
    captured = explainer.program_for(*given)[0].captured
    resized = (nearby(captured, inputs, sizes) for inputs in reversed(found))  # each time for the same sizes
    others = (first_taken(explainer, iter(candidates)) for candidates in zip(*resized, strict=True))
    return [*found, *(inputs for inputs in others if inputs is not None)]


def first_taken(explainer: Live, candidates: Iterator[Inputs]) -> Inputs | None:
    """The first inputs at which the model computes finite outputs; None where there are none."""
    return next((inputs for inputs in candidates if _taken(explainer, inputs)), None)


def _taken(explainer: Live, inputs: Inputs) -> bool:
    args, kwargs = inputs
    try:
        return bool(torch.isfinite(explainer.reference(*args, **kwargs)).all())
    except MemoryError:
        raise
    except Exception:
        return False  # of whatever type: the model refuses them


def _like(given: Inputs, rows: int | None) -> Iterator[Inputs]:
    """Inputs like the given ones, the bolder first: each value from other rows, whole rows, whole rows as they are."""
    generator = torch.Generator().manual_seed(0)
    for change in (_mixed, _jittered, _resampled):
        chosen = torch.randint(rows or 1, (rows or 1,), generator=generator)
        found = pytree.tree_map(lambda v, at=chosen, change=change: _other(v, rows, at, change, generator), given)
        if not _equal(found, given):
            yield found


Change = Callable[[Tensor, Tensor | None, torch.Generator], Tensor]


def _other(value: Any, rows: int | None, chosen: Tensor, change: Change, generator: torch.Generator) -> Any:
    if not isinstance(value, Tensor) or not value.numel():
        return value
    batched = bool(rows and value.ndim and value.shape[0] == rows)
    if not value.is_floating_point():  # ids and masks: what stands together in a row stays together
        return value if change is _mixed or not batched else value[chosen]
    return change(value, chosen if batched else None, generator)


def _mixed(value: Tensor, chosen: Tensor | None, generator: torch.Generator) -> Tensor:
    """Each value between those of two rows at the same position; one of them where all rows have a whole number."""
    if chosen is None or len(chosen) == 1:
        return _jittered(value, None, generator)
    one, two = (value.gather(0, torch.randint(len(value), value.shape, generator=generator)) for _ in range(2))
    between = one + (two - one) * torch.rand(value.shape, generator=generator).to(value.dtype)
    return torch.where(_whole(value).all(0), one, between.clamp(one.minimum(two), one.maximum(two)))


def _jittered(value: Tensor, chosen: Tensor | None, generator: torch.Generator) -> Tensor:
    """Whole rows, a little off but inside of the range of all values; whole numbers as they are."""
    rows = value if chosen is None else value[chosen]
    noise = 1 + JITTER * torch.randn(value.shape, generator=generator).to(value.dtype)
    return torch.where(_whole(rows), rows, (rows * noise).clamp(value.min(), value.max()))


def _resampled(value: Tensor, chosen: Tensor | None, generator: torch.Generator) -> Tensor:
    return value if chosen is None else value[chosen]


def _whole(value: Tensor) -> Tensor:
    return value == value.round()


def _equal(one: Inputs, other: Inputs) -> bool:
    pairs = zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True)
    return all(torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor))


def unseen(explainer: Live) -> Iterator[Inputs]:
    """Inputs like those captured, of which shapes alone are known: normal, positive, and all 1."""
    captured, generator = explainer.ready.captured, torch.Generator().manual_seed(0)
    draws: tuple[Callable[[list[int]], Tensor], ...] = (
        lambda shape: torch.randn(shape, generator=generator),
        lambda shape: torch.rand(shape, generator=generator) + 0.1,
        torch.ones,
    )
    for draw in draws:
        leaves = [_drawn(n.meta.get("val"), draw) for n in captured.inputs]
        yield pytree.tree_unflatten(leaves, captured.in_spec)


def _drawn(value: Any, draw: Callable[[list[int]], Tensor]) -> Any:
    if not isinstance(value, FakeTensor):
        return value
    shape = [hint(s) for s in value.shape]
    return (draw(shape) if value.is_floating_point() else torch.ones(shape)).to(value.dtype)
