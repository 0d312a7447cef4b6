"""OMENN as an attribution method of Captum (https://captum.ai, `pip install captum`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from captum.attr import Attribution
from captum.log import log_usage
from torch import nn

from omenn_fx.compat import select_targets
from omenn_fx.errors import InputError, TargetError
from omenn_fx.integrations.live import LiveExplainer

Tensor = torch.Tensor
Inputs = TypeVar("Inputs", Tensor, tuple[Tensor, ...])
Target = int | tuple[Any, ...] | Tensor | list[int] | list[tuple[int, ...]] | None


class OMENN(Attribution):
    """The contributions C = C_w * X + C_b of the inputs, which sum to the explained output (arXiv 2412.02399).

    Needs no baseline and no gradient. The model is captured at the first call, and again for inputs of another shape
    (the batch size apart).

    Args:
        model: an nn.Module in eval mode whose first parameters of `forward` are the attributed inputs.
        bias: "carrier" or "contribution", by which the attributions sum to the output, or "none": C_w * X alone,
            without the biases' part; on networks of ReLUs the same as Captum's InputXGradient.
        **options: others of `omenn_fx.transform`: `output`, `roles`, `rules`, `dynamic_batch`.

    Raises:
        TypeError: a function instead of a module.
    """

    def __init__(self, model: nn.Module, bias: str = "carrier", **options: Any):
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"OMENN needs the torch.nn.Module itself, not a {type(model).__name__}: a function or a bound method "
                "cannot be captured. Give the model, or a module whose forward does what the function does."
            )
        super().__init__(model)
        self._options = {"bias": bias, **options}
        self._explainers: dict[int, LiveExplainer] = {}  # for each number of attributed inputs

    @log_usage(part_of_slo=True)
    def attribute(
        self,
        inputs: Inputs,
        target: Target = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
    ) -> Inputs | tuple[Inputs, Tensor]:
        """The contribution of each input value to the explained output.

        Args:
            inputs: a floating-point tensor [N, ...] or a tuple of them: the first arguments of `forward`.
            target: which output of each row, in every form of Captum's: an int or a tensor with one int for all rows;
                a list of ints or a tensor [N], one for each row; a tuple of ints for outputs of more than two
                dimensions, or a list of them; None for outputs of one value per row.
            additional_forward_args: further arguments of `forward`, one or a tuple. They are not explained: what they
                add is a bias.
            return_convergence_delta: also return how far the attributions of each row are from summing to its output.

        Returns:
            Tensors of the inputs' shapes, a tuple where `inputs` is one; with the delta, a pair (attributions,
            delta [N]).

        Raises:
            ModeError: the model is in train mode.
            InputError: inputs that are no floating-point tensors, or do not fit the model.
            TargetError: the target does not select one value of each row.
            OmennError: the model cannot be explained; the error says where and why.
        """
        given = _tensors(inputs)
        explainer = self._explainer(len(given)).of(self.forward_func)
        explanation = explainer(*given, *_extra(additional_forward_args), target=_positions(target))
        parts = tuple(one.C for one in explanation.inputs.values())
        attributions: Any = parts if isinstance(inputs, tuple) else parts[0]
        if not return_convergence_delta:
            return attributions
        return attributions, self.compute_convergence_delta(attributions, None, inputs, target, additional_forward_args)

    @classmethod
    def get_name(cls) -> str:
        """The method's name; Captum would put spaces between capitals."""
        return "OMENN"

    @property
    def multiplies_by_inputs(self) -> bool:
        """True: attributions are contributions, not weights."""
        return True

    def has_convergence_delta(self) -> bool:
        """True: the attributions can be compared with the output that they sum to."""
        return True

    @torch.no_grad()
    def compute_convergence_delta(
        self,
        attributions: Tensor | tuple[Tensor, ...],
        start_point: None,
        end_point: Tensor | tuple[Tensor, ...],
        target: Target = None,
        additional_forward_args: Any = None,
    ) -> Tensor:
        """The sum of each row's attributions less the output of the model itself, [N]: 0 up to rounding.

        With bias="none" it is minus the biases' part of the output.

        Args:
            attributions: as `attribute` returns them.
            start_point: None: the sum is the output itself, not its difference from that of a baseline.
            end_point, target, additional_forward_args: as of `attribute`.
        """
        if start_point is not None:
            raise InputError("OMENN has no baseline: start_point must be None")
        given = _tensors(end_point)
        explainer = self._explainer(len(given)).of(self.forward_func)
        outputs = explainer.reference(*given, *_extra(additional_forward_args))
        rows = outputs.reshape(len(outputs), -1)
        picked = rows.gather(1, _positions(target)(outputs).to(rows.device)[:, None])[:, 0]
        return sum(a.flatten(1).sum(1) if a.ndim > 1 else a for a in _tensors(attributions)) - picked

    def _explainer(self, count: int) -> LiveExplainer:
        known = self._explainers.get(count)  # `setdefault`: another thread may have made one meanwhile
        return known or self._explainers.setdefault(count, LiveExplainer(explain=range(count), **self._options))


def _tensors(inputs: Any) -> tuple[Tensor, ...]:
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    for one in given:
        if not isinstance(one, Tensor) or not one.is_floating_point():
            kind = f"{one.dtype} tensor" if isinstance(one, Tensor) else type(one).__name__
            raise InputError(
                f"an attributed input is a {kind}: give a floating-point tensor or a tuple of them; everything else "
                "belongs into additional_forward_args (token ids are explained by omenn_fx.transform(model) itself)"
            )
    return given


def _extra(additional: Any) -> tuple[Any, ...]:
    if additional is None:
        return ()
    return additional if isinstance(additional, tuple) else (additional,)


def _positions(target: Target) -> Callable[[Tensor], Tensor]:
    """A target of Captum's as one of ours: outputs -> a flat position in each row, [N].

    Captum itself does the selecting, from outputs that are their own positions.
    """

    def select(outputs: Tensor) -> Tensor:
        count, shape = outputs.shape[0], tuple(outputs.shape[1:])
        positions = torch.arange(math.prod(shape)).reshape(shape).expand(count, *shape)
        try:
            picked = select_targets(positions, target.cpu() if isinstance(target, Tensor) else target)
        except (AssertionError, IndexError, RuntimeError, TypeError) as error:
            raise TargetError(f"target {target} does not fit outputs {tuple(outputs.shape)}: {error}") from None
        if picked.numel() != count:
            raise TargetError(
                f"target {target} selects {picked.numel() // max(count, 1)} values of each row of outputs "
                f"{tuple(outputs.shape)}: give an int, or for outputs of more dimensions a tuple of ints, or a list "
                "of one for each row"
            )
        return picked.reshape(count)

    return select
