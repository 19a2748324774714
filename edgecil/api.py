"""What the commands do, as functions; the command line is a thin skin over them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from edgecil import foreign
from edgecil.data.decode import decode
from edgecil.data.images import ImageSet, concat
from edgecil.data.source import align, unknown_classes
from edgecil.engine.compute import inference_compute
from edgecil.engine.events import Listener, Note, Stage, ignore
from edgecil.errors import DataError, UsageError
from edgecil.evaluation import Evaluation, evaluate_images, scores
from edgecil.learning import planning, run
from edgecil.learning.intake import load_images, load_tests, scan_tests
from edgecil.learning.planning import LearnPlan
from edgecil.learning.prepare import prepare
from edgecil.learning.request import LearnRequest
from edgecil.learning.run import LearnResult
from edgecil.versions import load_version
from edgecil.workspace import VersionManifest, Workspace

if TYPE_CHECKING:
    from edgecil.exporting.report import ExportReport
    from edgecil.exporting.synthetic import Synthetic
    from edgecil.reporting import MemoryReport

PathLike = str | os.PathLike[str]
RECORDED = "recorded"
SYNTHETIC = "synthetic"
"""Calibrate with the activation ranges that were recorded while learning."""


@dataclass(frozen=True)
class Prediction:
    """The class of one image and the best scores, best first."""

    path: Path
    label: str
    score: float
    best: tuple[tuple[str, float], ...]


def _request(new_data: PathLike, method: str | None, settings: dict[str, Any]) -> LearnRequest:
    # A resumed run may start in another folder: paths are stored absolute.
    test_data, weights = settings.get("test_data"), settings.get("weights")
    if test_data is not None:
        settings["test_data"] = str(Path(test_data).absolute())
    if weights not in (None, "imagenet"):
        settings["weights"] = str(Path(weights).absolute())
    return LearnRequest(str(Path(new_data).absolute()), method, **settings)


def init(
    *,
    weights: PathLike,
    classes: PathLike,
    arch: str,
    preset: str | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    image_size: int | None = None,
    resize: int | None = None,
    head: foreign.HeadKind = "softmax",
    workspace: PathLike | None = None,
) -> VersionManifest:
    """Return the manifest of version 1, made of a model that was trained elsewhere.

    ``weights`` is a ``.safetensors``, ``.pt`` or ``.pth`` file, ``classes`` a file with the name
    of every output. How images enter the model is a ``preset`` (``imagenet``, ``cifar``) or
    ``mean`` and ``std`` of RGB in [0, 1] and ``image_size`` in pixels.

    Raises:
        EdgecilError: the files do not fit each other, or the workspace has a version already.
    """
    preprocess = foreign.preprocessing(preset, mean, std, image_size, resize)
    place = Workspace.find(workspace)
    return foreign.init(place, Path(weights), Path(classes), arch, preprocess, head)


def learn(
    new_data: PathLike | None = None,
    *,
    method: str | None = None,
    workspace: PathLike | None = None,
    resume: bool = False,
    discard: bool = False,
    time_limit: float | None = None,
    listener: Listener = ignore,
    should_stop: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> LearnResult:
    """Return the new version after learning the classes in the folder ``new_data``.

    ``settings`` are fields of :class:`edgecil.learning.request.LearnRequest`. ``resume=True``
    continues an interrupted run and takes no others but a larger ``memory_budget``.

    Raises:
        Interrupted: stopped by ``should_stop`` or after ``time_limit`` seconds.
        EdgecilError: it cannot be done; the workspace is as it was.
    """
    budget = settings.pop("memory_budget", None) if resume else None
    if resume and (method is not None or settings):
        raise UsageError("resume continues the interrupted run: it takes no other settings")
    request = None if new_data is None else _request(new_data, method, settings)
    return run.learn(
        request, Workspace.find(workspace), resume=resume, discard=discard,
        memory_budget=budget, time_limit=time_limit, listener=listener, should_stop=should_stop,
    )  # fmt: skip


def plan(
    new_data: PathLike,
    *,
    method: str | None = None,
    workspace: PathLike | None = None,
    listener: Listener = ignore,
    **settings: Any,
) -> LearnPlan:
    """Return what :func:`learn` with the same arguments would do and cost; nothing is written.

    Raises:
        EdgecilError: it cannot be done.
    """
    job = prepare(_request(new_data, method, settings), Workspace.find(workspace), listener)
    return planning.make_plan(job, run.choose_compute(job))


def evaluate(
    data: PathLike,
    *,
    workspace: PathLike | None = None,
    version: int | None = None,
    device: str = "auto",
    skip_bad: bool = False,
    ignore_unknown: bool = False,
) -> Evaluation:
    """Return the accuracy of a version on a folder of class folders.

    Raises:
        DataError: the folder has classes that the version does not know (unless ignored).
    """
    place = Workspace.find(workspace)
    manifest, model = load_version(place, version)
    folder = scan_tests(data)
    strange = unknown_classes(folder, manifest.names)
    if strange and not ignore_unknown:
        raise DataError(
            f"{folder.root} has classes that the model does not know: {', '.join(strange[:5])}",
            hint="leave them out with --ignore-unknown",
        )
    folder = align(folder, manifest.names)
    images = load_images(folder, manifest.input, place.root, skip_bad=skip_bad).images
    compute = inference_compute(device)
    return evaluate_images(model, images, manifest.input, compute, manifest.names, manifest.groups)


def predict(
    images: Sequence[PathLike],
    *,
    workspace: PathLike | None = None,
    version: int | None = None,
    device: str = "auto",
    top: int = 5,
) -> list[Prediction]:
    """Return the class of every image file, and its ``top`` best scores.

    Raises:
        DataError: a file cannot be read as an image.
    """
    manifest, model = load_version(Workspace.find(workspace), version)
    paths = [Path(image) for image in images]
    try:
        decoded = decode(paths, manifest.input.resize)
    except DataError as error:
        raise DataError(error.message) from None  # the hint is for folders
    labels = torch.zeros(len(paths), dtype=torch.int64)
    compute = inference_compute(device)
    values, _ = scores(model, ImageSet(decoded.pixels, labels), manifest.input, compute)
    predictions = []
    for path, row in zip(paths, values, strict=True):
        order = np.argsort(-row)[:top]
        best = tuple((manifest.names[i], float(row[i])) for i in order)
        predictions.append(Prediction(path, *best[0], best))
    return predictions


def report_memory(*, workspace: PathLike | None = None) -> MemoryReport:
    """Return what every method keeps between the workspace's increments, in bytes.

    Raises:
        WorkspaceError: there is no workspace.
    """
    from edgecil.reporting import report

    return report(Workspace.find(workspace))


def export(
    *,
    workspace: PathLike | None = None,
    version: int | None = None,
    output: PathLike = ".",
    name: str = "classifier",
    precision: Literal["int8", "fp32"] = "int8",
    calibrate: str = RECORDED,
    fixed_input: bool = False,
    test_data: PathLike | None = None,
    max_drop: float = 1.0,
    min_agreement: float = 0.9,
    delta_from: int | PathLike | None = None,
    target: str | None = None,
    force: bool = False,
    listener: Listener = ignore,
) -> ExportReport:
    """Return the report of the bundle written to ``output/<name>-v<n>/``.

    ``calibrate`` is ``recorded`` (ranges stored while learning: no data needed), ``synthetic``
    (images made from the model itself) or a folder of images. On test images (default: the
    folders that the version was tested on) the drop of accuracy is a gate: at most ``max_drop``
    percentage points. ``delta_from`` is an earlier bundle, or its version when it lies in
    ``output``: a delta from it is written as well.
    ``target`` is a device of :mod:`edgecil.exporting.targets`, which fills the other choices.
    ``force`` replaces a bundle of that name.

    Raises:
        VerificationError: a gate failed; nothing is written.
        BudgetError: the bundle does not fit ``target``; nothing is written.
        EdgecilError: there is nothing to calibrate with, or the bundle cannot be written.
    """
    from edgecil.exporting import targets
    from edgecil.exporting.versions import export_version

    device = None if target is None else targets.load(target)
    place = Workspace.find(workspace)
    manifest, model = load_version(place, version)
    recorded = (manifest.test or {}).get("folders", [])
    known = [path for f in recorded if (path := Path(f)).is_dir()]
    listener(Stage("reading test images"))
    sets = load_tests(
        [Path(test_data)] if test_data else known, manifest.names, manifest.input, place.root,
        lambda text: listener(Note(text)),
    )  # fmt: skip
    listener(Stage("exporting"))
    return export_version(
        model.net, model.rule, manifest.input,
        [(c["name"], c["increment"]) for c in manifest.classes],
        name=name, version=manifest.version, parent=manifest.parent, method=manifest.method,
        output=Path(output), ranges=model.ranges,
        calibration=_calibration(calibrate), listener=listener,
        test=concat(sets) if sets else None, precision=precision, fixed_input=fixed_input,
        max_drop=max_drop, min_agreement=min_agreement,
        delta_from=_earlier(delta_from, Path(output), name), target=device, force=force,
    )  # fmt: skip


def _calibration(calibrate: str) -> Path | Synthetic | None:
    from edgecil.exporting.synthetic import Synthetic

    if calibrate == SYNTHETIC:
        return Synthetic()
    return None if calibrate == RECORDED else Path(calibrate)


def _earlier(bundle: int | PathLike | None, output: Path, name: str) -> Path | None:
    if isinstance(bundle, int):
        return output / f"{name}-v{bundle}"
    return None if bundle is None else Path(bundle)
