"""Residual networks for small and large images, one description for all of them.

Names of parameters are torchvision's, so that its state dicts load as they are. A name is
``resnet<depth>`` and suffixes: ``-b`` for 1x1 convolutions on the shortcuts of a CIFAR net
(option B of He et al. 2016, section 4.1; the default A has no parameters), ``-3x3`` for the
stride-1 stem of an ImageNet net on small images, and ``-linear`` where the ReLU after the last
block is left out (iCaRL, LUCIR), so that features may be negative.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """What distinguishes one residual network from another."""

    blocks: tuple[int, ...]
    """Blocks of every stage."""
    widths: tuple[int, ...]
    """Channels of every stage; the first is also that of the stem."""
    shortcut: Literal["pad", "conv"]
    """Where the shape changes: zero channels (option A) or a 1x1 convolution (option B)."""
    stem: Literal["3x3", "7x7"] = "3x3"
    """3x3 with stride 1, or 7x7 with stride 2 and a max-pool of stride 2."""
    last_relu: bool = True
    bottleneck: bool = False
    """Blocks of 1x1, 3x3 and 1x1 convolutions that leave with four times their width."""


def _shapes() -> dict[str, Shape]:
    found: dict[str, Shape] = {}
    for depth in (8, 14, 20, 32, 44, 56):
        per_stage = (depth - 2) // 6
        small = Shape((per_stage,) * 3, (16, 32, 64), "pad")
        found |= {f"resnet{depth}": small, f"resnet{depth}-b": replace(small, shortcut="conv")}
    for depth, blocks in ((18, (2, 2, 2, 2)), (34, (3, 4, 6, 3))):
        large = Shape(blocks, (64, 128, 256, 512), "conv", "7x7")
        found |= {f"resnet{depth}": large, f"resnet{depth}-3x3": replace(large, stem="3x3")}
    found["resnet50"] = replace(found["resnet34"], bottleneck=True)
    linear = {f"{name}-linear": replace(s, last_relu=False) for name, s in found.items()}
    return {**found, **linear}


RESNETS = _shapes()
"""Every residual network by name."""


class Conv(nn.Conv2d):
    """A convolution without bias that keeps the size, divided by its stride.

    Weights are He-normal by fan-out, drawn once (the base class would draw others first).
    """

    def __init__(self, channels: int, width: int, kernel: int, stride: int = 1) -> None:
        super().__init__(channels, width, kernel, stride, padding=kernel // 2, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weights from the global generator."""
        # There is nothing to draw without memory, and trying makes torch import its compiler.
        if not self.weight.is_meta:
            nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")


class PadShortcut(nn.Module):
    """Every ``stride``-th pixel, with zero channels added on both sides (option A)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        before = (width - channels) // 2
        self.padding = (0, 0, 0, 0, before, width - channels - before)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, width, h / stride, w / stride)`` of ``(N, channels, h, w)``."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


def _shortcut(channels: int, width: int, stride: int, kind: str) -> nn.Module:
    """Return what leads around a block from ``channels`` to ``width`` channels."""
    if stride == 1 and channels == width:
        return nn.Identity()
    if kind == "pad":
        return PadShortcut(channels, width, stride)
    return nn.Sequential(Conv(channels, width, 1, stride), nn.BatchNorm2d(width))


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut around them."""

    expansion = 1
    """Channels at the end, in widths."""

    def __init__(
        self, channels: int, width: int, stride: int, shortcut: str, *, last_relu: bool = True
    ) -> None:
        super().__init__()
        self.conv1 = Conv(channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = Conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(channels, width, stride, shortcut)
        self.last_relu = last_relu

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, width, h / stride, w / stride)`` of ``(N, channels, h, w)``."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += self.downsample(x)
        return F.relu(y, inplace=True) if self.last_relu else y


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution and a shortcut around them.

    The 3x3 one has the stride, as in torchvision (He et al. 2016 gave it to the first).
    """

    expansion = 4

    def __init__(
        self, channels: int, width: int, stride: int, shortcut: str, *, last_relu: bool = True
    ) -> None:
        super().__init__()
        wide = self.expansion * width
        self.conv1 = Conv(channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = Conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = Conv(width, wide, 1)
        self.bn3 = nn.BatchNorm2d(wide)
        self.downsample = _shortcut(channels, wide, stride, shortcut)
        self.last_relu = last_relu

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, 4 * width, h / stride, w / stride)`` of ``(N, channels, h, w)``."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        y += self.downsample(x)
        return F.relu(y, inplace=True) if self.last_relu else y


class ResNet(nn.Module):
    """The trunk of a residual network: calling it returns the outputs of its stages."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        first = shape.widths[0]
        large = shape.stem == "7x7"
        self.conv1 = Conv(3, first, 7, 2) if large else Conv(3, first, 3)
        self.bn1 = nn.BatchNorm2d(first)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if large else nn.Identity()
        self.stages: list[str] = []
        """Names of the stages, in order."""
        block = Bottleneck if shape.bottleneck else Block
        channels = first
        for number, (count, width) in enumerate(zip(shape.blocks, shape.widths, strict=True), 1):
            blocks = []
            for index in range(count):
                stride = 2 if number > 1 and index == 0 else 1
                last = number == len(shape.blocks) and index == count - 1
                relu = shape.last_relu or not last
                blocks.append(block(channels, width, stride, shape.shortcut, last_relu=relu))
                channels = block.expansion * width
            self.stages.append(f"layer{number}")
            self.add_module(self.stages[-1], nn.Sequential(*blocks))
        self.feature_dim = channels

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return one map per stage of images ``(N, 3, S, S)``; the last enters the pooling."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(images)), inplace=True))
        outputs = []
        for name in self.stages:
            x = self.get_submodule(name)(x)
            outputs.append(x)
        return tuple(outputs)
