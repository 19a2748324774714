"""Training speed: images per second of real steps, for several methods in turn.

ResNet-32 at 32 pixels, batch 128, second increment (so that teachers run), through the engine's
own loop, with a bare loop beside it. Methods take turns, so that a drift of the machine hits
all alike; a machine that is busy with other things is named in the result::

    python tests/benchmarks/training_speed.py --out docs/results/training-speed.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import toys

from edgecil.bench.runner import hardware
from edgecil.engine.compute import Compute, pick_device, time_precision
from edgecil.engine.increment import begin
from edgecil.engine.loop import PhaseRun, Session
from edgecil.memory.store import Store
from edgecil.model import Model
from edgecil.nets.build import build
from edgecil.nets.net import NetSpec
from edgecil.nets.rules import ArgmaxRule
from edgecil.settings import CIFAR, Augment, Training

METHODS = ("finetune", "lwf", "lwf-mc", "lwm")
BATCH = 128


class Bare:
    """A plain loop of the same network: what the machine can do without a method."""

    def __init__(self, arch: str, compute: Compute) -> None:
        net = build(NetSpec(arch), 20).to(compute.torch_device)
        self.net = net.to(memory_format=torch.channels_last).train()
        self.compute = compute
        self.optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, fused=True)
        images = torch.randn(BATCH, 3, 32, 32, device=compute.torch_device)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(20, (BATCH,), device=compute.torch_device)

    def step(self, number: int) -> None:
        """Execute one training step on the same batch."""
        self.optimiser.zero_grad()
        with self.compute.autocast():
            logits = self.net(self.images).logits
        torch.nn.functional.cross_entropy(logits.float(), self.labels).backward()
        self.optimiser.step()


def prepared(method: str, arch: str, compute: Compute) -> PhaseRun:
    """Return the training phase of a method's second increment, ten classes after ten."""
    previous = build(NetSpec(arch), 10).eval().requires_grad_(False)
    training = Training(epochs=1000, batch_size=BATCH)
    model = Model(previous, ArgmaxRule(10), Store(()))
    given = toys.task(method, (10, 10), model, arch=arch, training=training)
    new = toys.image_set(range(10, 20), 128).to(compute.torch_device)
    session = Session(compute, CIFAR, Augment())
    ctx, phases = begin(given, {"new": new, "kept": new.subset(torch.arange(0))}, session)
    return PhaseRun(ctx, phases[0], 0, session)


def rate(run: PhaseRun | Bare, steps: int, device: torch.device) -> float:
    """Return the images per second of ``steps`` steps."""
    start = time.perf_counter()
    for step in range(steps):
        run.step(step)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return steps * BATCH / (time.perf_counter() - start)


def main() -> None:
    """Time all methods in turn and write the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    device = pick_device(given.device)
    load = os.getloadavg()[0]
    precision = given.precision
    if precision == "auto":
        net = build(NetSpec(given.arch), 20).to(device, memory_format=torch.channels_last)
        precision = time_precision(net, torch.randn(32, 3, 32, 32, device=device), device)
    compute = Compute(str(device), torch.get_num_threads(), precision)
    runs: dict[str, PhaseRun | Bare] = {"bare loop": Bare(given.arch, compute)}
    runs |= {method: prepared(method, given.arch, compute) for method in METHODS}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        rate(run, 2, device)
    for _ in range(given.rounds):
        for name, run in runs.items():
            rates[name].append(rate(run, given.steps, device))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    result = {
        "benchmark": f"training images/s, {given.arch}, batch {BATCH}, second increment",
        "images_per_second": {name: round(value, 1) for name, value in medians.items()},
        "relative_to_finetune": {n: round(v / medians["finetune"], 3) for n, v in medians.items()},
        "spread": {n: [round(min(v), 1), round(max(v), 1)] for n, v in rates.items()},
        "precision": precision, "threads": compute.threads, "hardware": hardware(),
        "load_before": round(load, 2), "python": platform.python_version(),
        "torch": torch.__version__,
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if load > 0.5:
        print(f"note: the machine was busy (load {load:.1f})", file=sys.stderr)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
