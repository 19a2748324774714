"""Where and how precisely the arithmetic runs: device, threads, precision."""

from __future__ import annotations

import contextlib
import copy
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import nn

from edgecil.errors import UsageError

Precision = Literal["float32", "bfloat16"]
SAMPLE_SECONDS = 0.3
"""How long the cores are watched to see which are free."""


@dataclass(frozen=True)
class Compute:
    """A device, a thread count and a precision; recorded in a run and replayed on resume."""

    device: str
    threads: int
    precision: Precision

    @property
    def torch_device(self) -> torch.device:
        """The device for torch."""
        return torch.device(self.device)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which forward passes run."""
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.torch_device.type, torch.bfloat16)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which :meth:`from_json` makes an equal value."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Return the value that :meth:`to_json` described."""
        return cls(**data)


def pick_device(name: str) -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Under ``torchrun`` every local rank gets its own GPU.

    Raises:
        UsageError: the device is not there.
    """
    local = os.environ.get("LOCAL_RANK", "0")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device {name!r}", hint="use cpu, cuda:0 or auto") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UsageError(f"device {name} is not there: {found} GPUs found", hint="--device cpu")
    return device


def _idle_ticks() -> dict[int, int]:
    """Return the clock ticks that each usable core was idle since the start; none off Linux."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return {}
    usable = os.sched_getaffinity(0)
    rows = [line.split() for line in stat.read_text().splitlines() if line.startswith("cpu")]
    ticks = {int(row[0][3:]): int(row[4]) + int(row[5]) for row in rows if row[0] != "cpu"}
    return {core: idle for core, idle in ticks.items() if core in usable}


def pick_threads() -> int:
    """Return the torch threads to use: the cores that other processes leave free.

    Two torch processes that each take all cores are many times slower than one thread each.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    # Not the load average: it still shows what this user ran a minute ago.
    before = _idle_ticks()
    time.sleep(SAMPLE_SECONDS)
    after = _idle_ticks()
    ticks = SAMPLE_SECONDS * os.sysconf("SC_CLK_TCK")
    free = sum(min(1.0, (after[core] - before[core]) / ticks) for core in before)
    return max(1, round(free)) if before else torch.get_num_threads()


def inference_compute(device: str) -> Compute:
    """Return how to run a trained model: float32, on the threads that are free."""
    threads = pick_threads()
    torch.set_num_threads(threads)
    return Compute(str(pick_device(device)), threads, "float32")


def _seconds(run: Callable[[], None], device: torch.device, repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def time_precision(net: nn.Module, images: torch.Tensor, device: torch.device) -> Precision:
    """Return the faster precision for a training step of ``net`` on ``images``, by timing both.

    CPU flags mislead: there are processors on which bfloat16 is emulated, many times slower.
    """
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return "float32"
    trial = copy.deepcopy(net).train()
    sample = images[:32].contiguous(memory_format=torch.channels_last)
    timings: dict[Precision, float] = {}
    for precision in ("float32", "bfloat16"):
        compute = Compute(str(device), 0, precision)

        def step(compute: Compute = compute) -> None:
            with compute.autocast():
                loss = trial(sample).logits.float().square().mean()
            loss.backward()

        step()  # the first step allocates and, on CPU, packs weights
        timings[precision] = _seconds(step, device, repeats=3)
        if timings[precision] > 4 * min(timings.values()):
            break
    return min(timings, key=lambda p: timings[p])
