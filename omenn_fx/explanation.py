"""What an explainer returns: one matrix C = C_w * X + C_b whose sum is the explained value, and its proof."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from omenn_fx.algebra.tolerances import tolerances_of
from omenn_fx.errors import IncompleteWarning
from omenn_fx.target import Positions, Weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Tensor = torch.Tensor


@dataclass(frozen=True)
class InputExplanation:
    """The explanation of one input. All tensors have the input's shape, [N, T, ...] for T targets.

    Attributes:
        X: the explained input (for integer ids, its embedding).
        C_w: the weight row g: what the network's affine map multiplies X with.
        C_b: the bias mass carried to the positions of the input; None with bias="none".
    """

    X: Tensor
    C_w: Tensor
    C_b: Tensor | None
    several: bool = False
    split: ClassVar[bool] = True  # C_w * X and C_b are known apart

    @property
    def product(self) -> Tensor:
        """C_w * X."""
        return self.C_w * (self.X.unsqueeze(1) if self.several else self.X)

    @property
    def C(self) -> Tensor:
        """C_w * X + C_b: the contribution of each input value. Without C_b (bias="none") just C_w * X."""
        return self.product if self.C_b is None else self.product + self.C_b

    @property
    def magnitude(self) -> Tensor:
        """|C_w * X|: what the input adds to S."""
        return self.product.abs()


@dataclass(frozen=True)
class WholeExplanation:
    """The explanation of one input of which C alone is known: a deployed file may return nothing else.

    Attributes:
        X: as of `InputExplanation`; empty where it is not known either.
        C: the contribution of each input value.
    """

    X: Tensor
    C: Tensor
    split: ClassVar[bool] = False

    @property
    def C_w(self) -> Tensor:
        """Not known: AttributeError."""
        raise AttributeError(_ALONE)

    C_b = product = C_w

    @property
    def magnitude(self) -> Tensor:
        """|C|, in place of |C_w * X|."""
        return self.C.abs()


_ALONE = "C is not split here: its file returns C alone, to_onnx(..., outputs=('logits', 'C', 'C_w', 'C_b')) its parts"


class BiasTable(Mapping[str, Tensor]):
    """Node name -> its share of the explained value through its bias: <g_v, b_v>, shape [N] (or [N, T]).

    `shares` has all of them, [N, V] (or [N, T, V]); None where no node has a bias, and where they are not known. `kept`
    names those that were not carried to the input: with bias="none" all of the model's own biases.
    """

    def __init__(self, names: list[str], shares: Tensor | None, like: Tensor, kept: Sequence[str] = ()):
        self._names, self.shares, self._like, self.kept = names, shares, like, tuple(kept)

    def __getitem__(self, name: str) -> Tensor:
        if self.shares is None:
            raise KeyError(name)
        try:
            return self.shares[..., self._names.index(name)]
        except ValueError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(() if self.shares is None else self._names)

    def __len__(self) -> int:
        return 0 if self.shares is None else len(self._names)

    @property
    def known(self) -> bool:
        """False where nodes have biases whose shares are not there: a deployed file may not return them."""
        return self.shares is not None or not self._names

    @property
    def total(self) -> Tensor:
        """The sum over all nodes, [N] (or [N, T]); NaN where it is not known."""
        if self.shares is None:
            return torch.full_like(self._like, 0.0 if self.known else torch.nan)
        return self.shares.sum(-1)

    @property
    def remainder(self) -> Tensor:
        """The sum over the nodes whose share was kept, [N] (or [N, T]); NaN where it is not known."""
        if self.kept and (self.shares is None or len(self.kept) == len(self)):
            return self.total
        return sum((self[name] for name in self.kept), torch.zeros_like(self._like))

    @property
    def magnitude(self) -> Tensor:
        """The sum of the shares' absolute values; 0 where they are not known."""
        return torch.zeros_like(self._like) if self.shares is None else self.shares.abs().sum(-1)

    def __repr__(self) -> str:
        largest = sorted(self.items(), key=lambda kv: -float(kv[1].abs().max()))[:8]
        rows = ", ".join(f"{n}: {v.tolist()}" for n, v in largest)
        return f"BiasTable({len(self)} nodes; largest {{{rows}}})"


@dataclass(frozen=True)
class Explanation:
    """The explanation of one output value for each row of a batch (arXiv 2412.02399).

    Attributes:
        outputs: the output tensor that holds the explained value, as the model computes it: [N, K].
        target: the explained positions, int64 [N] (or [N, T]); flat positions where outputs have more than two dims;
            the weights of the outputs' shape (or [N, T, ...]) where a weighted sum is explained.
        value: the explained outputs f_t, [N] (or [N, T]).
        inputs: name -> InputExplanation of each explained input; a WholeExplanation where C alone is known.
        bias: node -> its bias share.
    """

    outputs: Tensor
    target: Tensor
    value: Tensor
    inputs: Mapping[str, InputExplanation | WholeExplanation]
    bias: BiasTable

    @property
    def _only(self) -> InputExplanation | WholeExplanation:
        if len(self.inputs) != 1:
            raise AttributeError(
                f"{len(self.inputs)} inputs are explained ({', '.join(self.inputs)}): take explanation.inputs[name].C, "
                "or transform with explain= one of them"
            )
        return next(iter(self.inputs.values()))

    @property
    def X(self) -> Tensor:
        """The explained input."""
        return self._only.X

    @property
    def C_w(self) -> Tensor:
        """The weight row g at the input."""
        return self._only.C_w

    @property
    def C_b(self) -> Tensor | None:
        """The bias mass at the input's positions; None with bias="none"."""
        return self._only.C_b

    @property
    def C(self) -> Tensor:
        """C_w * X + C_b: sums to `value` over everything but batch and targets."""
        return self._only.C

    def _sum(self, value: Tensor) -> Tensor:
        return value.flatten(self.value.ndim).sum(-1) if value.ndim > self.value.ndim else value

    @property
    def sum(self) -> Tensor:
        """sum(C) over all explained inputs (plus the bias shares that were not carried there): equals `value`."""
        total: Tensor = sum((self._sum(i.C) for i in self.inputs.values()), torch.zeros_like(self.value))
        return total + self.bias.remainder if self.bias.kept else total

    @property
    def scale(self) -> Tensor:
        """S = sum |C_w * X| + sum over nodes of |bias share|: the size of what is added up."""
        total: Tensor = sum((self._sum(i.magnitude) for i in self.inputs.values()), torch.zeros_like(self.value))
        return total + self.bias.magnitude

    @property
    def size(self) -> Tensor:
        """What errors are relative to: S; where all of it cancelled, the value, or what rounds off of the outputs."""
        return self._at_least(self.scale)

    def _at_least(self, scale: Tensor) -> Tensor:
        rows = torch.nan_to_num(self.outputs.detach().abs(), posinf=0.0).unsqueeze(-1).flatten(1)
        largest = rows.amax(1) if rows.numel() else rows.new_zeros(len(rows))
        eps = torch.finfo(self.value.dtype).eps
        rounded = largest * min(4 * eps / tolerances_of(self.value.dtype)["completeness"], 1.0)
        rounded = rounded.reshape([-1] + [1] * (self.value.ndim - 1))
        least = torch.finfo(self.value.dtype).tiny
        return torch.maximum(torch.maximum(scale, self.value.abs()), rounded).clamp_min(least)

    @property
    def completeness_error(self) -> Tensor:
        """|sum(C) - value| / S, shape of `value`; of an S that cancelled, relative to `size`."""
        return (self.sum - self.value).abs() / self.size

    @property
    def error_of_parts(self) -> Tensor:
        """`completeness_error` relative to sum |C_w * X| + sum |C_b|, which is no larger than S, and needs no sum over
        each node's biases: that of biases which are in C_b."""
        parts = [p for one in self.inputs.values() for p in (one.magnitude, one.C_b) if p is not None]
        scale: Tensor = sum((self._sum(p.abs()) for p in parts), torch.zeros_like(self.value))
        scale = scale + self.bias.magnitude if self.bias.kept else scale
        return (self.sum - self.value).abs() / self._at_least(scale)

    def adds_up(self, limit: float) -> bool:
        """Whether sum(C) is `value`, up to `limit` of S."""
        total = self.sum
        near = (total - self.value).abs() <= limit * total.abs()  # S is no less than the sum, and costs more
        return bool(near.all()) or bool((self.completeness_error <= limit).all())

    @property
    def summed(self) -> bool:
        """Whether all that `sum` adds up is known: a deployed file may return a part of it."""
        whole = all(not i.split or i.C_b is not None for i in self.inputs.values())
        kept = not self.bias.kept or self.bias.shares is not None
        return bool(self.inputs) and kept and (whole or (self.bias.known and len(self.bias.kept) == len(self.bias)))

    def require_sum(self, limit: float, where: Callable[[], str] = str, measured: Tensor | None = None) -> Explanation:
        """Itself, with an IncompleteWarning where it does not add up; `where` says what is to blame, and `measured` is
        the error as what computed this found it itself."""
        wrong = measured is not None and not bool((measured <= limit).all())
        if wrong or (self.summed and not self.adds_up(limit)):
            errors = [self.completeness_error if self.summed else None, measured]
            error = max(float(e.max()) for e in errors if e is not None)
            text = f"the explanation does not add up: sum(C) is off by {error:.1e} of S, more than {limit:.0e}"
            warnings.warn(text + where(), IncompleteWarning, stacklevel=3)
        return self

    @property
    def relative_error(self) -> Tensor:
        """|sum(C) - value| / |value|, shape of `value`."""
        gap = (self.sum - self.value).abs()
        return gap / self.value.abs().clamp_min(torch.finfo(gap.dtype).tiny)

    def plot(self, kind: str | None = None, **options: Any) -> Figure:
        """Draw this: maps of an image, bars of tokens, or as `kind` says (arguments of `omenn_fx.visualize.plot`).

        Maps of an image are drawn with outliers cut and finely smoothed, by `display=Display()` as they are. This
        explanation and the numbers beside the maps are the same either way.
        """
        from omenn_fx.visualize import plot  # pictures come after explanations

        return plot(self, kind, **options)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{n}: {tuple(i.C.shape)}" for n, i in self.inputs.items())
        error = float(self.completeness_error.max()) if self.value.numel() else 0.0
        weights = self.target.is_floating_point()
        target = f"weights of {tuple(self.target.shape)}" if weights else self.target.tolist()
        return (
            f"Explanation(target={target}, value={self.value.tolist()}, sum={self.sum.tolist()}, "
            f"C of {shapes}, completeness_error={error:.1e})"
        )


def assembled(
    outputs: Tensor,
    resolved: Positions | Weights,
    results: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    biased: list[str],
    kept: Sequence[str],
    batched: bool,
) -> Explanation:
    """The explanation that the explainer graph's results make, one result for each target.

    `outputs` has its batch; where the graph has none (batched=False), its results get one in front.
    """

    def rows(values: list[Tensor]) -> Tensor:
        return together([v if batched else v[None] for v in values])

    def together(values: list[Tensor]) -> Tensor:
        return torch.stack(values, 1) if resolved.several else values[0]

    inputs = {}
    for i, name in enumerate(names):
        x = results[0]["X"][i].detach()
        inputs[name] = InputExplanation(
            X=x if batched else x[None],
            C_w=rows([r["C_w"][i] for r in results]),
            C_b=None if results[0]["C_b"] is None else rows([r["C_b"][i] for r in results]),
            several=resolved.several,
        )
    shares = together([r["bias"] for r in results]) if biased else None
    value = resolved.value(outputs)
    return Explanation(outputs, resolved.target, value, inputs, BiasTable(biased, shares, value, kept))
