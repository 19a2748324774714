"""What MFGR asks of a generator that records the knowledge of a network (section 5.2)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from edgecil.losses.recording import activation, sample_diversity
from edgecil.losses.synthesis import at_least_float32, statistics_distance
from edgecil.nets.arithmetic import full_precision
from edgecil.synthesis.objective import Inversion, Losses, Weighted
from edgecil.synthesis.statistics import Seen


@dataclass(frozen=True)
class Recording(Inversion):
    """The weights of MFGR eq. (7), by default the paper's (section 6.2).

    ``content`` is its one-hot loss, ``diversity`` lambda_1, ``statistics`` lambda_2, ``samples``
    lambda_3. The ``prior`` of smooth images is ABD's, and off.
    """

    diversity: float = 5.0
    statistics: float = 20.0
    prior: float = 0.0
    temperature: float = 1.0
    samples: float = 0.1
    activation: float = 0.0

    @property
    def of_each(self) -> dict[str, float]:
        """Weights of what is asked of an image by itself; the other losses compare images."""
        return {**super().of_each, "activation": self.activation}

    def losses(self, images: Tensor, seen: Seen, classes: int) -> Losses:
        """Return the losses of ``images`` ``(N, 3, S, S)`` that show the first ``classes`` units.

        Batch norms are compared by Euclidean distances (eq. (5)) instead of ABD's divergence;
        what compares images is left out where there is one.
        """
        shared = Inversion(
            self.content, self.diversity, 0.0, self.prior, self.temperature, self.entropy
        )
        found = shared.losses(images, seen, classes)
        with full_precision(images):
            if self.statistics:
                found["statistics"] = Weighted(statistics_distance(seen.layers), self.statistics)
            if self.samples and len(images) > 1:
                images = at_least_float32(images)
                found["sample diversity"] = Weighted(sample_diversity(images), self.samples)
            if self.activation:
                found["activation"] = Weighted(activation(seen.features), self.activation)
        return found
