"""Rules: how features or logits become scores. An exported graph contains its rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from edgecil.errors import WorkspaceError
from edgecil.nets.arithmetic import full_precision, unit_rows
from edgecil.nets.heads import GrowingHead
from edgecil.nets.net import Net
from edgecil.nets.taps import freeze


class Rule(nn.Module):
    """Scores ``(N, C)`` of features ``(N, D)`` and logits ``(N, width)``.

    ``kind`` names the rule in manifests, ``score_kind`` says what the scores are. A rule is
    rebuilt from the arrays it gives.
    """

    kind: ClassVar[str]
    score_kind: ClassVar[str]

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        """Return scores ``(N, C)``; the largest is the prediction."""
        raise NotImplementedError

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return everything that :meth:`from_arrays` needs."""
        raise NotImplementedError

    def folded(self, net: Net) -> tuple[Net, Rule]:
        """Return a network and a rule with the same scores: what fits into the head is in it.

        ``net`` stays as it is.
        """
        return net, self

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Self:
        """Return the rule that gave ``arrays``.

        Raises:
            KeyError: one of them is missing.
        """
        raise NotImplementedError


class ArgmaxRule(Rule):
    """The logits of the first ``classes`` units, those that are in use."""

    kind = "argmax"
    score_kind = "logit"

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        """Return the logits ``(N, C)`` of the classes."""
        return logits[:, : self.classes]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the number of classes."""
        return {"classes": np.array(self.classes, dtype=np.int32)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Self:
        """Return the rule that gave ``arrays``."""
        return cls(int(arrays["classes"]))


class NearestMeanRule(Rule):
    """Cosine between the features and the mean of each class (iCaRL algorithm 1).

    For unit vectors |f - m|^2 = 2 - 2 f.m, so the largest cosine is the nearest mean.
    ``means`` ``(C, D)`` is stored with rows of unit length; rows that have it already stay bit
    for bit, so that means which are carried along do not drift.
    """

    kind = "nearest-mean"
    score_kind = "cosine"
    means: Tensor

    def __init__(self, means: Tensor) -> None:
        super().__init__()
        means = means.detach().float()
        lengths = means.norm(dim=1, keepdim=True)
        unit = (lengths - 1).abs() < 1e-6
        self.register_buffer("means", torch.where(unit, means, unit_rows(means)))

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        """Return the cosines ``(N, C)`` in [-1, 1]."""
        with full_precision(features):
            return F.linear(unit_rows(features.to(self.means.dtype)), self.means)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the means."""
        return {"means": np.array(self.means.cpu().numpy())}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Self:
        """Return the rule that gave ``arrays``."""
        return cls(torch.tensor(np.asarray(arrays["means"])))


class CorrectedRule(Rule):
    """The logits of the classes, each scaled and shifted (BiC section 4)."""

    kind = "bias-corrected"
    score_kind = "logit"
    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.detach().float())
        self.register_buffer("shift", shift.detach().float())

    @classmethod
    def identity(cls, classes: int) -> Self:
        """Return the rule that leaves the logits of so many classes as they are."""
        return cls(torch.ones(classes), torch.zeros(classes))

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        """Return the corrected logits ``(N, C)``."""
        with full_precision(logits):
            return logits[:, : len(self.scale)] * self.scale + self.shift

    @torch.no_grad()
    def folded(self, net: Net) -> tuple[Net, Rule]:
        """Return a network whose head, a linear one, scales and shifts its logits itself."""
        net, classes = freeze(net), len(self.scale)
        rows = net.head.rows
        assert isinstance(rows, GrowingHead) and rows.bias is not None
        rows.weight[:classes] *= self.scale[:, None].to(rows.weight)
        rows.bias[:classes] *= self.scale.to(rows.bias)
        rows.bias[:classes] += self.shift.to(rows.bias)
        return net, ArgmaxRule(classes)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return scale and shift."""
        return {n: np.array(getattr(self, n).cpu().numpy()) for n in ("scale", "shift")}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Self:
        """Return the rule that gave ``arrays``."""
        return cls(*(torch.tensor(np.asarray(arrays[n])) for n in ("scale", "shift")))


RULES: Mapping[str, type[Rule]] = {
    rule.kind: rule for rule in (ArgmaxRule, NearestMeanRule, CorrectedRule)
}


def rule_arrays(rule: Rule) -> dict[str, NDArray[Any]]:
    """Return the arrays to store for a rule; :func:`build_rule` makes it again."""
    return rule.arrays()


def build_rule(kind: str, arrays: Mapping[str, Any]) -> Rule:
    """Return the rule of a kind that gave ``arrays``.

    Raises:
        WorkspaceError: the kind is unknown, or an array is missing.
    """
    if kind not in RULES:
        raise WorkspaceError(
            f"unknown rule {kind!r} (known: {', '.join(RULES)})",
            hint="the workspace may have been written by a newer edgecil",
        )
    try:
        return RULES[kind].from_arrays(arrays)
    except KeyError as error:
        raise WorkspaceError(f"the stored {kind} rule has no array {error}") from None
