"""Small things that tests share: images with a class, sessions, tasks."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from PIL import Image

from edgecil import registry
from edgecil.bench.runner import Variant
from edgecil.context import Classes
from edgecil.data.images import ImageSet
from edgecil.engine import increment
from edgecil.engine.compute import Compute
from edgecil.engine.increment import Task
from edgecil.engine.loop import Session
from edgecil.engine.selection import exemplar_images
from edgecil.memory.budget import Budget
from edgecil.nets.net import NetSpec
from edgecil.settings import CIFAR, Augment, Optim, Training
from edgecil.versions import recipe_of

SIDE = 32

# Every method by itself, and the plug-ins on a host or two each.
METHODS = [name for name, info in registry.methods().items() if info.kind == "method"]
METHODS += ["lwf-mc+aux", "lwf-mc+mmd", "icarl+aux", "icarl+m2kd", "lwf+muc", "mas+muc"]
METHODS += ["icarl+mfgr", "icarl+mnemonics", "bic+mnemonics:mode=prototype:weight_transfer=on"]
METHODS += ["lwf-coreset+mnemonics:oversample=off", "lucir+mnemonics:weight_transfer=on"]


def pixels_of(label: int, count: int, seed: int = 0) -> np.ndarray:
    """Return uint8 images ``(count, 32, 32, 3)``: a coloured square at a place, and noise."""
    random = np.random.default_rng([label, seed])
    images = random.integers(0, 60, (count, SIDE, SIDE, 3), dtype=np.uint8)
    row, column = 4 + 12 * (label % 2), 4 + 12 * (label // 2 % 2)
    colour = 90 + 150 * np.array([label % 3 == 0, label % 3 == 1, label % 3 == 2])
    images[:, row : row + 12, column : column + 12] = colour
    return images


def image_set(labels: range, count: int = 12, seed: int = 0) -> ImageSet:
    """Return ``count`` images of each of the labels."""
    pixels = np.concatenate([pixels_of(label, count, seed) for label in labels])
    rows = torch.tensor([label for label in labels for _ in range(count)])
    return ImageSet(torch.from_numpy(pixels), rows)


def write_folder(root, labels, count: int = 12, seed: int = 0, suffix: str = ".png"):
    """Write class folders ``class-<label>`` of image files and return ``root``."""
    for label in labels:
        folder = root / f"class-{label}"
        folder.mkdir(parents=True)
        for number, image in enumerate(pixels_of(label, count, seed)):
            Image.fromarray(image).save(folder / f"{number:03d}{suffix}")
    return root


def equal(left, right) -> bool:
    """Return whether two networks are equal to the bit."""
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def session(**changes) -> Session:
    """Return a quiet float32 CPU session."""
    compute = Compute("cpu", 1, "float32")
    return Session(compute, CIFAR, Augment(), **changes)


TRAINING = Training(epochs=2, batch_size=16, optim=Optim(lr=0.05))


# Options whose defaults are meant for real images: a toy sees a few steps of synthesis, which
# show hardly more than one class, and few of what trains pixels.
SMALL = {
    "synthesis_steps": 4, "collapse": "accept",
    "inner_steps": 1, "inner_batch": 4, "outer_epochs": 2, "exemplar_epochs": 1,
    "pixel_lr": 0.01,  # steps that show in 8-bit pixels after two epochs
    "ratio": 0.25, "vae_width": 2, "vae_latent": 8,
}  # fmt: skip


def small(method: str) -> dict[str, object]:
    """Return the options with which a method is small enough for a toy."""
    names = {f.name for part in registry.option_fields(method).values() for f in part}
    return {name: value for name, value in SMALL.items() if name in names}


def built(method: str, options=None, codec="raw", exemplar_size=None):
    """Return the recipe of ``method``, which may be ``method:name=value:name=value``."""
    variant = Variant.parse(method)
    wanted = {**variant.options, **(options or {})}
    # Options of a generator are refused where there is none.
    no_generator = variant.method == "mfgr" and wanted.get("kd_synthetic") is False
    first = {} if no_generator else small(variant.method)
    return recipe_of(variant.method, {**first, **wanted}, codec, exemplar_size)


def task(method: str, groups, previous=None, budget=None, options=None, **changes) -> Task:
    """Return the task of learning the last of ``groups`` with ``method``, written as in benches."""
    stored = {name: changes.pop(name) for name in ("codec", "exemplar_size") if name in changes}
    recipe = built(method, options, **stored)
    everything = recipe.selection is not None and recipe.selection.everything
    limit = Budget() if everything else budget or Budget(per_class=5)
    width = changes.pop("width", None)
    head = "cosine" if recipe.head_kind == "cosine" else "linear"
    spec = NetSpec(changes.pop("arch", "resnet8"), head, width)
    return Task(
        recipe, Classes(tuple(groups)), spec, changes.pop("training", TRAINING), limit, previous,
        **changes,
    )  # fmt: skip


def sets_of(given: Task, new: ImageSet) -> dict[str, ImageSet]:
    """Return the sets that a task trains on."""
    empty = ImageSet(new.pixels[:0], new.labels[:0])
    replays = given.previous is not None and given.recipe.selection is not None
    others = {s.name: image_set(range(90, 94), 5) for s in given.recipe.sources}
    return {
        **others,
        "new": new,
        "kept": exemplar_images(given.previous.kept, SIDE) if replays else empty,
    }


def files_of(images: ImageSet, folder) -> list:
    """Write every image as a PNG file and return the paths, in order."""
    paths = []
    folder.mkdir(parents=True, exist_ok=True)
    for number, (image, label) in enumerate(zip(images.pixels, images.labels, strict=True)):
        paths.append(folder / f"{int(label)}-{number}.png")
        Image.fromarray(image.numpy()).save(paths[-1])
    return paths


def increments(method: str, sizes, folder, count: int = 12, seed: int = 0, **changes):
    """Yield the outcomes of learning increments of the given sizes, one after another."""
    previous, first = None, 0
    for number, size in enumerate(sizes, start=1):
        new = image_set(range(first, first + size), count)
        given = task(method, sizes[:number], previous, **changes)
        paths = files_of(new, folder / f"increment-{number}")
        outcome = increment.train(given, sets_of(given, new), session(seed=seed), paths=paths)
        yield outcome
        previous = outcome.model
        first += size


def learn(method: str, sizes, folder, **settings):
    """Return the outcomes of :func:`increments`."""
    return list(increments(method, sizes, folder, **settings))


def changed(method: str, **options):
    """Return the recipe of a method with some options set."""
    return dataclasses.replace(registry.build(method, options))
