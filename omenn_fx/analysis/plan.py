"""Plan: all that is known of an explanation before any data: the captured graph, the roles, and where the batch lies.

`transform` builds an explainer from a plan and raises its error; `check` reports what a plan holds, error or not.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx, nn
from torch.export import ExportedProgram

from omenn_fx.algebra.bias_policy import POLICIES, Policy
from omenn_fx.algebra.ruleset import RuleSet, rule_set
from omenn_fx.analysis.batch_dim import Layouts, layouts
from omenn_fx.analysis.endpoints import Explain, Output, select_inside, select_output, select_sources
from omenn_fx.analysis.layers import treatments
from omenn_fx.analysis.reference import with_reference
from omenn_fx.analysis.roles import Tagged, tag
from omenn_fx.capture.captured import Captured, capture
from omenn_fx.capture.embedding_bags import take_bags_apart
from omenn_fx.capture.exclusive import exclusive
from omenn_fx.capture.fold_norms import fold_batch_norms
from omenn_fx.capture.inputs import check_autocast, check_leaves, check_signature
from omenn_fx.capture.one_image import take_as_batches
from omenn_fx.capture.sizes import batch_size
from omenn_fx.capture.torch_export import require_eval
from omenn_fx.errors import CaptureError, InputError, MixedBatchError, OmennError, OutputError

log = logging.getLogger("omenn_fx")


@dataclass(frozen=True)
class Request:
    """What the user asked for, as in `transform`, and the one list of its defaults.

    Raises:
        ValueError: there is no such bias policy, or `explain` and `at` are both given.
    """

    rules: RuleSet
    explain: Explain = None
    at: str | None = None
    output: Output = None
    roles: Mapping[str, str] | None = None
    dynamic_batch: bool = True
    batched: bool = True
    free: tuple[str, ...] = ()  # sizes that stay free beside the batch
    bias: str = "carrier"

    def __post_init__(self) -> None:
        if self.at is not None and self.explain is not None:
            raise ValueError("explain= says which inputs are explained, at= which value inside of the model: give one")
        if self.bias not in POLICIES:
            raise ValueError(f"bias='{self.bias}': a bias policy is one of {', '.join(POLICIES)}")

    @classmethod
    def of(cls, rules: str | RuleSet = "omenn", roles: Mapping[str, str] | None = None, **others: Any) -> Request:
        """A request whose rule set is given by name or itself. Raises ValueError where there is none of that name."""
        return cls(rule_set(rules), roles=dict(roles or {}), **others)

    @property
    def policy(self) -> Policy | None:
        """The way bias mass goes; None where it is not carried."""
        return POLICIES[self.bias]


@dataclass(frozen=True)
class Plan:
    """The finished parts, as far as it came; `error` is what stopped it.

    Attributes:
        reached: the node where samples of a batch reach each other through coefficients alone.
        untried: the batch is fixed, and there are no values on which to try whether its samples meet (a model on meta).
    """

    request: Request
    captured: Captured | None = None
    tagged: Tagged | None = None
    layout: Layouts | None = None
    error: OmennError | None = None
    reached: fx.Node | None = None
    untried: bool = False


def make_plan(
    source: nn.Module | ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any], request: Request
) -> Plan:
    """Capture a model at example inputs and give every node its role. What goes wrong is `Plan.error`, not raised."""
    try:
        _check_inputs(source, args, kwargs)
    except OmennError as error:
        return Plan(request, error=error)
    with exclusive(), torch.inference_mode(False), torch.no_grad():
        return _of_a_batch(source, args, kwargs, request)


def _check_inputs(source: nn.Module | ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise what is wrong before anything is captured."""
    check_leaves(pytree.tree_leaves((args, kwargs)))
    if isinstance(source, nn.Module):
        require_eval(source)
        check_signature(source, args, kwargs)


def _of_a_batch(source: Any, args: tuple[Any, ...], kwargs: dict[str, Any], request: Request) -> Plan:
    """A plan for any size of the batch, or for one sample where the samples of a batch meet."""
    plan = _filled(source, args, kwargs, request, request.dynamic_batch)
    one = batch_size(pytree.tree_leaves((args, kwargs))) == 1
    if plan.captured is None or not plan.captured.dynamic_batch:
        return plan
    if one and isinstance(plan.error, MixedBatchError):
        return at_one(source, args, kwargs, request, plan.error)
    # What a model sums up over its batch is of its one sample; a batch of this size may be taken apart row by row.
    of_one = one and isinstance(plan.error, OutputError)
    in_parts = isinstance(plan.error, MixedBatchError) and bool(plan.captured.conditions.texts)
    fixed = _filled(source, args, kwargs, request, dynamic_batch=False) if of_one or in_parts else plan
    return fixed if fixed.error is None else plan


def at_one(source: Any, args: tuple[Any, ...], kwargs: dict[str, Any], request: Request, error: OmennError) -> Plan:
    """The plan of one sample, which has nothing to meet, where those of a batch do."""
    where = "".join(f" at {place.label}" for place in error.places)
    what = error.what if isinstance(error, MixedBatchError) else error.reason
    log.warning("captured at a fixed batch of one: %s%s", what, where)
    return _filled(source, args, kwargs, request, dynamic_batch=False)


def _filled(source: Any, args: tuple[Any, ...], kwargs: dict[str, Any], request: Request, dynamic_batch: bool) -> Plan:
    """A plan, as far as it comes."""
    captured = tagged = None
    try:
        check_autocast(pytree.tree_leaves((args, kwargs)))
        captured = _capture(source, args, kwargs, request, dynamic_batch)
        tagged = _tag(captured, request)
        tagged.require_rules()
        tagged = replace(tagged, treatments=treatments(tagged))
        layout = layouts(tagged)
        if request.rules.reference is not None:
            tagged = with_reference(tagged)
    except OmennError as error:
        return Plan(request, captured, tagged, error=error)
    return Plan(request, captured, tagged, layout)


def _capture(
    source: Any, args: tuple[Any, ...], kwargs: dict[str, Any], request: Request, dynamic_batch: bool
) -> Captured:
    try:
        captured = capture(source, args, kwargs, request.rules, dynamic_batch, request.batched, request.free)
    except CaptureError as error:
        problem = _misfit(source, pytree.tree_leaves((args, kwargs)))
        if problem is None:
            raise
        raise InputError(f"{problem}\n  {error.reason}") from error
    captured = take_as_batches(take_bags_apart(captured, request.rules), request.rules)
    return fold_batch_norms(captured) if request.rules.folds_norms else captured


def _tag(captured: Captured, request: Request) -> Tagged:
    if request.at is not None:
        sources = select_inside(captured, request.at)
    else:
        sources = select_sources(captured, request.rules, request.explain)
    output = select_output(captured, request.output)
    return tag(captured, request.rules, sources, output, request.roles)


def _misfit(source: Any, leaves: list[Any]) -> str | None:
    """An input whose dtype or device is not that of the model's weights."""
    weights = [p for p in source.parameters() if p.is_floating_point()] if isinstance(source, nn.Module) else []
    dtypes, devices = {p.dtype for p in weights}, {p.device for p in weights}
    for leaf in leaves:
        if not isinstance(leaf, torch.Tensor) or not weights:
            continue
        if leaf.is_floating_point() and leaf.dtype not in dtypes:
            return f"the input is {leaf.dtype}, the model's weights are {_names(dtypes)}: convert one (.to(dtype))"
        if leaf.device not in devices:
            return f"the input is on {leaf.device}, the model on {_names(devices)}: move one (.to(device))"
    return None


def _names(values: set[Any]) -> str:
    return " and ".join(sorted(map(str, values)))
