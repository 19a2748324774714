"""Many runs, several side by side, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from edgecil.bench import layouts, results
from edgecil.bench.bases import Bases
from edgecil.bench.runner import Run, execute
from edgecil.engine.compute import pick_device, time_precision
from edgecil.errors import EdgecilError, Interrupted
from edgecil.nets.build import auto_arch, build
from edgecil.nets.net import NetSpec
from edgecil_runtime.container import write_atomic

Say = Callable[[str], None]
BASES = ".work/.bases"
_STOP = False


@dataclass(frozen=True)
class Outcome:
    """How one run ended: the path of its result, or the message of its failure."""

    run: Run
    path: Path
    error: str | None = None


def result_path(out: Path, run: Run) -> Path:
    """Return where the result of a run is, or will be."""
    return out / f"{run.key}.json"


def run_all(
    runs: Sequence[Run], data: Path, out: Path, *, jobs: int = 1, say: Say = lambda text: None
) -> list[Outcome]:
    """Return how every run ended, in order; results that are there are not made again.

    With ``jobs`` > 1 that many processes work side by side, one thread each. A run that fails
    does not stop the others.

    Raises:
        Interrupted: the user stopped; the same call continues where it was.
    """
    out.mkdir(parents=True, exist_ok=True)
    waiting = [run for run in runs if not result_path(out, run).exists()]
    for run in runs:
        if run not in waiting:
            say(f"{run.variant} seed {run.seed}: is there")
    failed: dict[str, str] = {}
    if jobs > 1:
        # Processes that share the cores with all their threads are many times slower.
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
    if waiting:
        say("reading the data set")  # once, so that packed images are unpacked once
        layouts.read(waiting[0].protocol.layout, data)
        waiting = _settle_precision(waiting)
    with ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), _listen_for_stop, max_tasks_per_child=1
    ) as pool:
        futures = {pool.submit(_one, run, data, out): run for run in waiting}
        try:
            for future in as_completed(futures):
                error = future.result()
                run = futures[future]
                say(f"{run.variant} seed {run.seed}: {error or 'done'}")
                if error is not None:
                    failed[run.key] = error
        except (KeyboardInterrupt, Interrupted):
            pool.shutdown(cancel_futures=True)
            raise Interrupted("stopped; what was learned is saved") from None
    shutil.rmtree(out / BASES, ignore_errors=True)
    return [Outcome(run, result_path(out, run), failed.get(run.key)) for run in runs]


def _settle_precision(runs: list[Run]) -> list[Run]:
    """Return the runs with one precision for all of them, timed before they disturb each other."""
    first = runs[0]
    if first.precision != "auto":
        return runs
    device = pick_device(first.device)
    arch, size = first.protocol.arch, first.protocol.image_size or 32
    if arch == "auto":
        arch, _ = auto_arch(size)
    net = build(NetSpec(arch), 10).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    chosen = time_precision(net, torch.randn(32, 3, size, size, device=device), device)
    return [replace(run, precision=chosen) for run in runs]


def _listen_for_stop() -> None:
    def stop(number: int, frame: object) -> None:
        global _STOP
        _STOP = True

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)


def _one(run: Run, data: Path, out: Path) -> str | None:
    """Make the result of one run; return what went wrong, or None."""
    parent = os.getppid()

    def stopped() -> bool:
        # A parent that was killed cannot say so.
        return _STOP or os.getppid() != parent

    def told(number: int, row: dict[str, Any]) -> None:
        text = f"{run.key}: {row['classes']} classes, {100 * row['top1']:.1f} %"
        print(text, file=sys.stderr, flush=True)

    listing = layouts.read(run.protocol.layout, data)
    work = out / ".work" / run.key
    work.mkdir(parents=True, exist_ok=True)
    try:
        result = execute(
            run, listing, work, should_stop=stopped, on_increment=told, bases=Bases(out / BASES)
        )
    except Interrupted:
        raise
    except EdgecilError as error:
        return error.message
    write_atomic(result_path(out, run), results.to_text(result).encode())
    return None
