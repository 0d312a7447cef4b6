"""Mass that is even over some dimensions arrives at the same positions as the same mass written out."""

import pytest
import torch
import torch.nn.functional as F

from omenn_fx.algebra.mass import Even, Mass, Product
from omenn_fx.rules.ops.joining import Piece
from omenn_fx.rules.ops.padding import Pad, _reads

SHAPE = [2, 4, 5, 6]


def masses(shape):
    """Even over no dimension, the channels, the rows, both; and sums of several."""
    made = []
    for even in ((), (1,), (2,), (1, 2)):
        made.append(
            Mass((Even(torch.rand([1 if d in even else s for d, s in enumerate(shape)]), frozenset(even)),), shape)
        )
    product = Mass((Product(torch.rand(shape), torch.rand(shape[1]), 1, len(shape)),), shape)
    return [*made, made[1] + made[3], product, made[1] + product]


def assert_carries_alike(term, shape):
    for mass in masses(shape):
        want = term.carry(Mass((Even(mass.dense()),), shape))
        torch.testing.assert_close(term.carry(mass).dense(), want.dense())


@pytest.mark.parametrize("pads", [[1, 2, 0, 1], [0, 1], [0, 0, 0, 2], [1, 0, 0, 0, 2, 1], [-1, 2, 1, -2]])
@pytest.mark.parametrize("mode", ["constant", "replicate", "reflect", "circular"])
def test_padding(mode, pads):
    if mode != "constant" and (len(pads) > 4 or min(pads) < 0):
        pytest.skip("torch pads no batch or channels so, and crops in no such mode")
    shape = list(F.pad(torch.rand(SHAPE), pads).shape)
    pad = Pad(pads, mode, SHAPE, torch.device("cpu"))
    assert_carries_alike(pad, shape)
    value, folded = torch.rand(shape), None
    for i, dim in enumerate(range(3, 3 - len(pads) // 2, -1)):
        reads = torch.tensor(_reads(SHAPE[dim], *pads[2 * i : 2 * i + 2], "replicate" if mode == "constant" else mode))
        sizes = [*shape[:dim], SHAPE[dim], *(folded if folded is not None else value).shape[dim + 1 :]]
        source = value if folded is None else folded
        folded = torch.zeros(sizes).index_add(dim, reads, source)
    torch.testing.assert_close(pad.carry(Mass((Even(value),), shape)).dense(), folded)


def test_channels_padded_and_cropped_leave_even_rows_even():
    pad = Pad([1, 1], "constant", SHAPE, torch.device("cpu"))
    (part,) = pad.carry(Mass((Even(torch.rand(2, 1, 5, 8), frozenset({1})),), [2, 4, 5, 8])).parts
    assert part.even == {1}


@pytest.mark.parametrize("constant", [[], [(0, 2), (6, 1)]])
@pytest.mark.parametrize("dim", [1, 2])
def test_concatenation(dim, constant):
    """An operand beside another one, and beside constants whose mass both share."""
    result = list(SHAPE)
    result[dim] = 4 + 3 + sum(length for _, length in constant)
    operand = [*SHAPE[:dim], 4, *SHAPE[dim + 1 :]]
    start = 2 if constant else 0
    piece = Piece(dim, start, operand, result, constant, 4 + 3)
    assert_carries_alike(piece, result)
