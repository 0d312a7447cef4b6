"""A run of a model leaves nothing in it: what forward writes is undone afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_RUNS = threading.RLock()  # two runs of a model at once would keep what the other wrote


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Undo what a run of the model writes into its modules: attributes, buffers, what lists, dicts and sets contain.

    torch.export puts copies in the place of containers, and leaves fake tensors in attributes that forward is the first
    to set and in containers that it fills.
    """
    with _RUNS:
        buffers = [(b, b._version, b.clone()) for b in model.buffers() if not b.is_inference()]
        attributes = [(module, dict(vars(module))) for module in model.modules()]
        containers = _containers([list(before.values()) for _, before in attributes])
        try:
            yield
        finally:
            for buffer, version, content in buffers:
                if buffer._version != version:
                    buffer.copy_(content)
            for container, contents in containers.values():
                if not isinstance(container, tuple) and [*map(id, _contents(container))] != [*map(id, contents)]:
                    _refill(container, contents)
            for module, before in attributes:
                for name in vars(module).keys() - before.keys():
                    del vars(module)[name]
                vars(module).update(before)


def _containers(values: list[Any]) -> dict[int, tuple[Any, list[Any]]]:
    """The list itself and every list, dict, set and tuple in it, with their contents, by id."""
    found: dict[int, tuple[Any, list[Any]]] = {}
    left: list[Any] = [values]
    while left:
        value = left.pop()
        if isinstance(value, (list, tuple, dict, set)) and id(value) not in found:
            found[id(value)] = (value, _contents(value))
            left += found[id(value)][1]
    return found


def _contents(container: Any) -> list[Any]:
    """Elements in order; of a dict its keys, then its values."""
    return [*container, *container.values()] if isinstance(container, dict) else list(container)


def _refill(container: Any, contents: list[Any]) -> None:
    container.clear()
    if isinstance(container, dict):
        half = len(contents) // 2
        container.update(zip(contents[:half], contents[half:], strict=True))
    else:
        (container.extend if isinstance(container, list) else container.update)(contents)
