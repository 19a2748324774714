"""Where arithmetic stays in the precision of the weights although autocast is on around it."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


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
