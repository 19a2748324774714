"""Synthetic images of old classes, made as an increment would make them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from edgecil.data.images import ImageSet
from edgecil.data.loader import evaluation_batches
from edgecil.diagnosis.look import BATCH, look, spread
from edgecil.engine.compute import Compute
from edgecil.model import Model
from edgecil.settings import Preprocess
from edgecil.synthesis.dreams import synthesise

CLASSES = 20
"""Classes that a sheet has room for."""
EACH = 10
"""Images of each class on a sheet."""


class Synthetic(NamedTuple):
    """Synthetic images ``pixels`` uint8 ``(N, S, S, 3)``, the class each was taken for by the
    network that they were made from, and their features ``(N, D)`` in the diagnosed one."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    features: NDArray[np.float32]

    def sheet(self, names: list[str]) -> dict[str, NDArray[np.uint8]]:
        """Return a few images of each class that is shown, of at most ``CLASSES`` classes."""
        present = np.unique(self.labels)
        chosen = present[spread(len(present), CLASSES)].tolist()
        return {names[row]: self.pixels[self.labels == row][:EACH] for row in chosen}

    def shown(self, names: list[str]) -> dict[str, int]:
        """Return how many images are taken for each of the classes ``names``."""
        counts = np.bincount(self.labels, minlength=len(names)).tolist()
        return dict(zip(names, counts, strict=True))


def dream(
    source: Model,
    model: Model,
    preprocess: Preprocess,
    compute: Compute,
    count: int,
    steps: int,
    seed: int,
    say: Callable[[str], None],
) -> Synthetic:
    """Return ``count`` images of what ``source`` knows, as ``model`` sees them.

    Raises:
        AdoptError: the network of ``source`` has no batch-norm statistics.
        TrainingError: all images show one class, in every attempt.
    """
    net = source.net.to(compute.torch_device).eval()
    pixels = synthesise(net, preprocess, count, steps, seed, say=say)
    # They are as large as the network's input: there is nothing to cut off.
    whole = replace(preprocess, resize=preprocess.size)
    labels = torch.zeros(count, dtype=torch.int64)
    with torch.no_grad():
        batches = evaluation_batches(
            ImageSet(pixels, labels), whole, BATCH, compute.torch_device
        )  # fmt: skip
        logits = torch.cat([net(batch).logits[:, : net.classes].cpu() for batch in batches])
    labels = logits.argmax(dim=1)
    seen = look(model, ImageSet(pixels, labels), whole, compute)
    return Synthetic(pixels.numpy(), labels.numpy(), seen.features.numpy())
