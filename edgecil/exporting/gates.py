"""The gates in order, on real images where there are any and on noise otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto

from edgecil.data.images import ImageSet
from edgecil.errors import DataError
from edgecil.exporting import verify
from edgecil.exporting.calibrate import IMAGES, as_array, image_files, spread
from edgecil.exporting.graph import core_module
from edgecil.exporting.sessions import Pixels, latency_ms, noise_images, open_session, scores
from edgecil.exporting.synthetic import Images, SyntheticImages
from edgecil.exporting.task import Task
from edgecil_runtime.bundle import SelfTest
from edgecil_runtime.images import fit_square, read_image

_PROBES = 32  # images of the comparison with torch
_TESTS = 2000  # test images used at most
_SELFTEST = 4


@dataclass(frozen=True)
class Gates:
    """What the gates measured, and the self-test that travels with the bundle."""

    parity: verify.Comparison
    agreement: verify.Comparison | None
    accuracy: dict[str, verify.Accuracy] | None
    latency_ms: dict[str, float]
    selftest: SelfTest


def verified(
    task: Task,
    fp32: ModelProto,
    shipped: ModelProto,
    calibration: Images | None,
    test: ImageSet | None,
    max_drop: float,
    min_agreement: float,
) -> Gates:
    """Return what was measured on the float32 and the shipped graph.

    Raises:
        VerificationError: a gate failed.
        DataError: an image of the calibration folder cannot be read, or there is no test image.
    """
    squares, basis = _probe(task, calibration, test)
    graphs = {"fp32": open_session(fp32)}
    if shipped is not fp32:
        graphs["int8"] = open_session(shipped)
    last = list(graphs.values())[-1]
    inputs = task.inputs(squares)
    wide = scores(graphs["fp32"], inputs)
    verify.check_labels(len(task.labels), wide)
    expected = verify.torch_scores(
        core_module(task.net, task.rule), task.preprocess, squares[:_PROBES]
    )
    parity = verify.check_parity(expected, wide[:_PROBES], basis)
    agreement = accuracy = None
    narrow = wide
    if "int8" in graphs:
        narrow = scores(graphs["int8"], inputs)
        agreement = verify.check_agreement(wide, narrow, basis, min_agreement)
    if test is not None:
        truth = spread(test.labels.cpu().numpy(), _TESTS)
        accuracy = verify.check_accuracy(wide, narrow, truth, task.first_new, max_drop)
    times = {name: latency_ms(session, inputs[0]) for name, session in graphs.items()}
    selftest = _selftest(task, graphs["fp32"], last)
    return Gates(parity, agreement, accuracy, times, selftest)


def _probe(
    task: Task, calibration: Images | None, test: ImageSet | None
) -> tuple[Pixels, verify.Basis]:
    # Stored images (N, R, R, 3) to compare the graphs on: real ones where there are any.
    side = task.preprocess.resize
    if test is not None:
        if not len(test):
            raise DataError("the test data holds no image")
        rows = torch.from_numpy(spread(np.arange(len(test)), _TESTS)).to(test.pixels.device)
        return as_array(test.pixels.index_select(0, rows)), "real"
    if isinstance(calibration, Path):
        files = spread(image_files(calibration), _PROBES)
        images = [fit_square(read_image(path, task.max_pixels), side) for path in files]
        return np.stack(images), "real"
    if isinstance(calibration, SyntheticImages):
        return spread(calibration.pixels, IMAGES), "synthetic"
    if calibration is not None:
        return spread(as_array(calibration), IMAGES), "real"
    return noise_images(_PROBES, side, side), "noise"


def _selftest(task: Task, fp32: Any, shipped: Any) -> SelfTest:
    # Another size than the network's, so that the resize in the graph is tested too; where it
    # is not in the graph, one that the runtime only has to crop. A device may round
    # differently, but not by more than int8 differs from float32.
    side = task.preprocess.resize
    sides = (side, side) if task.fixed_input else (side + side // 4 + 1, side + side // 2)
    images = noise_images(_SELFTEST, *sides)
    inputs = task.inputs(images)
    expected, answer = scores(fp32, inputs), scores(shipped, inputs)
    rounding = verify.PARITY * max(1.0, float(np.abs(answer).max()))
    tolerance = max(rounding, float(np.abs(expected - answer).max()))
    return SelfTest(images, answer, tolerance)
