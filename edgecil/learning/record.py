"""What a version says about how it was learned: settings and measurements."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch

from edgecil._version import __version__
from edgecil.engine.compute import Compute
from edgecil.engine.increment import Outcome
from edgecil.evaluation import Evaluation
from edgecil.learning.intake import test_folders
from edgecil.learning.prepare import Job
from edgecil.manifest import VersionManifest
from edgecil.memory.process import device_peak, peak_memory
from edgecil.model import Model, classifier_bytes


def record(
    version: int,
    job: Job,
    outcome: Outcome,
    model: Model,
    compute: Compute,
    evaluation: Evaluation | None,
) -> VersionManifest:
    """Return the manifest of a version that was learned; peaks are those of this process."""
    request, groups = job.request, job.task.classes.groups
    increments = [i for i, n in enumerate(groups, start=1) for _ in range(n)]
    kept = model.kept.report()
    return VersionManifest(
        version=version,
        parent=job.parent.version if job.parent else None,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        method=job.recipe.name,
        options=dict(request.options),
        classes=[
            {"name": name, "increment": i} for name, i in zip(job.names, increments, strict=True)
        ],
        net=model.net.spec.to_json(),
        head_kind=job.recipe.head_kind,
        rule={"kind": model.rule.kind, "score_kind": model.rule.score_kind},
        preprocess=job.preprocess.to_json(),
        classifier_bytes=classifier_bytes(model),
        kept={
            "bytes": kept.kept_bytes,
            "fields": kept.fields(),
            "codec": request.codec,
            "exemplar_size": request.exemplar_size,
            "budget": request.limits,
            "exemplars_per_class": outcome.exemplars_per_class,
        },
        training=_training(job, outcome, compute),
        test=None if evaluation is None else _test(job, evaluation),
        notes=job.notes,
        increments=job.task.classes.increment,
        edgecil_version=__version__,
    )


def _training(job: Job, outcome: Outcome, compute: Compute) -> dict[str, Any]:
    request, clock = job.request, outcome.clock
    return {
        **asdict(job.task.training),
        "seed": request.seed,
        "preset": request.preset,
        "augment": asdict(job.augment),
        "new_images": len(job.images.new),
        "new_images_per_class": job.class_sizes[job.task.classes.old :],
        "updated": _updated(job),
        "new_image_bytes": job.images.file_bytes,
        "images": outcome.images,
        "seconds": clock.seconds,
        "cpu_seconds": clock.cpu_seconds,
        "images_per_second": outcome.images / max(clock.seconds, 1e-9),
        "memory_bytes": dict(outcome.training_bytes),
        "peak_rss_bytes": peak_memory()["peak_rss_bytes"],
        "peak_device_bytes": device_peak(job.device),
        **compute.to_json(),
    }


def _updated(job: Job) -> list[dict[str, int]]:
    """Return head row and number of new images of the known classes that were taught again."""
    counts = torch.bincount(job.images.new.labels.cpu(), minlength=len(job.names)).tolist()
    return [{"class": row, "images": counts[row]} for row in job.task.classes.updated]


def _test(job: Job, evaluation: Evaluation) -> dict[str, Any]:
    """Return accuracies and the folders they came from, for later increments to use again."""
    wanted = ("top1", "top5", "n", "old", "new", "by_increment")
    values = evaluation.to_json()
    folders = [str(f) for f in test_folders(job.request, job.images, job.parent)]
    return {**{key: values[key] for key in wanted}, "folders": folders}
