"""Images made from the model itself, to calibrate int8 with when nobody has any."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from edgecil.exporting.sessions import Pixels
from edgecil.nets.net import Net
from edgecil.settings import Preprocess


@dataclass(frozen=True)
class SyntheticImages:
    """Stored images ``(N, R, R, 3)`` that no camera has seen."""

    pixels: Pixels


Images = Path | Pixels | Tensor | SyntheticImages
"""What ranges are measured on: a folder, or stored images ``(N, R, R, 3)``."""


def batch_for(size: int) -> int:
    """Return how many images of ``size`` pixels a side are optimised at a time.

    64 up to 64 pixels; of larger ones as many as have the same number of pixels, but 8 at least.
    """
    return max(8, min(64, 64 * 64**2 // size**2))


@dataclass(frozen=True)
class Synthetic:
    """How many images to make, and in how many steps; an export's ``calibration``."""

    images: int = 128
    steps: int = 200
    seed: int = 0

    def make(
        self,
        net: Net,
        preprocess: Preprocess,
        told: Callable[[int, int], None] = lambda done, total: None,
    ) -> SyntheticImages:
        """Return the images; ``told(done, total)`` hears of the steps.

        What they show does not matter, and whether it is one class or many: activations have the
        statistics that batch norms have seen, and that is what ranges are about.

        Raises:
            AdoptError: the network has no batch-norm statistics.
            TrainingError: a loss became NaN.
        """
        from edgecil.synthesis.dreams import synthesise

        made = synthesise(
            net, preprocess, self.images, self.steps, self.seed, batch=batch_for(preprocess.size),
            varied=False, told=told, hint="calibrate with images: --calibrate DIR",
        ).numpy()  # fmt: skip
        # Calibration takes the centre of stored images: the border is never looked at.
        before = (preprocess.resize - preprocess.size) // 2
        after = preprocess.resize - preprocess.size - before
        sides = (before, after)
        return SyntheticImages(np.pad(made, ((0, 0), sides, sides, (0, 0)), mode="edge"))
