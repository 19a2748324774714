"""Synthetic images of old classes: as the version's method makes them, where it makes some."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgecil.data.images import ImageSet
from edgecil.data.pixels import to_pixels
from edgecil.data.streams import stream_seed
from edgecil.diagnosis.look import evenly, look
from edgecil.engine.compute import Compute
from edgecil.engine.events import Listener, Note, Stage
from edgecil.errors import UsageError
from edgecil.method import Recipe
from edgecil.model import Model
from edgecil.synthesis.dreams import Dreaming, synthesise
from edgecil.synthesis.objective import Inversion
from edgecil.versions import recipe_of_version
from edgecil.workspace import VersionManifest

Version = tuple[VersionManifest, Model]
CLASSES = 20
"""Classes that a sheet has room for."""
EACH = 10
"""Images of each class on a sheet."""
HINT = "another number of steps, or another seed: --synthetic-steps N, --seed N"
_NAMES = {"generator": "a generator", "pixels": "pixels"}


class Sample(NamedTuple):
    """Synthetic images ``pixels`` uint8 ``(N, S, S, 3)``, the class each is taken for by the
    version that they were made from, by its rule, and their features ``(N, D)`` in the diagnosed
    one."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    features: NDArray[np.float32]

    def sheet(self, names: list[str]) -> dict[str, NDArray[np.uint8]]:
        """Return a few images of each class that is shown, of at most ``CLASSES`` classes.

        By name and how many there are of it.
        """
        present = np.unique(self.labels)
        chosen = present[evenly(len(present), CLASSES)].tolist()
        of_class = {row: self.pixels[self.labels == row] for row in chosen}
        return {f"{names[row]} ({len(own)})": own[:EACH] for row, own in of_class.items()}

    def shown(self, names: list[str]) -> dict[str, int]:
        """Return how many images are taken for each of the classes ``names``."""
        counts = np.bincount(self.labels, minlength=len(names)).tolist()
        return dict(zip(names, counts, strict=True))


def _recipe(manifest: VersionManifest) -> Recipe | None:
    """Return the method of a version; None where it is not known here.

    A kept generator (``warm_start``) is not gone on from: that of a diagnosis begins anew.
    """
    try:
        return recipe_of_version(manifest)
    except UsageError:  # a method that is not installed here
        return None


def plain(head_kind: str) -> Dreaming:
    """Return how images are made where the method makes none: pixels, by ABD's losses.

    Of logits that nobody uses nothing is asked.
    """
    if head_kind == "unused":
        return Dreaming(batch=64, objective=Inversion(content=0, diversity=0), varied=False)
    return Dreaming(batch=64)


def make(
    source: Version,
    version: Version,
    compute: Compute,
    count: int,
    steps: int | None,
    seed: int,
    listener: Listener,
) -> Sample:
    """Return ``count`` images of what ``source`` knows, as ``version`` sees them.

    They are made as the method of ``version`` makes them, in its steps unless ``steps`` are
    given, or drawn from what ``source`` keeps; where it does neither, pixels are optimised by
    ABD's losses. ``listener`` hears what is done.

    Raises:
        AdoptError: the network of ``source`` has no batch-norm statistics.
        TrainingError: a loss became NaN, or all images show one class in every attempt.
    """
    (origin, before), (manifest, model) = source, version
    recipe, preprocess = _recipe(manifest), manifest.input
    if recipe is not None and recipe.draws is not None and before.kept.names:
        kept = f"from what version {origin.version} keeps"
        unused = "" if steps is None else "; nothing is optimised: the steps have no effect"
        listener(Note(f"synthetic images as {manifest.method} draws them, {kept}{unused}"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "synthesis"))
            pixels = to_pixels(recipe.draws(before.kept, preprocess, count), preprocess)
    else:
        pixels = _synthesised(source, manifest, recipe, compute, count, steps, seed, listener)
    # They are as large as the network's input: there is nothing to cut off.
    whole = replace(preprocess, resize=preprocess.size)
    nothing = torch.zeros(count, dtype=torch.int64)
    labels = look(before, ImageSet(pixels, nothing), whole, compute).scores.argmax(dim=1)
    seen = look(model, ImageSet(pixels, labels), whole, compute)
    return Sample(pixels.numpy(), labels.numpy(), seen.features.numpy())


def _synthesised(
    source: Version,
    manifest: VersionManifest,
    recipe: Recipe | None,
    compute: Compute,
    count: int,
    steps: int | None,
    seed: int,
    listener: Listener,
) -> Tensor:
    origin, before = source
    own = recipe and recipe.dreams
    manner = own or plain(origin.head_kind)
    other = "" if steps else "; --synthetic-steps N for fewer"
    steps = steps or manner.steps
    by = f"as {manifest.method} makes them" if own else f"{manifest.method} makes none of its own"
    if recipe is not None and recipe.draws is not None:
        by = f"what {manifest.method} draws them from is not stored any more"
    what = f"synthetic images by {steps:,} steps of {_NAMES[manner.source]}"
    listener(Note(f"{what}: {by}{other}"))
    net = before.net.to(compute.torch_device).eval()
    return synthesise(
        net, manifest.input, count, steps, seed, source=manner.source,
        batch=manner.batch or int(manifest.training["batch_size"]), lr=manner.lr,
        mode=manner.mode, objective=manner.objective, varied=manner.varied, hint=HINT,
        say=lambda text: listener(Note(text)),
        told=lambda done, total: listener(Stage("synthesising images", done, total)),
    )  # fmt: skip
