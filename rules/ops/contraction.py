"""Products summed over shared letters: einsum and the bilinear layer. One operand is content, the others coefficients;
where several carry content, each takes an equal part of the product (roles decides)."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import torch

from omenn_fx.algebra.form import Affine, Bias, Call, Slot
from omenn_fx.algebra.linear import Linear, Weighted, conjugate
from omenn_fx.algebra.mass import Shape, is_one, sum_to
from omenn_fx.algebra.rows import LETTERS, summed
from omenn_fx.rules.ops.forms import halfway, static

aten = torch.ops.aten
Tensor = torch.Tensor
Term = tuple[str, Any]  # letters of the dimensions, and the tensor


def contract(operand: str, shape: Shape, others: Sequence[Term], result: str, size: Shape) -> Weighted:
    """u -> einsum(u, *others): the transpose puts the result's letters in the operand's place."""
    used = set(result).union(*(letters for letters, _ in others))
    kept = "".join(letter for letter in operand if letter in used)
    sizes = _sizes([(operand, shape), *((letters, t.shape) for letters, t in others)])
    full = [sizes[letter] for letter in operand]
    names = [letters for letters, _ in others]
    tensors = [t for _, t in others]
    conjugates = [conjugate(t) for t in tensors]

    def apply(u: Tensor) -> Tensor:
        return torch.einsum(f"{','.join([operand, *names])}->{result}", u, *tensors)

    def transpose(g: Tensor) -> Tensor:
        value = torch.einsum(f"{','.join([result, *names])}->{kept}", g, *conjugates)
        for d, letter in enumerate(operand):
            if letter not in used:  # summed by itself
                value = value.unsqueeze(d)
        return sum_to(value.expand(tuple(full)), full, shape)

    def absolute() -> Weighted:
        return contract(operand, shape, [(letters, torch.abs(t)) for letters, t in others], result, size)

    return Weighted(apply, transpose, shape, size, absolute)


def _sizes(operands: Sequence[tuple[str, Shape]]) -> dict[str, Any]:
    """The size of every letter: a size of 1 is broadcast."""
    sizes: dict[str, Any] = {}
    for letters, shape in operands:
        for letter, size in zip(letters, shape, strict=True):
            if letter not in sizes or is_one(sizes[letter]):
                sizes[letter] = size
    return sizes


def products(call: Call, slots: Sequence[Slot], operands: Sequence[Term], result: str) -> dict[Slot, Linear]:
    """The map from each content operand, the others its coefficients; `slots[i]` is operands[i]."""
    terms: dict[Slot, Linear] = {}
    for slot in call.content:
        at = slots.index(slot)
        others = [term for i, term in enumerate(operands) if i != at]
        letters, shape = operands[at][0], call.shape(slot)
        kept = "".join(dict.fromkeys(letters))
        if len(kept) < len(letters):  # a diagonal: the repeated letter gets a name of its own and a unit matrix
            fresh = [c for c in string.ascii_letters if c not in "".join(t[0] for t in operands) + result]
            renamed = ""
            for letter, size in zip(letters, shape, strict=True):
                if letter in renamed:
                    name = fresh.pop()
                    others.append((letter + name, torch.eye(size, dtype=call.out.dtype, device=call.out.device)))
                    letter = name
                renamed += letter
            letters = renamed
        if len(call.content) > 1:
            first, tensor = others[0]
            others[0] = (first, tensor / len(call.content))
        terms[slot] = contract(letters, shape, others, result, call.out.shape)
    return terms


def letters_of(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The letters of every operand and of the result, with `...` and an implicit result written out."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    operands = left.split(",")
    free = [c for c in string.ascii_letters if c not in equation]
    extra = [r - len(o.replace("...", "")) for o, r in zip(operands, ranks, strict=True)]
    ellipsis = "".join(free[: max(extra)])
    if not arrow:
        letters = left.replace("...", "").replace(",", "")
        result = "..." + "".join(sorted(c for c in letters if letters.count(c) == 1))
    spelled = [o.replace("...", ellipsis[len(ellipsis) - e :]) for o, e in zip(operands, extra, strict=True)]
    return spelled, result.replace("...", ellipsis)


@static(
    aten.einsum.default,
    content="tensors", product=True, complex=True, kind="product", rows=LETTERS, difference=halfway("tensors"),
)  # fmt: skip
def _einsum(call: Call) -> Affine:
    tensors = call["tensors"]
    operands, result = letters_of(call["equation"], [len(t.shape) for t in tensors])
    slots = [Slot("tensors", i) for i in range(len(tensors))]
    return Affine(products(call, slots, list(zip(operands, tensors, strict=True)), result))


@static(
    aten.bilinear.default,
    content=("input1", "input2"), product=True, kind="product", rows=summed(input1=-1, input2=-1),
    difference=halfway("input1", "input2"),
)  # fmt: skip
def _bilinear(call: Call) -> Affine:
    lead = string.ascii_uppercase[: len(call["input1"].shape) - 1]
    operands = [(f"{lead}i", call["input1"]), ("oij", call["weight"]), (f"{lead}j", call["input2"])]
    slots = [Slot("input1"), Slot("weight"), Slot("input2")]
    bias = None if call["bias"] is None else Bias(call["bias"], dim=-1)
    return Affine(products(call, slots, operands, f"{lead}o"), bias)
