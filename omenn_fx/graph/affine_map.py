"""AffineMap: the exact affine map between two places of a network, for one input, without its matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from omenn_fx.analysis.roles import Role, Tagged
from omenn_fx.errors import SizeError
from omenn_fx.graph.twin import Twin

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

Tensor = torch.Tensor
Vector = Tensor | tuple[Tensor, ...]


class Recorder(fx.Interpreter):
    """Runs a captured graph and keeps the value of every node."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module, garbage_collect_values=False)

    def record(self, leaves: Sequence[Any]) -> dict[fx.Node, Any]:
        with torch.no_grad():
            self.run(*leaves, enable_io_processing=False)
        return dict(self.env)


class AffineMap:
    """h_to = W h_since + b at one input: every other path into `to` is part of b.

    Attributes:
        value: h_to, the node's value at this input.
        operands: the values h_since of the domain (one, or the content operands with since="operands").
        shape: (numel of the result, numel of the domain), as of a matrix.
    """

    def __init__(
        self,
        tagged: Tagged,
        values: Mapping[fx.Node, Any],
        to: fx.Node,
        since: Sequence[fx.Node],
        local: bool,
    ):
        self._twin = Twin(tagged, values)
        self._to, self._since, self._local = to, tuple(since), local
        self._sources = list(tagged.sources.values())
        self.value: Tensor = values[to]
        self.operands: tuple[Tensor, ...] = tuple(values[s] for s in since)
        self.shape = (self.value.numel(), sum(o.numel() for o in self.operands))

    def __repr__(self) -> str:
        since = ", ".join(s.name for s in self._since)
        return f"AffineMap({since} -> {self._to.name}, {self.shape[0]} x {self.shape[1]}, {self.value.dtype})"

    @torch.no_grad()
    def matvec(self, u: Vector) -> Tensor:
        """W u: u of the domain's shape (a tuple where it has several operands), result of the node's shape."""
        parts = self._checked(u)
        if self._local:
            _, form = self._twin.form(self._to)
            pairs = zip(self._slots(), parts, strict=True)
            return _total(form.terms[s].apply(p) for s, p in pairs)
        reached = self._twin.push(dict(zip(self._since, parts, strict=True)), until=self._to)
        return torch.zeros_like(self.value) if reached is None else reached

    @torch.no_grad()
    def rmatvec(self, v: Tensor) -> Vector:
        """W^T v: v of the node's shape, result of the domain's shape (a tuple where it has several operands)."""
        if v.shape != self.value.shape:
            raise ValueError(f"rmatvec takes a tensor of shape {tuple(self.value.shape)}, not {tuple(v.shape)}")
        if self._local:
            _, form = self._twin.form(self._to)
            parts = tuple(form.terms[s].transpose(v) for s in self._slots())
        else:
            pulled = self._twin.pull({self._to: v}, shares=False, stop=frozenset(self._since))
            parts = tuple(
                pulled.adjoint.get(s, torch.zeros_like(o)) for s, o in zip(self._since, self.operands, strict=True)
            )
        return parts[0] if len(parts) == 1 else parts

    @property
    def bias(self) -> Tensor:
        """b, of the node's shape: found by walking the affine forms from h_since = 0, not as a remainder."""
        with torch.no_grad():
            if self._local:
                _, form = self._twin.form(self._to)
                return torch.zeros_like(self.value) if form.bias is None else form.bias.dense(self.value)
            start = {s: self._twin.values[s] for s in self._sources if s not in self._since}
            start.update({s: torch.zeros_like(o) for s, o in zip(self._since, self.operands, strict=True)})
            return self._twin.push(start, until=self._to, bias=True)

    def to_dense(self, max_elements: int = 2**26) -> Tensor:
        """The matrix W, [result numel, domain numel]. SizeError above `max_elements` (64 M: 256 MB of float32)."""
        rows, columns = self.shape
        if rows * columns > max_elements:
            raise SizeError(
                f"the dense matrix of {self!r} has {rows * columns:,} elements, more than "
                f"max_elements={max_elements:,}; use matvec/rmatvec, a smaller batch, or pass a larger max_elements"
            )
        like = self.value
        if rows <= columns:
            basis = torch.eye(rows, dtype=like.dtype, device=like.device).reshape(rows, *like.shape)
            return torch.stack([_flat(self.rmatvec(e)) for e in basis]) if rows else like.new_zeros(rows, columns)
        basis = torch.eye(columns, dtype=like.dtype, device=like.device)
        return torch.stack([self.matvec(self._unflat(e)).reshape(-1) for e in basis], 1)

    def to_linear_operator(self) -> LinearOperator:
        """W as a scipy.sparse.linalg.LinearOperator on flat float vectors (needs scipy)."""
        from scipy.sparse.linalg import LinearOperator

        like = self.value
        dtype = torch.zeros((), dtype=like.dtype).numpy().dtype

        def tensor(array: Any) -> Tensor:
            return torch.as_tensor(array.reshape(-1).astype(dtype), device=like.device)

        return LinearOperator(
            self.shape,
            matvec=lambda u: self.matvec(self._unflat(tensor(u))).reshape(-1).cpu().numpy(),
            rmatvec=lambda v: _flat(self.rmatvec(tensor(v).reshape(like.shape))).cpu().numpy(),
            dtype=dtype,
        )

    def _slots(self) -> list[Any]:
        return list(self._twin.operands(self._to))

    def _checked(self, u: Vector) -> tuple[Tensor, ...]:
        parts = u if isinstance(u, tuple) else (u,)
        want = [tuple(o.shape) for o in self.operands]
        if [tuple(p.shape) for p in parts] != want:
            raise ValueError(
                f"matvec takes {want if len(want) > 1 else want[0]}, not {[tuple(p.shape) for p in parts]}"
            )
        return parts

    def _unflat(self, vector: Tensor) -> Vector:
        parts = vector.split([o.numel() for o in self.operands])
        shaped = tuple(p.reshape(o.shape) for p, o in zip(parts, self.operands, strict=True))
        return shaped[0] if len(shaped) == 1 else shaped


def _flat(vector: Vector) -> Tensor:
    parts = vector if isinstance(vector, tuple) else (vector,)
    return torch.cat([p.reshape(-1) for p in parts])


def _total(terms: Any) -> Tensor:
    total: Tensor | None = None
    for term in terms:
        total = term if total is None else total + term
    assert total is not None
    return total


def affine_map(tagged: Tagged, values: Mapping[fx.Node, Any], to: str, since: str | None = None) -> AffineMap:
    """The map to a node, at recorded values. See `Explainer.affine`. Raises ValueError: no such content node."""
    target = _content_node(tagged, to)
    if since == "operands":
        if target in tagged.sources.values():
            raise ValueError(f"'{to}' is an explained input: it has no operands")
        operands = list(Twin(tagged, values).operands(target).values())
        return AffineMap(tagged, values, target, operands, local=True)
    start = list(tagged.sources.values()) if since is None else [_content_node(tagged, since)]
    return AffineMap(tagged, values, target, start, local=False)


def _content_node(tagged: Tagged, name: str) -> fx.Node:
    for node in tagged.captured.graph.nodes:
        if node.name == name:
            if tagged.role[node] is not Role.CONTENT:
                raise ValueError(f"node '{name}' is a {tagged.role[node].value}: only content nodes have an affine map")
            return node
    raise ValueError(f"there is no node '{name}' (explainer.nodes lists them)")
