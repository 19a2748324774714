"""Synthetic images of old classes: as the version's method makes them, where it makes some."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from edgecil import registry
from edgecil.data.images import ImageSet
from edgecil.data.loader import evaluation_batches
from edgecil.diagnosis.look import BATCH, look, spread
from edgecil.engine.compute import Compute
from edgecil.errors import UsageError
from edgecil.model import Model
from edgecil.synthesis.dreams import Dreaming, synthesise
from edgecil.workspace import VersionManifest

CLASSES = 20
"""Classes that a sheet has room for."""
EACH = 10
"""Images of each class on a sheet."""
PLAIN = Dreaming(batch=64)
"""For versions whose method makes no images: pixels, by ABD's losses."""
_NAMES = {"generator": "a generator", "pixels": "pixels"}


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


def manner_of(manifest: VersionManifest) -> Dreaming | None:
    """Return how the method of a version makes images; None where it makes none.

    A kept generator (``warm_start``) is not gone on from: that of a diagnosis begins anew.
    """
    try:
        preset = registry.presets(manifest.method).get(manifest.training.get("preset") or "")
        options = registry.with_preset(preset, manifest.options)
        return registry.build(manifest.method, options).dreams
    except UsageError:  # a model from elsewhere, or a method that is not installed here
        return None


def dream(
    source: Model,
    model: Model,
    manifest: VersionManifest,
    compute: Compute,
    count: int,
    steps: int | None,
    seed: int,
    say: Callable[[str], None],
) -> Synthetic:
    """Return ``count`` images of what ``source`` knows, as ``model`` sees them.

    They are made as the method of ``manifest`` makes them, in its steps unless ``steps`` are
    given; where it makes none, pixels are optimised by ABD's losses. What is done is said.

    Raises:
        AdoptError: the network of ``source`` has no batch-norm statistics.
        TrainingError: all images show one class, in every attempt.
    """
    net = source.net.to(compute.torch_device).eval()
    preprocess, own = manifest.input, manner_of(manifest)
    manner = own or PLAIN
    steps = steps or manner.steps
    by = f"as {manifest.method} makes them" if own else f"{manifest.method} makes none of its own"
    say(f"synthetic images by {steps:,} steps of {_NAMES[manner.source]}: {by}")
    pixels = synthesise(
        net, preprocess, count, steps, seed, source=manner.source,
        batch=manner.batch or int(manifest.training["batch_size"]), lr=manner.lr,
        mode=manner.mode, objective=manner.objective, say=say,
    )  # fmt: skip
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
