"""What makes a run impossible, found before the first run starts: no step is trained."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgecil import registry
from edgecil.bench.layouts import Listing, link
from edgecil.bench.protocol import Protocol
from edgecil.bench.runner import Run
from edgecil.engine.compute import Precision, pick_device
from edgecil.errors import UsageError
from edgecil.learning.planning import kept_plan
from edgecil.learning.prepare import Job, prepare
from edgecil.learning.run import choose_compute
from edgecil.nets.build import check_arch
from edgecil.spelling import nearest
from edgecil.versions import recipe_of
from edgecil.workspace import Workspace

TRIAL = 2
"""Images of each class that a trial increment decodes."""


def check_names(runs: Iterable[Run]) -> None:
    """Do nothing when everything that the runs ask for by name is known; no image is read.

    Raises:
        UsageError: an unknown method, option, preset, network or device (the nearest names are
            offered), or a value out of its range.
    """
    for run in _variants(runs):
        request = run.request(Path(), (), base=True).inherited(None)
        assert request.method is not None and request.codec is not None
        preset = registry.preset_of(request.method, request.preset)
        options = registry.with_preset(preset, request.options)
        recipe_of(request.method, options, request.codec, request.exemplar_size)
        if request.arch != "auto":
            check_arch(request.arch)
        if preset is None:
            _check_preset(run.protocol)
        pick_device(run.device)


def check_data(runs: Iterable[Run], listing: Listing) -> None:
    """Do nothing when nothing stands against the runs on a data set.

    The first increment of every method is prepared with a few images of each class, so that all
    refusals are those of ``learn``; kept memory is planned after each increment.

    Raises:
        DataError: the data set has fewer classes than the protocol, or is another one.
        UsageError: a head of fixed width has no room for all classes.
        BudgetError: not even the least that a method keeps fits the budget.
        EdgecilError: an increment could not be prepared for another reason.
    """
    for run in _variants(runs):
        order = run.protocol.class_names(listing.classes, run.seed)
        sizes = run.protocol.sizes(len(order))
        with tempfile.TemporaryDirectory() as folder:
            _check_increments(run, listing, order, sizes, Path(folder))


def trial_precision(run: Run, listing: Listing) -> Precision:
    """Return the faster precision for the first increment of a run, by timing both."""
    order = run.protocol.class_names(listing.classes, run.seed)
    first = order[: run.protocol.sizes(len(order))[0]]
    with tempfile.TemporaryDirectory() as folder:
        return choose_compute(_prepared(run, listing, first, Path(folder))).precision


def _prepared(run: Run, listing: Listing, classes: Sequence[str], folder: Path) -> Job:
    """Return the job of a run's first increment with a few images of each of its classes."""
    images = {name: listing.train[name][:TRIAL] for name in classes}
    request = run.request(link(images, classes, folder / "new"), tuple(classes), base=True)
    return prepare(request, Workspace(folder / "workspace"))


def _check_increments(
    run: Run, listing: Listing, order: Sequence[str], sizes: Sequence[int], folder: Path
) -> None:
    task = (job := _prepared(run, listing, order[: sizes[0]], folder)).task
    width = task.spec.width
    if width is not None and len(order) > width:
        raise UsageError(
            f"{run.variant}: its head has {width} units, {run.protocol.name} {len(order)} classes"
        )
    counts = [len(listing.train[name]) for name in order]
    # The last increment first: it needs the most, and what it needs is to be told.
    for number in range(len(sizes), 0, -1):
        groups = tuple(sizes[:number])
        kept_plan(
            task.recipe, task.spec, groups, job.preprocess.resize, task.budget,
            counts[: sum(groups)], job.preprocess.size,
        )  # fmt: skip


def _variants(runs: Iterable[Run]) -> list[Run]:
    """Return one run of those that differ in the seed alone."""
    return list({(run.protocol.name, run.key.rpartition("-")[0]): run for run in runs}.values())


def _check_preset(protocol: Protocol) -> None:
    """Refuse a protocol's preset that no method has: every run would be one without it."""
    if protocol.preset is None:
        return
    known = registry.methods()
    hosts = [name for name, info in known.items() if info.kind == "method"]
    plugged = [f"{host}+{name}" for name, info in known.items() if info.plugs for host in hosts]
    every = {preset for method in (*hosts, *plugged) for preset in registry.presets(method)}
    if protocol.preset not in every:
        raise UsageError(
            f"{protocol.name}: no method has the preset {protocol.preset!r}",
            hint=nearest(protocol.preset, sorted(every)),
        )
