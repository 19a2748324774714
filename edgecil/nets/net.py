"""A classifier as the methods see it: a backbone with named taps and a growing head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn


class Outputs(NamedTuple):
    """Everything one forward pass gives.

    ``stages`` are the outputs of the residual stages, ``map`` ``(N, D, h, w)`` is exactly what
    enters global average pooling, ``features`` ``(N, D)`` the pooled map and ``logits``
    ``(N, width)`` the head's outputs.
    """

    stages: tuple[Tensor, ...]
    map: Tensor
    features: Tensor
    logits: Tensor


def pooled(stage: Tensor) -> Tensor:
    """Return the features ``(N, D)`` of a map ``(N, D, h, w)``: its mean over positions."""
    # At least float32: class means and cosines need more than the 8 bits of bfloat16.
    return stage.mean(dim=(2, 3), dtype=torch.promote_types(stage.dtype, torch.float32))


@dataclass(frozen=True)
class NetSpec:
    """All that is needed to build a network again.

    ``head`` is ``linear`` or ``cosine``; ``width`` fixes the number of units (iCaRL's 100),
    None lets the head grow with the classes.
    """

    arch: str
    head: Literal["linear", "cosine"] = "linear"
    width: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which :meth:`from_json` makes an equal value."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> NetSpec:
        """Return the value that :meth:`to_json` described."""
        return cls(**data)


class Backbone(Protocol):
    """A convolutional trunk: stage outputs, the last of which is globally average pooled."""

    feature_dim: int
    """D: channels of the last map, length of the feature vector."""

    def __call__(self, images: Tensor) -> Sequence[Tensor]:
        """Return the stage outputs; the last one is the map ``(N, D, h, w)``."""
        ...


class Head(Protocol):
    """The last layer: ``classes`` units are in use, ``width`` exist.

    A head may also have ``logit_gradient(features, classes)``, see :mod:`edgecil.nets.heads`.
    """

    classes: int

    @property
    def width(self) -> int:
        """Units that exist."""
        ...

    def __call__(self, features: Tensor) -> Tensor:
        """Return logits ``(N, width)`` of features ``(N, D)``."""
        ...

    def grow(self, count: int) -> None:
        """Add ``count`` classes; the rows of the classes that are there stay as they are."""
        ...


class Net(nn.Module):
    """A backbone and a head; calling it returns :class:`Outputs`."""

    backbone: nn.Module
    head: nn.Module

    def __init__(self, spec: NetSpec, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = backbone
        self.head = head

    @property
    def feature_dim(self) -> int:
        """D: length of the feature vector."""
        return int(self.backbone.feature_dim)  # type: ignore[arg-type]

    @property
    def classes(self) -> int:
        """C: classes seen so far."""
        return int(self.head.classes)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Outputs:
        """Return the outputs for normalised images ``(N, 3, S, S)``."""
        stages = tuple(self.backbone(images))
        features = pooled(stages[-1])
        return Outputs(stages, stages[-1], features, self.head(features))
