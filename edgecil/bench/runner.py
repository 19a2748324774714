"""One run: a method under a protocol with a seed, increment by increment, resumable."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from edgecil import metrics
from edgecil._version import __version__
from edgecil.bench.bases import Bases
from edgecil.bench.layouts import Listing, link
from edgecil.bench.protocol import Protocol
from edgecil.data.images import ImageSet
from edgecil.data.source import align, scan
from edgecil.engine.compute import Precision, inference_compute
from edgecil.engine.events import Listener, ignore
from edgecil.errors import UsageError
from edgecil.evaluation import Evaluation, evaluate_images
from edgecil.learning.intake import load_images
from edgecil.learning.request import LearnRequest
from edgecil.learning.run import learn
from edgecil.registry import presets
from edgecil.versions import load_version
from edgecil.workspace import VersionManifest, Workspace
from edgecil_runtime.container import write_atomic

ROWS = "rows.json"
NO_PART = ("summary", "source", "notes", "published", "known")
"""Fields of a protocol that decide no result."""


@dataclass(frozen=True)
class Variant:
    """A method with the options that differ from its defaults, written ``lwm:gamma=0.2``.

    ``preset`` among them names a preset of the method: ``abd:preset=abd-released``.
    """

    method: str
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Variant:
        """Return the variant that ``method`` or ``method:name=value:name=value`` describes.

        Raises:
            UsageError: it is written otherwise.
        """
        method, *pairs = text.strip().split(":")
        options = dict(pair.partition("=")[::2] for pair in pairs)
        if not method or not all(name and value for name, value in options.items()):
            raise UsageError(f"{text!r} is no method", hint="like lwm or lwm:gamma=0.2:beta=1")
        return cls(method, options)

    def __str__(self) -> str:
        return ":".join([self.method, *(f"{k}={v}" for k, v in self.options.items())])


@dataclass(frozen=True)
class Run:
    """What one JSON file is the result of."""

    protocol: Protocol
    variant: Variant
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of :class:`LearnRequest` that the user set for all runs: budget, codec, epochs."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    timed: Precision | None = None
    """What timing chose where the precision is ``auto``."""

    @property
    def key(self) -> str:
        """The name of the run's file: one per method, options, settings and seed."""
        extras = [f"{k}={v}" for k, v in sorted(self.settings.items()) if v is not None]
        return "-".join(
            [str(self.variant).replace(":", "-").replace("/", "_"), *extras, f"seed{self.seed}"]
        )

    @property
    def digest(self) -> str:
        """A name for all that was asked for: the key, and the protocol with all it decides."""
        asked = asdict(self)
        del asked["timed"]
        asked["settings"] = {k: v for k, v in self.settings.items() if v is not None}
        asked["protocol"] = {k: v for k, v in asked["protocol"].items() if k not in NO_PART}
        text = json.dumps(asked, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def request(self, folder: Path, classes: tuple[str, ...], *, base: bool) -> LearnRequest:
        """Return what to ask of one increment."""
        protocol, method = self.protocol, self.variant.method
        options = dict(self.variant.options)
        preset = protocol.preset if protocol.preset in presets(method) else None
        preset = options.pop("preset", preset)
        settings: dict[str, Any] = {
            "epochs": protocol.epochs, "training": protocol.training,
            "augment": protocol.augment, "preset": preset,
        }  # fmt: skip
        if base:
            start = ("arch", "image_size", "preprocess", "weights")
            settings |= {name: getattr(protocol, name) for name in start}
        limits = ("exemplars_total", "exemplars_per_class", "memory_budget")
        if not any(self.settings.get(name) for name in limits):
            settings |= {name: getattr(protocol, name) for name in limits[:2]}
        return LearnRequest(
            str(folder), method, options=options, seed=self.seed,
            class_order=classes, record_ranges=False, device=self.device,
            precision=self.timed or self.precision,
            **{**settings, **{k: v for k, v in self.settings.items() if v is not None}},
        )  # fmt: skip


def execute(
    run: Run,
    listing: Listing,
    work: Path,
    *,
    listener: Listener = ignore,
    should_stop: Callable[[], bool] = lambda: False,
    on_increment: Callable[[int, dict[str, Any]], None] = lambda number, row: None,
    bases: Bases | None = None,
) -> dict[str, Any]:
    """Return the result of a run as a JSON object.

    ``work`` is a folder of the run's own: what is there is continued.
    ``on_increment(number, row)`` is told the measures of every increment. ``bases`` are those of
    runs that may begin alike.

    Raises:
        Interrupted: ``should_stop`` said so; the same call continues.
        EdgecilError: an increment cannot be learned.
    """
    order = run.protocol.class_names(listing.classes, run.seed)
    sizes = run.protocol.sizes(len(order))
    workspace = Workspace(work / "workspace")
    rows: list[dict[str, Any]] = _read_rows(work / ROWS)
    tests: ImageSet | None = None
    for number, stop in enumerate(np.cumsum(sizes).tolist(), start=1):
        if number <= len(rows):
            continue
        classes = tuple(order[stop - sizes[number - 1] : stop])
        if not workspace.exists() or number not in workspace.versions():
            folder = link(listing.train, classes, work / f"increment-{number}")
            request = run.request(folder, classes, base=number == 1)
            resume, watch = workspace.waits, listener
            if bases is not None and number == 1 and not resume:
                resume = bases.begin(request, workspace)
                watch = bases.watching(request, workspace, listener)
            learn(
                None if resume else request, workspace, resume=resume, listener=watch,
                should_stop=should_stop,
            )  # fmt: skip
        if tests is None:
            tests = _test_images(listing, order, work, workspace)
        rows.append(_row(*_evaluate(workspace, number, tests)))
        write_atomic(work / ROWS, json.dumps(rows).encode())
        on_increment(number, rows[-1])
    return {**_result(run, rows, workspace.manifest()), "digest": run.digest}


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return rows


def _test_images(listing: Listing, order: list[str], work: Path, at: Workspace) -> ImageSet:
    """Return the test images of all classes of the run, labelled in its order: in memory, or on
    the disk of ``work``."""
    folder = align(scan(link(listing.test, order, work / "test")), order)
    return load_images(folder, at.manifest().input, work).images


def _evaluate(
    workspace: Workspace, version: int, tests: ImageSet
) -> tuple[VersionManifest, Evaluation]:
    manifest, model = load_version(workspace, version)
    compute = inference_compute(manifest.training["device"])
    images = tests.rows_of((tests.labels < len(manifest.names)).nonzero().flatten())
    found = evaluate_images(model, images, manifest.input, compute, manifest.names, manifest.groups)
    return manifest, found


def _row(manifest: VersionManifest, evaluation: Evaluation) -> dict[str, Any]:
    """Return what is measured after one increment."""
    training = manifest.training
    return {
        "classes": len(manifest.names),
        "top1": evaluation.top1,
        "top5": evaluation.top5,
        "task_aware": evaluation.task_aware,
        "task_aware_released": evaluation.task_aware_released,
        "by_increment": evaluation.by_increment(),
        "class_mean": float(np.nanmean(metrics.per_class(evaluation.counts))),
        "confusion": evaluation.counts.tolist(),
        "kept_bytes": manifest.kept["bytes"],
        "seconds": training["seconds"],
        "cpu_seconds": training["cpu_seconds"],
        "images": training["images"],
        "training_bytes": sum(training["memory_bytes"].values()),
        "peak_rss_bytes": training["peak_rss_bytes"],
    }


def _result(run: Run, rows: list[dict[str, Any]], manifest: VersionManifest) -> dict[str, Any]:
    accuracy = [row["top1"] for row in rows]
    matrix = np.full((len(rows), len(rows)), np.nan)
    for t, row in enumerate(rows):
        matrix[t, : t + 1] = row["by_increment"]
    training = manifest.training
    result = {
        "protocol": run.protocol.name,
        "summary": run.protocol.summary,
        "method": run.variant.method,
        "options": dict(run.variant.options),
        "preset": training["preset"],
        "settings": {k: v for k, v in run.settings.items() if v is not None},
        "seed": run.seed,
        "classes": [row["classes"] for row in rows],
        "accuracy": accuracy,
        "top5": [row["top5"] for row in rows],
        "task_aware": [row["task_aware"] for row in rows],
        "task_aware_released": [row["task_aware_released"] for row in rows],
        "average": metrics.average(accuracy),
        "average_without_base": metrics.average(accuracy[1:]) if accuracy[1:] else None,
        "average_weighted": float(np.average(accuracy, weights=[r["classes"] for r in rows])),
        "final": accuracy[-1],
        "final_class_mean": rows[-1]["class_mean"],
        "final_task_mean": metrics.task_mean(rows[-1]["by_increment"]),
        "forgetting": metrics.forgetting(matrix),
        "forgetting_of_base": metrics.forgetting_of_base(matrix[0, 0], matrix[-1, 0]),
        "by_increment": [row["by_increment"] for row in rows],
        "labels": manifest.names,
        "confusion": rows[-1]["confusion"],
        "kept_bytes": [row["kept_bytes"] for row in rows],
        "kept_fields": manifest.kept["fields"],
        "exemplars_per_class": manifest.kept["exemplars_per_class"],
        "seconds": [row["seconds"] for row in rows],
        "cpu_seconds": [row["cpu_seconds"] for row in rows],
        "images": [row["images"] for row in rows],
        "training_bytes": max(row["training_bytes"] for row in rows),
        "peak_rss_bytes": max(row["peak_rss_bytes"] for row in rows),
        "net": manifest.net,
        "preprocess": manifest.preprocess,
        "augment": training["augment"],
        "training": {
            key: training[key]
            for key in ("epochs", "batch_size", "optim", "precision", "threads", "device")
        },
        "hardware": hardware(),
        "versions": versions(),
        "commit": commit(),
    }
    return result | {"images_per_second": metrics.images_per_second(result)}


def hardware() -> str:
    """Return processor, usable cores and accelerator in words."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((x.partition(": ")[2] for x in lines if x.startswith("model name")), "?")
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{model}, {len(os.sched_getaffinity(0))} cores{gpu}"


def versions() -> dict[str, str]:
    """Return the versions of what computes, by name."""
    return {
        "edgecil": __version__, "torch": torch.__version__, "python": platform.python_version(),
    }  # fmt: skip


def commit() -> str | None:
    """Return the commit of the checkout that runs, or None outside one."""
    home = Path(__file__).parent
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=home, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return done.stdout.strip() or None
