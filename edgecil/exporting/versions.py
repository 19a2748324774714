"""From a version to a bundle: graph, calibration, int8, gates, and only then the files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto

from edgecil.data.images import ImageSet
from edgecil.engine.events import Listener, Note, Stage, ignore
from edgecil.errors import EdgecilError, UsageError
from edgecil.exporting.calibrate import as_array, calibrate
from edgecil.exporting.delta import open_previous
from edgecil.exporting.gates import verified
from edgecil.exporting.graph import (
    core_graph,
    with_front,
    with_metadata,
)
from edgecil.exporting.packages import require_onnxruntime
from edgecil.exporting.quantise import Ranges, quantise
from edgecil.exporting.report import ExportReport
from edgecil.exporting.sessions import Pixels
from edgecil.exporting.synthetic import Images, Synthetic, SyntheticImages
from edgecil.exporting.targets import Target
from edgecil.exporting.task import Precision, Task
from edgecil.exporting.writing import write
from edgecil.nets.net import Net
from edgecil.nets.rules import Rule
from edgecil.settings import Preprocess
from edgecil_runtime import bundle
from edgecil_runtime.errors import RuntimeFault
from edgecil_runtime.images import MAX_PIXELS
from edgecil_runtime.manifest import (
    check_file_name,
)

MIN_AGREEMENT = 0.9
MAX_DROP = 1.0


def export_version(
    net: Net,
    rule: Rule,
    preprocess: Preprocess,
    labels: Sequence[tuple[str, int]],
    *,
    name: str,
    version: int,
    parent: int | None,
    method: str,
    output: Path,
    ranges: Ranges | None = None,
    calibration: Images | Synthetic | None = None,
    listener: Listener = ignore,
    test: ImageSet | None = None,
    precision: Precision = "int8",
    fixed_input: bool = False,
    max_drop: float = MAX_DROP,
    min_agreement: float = MIN_AGREEMENT,
    max_pixels: int = MAX_PIXELS,
    delta_from: Path | None = None,
    target: Target | None = None,
    force: bool = False,
) -> ExportReport:
    """Return the report of the bundle written to ``output/<name>-v<version>/``.

    ``labels`` are (name, increment) in order of the scores. Int8 takes its ranges from
    ``calibration`` (a folder, stored images ``(N, R, R, 3)``, or such as are made from the
    network) or else from recorded ``ranges``. ``test`` images turn the drop of accuracy into a
    gate: at most ``max_drop`` percentage points for old, new and all classes. ``delta_from`` is
    an earlier bundle: a delta from it is written too, and an int8 graph keeps its scales where
    they fit. ``target`` bounds the images, decides where they are resized, and must fit the
    bundle. ``force`` replaces a bundle of the name, once the new one has passed all gates.

    Raises:
        VerificationError: a gate failed; nothing was written.
        UsageError: int8 without ranges and images, a bad name, the bundle is there already, or
            ``delta_from`` is no bundle of that name.
        BudgetError: the bundle does not fit ``target``.
        DependencyMissing: onnxruntime is not installed.
        EdgecilError: the disk is full or not writable; nothing stays behind.
    """
    if target is not None:
        max_pixels = target.max_pixels
        fixed_input = fixed_input or not target.resize_in_graph
    previous = None if delta_from is None else open_previous(delta_from, name)
    task = Task(
        net, rule, preprocess, tuple(labels), name, version, parent, method, precision,
        fixed_input, max_pixels, previous, target,
    )  # fmt: skip
    try:
        return _export(
            task,
            Path(output),
            ranges,
            calibration,
            test,
            listener,
            max_drop=max_drop,
            min_agreement=min_agreement,
            force=force,
        )
    except OSError as error:
        reason = error.strerror or error
        raise EdgecilError(f"cannot write a bundle to {output}: {reason}") from None


def _export(
    task: Task,
    output: Path,
    ranges: Ranges | None,
    calibration: Images | Synthetic | None,
    test: ImageSet | None,
    listener: Listener,
    *,
    max_drop: float,
    min_agreement: float,
    force: bool,
) -> ExportReport:
    require_onnxruntime()
    preprocess = task.preprocess
    _check(task, output, ranges, calibration, force)
    images = _made(task, calibration, listener)
    with task.stage("graph"):
        core = core_graph(task.net, task.rule, preprocess)
        fp32 = with_front(core, preprocess, fixed_input=task.fixed_input)
        with_metadata(fp32, task.metadata())
    source: dict[str, Any] = {"source": "none"}
    shipped = fp32
    if task.precision == "int8":
        with task.stage("calibrate"):
            ranges, source = _ranges(core, preprocess, ranges, images, task.max_pixels)
        with task.stage("quantise"):
            narrow = task.target is not None and task.target.reduce_range
            shipped = quantise(fp32, ranges, _int8_graph(task.previous), reduce_range=narrow)
    with task.stage("verify"):
        gates = verified(task, fp32, shipped, images, test, max_drop, min_agreement)
    return write(task, fp32, shipped, source, gates, output)


def _check(
    task: Task, output: Path, ranges: Ranges | None, calibration: object, force: bool
) -> None:
    try:
        check_file_name(task.name)
    except RuntimeFault as error:
        raise UsageError(f"bundle name {task.name!r}: {error.message}") from None
    there = next(place for place in (output, *output.parents) if place.exists())
    if not there.is_dir():
        raise UsageError(f"{there} is a file: no bundle fits into it", hint="give a folder: -o DIR")
    target = output / f"{task.name}-v{task.version}"
    if target.exists() and not (force and (target / bundle.MANIFEST).is_file()):
        raise UsageError(
            f"{target} is there already",
            hint="it is no bundle: remove it, or give another -o DIR"
            if force
            else "--force replaces it: devices that have it then take no delta from it; "
            "or give another -o DIR",
        )
    if task.precision == "int8" and not ranges and calibration is None:
        raise UsageError(
            "int8 needs activation ranges, and this version has none recorded",
            hint="give a folder of images: --calibrate DIR, or take images made from the model: "
            "--calibrate synthetic, or export with --precision fp32",
        )


def _made(task: Task, calibration: Images | Synthetic | None, listener: Listener) -> Images | None:
    """Return the images to calibrate with, after making them where they are synthetic."""
    if not isinstance(calibration, Synthetic):
        return calibration
    if task.precision != "int8":
        listener(Note("fp32 has no ranges: no synthetic images are made"))
        return None
    text = "making synthetic images"
    listener(Stage(text))
    with task.stage("synthesise"):
        return calibration.make(
            task.net, task.preprocess, lambda done, total: listener(Stage(text, done, total))
        )


def _int8_graph(previous: bundle.Bundle | None) -> ModelProto | None:
    if previous is None or previous.manifest.precision != "int8":
        return None
    return onnx.load(previous.model_path)


def _ranges(
    core: ModelProto,
    preprocess: Preprocess,
    ranges: Ranges | None,
    calibration: Images | None,
    max_pixels: int,
) -> tuple[Ranges, dict[str, Any]]:
    if calibration is None:
        return ranges or {}, {"source": "recorded"}
    images: Path | Pixels
    if isinstance(calibration, SyntheticImages):
        source, images = "synthetic", calibration.pixels
    elif isinstance(calibration, Path):
        source, images = "folder", calibration
    else:
        source, images = "images", as_array(calibration)
    found = calibrate(core, preprocess, images, max_pixels=max_pixels)
    return found.ranges, {
        "source": source,
        "images": found.images,
        "peak_rss_bytes": found.peak_rss_bytes,
    }
