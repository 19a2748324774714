"""Arithmetic that heads and rules share: in full precision, in operations any engine has."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

EPSILON = 1e-12
"""Length below which a vector has no direction."""


def full_precision(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Return a context in which operations on the device of ``tensor`` are not autocast.

    Heads and rules use it: they cost next to nothing, and bfloat16 has 8 bits for the
    differences between logits that decide. Without autocast around it nothing is entered, so
    that an exported graph does not know of it.
    """
    device = tensor.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


def unit_rows(vectors: Tensor) -> Tensor:
    """Return the rows of ``vectors`` ``(N, D)`` with length 1; zero rows stay zero."""
    # torch.nn.functional.normalize, of which an exported graph keeps three needless nodes.
    lengths: Tensor = vectors.norm(dim=1, keepdim=True).clamp_min(EPSILON)
    return vectors / lengths
