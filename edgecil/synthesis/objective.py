"""What is asked of synthetic images: weighted losses by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from edgecil.losses.synthesis import (
    at_least_float32,
    content,
    negative_entropy,
    roughness,
    statistics_divergence,
)
from edgecil.nets.arithmetic import full_precision
from edgecil.synthesis.statistics import Seen

Entropy = Literal["nats", "share"]


class Weighted(NamedTuple):
    """A scalar and its weight in the sum that is minimised."""

    value: Tensor
    weight: float


Losses = dict[str, Weighted]


@dataclass(frozen=True)
class Inversion:
    """The weights of ABD eq. (7), by default the paper's (section 7, Table F).

    A weight of 0 leaves a loss out and does not compute it.
    """

    content: float = 1.0
    diversity: float = 1.0
    statistics: float = 50.0
    prior: float = 1e-3
    temperature: float = 1000.0
    """What logits are divided by in the content loss."""
    entropy: Entropy = "nats"
    """``share``: 1 - H / log K, as the released code has it; the weight then is log K smaller."""

    @property
    def of_each(self) -> dict[str, float]:
        """Weights of what is asked of an image by itself; the other losses compare images."""
        return {"content": self.content, "statistics": self.statistics, "prior": self.prior}

    def losses(self, images: Tensor, seen: Seen, classes: int) -> Losses:
        """Return the losses of ``images`` ``(N, 3, S, S)`` that show the first ``classes`` units.

        With one class the diversity is 0 whatever is shown, and is left out.
        """
        with full_precision(images):
            images, logits = at_least_float32(images), seen.logits[:, :classes]
            found: Losses = {}
            if self.content:
                found["content"] = Weighted(content(logits, self.temperature), self.content)
            if self.diversity and classes > 1:
                value = negative_entropy(logits)
                if self.entropy == "share":
                    value = 1 + value / math.log(classes)
                found["diversity"] = Weighted(value, self.diversity)
            if self.statistics:
                value = statistics_divergence(seen.layers)
                found["statistics"] = Weighted(value, self.statistics)
            if self.prior:
                found["prior"] = Weighted(roughness(images), self.prior)
        return found


def total(losses: Losses) -> Tensor:
    """Return the weighted sum of losses; a scalar."""
    return torch.stack([loss.weight * loss.value for loss in losses.values()]).sum()
