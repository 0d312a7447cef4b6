"""What a picture reads: the parts of an explanation and of a node that this room needs, whatever class they are of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch

Tensor = torch.Tensor


class ExplainedInput(Protocol):
    """The explanation of one input; `split` is False where C alone is known, and not its parts."""

    @property
    def split(self) -> bool: ...
    @property
    def X(self) -> Tensor: ...
    @property
    def product(self) -> Tensor: ...
    @property
    def C_b(self) -> Tensor | None: ...
    @property
    def C(self) -> Tensor: ...


class Biases(Protocol):
    """The shares of the nodes' biases, by name."""

    @property
    def shares(self) -> Tensor | None: ...
    @property
    def kept(self) -> Sequence[str]: ...
    @property
    def total(self) -> Tensor: ...
    @property
    def remainder(self) -> Tensor: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[str]: ...


class Explained(Protocol):
    """An explanation: `omenn_fx.Explanation` is one."""

    @property
    def outputs(self) -> Tensor: ...
    @property
    def target(self) -> Tensor: ...
    @property
    def value(self) -> Tensor: ...
    @property
    def inputs(self) -> Mapping[str, ExplainedInput]: ...
    @property
    def bias(self) -> Biases: ...
    @property
    def completeness_error(self) -> Tensor: ...


class NodeLike(Protocol):
    """A node of a model: `omenn_fx.NodeInfo` is one."""

    @property
    def name(self) -> str: ...
    @property
    def module(self) -> str: ...
