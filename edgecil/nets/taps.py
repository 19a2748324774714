"""Looking into a network, and holding a copy of it still."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


@contextlib.contextmanager
def batchnorm_inputs(net: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what enters every batch norm of ``net`` while the context is open.

    The list grows with each forward pass, in the order of execution; clear it between passes.
    The tensors are part of the graph. The hooks are gone after the context, however it ends.
    """
    inputs: list[Tensor] = []

    def tap(module: nn.Module, args: tuple[Any, ...]) -> None:
        inputs.append(args[0])

    with contextlib.ExitStack() as hooks:
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                hooks.callback(module.register_forward_pre_hook(tap).remove)
        yield inputs


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
