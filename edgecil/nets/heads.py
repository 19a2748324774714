"""Last layers that grow with the classes and leave the old rows as they are.

``logit_gradient`` is the derivative of a logit with respect to the pooled features in closed
form. It makes class-specific attention (LwM section 4.1) free of double backward. A head
without a closed form does without the method; callers then use autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgecil.errors import UsageError
from edgecil.nets.arithmetic import EPSILON, full_precision, unit_rows


def _extended(old: Tensor, fresh: Tensor) -> nn.Parameter:
    rows = torch.cat([old.detach(), fresh.detach().to(old)])
    return nn.Parameter(rows, requires_grad=old.requires_grad)


class GrowingHead(nn.Module):
    """Rows ``(width, D)``, of which the first ``classes`` are in use.

    With a fixed ``width`` all units exist from the start; without, one unit per class.

    Raises:
        UsageError: more classes than a fixed width has units.
    """

    def __init__(self, features: int, classes: int, width: int | None, *, bias: bool) -> None:
        super().__init__()
        self.fixed = width is not None
        self.classes = 0
        rows = nn.Linear(features, classes if width is None else width, bias)
        self.weight = rows.weight
        self.bias: Tensor | None = rows.bias if bias else None
        self._use(classes)

    @property
    def rows(self) -> GrowingHead:
        """The part of a head that has one row per unit: here all of it."""
        return self

    def embedded(self, features: Tensor) -> Tensor:
        """Return what the rows see of features ``(N, D)``: these themselves."""
        return features

    @property
    def width(self) -> int:
        """Number of units that exist."""
        return self.weight.shape[0]

    @property
    def feature_dim(self) -> int:
        """D: length of the feature vector."""
        return self.weight.shape[1]

    def grow(self, count: int) -> None:
        """Take ``count`` more classes into use; all rows that exist stay bit for bit.

        New rows are drawn on the CPU from the global generator, as ``nn.Linear`` does, so
        that they do not depend on the device.

        Raises:
            UsageError: a fixed width has not that many units left.
        """
        if not self.fixed and count > 0:
            fresh = nn.Linear(self.feature_dim, count, self.bias is not None, device="cpu")
            self.weight = _extended(self.weight, fresh.weight)
            if self.bias is not None:
                self.bias = _extended(self.bias, fresh.bias)
        self._use(count)

    def _rows(self, classes: Tensor) -> Tensor:
        # Not weight[classes]: its gradient is summed by atomic additions in parallel, in
        # another order and to another last bit in every run.
        return F.embedding(classes, self.weight)

    def _use(self, count: int) -> None:
        if self.classes + count > self.width:
            raise UsageError(
                f"a head of fixed width {self.width} with {self.classes} classes "
                f"has no room for {count} more",
                hint="start a new workspace (--workspace DIR) with a wider or a growing head",
            )
        self.classes += count


class LinearHead(GrowingHead):
    """Logits w_c . f + b_c."""

    def __init__(self, features: int, classes: int, width: int | None = None) -> None:
        super().__init__(features, classes, width, bias=True)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(N, width)`` of features ``(N, D)``."""
        with full_precision(features):
            return F.linear(features.to(self.weight.dtype), self.weight, self.bias)

    def logit_gradient(self, features: Tensor, classes: Tensor) -> Tensor:
        """Return d logit[n, classes[n]] / d features[n], ``(N, D)``: the row of the class.

        Differentiable with respect to the weights; it does not depend on the features.
        """
        return self._rows(classes)


class CosineHead(GrowingHead):
    """Logits eta cos(f, w_c) without bias (LUCIR section 3.2); eta is learned, from 1."""

    def __init__(self, features: int, classes: int, width: int | None = None) -> None:
        super().__init__(features, classes, width, bias=False)
        self.eta = nn.Parameter(torch.ones(()))

    def cosines(self, features: Tensor) -> Tensor:
        """Return the cosines ``(N, width)`` in [-1, 1] between features ``(N, D)`` and rows."""
        with full_precision(features):
            unit = unit_rows(features.to(self.weight.dtype))
            return F.linear(unit, unit_rows(self.weight))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(N, width)`` of features ``(N, D)``."""
        return self.eta * self.cosines(features)

    def logit_gradient(self, features: Tensor, classes: Tensor) -> Tensor:
        """Return d logit[n, classes[n]] / d features[n], ``(N, D)``.

        It is eta / |f| (w^ - (f^ . w^) f^) with unit vectors f^ and w^, and differentiable
        with respect to eta, weights and features.
        """
        with full_precision(features):
            features = features.to(self.weight.dtype)
            unit, rows = unit_rows(features), unit_rows(self._rows(classes))
            along = (unit * rows).sum(dim=1, keepdim=True)
            length = features.norm(dim=1, keepdim=True).clamp_min(EPSILON)
            gradient: Tensor = self.eta / length * (rows - along * unit)
            return gradient


class HiddenHead(nn.Module):
    """A hidden layer and the rows of another head on its outputs (MobileNetV3).

    The hidden layer belongs to the head, so that features stay what is pooled from the last
    map, for every network. A logit's derivative then depends on the image by the hidden
    layer's activation: there is no ``logit_gradient``.
    """

    def __init__(self, hidden: nn.Module, rows: GrowingHead) -> None:
        super().__init__()
        self.hidden = hidden
        self.rows = rows

    @property
    def classes(self) -> int:
        """Units in use."""
        return self.rows.classes

    @property
    def width(self) -> int:
        """Units that exist."""
        return self.rows.width

    def grow(self, count: int) -> None:
        """Take ``count`` more classes into use; the hidden layer and all rows stay."""
        self.rows.grow(count)

    def embedded(self, features: Tensor) -> Tensor:
        """Return what the rows see of features ``(N, D)``: the hidden layer's output ``(N, E)``."""
        with full_precision(features):
            embedded: Tensor = self.hidden(features.to(self.rows.weight.dtype))
            return embedded

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(N, width)`` of features ``(N, D)``."""
        with full_precision(features):
            logits: Tensor = self.rows(self.embedded(features))
            return logits
