"""Learning an increment into a workspace: from a request to a committed version."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from edgecil.data.images import ImageSet
from edgecil.engine import increment
from edgecil.engine.compute import Compute, pick_device, pick_threads, time_precision
from edgecil.engine.distributed import join
from edgecil.engine.events import Listener, Note, Stage, ignore
from edgecil.engine.increment import Outcome
from edgecil.engine.loop import Session
from edgecil.errors import (
    DependencyMissing,
    UsageError,
)
from edgecil.evaluation import Evaluation, evaluate_images
from edgecil.learning.intake import decode_tests
from edgecil.learning.planning import check_budget
from edgecil.learning.prepare import Job, prepare
from edgecil.learning.record import record
from edgecil.learning.request import LearnRequest
from edgecil.learning.unfinished import Unfinished, begin, kept_where_it_can_go_on
from edgecil.memory.process import watch_device
from edgecil.model import Model, weight_file
from edgecil.nets.build import build
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
    if resume and (request is not None or discard):
        raise UsageError("resume continues the interrupted run: it takes no other settings")
    unfinished = Unfinished.of(workspace, memory_budget) if resume else None
    if unfinished is not None:
        request = unfinished.request
    if request is None:
        raise UsageError("nothing to learn: no folder of new images was given")
    world = join(pick_device(request.device))
    with workspace.locked() if world.leads else contextlib.nullcontext():
        if discard and world.leads:
            workspace.discard_run()
        world.barrier()
        if unfinished is None:
            workspace.refuse_unfinished()
        elif unfinished.is_committed(workspace):
            return _committed(workspace, listener)
        world.barrier()  # nobody looks for an unfinished run any more: it may be written
        job = prepare(request, workspace, listener)
        if unfinished is not None:
            unfinished.refuse_changes(job, workspace)
        check_budget(job)
        tests = decode_tests(
            job.request, job.images, job.parent, job.names, job.preprocess, workspace.root,
            lambda text: listener(Note(text)),
        )  # fmt: skip
        chosen = choose_compute(job) if unfinished is None else unfinished.compute
        compute = replace(world.share(chosen), device=str(job.device))
        torch.set_num_threads(compute.threads)
        saved = None
        if unfinished is not None:
            saved = unfinished.load_state(job, workspace, leads=world.leads)
        elif world.leads:
            begin(job, workspace, compute)
        deadline = math.inf if time_limit is None else time.monotonic() + time_limit
        session = Session(
            compute, job.preprocess, job.augment, request.seed, world, listener, should_stop,
            deadline, folder=workspace.run,
        )  # fmt: skip
        watch_device(job.device)
        with kept_where_it_can_go_on(request, workspace, leads=world.leads):
            outcome = increment.train(
                job.task, job.sets, session, saved=saved, paths=job.images.paths
            )
            return _finish(job, outcome, tests, workspace, session)


def _committed(workspace: Workspace, listener: Listener) -> LearnResult:
    """Return the version of a run that was killed when all but its clean-up was done."""
    listener(Note("the run had finished: its version is the current one"))
    manifest = workspace.manifest()
    return LearnResult(manifest, None, workspace.path(manifest.version))


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
        manifest = record(
            workspace.next_version(), job, outcome, model, session.compute, evaluation
        )
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
