"""The rule sets: each has a name, a source and a table of layers and treatments; the first line that fits counts.

`omenn_fx.transform(model, rules="epsilon_plus_flat")` takes a set by name; `rules=sets.epsilon_plus_flat(epsilon=0.1)`
makes one of other parameters, and `omenn.derive(name, doc, *lines)` a composite of one's own. All of them are exact:
W'(x) x + b'(x) = h at every node, and sum(C) is the logit. What a layer's bias and a stabiliser take of the relevance,
which other implementations lose, is a bias share here. The formulas of treatments are in `rules/lrp.py`; what each set
costs beside `omenn` stands in the guide, docs/sets.md.
"""

from __future__ import annotations

import math

from omenn_fx.algebra.layer import CONVOLUTION, DENSE, EVERY, FIRST, Line, Where
from omenn_fx.algebra.ruleset import EVERY_KIND, Reference, RuleSet, name_set, omenn
from omenn_fx.rules.sets import attention_lrp as attention
from omenn_fx.rules.sets import rescale
from omenn_fx.rules.sets.gradient import gradient
from omenn_fx.rules.sets.lrp import STABILISER, AlphaBeta, Bounds, Epsilon, Flat, Gamma, ZBox, ZPlus
from omenn_fx.rules.sets.shortcuts import split_by_size

# In LRP an activation passes relevance on as it is, and a max pool to the winner: the forms of the omenn table do that.
PASSED = frozenset({"activation", "max pool"})


def composite(name: str, doc: str, *lines: Line) -> RuleSet:
    """LRP by layers: batch norms folded into them, activations and max pools passed, all else as in `omenn`."""
    return omenn.derive(name, doc, *lines, same=PASSED, folds_norms=True)


def epsilon_plus(epsilon: float = STABILISER, stabiliser: float = STABILISER) -> RuleSet:
    """LRP: z+ in convolutions, epsilon in dense layers."""
    return composite(
        "epsilon_plus",
        "LRP: z+ in convolutions, epsilon in dense layers (Kohlbrenner et al. 2020)",
        (CONVOLUTION, ZPlus(stabiliser=stabiliser)),
        (DENSE, Epsilon(epsilon)),
    )


def epsilon_plus_flat(epsilon: float = STABILISER, stabiliser: float = STABILISER) -> RuleSet:
    """LRP: flat in the first layer, z+ in convolutions, epsilon in dense layers."""
    return composite(
        "epsilon_plus_flat",
        "LRP: flat in the first layer, z+ in convolutions, epsilon in dense layers (Kohlbrenner et al. 2020)",
        (FIRST, Flat()),
        (CONVOLUTION, ZPlus(stabiliser=stabiliser)),
        (DENSE, Epsilon(epsilon)),
    )


def epsilon_plus_split(epsilon: float = STABILISER, stabiliser: float = STABILISER) -> RuleSet:
    """LRP: as epsilon_plus_flat, and relevance at residual additions split by size."""
    return split_by_size(
        epsilon_plus_flat(epsilon, stabiliser),
        "epsilon_plus_split",
        "LRP: epsilon_plus_flat, with additions split in proportion to |h| (Otsuki et al. 2024)",
    )


def epsilon_alpha2_beta1(epsilon: float = STABILISER, stabiliser: float = STABILISER) -> RuleSet:
    """LRP: alpha 2, beta 1 in convolutions, epsilon in dense layers."""
    return composite(
        "epsilon_alpha2_beta1",
        "LRP: alpha 2, beta 1 in convolutions, epsilon in dense layers (Bach et al. 2015)",
        (CONVOLUTION, AlphaBeta(2, 1, stabiliser)),
        (DENSE, Epsilon(epsilon)),
    )


def epsilon_gamma_box(
    low: Bounds = -3.0,
    high: Bounds = 3.0,
    gamma: float = 0.25,
    epsilon: float = STABILISER,
    stabiliser: float = STABILISER,
) -> RuleSet:
    """LRP: z^B in a first convolution, gamma in the others, epsilon in dense layers.

    Args:
        low, high: the least and the greatest value of the input, a number or one for each channel. The default holds
            for images that are normalised to mean 0 and deviation 1.
        gamma: how much positive parts are favoured.
        epsilon, stabiliser: of the dense layers, and of the others.
    """
    return composite(
        "epsilon_gamma_box",
        "LRP: z^B in the first layer, gamma in convolutions, epsilon in dense layers (Montavon et al. 2019)",
        (FIRST & CONVOLUTION, ZBox(low, high, stabiliser)),
        (CONVOLUTION, Gamma(gamma, stabiliser)),
        (DENSE, Epsilon(epsilon)),
    )


def cp_lrp(epsilon: float = STABILISER) -> RuleSet:
    """CP-LRP: attention weights and the deviations of norms held fixed, epsilon in layers."""
    doc = "CP-LRP: attention weights and deviations of norms held fixed, epsilon in layers (Ali et al. 2022)"
    same = attention.SPOKEN_OF
    return omenn.derive("cp_lrp", doc, (EVERY, Epsilon(epsilon)), same=same)


def attnlrp(epsilon: float = STABILISER) -> RuleSet:
    """AttnLRP: softmax by its Jacobian, half to each factor of a product, epsilon in layers."""
    same = attention.SPOKEN_OF | {"softmax", "gated", "exponential"}
    return attention.attnlrp.relined((EVERY, Epsilon(epsilon)), same=same)


def omenn_gamma(early: float = 0.3, gamma: float = 0.1, stabiliser: float = STABILISER) -> RuleSet:
    """Our own: each cure where its illness is. Dense layers, attention and norms keep the exact forms of `omenn`.

    A layer's positive and negative parts cancel, and what cancels is noise in the map. It grows with every layer behind
    which it is, so the first ones, where it would be largest, take the parts of a result's own sign alone; the later
    ones, which tell classes apart by what speaks against them, only favour those a little. docs/sets.md has the rest.

    Args:
        early: up to which depth (0 to 1) convolutions are early ones.
        gamma: how much these parts are favoured in the others.
        stabiliser: of z' at 0.
    """
    return omenn.derive(
        "omenn_gamma",
        "omenn, with flat in a first convolution, infinite gamma in early ones, gamma in the others (omenn-fx)",
        (FIRST & CONVOLUTION, Flat()),
        (CONVOLUTION & Where(depth=(0.0, early)), Gamma(math.inf, stabiliser)),
        (CONVOLUTION, Gamma(gamma, stabiliser)),
        same=frozenset({EVERY_KIND}),
        folds_norms=True,
    )


def deeplift(reference: Reference = 0.0) -> RuleSet:
    """DeepLIFT: the rescale rule (Shrikumar et al. 2017). C_w * (x - reference) sums to f(x) - f(reference).

    Args:
        reference: of every explained input (of integer ids, of their embeddings): a number for all values, one for
            each channel (dimension 1), or a tensor that broadcasts to one sample.
    """
    return rescale.deeplift.relined(reference=reference)


def name_all() -> None:
    """Make the sets known by their names, when the table of omenn is full."""
    name_set(gradient)
    for make in (
        epsilon_plus, epsilon_plus_flat, epsilon_plus_split, epsilon_alpha2_beta1, epsilon_gamma_box, cp_lrp, attnlrp,
        deeplift, omenn_gamma,
    ):  # fmt: skip
        name_set(make())
