"""For those who add rules: `check_rule(op, samples)` holds the rule of an operator to the invariants that ours keep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from omenn_fx.algebra import invariants
from omenn_fx.algebra.bias_policy import POLICIES
from omenn_fx.algebra.form import Affine, Call, Op, Slot
from omenn_fx.algebra.invariants import Report
from omenn_fx.algebra.ruleset import Rule, RuleSet, overload, rule_set
from omenn_fx.errors import OmennError
from omenn_fx.explainer import transform

Tensor = torch.Tensor
# An error above this, relative to what is added up, is a wrong rule. bfloat16 has 8 bits.
TOLERANCES = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 6e-2, torch.float16: 1e-2}
VARIANTS = ("as given", "not contiguous", "zero")
INVARIANTS = ("node", "linear", "transpose", "mass (carrier)", "mass (contribution)", "finite", "completeness")


class RuleError(OmennError, AssertionError):
    """A rule that breaks an invariant; `failures` has a line for each."""

    def __init__(self, op: Op, failures: Sequence[str]):
        self.failures = list(failures)
        super().__init__("\n  ".join([f"the rule of {op} is not exact:", *self.failures]))


@dataclass(frozen=True, eq=False)
class Variant:
    """One call that a rule is held to: a sample, changed in one way, in one dtype."""

    call: Call
    where: str


def check_rule(
    op: Op,
    samples: Sequence[Any],
    *,
    rules: str | RuleSet = "omenn",
    dtypes: Sequence[torch.dtype] = (torch.float64, torch.float32),
    tolerance: Mapping[torch.dtype, float] | None = None,
) -> Report:
    """Hold the rule of an operator to the invariants of the design, on samples and on two variants of each.

    Every sample is run as given, with operands that are not contiguous, and with content that is zero everywhere; with
    all content operands together and with each of them alone; in every dtype. Measured are: W h + b == h; W linear;
    <W u, v> == <u, W^T v>; the mass of a bias carried without loss; everything finite; no `aten.*_backward` in the
    adjoint; and the sum of C in a captured model.

    Args:
        op: an operator as `omenn_fx.rule` takes it.
        samples: its calls; each a tensor, a tuple of operands, or a dict of operands by their schema names.
            Floating-point tensors are cast to each dtype.
        rules: the rule set.
        dtypes: torch.bfloat16 and torch.float16 may be added where the operator knows them.
        tolerance: dtype -> the largest relative error, where the defaults (1e-11 in float64, 2e-5 in float32) are not
            meant.

    Returns:
        The worst error of each invariant and where it was; `print` shows it.

    Raises:
        RuleError: an invariant does not hold, or the rule raises; all failures are listed.
        ValueError: the operator has no rule, its rule no form, or there are no samples.
    """
    op = overload(op)
    rule = rule_set(rules).get(op)
    if rule is None or rule.form is None:
        raise ValueError(f"{op} has no {'rule' if rule is None else 'form'} in the rule set '{rule_set(rules).name}'")
    if not samples:
        raise ValueError(f"check_rule({op}) needs at least one sample")
    allowed = {**TOLERANCES, **(tolerance or {})}
    report, failures = _held(rule, _variants(op, rule, samples, dtypes), rules, allowed)
    if failures:
        raise RuleError(op, failures)
    return report


def _held(
    rule: Rule, variants: Iterable[Variant], rules: str | RuleSet, allowed: Mapping[torch.dtype, float]
) -> tuple[Report, list[str]]:
    """The worst error of each invariant over all variants, and every failure as a line to read."""
    report, failures = Report(), []
    for variant in variants:
        try:
            with torch.no_grad():
                found = measure(rule, variant.call)
                found |= _in_a_model(variant.call, rules)
        except Exception as error:
            failures.append(f"{variant.where}: {type(error).__name__}: {error}")
            continue
        limit = max(allowed[d] for d in _dtypes_of(variant.call))
        for invariant, value in found.items():
            report.add(invariant, value, variant.where)
            if not value <= limit:
                failures.append(f"{variant.where}: {invariant} is off by {value:.1e}, above {limit:.0e}")
    return report, failures


def measure(rule: Rule, call: Call, seed: int = 0) -> dict[str, float]:
    """The error of each invariant of one call (see `omenn_fx.algebra.invariants`); "finite" is 0 or inf."""
    with _Names() as names:
        form = rule.affine(call)
        if set(form.terms) != set(call.content):
            raise ValueError(f"the form has terms for {_slots(form.terms)}, not for {_slots(call.content)}")
        _walk_back(call, form)
    backward = sorted(n for n in names.seen if "backward" in n)
    if backward:
        raise ValueError(f"the adjoint calls {', '.join(backward)}, which no exporter knows")

    def random() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    found = {
        "node": invariants.node(call, form),
        "linear": invariants.linear(call, form, random()),
        "transpose": invariants.transpose(call, form, random()),
    }
    for name, policy in POLICIES.items():
        if policy is not None:
            found[f"mass ({name})"] = invariants.mass(call, form, policy, random())
    errors = {name: float(error) for name, error in found.items()}
    return errors | {"finite": 0.0 if invariants.is_finite(call, form, random()) else torch.inf}


def _walk_back(call: Call, form: Affine) -> None:
    """What an explanation calls: the transpose of every term, and the carrier."""
    for term in form.terms.values():
        term.transpose(torch.ones_like(call.out))
    carrier = POLICIES["carrier"]
    assert carrier is not None
    carrier(call, form, invariants.masses(torch.abs(call.out), torch.Generator())[0])  # mass is real


class _Names(TorchDispatchMode):
    """The operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(str(func))
        return func(*args, **(kwargs or {}))


def _slots(slots: Any) -> str:
    return ", ".join(s.name if s.index is None else f"{s.name}[{s.index}]" for s in slots) or "nothing"


def _dtypes_of(call: Call) -> set[torch.dtype]:
    """The dtypes that a call computes in: of its content, its result, and what a cast names."""
    return {t.dtype for t in (call.out, *(call.at(s) for s in call.content))}


# Samples -------------------------------------------------------------------------------------------------------------


def _variants(op: Any, rule: Rule, samples: Sequence[Any], dtypes: Sequence[torch.dtype]) -> Iterator[Variant]:
    for number, sample in enumerate(samples):
        for dtype in dtypes:
            operands = pytree.tree_map(lambda v, d=dtype: v.to(d) if _floats(v) else v, bound(op, sample))
            content = content_of(rule, operands)
            if not content:
                raise ValueError(f"sample {number} of {op} has no floating-point operand among {rule.content}")
            several = [content, *((slot,) for slot in content)] if len(content) > 1 else [content]
            for slots in several:
                for variant in VARIANTS:
                    try:
                        call = called(op, altered(operands, slots, variant), slots)
                    except RuntimeError:
                        if variant == "as given":
                            raise
                        continue  # an operator may refuse gaps, as view does
                    names = f" ({_slots(slots)})" if len(several) > 1 else ""
                    yield Variant(call, f"sample {number}{names}, {variant}, {str(dtype).removeprefix('torch.')}")


def bound(op: Any, sample: Any) -> dict[str, Any]:
    """The operands of a call by their schema names, defaults filled in. Raises ValueError for too many or unknown."""
    named = dict(sample) if isinstance(sample, Mapping) else {}
    args = () if named else (sample,) if isinstance(sample, Tensor) else tuple(sample)
    arguments = op._schema.arguments
    names = [a.name for a in arguments]
    if len(args) > len(names) or set(named) - set(names):
        raise ValueError(f"{op} takes {', '.join(names)}; a sample gives {len(args)} operands{sorted(named) or ''}")
    given = dict(zip(names, args, strict=False)) | named
    return {a.name: given.get(a.name, a.default_value if a.has_default_value() else None) for a in arguments}


def content_of(rule: Rule, operands: Mapping[str, Any]) -> tuple[Slot, ...]:
    """The operands that can carry content."""
    found: list[Slot] = []
    for name in rule.content:
        value = operands.get(name)
        if isinstance(value, (list, tuple)):
            found += [Slot(name, i) for i, v in enumerate(value) if _floats(v) or _complex(v)]
        elif _floats(value) or _complex(value):
            found.append(Slot(name))
    return tuple(found)


def called(op: Any, operands: Mapping[str, Any], content: tuple[Slot, ...], output: int | None = None) -> Call:
    """The call as the twin makes it. The first tensor is meant where the operator returns several."""
    call = Call(op, operands, None, content, output)
    out = call.replay()
    if output is None and isinstance(out, (tuple, list)):
        return replace(call, out=out[0], output=0)
    return replace(call, out=out)


def altered(operands: Mapping[str, Any], content: tuple[Slot, ...], variant: str) -> dict[str, Any]:
    """Operands with the content at zero, or with every floating-point tensor laid out with gaps."""
    if variant == "as given":
        return dict(operands)
    if variant == "not contiguous":
        return {k: pytree.tree_map(_with_gaps, v) for k, v in operands.items()}
    changed = dict(operands)
    for slot in content:
        if slot.index is None:
            changed[slot.name] = torch.zeros_like(operands[slot.name])
        else:
            changed[slot.name] = list(changed[slot.name])
            changed[slot.name][slot.index] = torch.zeros_like(operands[slot.name][slot.index])
    return changed


def _with_gaps(value: Any) -> Any:
    """The same numbers, every second one of a larger memory, dimensions in the opposite order."""
    if not _floats(value) or not value.ndim:
        return value
    order = tuple(range(value.ndim))[::-1]
    wide = torch.stack([value.permute(order), torch.full_like(value.permute(order), torch.nan)], -1)
    return wide[..., 0].permute(order)


def _complex(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_complex()


def _floats(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


# In a model ----------------------------------------------------------------------------------------------------------


class CallModule(nn.Module):
    """A model of one call: its content operands are the inputs, the sum of the result is the output.

    Complex values come in, and are summed, as pairs of real ones.
    """

    def __init__(self, call: Call):
        super().__init__()
        self.call = call
        self.eval()

    def forward(self, *inputs: Tensor) -> Tensor:
        operands = dict(self.call.operands)
        for slot, given in zip(self.call.content, inputs, strict=True):
            value = torch.view_as_complex(given) if _complex(self.call.at(slot)) else given
            if slot.index is None:
                operands[slot.name] = value
            else:
                operands[slot.name] = list(operands[slot.name])
                operands[slot.name][slot.index] = value
        result = self.call.replay(**operands)
        return (torch.view_as_real(torch.resolve_conj(result)) if _complex(result) else result).sum()

    def inputs(self) -> tuple[Tensor, ...]:
        """The call's own content."""
        values = (self.call.at(slot) for slot in self.call.content)
        return tuple(torch.view_as_real(v.resolve_conj()) if _complex(v) else v for v in values)


def _in_a_model(call: Call, rules: str | RuleSet) -> dict[str, float]:
    """Completeness through capture, roles and the explainer graph; nothing where the result is not finite."""
    if not torch.isfinite(call.out).all():
        return {}
    module = CallModule(call)
    inputs = module.inputs()
    explanation = transform(module, inputs, rules=rules, batched=False)(*inputs)
    return {"completeness": float(explanation.completeness_error.max())}
