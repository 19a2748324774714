"""Looking into a network, and holding a copy of it still."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


@contextlib.contextmanager
def forward_outputs(net: nn.Module) -> Iterator[list[Any]]:
    """Collect what every forward pass of ``net`` returns while the context is open.

    So a plug-in sees the taps of the pass that its host makes, without a pass of its own.
    """
    outputs: list[Any] = []
    hook = net.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()


def freeze(net: AnyModule) -> AnyModule:
    """Return a copy that shares nothing with ``net``, in eval mode and without gradients."""
    return copy.deepcopy(net).eval().requires_grad_(False)
