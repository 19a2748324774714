"""Many runs, several side by side, each in a process of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import cast

import torch

from edgecil.bench import layouts, results
from edgecil.bench.checks import check_data, check_names, trial_precision
from edgecil.bench.layouts import Listing
from edgecil.bench.runner import Run
from edgecil.bench.worker import BASES, BEGUN, WORK, Fault, Worker, is_made, result_path
from edgecil.engine.compute import Precision, pick_device
from edgecil.errors import Interrupted, UsageError
from edgecil_runtime.container import write_atomic

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """How one run ended: the path of its result, or what went wrong."""

    run: Run
    path: Path
    fault: Fault | None = None


def run_all(
    runs: Sequence[Run], data: Path, out: Path, *, jobs: int = 1, say: Say = lambda text: None
) -> list[Outcome]:
    """Return how every run ended, in order; results that are there are not made again.

    A run that is given twice is made once. With ``jobs`` > 1 that many processes work side by
    side, one thread each. A run that fails does not stop the others; none starts when one of
    them cannot be made.

    Raises:
        Interrupted: the user stopped; the same call continues where it was, from any directory.
        EdgecilError: something stands against a run that can be seen before it starts; or what
            is there of it was made under other settings.
    """
    out, data = out.absolute(), data.absolute()
    _refuse_strangers(out, {run.protocol.name for run in runs})
    runs = list({run.key: run for run in runs}.values())
    waiting = [run for run in runs if not is_made(out, run)]
    for run in runs:
        if run not in waiting:
            say(f"{run.variant} seed {run.seed}: is there")
    if jobs > 1:
        # Processes that share the cores with all their threads are many times slower.
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
    if waiting:
        check_names(waiting)
        say("reading the data set")  # once, so that packed images are unpacked once
        listing = layouts.read(waiting[0].protocol.layout, data)
        check_data(waiting, listing)
        waiting = _settle_precision(waiting, listing, out / WORK)
    out.mkdir(parents=True, exist_ok=True)
    faults = _make(waiting, data, out, jobs, say)
    shutil.rmtree(out / BASES, ignore_errors=True)
    return [Outcome(run, result_path(out, run), faults.get(run.key)) for run in runs]


def _refuse_strangers(out: Path, protocols: Container[str]) -> None:
    """Refuse a folder with results of another protocol: they cannot share a table."""
    for path in sorted(out.glob("*.json")):
        found = results.read(path).get("protocol")
        if found not in protocols:
            raise UsageError(f"{path} is of another protocol, {found}", hint="give another --out")


def _make(runs: Sequence[Run], data: Path, out: Path, jobs: int, say: Say) -> dict[str, Fault]:
    """Make the results of runs; return what went wrong, by the run's key."""
    faults: dict[str, Fault] = {}
    waiting, working = list(runs), list[Worker]()
    try:
        while waiting or working:
            while waiting and len(working) < jobs:
                working.append(Worker(waiting.pop(0), data, out))
            ready = wait([worker.answers for worker in working])
            for worker in [w for w in working if w.answers in ready]:
                answer = worker.answer()
                if answer == BEGUN:
                    continue
                worker.join()
                working.remove(worker)
                run = worker.run
                if isinstance(answer, Fault):
                    faults[run.key] = answer
                    answer = answer.message
                say(f"{run.variant} seed {run.seed}: {answer}")
    except KeyboardInterrupt:
        if any(worker.begun for worker in working):
            say("stopping when the step in progress is done")
        raise Interrupted("stopped; what was learned is saved") from None
    except Interrupted:  # a worker was stopped, by the same key or by somebody else
        raise Interrupted("stopped; what was learned is saved") from None
    finally:
        for worker in working:
            worker.stop()
        for worker in working:
            worker.join()
    return faults


def _settle_precision(runs: list[Run], listing: Listing, work: Path) -> list[Run]:
    """Return the runs with one precision for all of them, and for all that follow in ``work``.

    It is timed once, before they disturb each other: a run that goes on has that of its start.
    """
    first = runs[0]
    if first.precision != "auto":
        return runs
    kept = work / f"precision-{pick_device(first.device).type}"
    if not kept.exists():
        work.mkdir(parents=True, exist_ok=True)
        write_atomic(kept, trial_precision(first, listing).encode())
    chosen = cast(Precision, kept.read_text())
    return [replace(run, timed=chosen) for run in runs]
