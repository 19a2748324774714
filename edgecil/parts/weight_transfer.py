"""Weight transfer: old convolutions stay, an increment learns how much of each kernel it wants.

Every kernel of every convolution, one per pair of output and input channel, is multiplied by a
trainable number that starts at 1 (Sun et al. 2019, deployed by Mnemonics, section 5.1). When the
increment is over, the products are the weights: the network that leaves is a plain one, and the
next increment starts from its scales, because they are in its weights.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from edgecil.context import Context
from edgecil.method import Recipe


class ScaledConv(nn.Module):
    """A convolution with frozen weights ``(O, I, h, w)`` and trainable ``scale`` ``(O, I, 1, 1)``.

    The weights are a buffer, so that no optimiser, decay or mask reaches them. A bias is trained.
    """

    weight: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.plain = [conv]  # in a list: no submodule, and without weights of its own meanwhile
        self.register_buffer("weight", conv.weight.detach())
        self.scale = nn.Parameter(torch.ones_like(self.weight[:, :, :1, :1]))
        self.bias, conv.weight, conv.bias = conv.bias, None, None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """Return what the convolution with the scaled weights returns."""
        convolved: Tensor = self.plain[0]._conv_forward(x, self.weight * self.scale, self.bias)
        return convolved

    @torch.no_grad()
    def folded(self) -> nn.Conv2d:
        """Return the plain convolution with the scaled weights."""
        conv = self.plain[0]
        conv.weight = nn.Parameter(self.weight * self.scale, requires_grad=False)
        conv.bias = self.bias
        return conv


def _children(net: nn.Module, kind: type[nn.Module]) -> list[tuple[nn.Module, str, nn.Module]]:
    return [
        (parent, name, child)
        for parent in net.modules()
        for name, child in parent.named_children()
        if isinstance(child, kind)
    ]


def add_scales(net: nn.Module) -> None:
    """Put a :class:`ScaledConv` in the place of every convolution of ``net``; outputs stay."""
    for parent, name, conv in _children(net, nn.Conv2d):
        setattr(parent, name, ScaledConv(conv))  # type: ignore[arg-type]


def fold_scales(net: nn.Module) -> None:
    """Make ``net`` plain again: every convolution has the scaled weights; outputs stay."""
    for parent, name, scaled in _children(net, ScaledConv):
        setattr(parent, name, scaled.folded())  # type: ignore[operator]


def transferred(host: Recipe) -> Recipe:
    """Return ``host`` with weight transfer in every increment but the base."""

    def begin(ctx: Context) -> None:
        host.begin(ctx)
        if ctx.classes.old:
            add_scales(ctx.net.backbone)

    def end(ctx: Context) -> None:
        fold_scales(ctx.net.backbone)
        host.end(ctx)

    return replace(host, begin=begin, end=end)
