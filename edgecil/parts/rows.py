"""Rows of the head that training leaves alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from edgecil.context import Context
from edgecil.nets.heads import GrowingHead


def held_below(ctx: Context, first: int) -> Mapping[str, Tensor]:
    """Return the masks that hold weights and bias of the head's rows before ``first``."""
    if not first:
        return {}
    rows = ctx.net.head.rows
    assert isinstance(rows, GrowingHead)
    found = {}
    for name, parameter in ctx.net.named_parameters():
        if parameter is rows.weight or parameter is rows.bias:
            found[name] = torch.ones_like(parameter)
            found[name][:first] = 0
    return found
