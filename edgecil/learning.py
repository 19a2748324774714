"""Learning an increment into a workspace: from a request to a committed version."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from edgecil._version import __version__
from edgecil.data.images import ImageSet
from edgecil.engine import increment, state
from edgecil.engine.compute import Compute, pick_device, pick_threads, time_precision
from edgecil.engine.distributed import join
from edgecil.engine.events import Listener, Note, Stage, ignore
from edgecil.engine.increment import Outcome
from edgecil.engine.loop import Session
from edgecil.errors import (
    AdoptError,
    BudgetError,
    DataError,
    DependencyMissing,
    Interrupted,
    OutOfMemory,
    TrainingError,
    UsageError,
    WorkspaceError,
)
from edgecil.evaluation import Evaluation, evaluate_images
from edgecil.intake import decode_tests, test_folders
from edgecil.memory.process import device_peak, peak_memory, watch_device
from edgecil.model import Model, classifier_bytes, weight_file
from edgecil.nets.build import build
from edgecil.planning import check_budget
from edgecil.prepare import Job, prepare
from edgecil.request import LearnRequest
from edgecil.workspace import MEMORY, WEIGHTS, VersionManifest, Workspace


@dataclass(frozen=True)
class LearnResult:
    """A committed version."""

    manifest: VersionManifest
    evaluation: Evaluation | None
    """Accuracy on the test images, where there were any."""
    path: Path
    """Folder of the version."""


def learn(
    request: LearnRequest | None,
    workspace: Workspace,
    *,
    resume: bool = False,
    discard: bool = False,
    memory_budget: int | None = None,
    time_limit: float | None = None,
    listener: Listener = ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> LearnResult:
    """Return the version that the request taught, after committing it.

    ``resume`` continues the interrupted run (``request`` must then be None), ``discard``
    throws it away first. ``memory_budget`` in bytes replaces the budget of a run that is
    resumed. ``time_limit`` is in seconds. Under ``torchrun`` all ranks train and the first one
    writes.

    Raises:
        Interrupted: stopped by ``should_stop`` or the time limit; resume continues.
        OutOfMemory: the device had no room for a step; where there is more, resume continues.
        BudgetError: what is kept does not fit; if it shows after training, resume continues.
        EdgecilError: whatever else went wrong; the workspace is as it was.
    """
    if resume:
        if request is not None or discard:
            raise UsageError("resume continues the interrupted run: it takes no other settings")
        request, settled = LearnRequest.load(workspace.run)
        first_budget = request.memory_budget
        if memory_budget == request.memory_budget:
            memory_budget = None
        if memory_budget is not None:
            request = replace(
                request, memory_budget=memory_budget, exemplars_per_class=None, exemplars_total=None
            )
    elif request is None:
        raise UsageError("nothing to learn: no folder of new images was given")
    else:
        settled, first_budget = {}, None
    world = join(pick_device(request.device))
    with workspace.locked() if world.leads else contextlib.nullcontext():
        if discard and world.leads:
            workspace.discard_run()
        world.barrier()
        if not resume:
            workspace.refuse_unfinished()
        elif settled["version"] in workspace.versions():
            return _committed(workspace, listener)
        world.barrier()  # nobody looks for an unfinished run any more: it may be written
        job = prepare(request, workspace, listener)
        _refuse_changes(job, settled, workspace)
        check_budget(job)
        tests = decode_tests(
            job.request, job.images, job.parent, job.names, job.preprocess, workspace.root,
            lambda text: listener(Note(text)),
        )  # fmt: skip
        chosen = Compute.from_json(settled["compute"]) if settled else choose_compute(job)
        compute = replace(world.share(chosen), device=str(job.device))
        torch.set_num_threads(compute.threads)
        if world.leads and not resume:
            number = {"version": workspace.next_version(), "compute": compute.to_json()}
            job.request.save(workspace.run, **number, **_identity(job))
        deadline = math.inf if time_limit is None else time.monotonic() + time_limit
        session = Session(
            compute, job.preprocess, job.augment, request.seed, world, listener, should_stop,
            deadline, folder=workspace.run,
        )  # fmt: skip
        saved = state.load(workspace.run) if resume else None
        if saved is not None and memory_budget is not None:
            _refuse_trained_exemplars(job, workspace, saved, first_budget)
        if memory_budget is not None and world.leads:
            job.request.save(workspace.run, **settled)  # if this is stopped, too, it stays
        watch_device(job.device)
        try:
            outcome = increment.train(
                job.task, job.sets, session, saved=saved, paths=job.images.paths
            )
            return _finish(job, outcome, tests, workspace, session)
        except BudgetError as error:
            if not state.exists(workspace.run):  # nothing was trained yet
                if world.leads:
                    workspace.discard_run()
                raise
            # Hours of training are not thrown away because their memory is too small.
            stores = workspace.command("edgecil learn --resume --memory-budget BYTES")
            hint = f"what was trained waits: {stores} stores it, --discard starts over"
            raise BudgetError(error.message, hint=hint) from None
        except Interrupted as error:
            again = workspace.command("edgecil learn --resume")
            raise Interrupted(error.message, hint=again) from None
        except OutOfMemory as error:
            # Other programs may have had the memory: the run waits.
            over = request.command(
                *error.smaller.split(), "--discard", "--workspace", str(workspace.root)
            )
            hint = f"{over}; or make room and {workspace.command('edgecil learn --resume')}"
            raise OutOfMemory(error.message, smaller=error.smaller, hint=hint) from error
        except (AdoptError, TrainingError, DataError):
            # It would fail in the same way again: there is nothing to resume.
            if world.leads:
                workspace.discard_run()
            raise


def _committed(workspace: Workspace, listener: Listener) -> LearnResult:
    """Return the version of a run that was killed when all but its clean-up was done."""
    listener(Note("the run had finished: its version is the current one"))
    manifest = workspace.manifest()
    return LearnResult(manifest, None, workspace.path(manifest.version))


def _identity(job: Job) -> dict[str, Any]:
    parent = job.parent.version if job.parent else None
    others = {f"images of {name}": value for name, value in job.other_fingerprints.items()}
    return {"fingerprint": job.images.fingerprint, "parent": parent, **others}


def _refuse_changes(job: Job, settled: dict[str, Any], workspace: Workspace) -> None:
    """Refuse to resume on other images or another version than the run began with."""
    for name, value in _identity(job).items() if settled else ():
        if settled[name] != value:
            what = {"fingerprint": f"the images in {job.request.new_data}"}
            what["parent"] = "the current version"
            began = settled["parent"] if name == "parent" else None
            earlier = workspace.command(f"edgecil rollback {began}")
            back = f", or first {earlier}" if began else ""
            over = workspace.command("edgecil learn --discard --new-data dir/")
            raise WorkspaceError(
                f"{what.get(name, f'the {name}')} changed since the run was interrupted",
                hint=f"{over} to start over{back}",
            )


def _refuse_trained_exemplars(
    job: Job, workspace: Workspace, saved: state.Saved, first: int | None
) -> None:
    """Refuse another budget where exemplars are trained: as many as the ``first`` one takes.

    A larger one is taken at the end of a phase: what was trained may not have fit the first.
    """
    if job.recipe.selection is None or job.recipe.selection.candidates is None:
        return
    now = job.task.budget.bytes
    if not saved.over or first is None or now is None or now < first:
        raise UsageError(
            f"{job.recipe.name} trains as many exemplars as its first budget takes: it is settled",
            hint=f"{workspace.command('edgecil learn --resume')}, or --discard to start over",
        )


def choose_compute(job: Job) -> Compute:
    """Return where and how to compute.

    The precision is the given one, that of the version before on the same device, or chosen by
    timing.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(pick_threads())
    precision = job.request.precision
    before = job.parent.training if job.parent else {}
    if precision == "auto" and before.get("device") == str(job.device):
        precision = before["precision"]
    elif precision == "auto":
        net = build(job.task.spec, job.task.classes.seen)
        net = net.to(job.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        side = job.preprocess.size
        trial = torch.randn(32, 3, side, side, device=job.device)
        precision = time_precision(net, trial, job.device)
    return Compute(str(job.device), torch.get_num_threads(), precision)


def _finish(
    job: Job, outcome: Outcome, tests: ImageSet | None, workspace: Workspace, session: Session
) -> LearnResult:
    """Evaluate, record ranges, commit: on the leading rank, while the others wait."""
    evaluation = None
    if session.world.leads:
        evaluation = _evaluate(job, outcome.model, tests, session)
        model = _with_ranges(job, outcome.model, session.listener)
        session.listener(Stage("saving"))
        manifest = _manifest(job, outcome, model, workspace, session, evaluation)
        kept = model.kept.encode()
        files = {WEIGHTS: weight_file(model)} | ({MEMORY: kept} if kept else {})
        workspace.commit(manifest, files)
    session.world.barrier()
    manifest = workspace.manifest()
    return LearnResult(manifest, evaluation, workspace.path(manifest.version))


def _evaluate(
    job: Job, model: Model, tests: ImageSet | None, session: Session
) -> Evaluation | None:
    if tests is None:
        return None
    session.listener(Stage("evaluating"))
    # In the precision of evaluate and of the exported graph, so that one model has one figure.
    compute = replace(session.compute, precision="float32")
    return evaluate_images(
        model, tests, job.preprocess, compute, job.names, job.task.classes.groups
    )


def _with_ranges(job: Job, model: Model, listener: Listener) -> Model:
    """Return the model with recorded activation ranges, so that int8 export needs no data."""
    if not job.request.record_ranges:
        return model
    from edgecil.exporting.calibrate import record_ranges

    listener(Stage("recording activation ranges"))
    pixels = job.images.sample(256)
    try:
        ranges = record_ranges(model.net.cpu(), model.rule.cpu(), job.preprocess, pixels)
    except DependencyMissing as error:
        job.notes.append(f"no activation ranges were recorded: {error.message}")
        listener(Note(job.notes[-1]))
        return model
    return Model(model.net, model.rule, model.kept, ranges)


def _manifest(
    job: Job, outcome: Outcome, model: Model, workspace: Workspace, session: Session,
    evaluation: Evaluation | None,
) -> VersionManifest:  # fmt: skip
    request, groups = job.request, job.task.classes.groups
    increments = [i for i, n in enumerate(groups, start=1) for _ in range(n)]
    clock = outcome.clock
    kept = model.kept.report()
    return VersionManifest(
        version=workspace.next_version(),
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
        training={
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
            **session.compute.to_json(),
        },
        test=None if evaluation is None else _test_record(job, evaluation),
        notes=job.notes,
        increments=job.task.classes.increment,
        edgecil_version=__version__,
    )


def _updated(job: Job) -> list[dict[str, int]]:
    """Return head row and number of new images of the known classes that were taught again."""
    counts = torch.bincount(job.images.new.labels.cpu(), minlength=len(job.names)).tolist()
    return [{"class": row, "images": counts[row]} for row in job.task.classes.updated]


def _test_record(job: Job, evaluation: Evaluation) -> dict[str, Any]:
    """Return accuracies and the folders they came from, for later increments to use again."""
    wanted = ("top1", "top5", "n", "old", "new", "by_increment")
    values = evaluation.to_json()
    folders = [str(f) for f in test_folders(job.request, job.images, job.parent)]
    return {**{key: values[key] for key in wanted}, "folders": folders}
