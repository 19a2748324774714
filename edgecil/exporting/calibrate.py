"""Activation ranges of a network, measured in a child process that stays small.

The float32 graph gets two more outputs, the extremes of every map in every image, so that a map is
freed as soon as the next layer has read it; an image more is two numbers per map more. A range
leaves out the extremes of one image in ten at either end.
"""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor

from edgecil.errors import DataError
from edgecil.exporting.child import run_child
from edgecil.exporting.graph import core_graph, with_front
from edgecil.exporting.packages import require_onnxruntime
from edgecil.exporting.quantise import Ranges, map_names
from edgecil.nets.net import Net
from edgecil.nets.rules import Rule
from edgecil.settings import Preprocess
from edgecil_runtime.images import MAX_PIXELS, is_image_name

IMAGES = 128
"""Images used at most: with evenly chosen ones the ranges hardly move beyond that."""
_PIXELS_PER_RUN = 224 * 224
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Calibration:
    """Ranges by tensor name, and how they were measured (``peak_rss_bytes`` of the child)."""

    ranges: Ranges
    images: int
    peak_rss_bytes: int
    modules: tuple[str, ...]
    """Top-level modules that the child had imported."""


def record_ranges(
    net: Net, rule: Rule, preprocess: Preprocess, pixels: Pixels | Tensor
) -> dict[str, tuple[float, float]]:
    """Return the ranges of a network on stored images ``(N, R, R, 3)``, for a later export.

    With them an int8 export needs no images at all.

    Raises:
        DependencyMissing: onnxruntime is not installed.
    """
    core = core_graph(net, rule, preprocess)
    return dict(calibrate(core, preprocess, as_array(pixels)).ranges)


def as_array(pixels: Pixels | Tensor) -> Pixels:
    """Return uint8 images as a numpy array."""
    return pixels.cpu().numpy() if isinstance(pixels, Tensor) else np.asarray(pixels)


def calibrate(
    core: ModelProto,
    preprocess: Preprocess,
    source: Pixels | Path,
    *,
    limit: int = IMAGES,
    max_pixels: int = MAX_PIXELS,
) -> Calibration:
    """Return the ranges of a core graph on a folder of images, or on ``(N, R, R, 3)`` uint8.

    At most ``limit`` images are used, evenly spaced, so that a sorted source gives all classes.

    Raises:
        DataError: no image, or one that cannot be read.
        DependencyMissing: onnxruntime is not installed.
    """
    require_onnxruntime()
    names = map_names(core)
    with tempfile.TemporaryDirectory(prefix="edgecil-calibrate-") as folder:
        model = Path(folder, "model.onnx")
        model.write_bytes(_with_extremes(core, preprocess, names).SerializeToString())
        job = {
            "model": str(model),
            "tensors": len(names),
            "pixels": None,
            "files": None,
            "resize": preprocess.resize,
            "size": preprocess.size,
            "max_pixels": max_pixels,
            "batch": max(1, min(32, _PIXELS_PER_RUN // preprocess.size**2)),
            "threads": int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))),
        }
        if isinstance(source, Path):
            job["files"] = [str(path) for path in spread(image_files(source), limit)]
        else:
            job["pixels"] = str(Path(folder, "pixels.npy"))
            np.save(str(job["pixels"]), spread(_checked(source, preprocess), limit))
        answer = run_child("edgecil.exporting.calibrate_worker", job)
    if "error" in answer:
        raise DataError(f"calibration image {answer['error']}")
    pairs = zip(answer["low"], answer["high"], strict=True)
    return Calibration(
        {name: (low, high) for name, (low, high) in zip(names, pairs, strict=True)},
        answer["images"],
        answer["peak_rss_bytes"],
        tuple(answer["modules"]),
    )


def _checked(pixels: Pixels, preprocess: Preprocess) -> Pixels:
    side = preprocess.resize
    if pixels.dtype != np.uint8 or pixels.shape[1:] != (side, side, 3):
        raise DataError(
            f"calibration images must be uint8 (N, {side}, {side}, 3), "
            f"got {pixels.dtype} {tuple(pixels.shape)}"
        )
    if not len(pixels):
        raise DataError("calibration needs at least one image, got none")
    return pixels


def image_files(folder: Path) -> list[Path]:
    """Return the images at any depth below ``folder``, sorted.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder of calibration images",
            hint="a folder, or one of the words recorded and synthetic",
        )
    files = sorted(path for path in folder.rglob("*") if is_image_name(path.name))
    if not files:
        raise DataError(f"{folder}: no image to calibrate with")
    return files


def spread(items: Any, limit: int) -> Any:
    """Return at most ``limit`` of a list or array, evenly spaced."""
    if len(items) <= limit:
        return items
    chosen = [math.floor((i + 0.5) * len(items) / limit) for i in range(limit)]
    return items[chosen] if isinstance(items, np.ndarray) else [items[i] for i in chosen]


def _with_extremes(core: ModelProto, preprocess: Preprocess, names: list[str]) -> ModelProto:
    # Adds low and high (T * N,): the extremes of each map for each image.
    model = with_front(core, preprocess, fixed_input=True)
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.asarray([1, 2, 3]), "extreme.axes"))
    for output, op in (("low", "ReduceMin"), ("high", "ReduceMax")):
        parts = [f"{output}.{name}" for name in names]
        for name, part in zip(names, parts, strict=True):
            inputs = [name, "extreme.axes"]
            graph.node.append(helper.make_node(op, inputs, [part], keepdims=0))
        graph.node.append(helper.make_node("Concat", parts, [output], axis=0))
        graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, [None]))
    return model
