"""The diagnosis of a workspace: measures as one JSON object, and figures beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecil import metrics
from edgecil.data.images import ImageSet
from edgecil.data.source import align, listed
from edgecil.diagnosis import figures
from edgecil.diagnosis.distance import Plane, bandwidth, neighbour_plane, principal_plane
from edgecil.diagnosis.look import evenly, lineage, look
from edgecil.diagnosis.measures import NEW, OLD, SYNTHETIC, Diagnosis, distances
from edgecil.diagnosis.synthetic import Sample, Version, make
from edgecil.engine.compute import Compute, inference_compute
from edgecil.engine.events import Listener, Note, ignore
from edgecil.errors import DataError, DependencyMissing
from edgecil.learning.intake import load_images, scan_tests
from edgecil.model import Model
from edgecil.versions import load_version
from edgecil.workspace import VersionManifest, Workspace
from edgecil_runtime.container import write_atomic

REPORT = "diagnose.json"
DRAWN = 300
"""Points of each sample in a plane; t-SNE is computed from these alone."""
FEWEST = 4

PathLike = str | os.PathLike[str]
Say = Callable[[str], None]
Samples = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class _Case:
    """A version, and how it is run."""

    place: Workspace
    manifest: VersionManifest
    model: Model
    compute: Compute
    listener: Listener

    def say(self, text: str) -> None:
        """Tell the user."""
        self.listener(Note(text))

    @property
    def old(self) -> int:
        """Number of classes before the version's own increment; all classes of a first version."""
        groups = self.manifest.groups
        return sum(groups[:-1]) or groups[0]

    def read(self, path: PathLike, *, all_classes: bool = True) -> ImageSet:
        """Return the images of the classes that the version knows; tell about missing ones."""
        folder = align(scan_tests(path), self.manifest.names)
        for note in folder.notes if all_classes else ():
            self.say(note)
        return load_images(folder, self.manifest.input, self.place.root).images


def diagnose(
    test_data: PathLike,
    *,
    new_data: PathLike | None = None,
    workspace: PathLike | None = None,
    version: int | None = None,
    output: PathLike | None = None,
    synthetic: int = 0,
    steps: int | None = None,
    seed: int = 0,
    device: str = "auto",
    listener: Listener = ignore,
) -> Diagnosis:
    """Return the diagnosis of a version; its figures and ``diagnose.json`` are in ``output``.

    Classes of the version's own increment are new, those before it old; of a first version all
    are old. Real new images are those of ``new_data`` where it is given, else test images.
    ``synthetic`` images of the old classes are made from the version before, as the version's
    method makes them, in its own number of ``steps`` unless one is given, or drawn from what that
    keeps; where the method does neither, by 300 steps of pixels.

    Raises:
        DataError: there are no images of old classes, or none of the new ones in ``new_data``.
        WorkspaceError: there is no such version, or it is damaged.
        AdoptError: no images can be made of the version before: it has no batch norms.
        TrainingError: all images that were made of it show one class, in every attempt.
    """
    place = Workspace.find(workspace)
    manifest, model = load_version(place, version)
    case = _Case(place, manifest, model, inference_compute(device), listener)
    tests = case.read(test_data)
    is_old = tests.labels.cpu() < case.old
    if not bool(is_old.any()):
        raise DataError(f"{test_data}: no image of the {case.old} old classes")
    seen = look(model, tests, manifest.input, case.compute)
    samples = {OLD: seen.features[is_old].numpy(), NEW: seen.features[~is_old].numpy()}
    if new_data is not None:
        samples[NEW] = _new_features(case, new_data)
    samples = {name: rows for name, rows in samples.items() if len(rows)}
    drift, grid = lineage(place, manifest, tests, seen, case.compute)
    counts = metrics.confusion(
        tests.labels.cpu().numpy(), seen.scores.argmax(dim=1).numpy(), len(manifest.names)
    )
    folder = Path(f"diagnosis-v{manifest.version}" if output is None else output)
    folder.mkdir(parents=True, exist_ok=True)
    # What takes a moment is written before the synthesis, which may take hours and be stopped.
    files = figures.confusion(counts, manifest.names, manifest.groups, folder)
    files += figures.attention(grid, folder) if grid is not None else []
    shown = None
    if synthetic:
        made = _dreamed(case, synthetic, steps, seed)
        samples[SYNTHETIC] = made.features
        shown = made.shown(manifest.names[: case.old])
        if unseen := [name for name, images in shown.items() if not images]:
            case.say(f"no synthetic image is taken for: {listed(unseen)}")
        files += figures.sheet(made.sheet(manifest.names), folder)
    files += _planes(samples, folder, case.say)
    sigma = bandwidth(samples[OLD])
    found = Diagnosis(
        manifest.version, manifest.method, tuple(manifest.names), case.old, counts,
        distances(samples, sigma), sigma, drift, (*files, folder / REPORT), shown,
    )  # fmt: skip
    text = json.dumps(found.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(folder / REPORT, f"{text}\n".encode())
    return found


def _new_features(case: _Case, path: PathLike) -> NDArray[np.float32]:
    images = case.read(path, all_classes=False)
    images = images.subset(images.labels >= case.old)
    if not len(images):
        raise DataError(f"{path}: no image of the new classes of version {case.manifest.version}")
    features = look(case.model, images, case.manifest.input, case.compute).features
    rows: NDArray[np.float32] = features.numpy()
    return rows


def _before(case: _Case) -> Version:
    """Return the version that a version's own increment began with; of a first one itself."""
    parent = case.manifest.parent
    for number in case.place.lineage(case.manifest.version)[1:]:
        # A renamed version follows one with the same classes.
        if len(case.place.manifest(number).classes) <= case.old:
            return load_version(case.place, number)
    if parent is not None:
        return load_version(case.place, parent)
    case.say("synthetic images are made from the first version itself: there is none before")
    return case.manifest, case.model


def _dreamed(case: _Case, count: int, steps: int | None, seed: int) -> Sample:
    version = case.manifest, case.model
    return make(_before(case), version, case.compute, count, steps, seed, case.listener)


def _planes(samples: Samples, folder: Path, say: Say) -> list[Path]:
    """Draw the features by PCA, whose axes all images decide, and by t-SNE of those drawn."""
    every = np.concatenate(list(samples.values()))
    if len(every) < FEWEST:
        say(f"{len(every)} images are too few to draw their features")
        return []
    rows = {name: evenly(len(part), DRAWN) for name, part in samples.items()}
    files: list[Path] = []
    whole = principal_plane(every)
    offsets = np.cumsum([0, *(len(part) for part in samples.values())])
    shown = {
        name: whole.points[offset + np.array(rows[name])]
        for name, offset in zip(samples, offsets, strict=False)
    }
    files += figures.plane(shown, whole, folder, "features", "component")
    few: Samples = {name: part[rows[name]] for name, part in samples.items()}
    try:
        embedded = neighbour_plane(np.concatenate(list(few.values())))
    except DependencyMissing as missing:
        say(f"{missing.message}: {missing.hint}")
        return files
    return files + figures.plane(_split(embedded, few), embedded, folder, "tsne", "t-SNE")


def _split(plane: Plane, parts: Mapping[str, Any]) -> dict[str, NDArray[np.float64]]:
    stops = np.cumsum([len(part) for part in parts.values()])[:-1]
    return dict(zip(parts, np.split(plane.points, stops), strict=True))
