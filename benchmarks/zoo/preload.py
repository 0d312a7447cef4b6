"""Imported once, by the process that all workers are forked from: the libraries, and everything that torch.export
and omenn_fx set up at their first use."""

from __future__ import annotations

import contextlib
import logging
import warnings

import torch

import omenn_fx

from . import check, common  # noqa: F401  (check: the code that a sweep starts with is the one it ends with)

torch.set_num_threads(1)  # no threads before a fork
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
for load in (common.timm, common.transformers):
    with contextlib.suppress(Exception):  # a group that needs it says so
        load()
with contextlib.suppress(Exception):
    omenn_fx.transform(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()).eval(), torch.ones(2, 2))
