"""Writing what has passed the gates: a trial on the device runtime, the bundle, the delta."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from onnx import ModelProto

from edgecil._version import __version__
from edgecil.errors import VerificationError
from edgecil.exporting.child import run_child
from edgecil.exporting.delta import make_delta
from edgecil.exporting.footprint import activation_bytes, weights_bytes
from edgecil.exporting.gates import Gates
from edgecil.exporting.graph import IR_VERSION, OPSET
from edgecil.exporting.report import ExportReport
from edgecil.exporting.targets import check_fit
from edgecil.exporting.task import Task
from edgecil_runtime import bundle
from edgecil_runtime.errors import RuntimeFault
from edgecil_runtime.manifest import (
    Label,
    Manifest,
    MemoryNeed,
    Preprocessing,
    Requirements,
)

OLDEST_ONNXRUNTIME = "1.16"


def write(
    task: Task,
    fp32: ModelProto,
    shipped: ModelProto,
    source: Mapping[str, Any],
    gates: Gates,
    output: Path,
) -> ExportReport:
    """Return the report of the bundle written to ``output``, after a trial on this machine.

    ``source`` is what is known of the calibration. A delta from the task's previous bundle is
    written beside it.

    Raises:
        VerificationError: the device runtime refuses the bundle; nothing was written.
        BudgetError: it does not fit the task's target; nothing was written.
        EdgecilError: no delta would be smaller than the bundle.
        OSError: the disk is full or not writable.
    """
    files = {
        bundle.MODEL: shipped.SerializeToString(deterministic=True),
        bundle.SELFTEST: bundle.encode_selftest(gates.selftest),
    }
    report = ExportReport(
        path=output / f"{task.name}-v{task.version}",
        name=task.name,
        version=task.version,
        method=task.method,
        precision=task.precision,
        fixed_input=task.fixed_input,
        labels=task.labels,
        file_bytes={name: len(data) for name, data in files.items()},
        fp32_bytes=fp32.ByteSize(),
        parity=gates.parity,
        agreement=gates.agreement,
        accuracy=gates.accuracy,
        latency_ms=gates.latency_ms,
        weights_bytes=weights_bytes(shipped),
        activation_bytes=activation_bytes(shipped, task.preprocess),
        device_memory={},
        calibration=dict(source),
        seconds=task.seconds,
        target=task.target,
    )
    with task.stage("trial"), tempfile.TemporaryDirectory(prefix="edgecil-trial-") as folder:
        report = replace(report, device_memory=_trial(_written(task, report, files, folder)))
    if task.target is not None:
        check_fit(
            task.target,
            model_peak=report.device_memory["peak_rss_bytes"],
            file_bytes=sum(report.file_bytes.values()),
            ir=IR_VERSION,
            opset=OPSET,
            precision=task.precision,
        )
    with task.stage("write"), _aside(report.path):
        path = _written(task, report, files, output)
    if task.previous is None:
        return report
    with task.stage("delta"):
        delta = make_delta(task.previous, bundle.open_bundle(path), output)
    return replace(report, delta=delta)


@contextlib.contextmanager
def _aside(folder: Path) -> Iterator[None]:
    """Put a folder aside, if it is there: it comes back when what shall replace it fails."""
    if not folder.exists():
        yield
        return
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    folder.rename(old)
    try:
        yield
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old)


def _written(
    task: Task, report: ExportReport, files: Mapping[str, bytes], output: Path | str
) -> Path:
    manifest = _manifest(task, report).to_json()
    del manifest["files"]
    try:
        return bundle.write_bundle(output, manifest, files)
    except RuntimeFault as error:
        raise VerificationError(error.message, hint=error.hint) from None


def _trial(folder: Path) -> dict[str, int]:
    # The last gate: the device runtime loads it in a process of its own, and it passes its test.
    answer = run_child("edgecil.exporting.trial_worker", {"bundle": str(folder)})
    if "error" in answer:
        raise VerificationError(f"the device runtime refuses the bundle: {answer['error']}")
    return {name: answer[name] for name in ("peak_rss_bytes", "anon_bytes")}


def _manifest(task: Task, report: ExportReport) -> Manifest:
    preprocess = task.preprocess
    return Manifest(
        name=task.name,
        version=task.version,
        parent=task.parent,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        edgecil_version=__version__,
        method=task.method,
        labels=tuple(Label(*label) for label in task.labels),
        preprocess=Preprocessing(
            preprocess.size, preprocess.resize, preprocess.mean, preprocess.std
        ),
        score_kind=task.rule.score_kind,
        precision=task.precision,
        fixed_input=task.fixed_input,
        input_name="image",
        output_name="scores",
        max_pixels=task.max_pixels,
        requires=Requirements(OLDEST_ONNXRUNTIME, OPSET, IR_VERSION),
        memory=MemoryNeed(report.weights_bytes, report.activation_bytes),
        calibration=report.calibration,
        measured=report.measured(),
        files={},
        target=None if task.target is None else task.target.entry(),
    )
