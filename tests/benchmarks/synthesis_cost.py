"""What a step of ABD and MFGR costs beside one of finetune: naively, and with what is saved.

ResNet-32 at 32 pixels, batch 128, ten new classes after ten, through the engine's own loop. The
kinds of step take turns; processor time is measured, which other work on the machine
changes less than the clock's. A step of MFGR passes each image once as it is: nothing is saved
in it but in the synthesis before::

    python tests/benchmarks/synthesis_cost.py --out docs/results/synthesis-cost.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import naive_abd
import toys

from edgecil.bench.runner import hardware
from edgecil.engine.compute import Compute, pick_device
from edgecil.engine.increment import begin
from edgecil.engine.loop import PhaseRun, Session
from edgecil.memory.store import Store
from edgecil.model import Model
from edgecil.nets.build import build
from edgecil.nets.net import Net, NetSpec
from edgecil.nets.rules import ArgmaxRule
from edgecil.parts.dreaming import source_of
from edgecil.settings import CIFAR, Augment, Training
from edgecil.synthesis.objective import total
from edgecil.synthesis.training import dream

BATCH = 128
TRAINED_ON = {"finetune": BATCH, "abd": 2 * BATCH, "mfgr": 2 * BATCH}
"""Images of a step: as many synthetic ones as real ones."""


def solver(arch: str) -> Net:
    """Return a network of ten classes whose batch norms have seen something."""
    torch.manual_seed(0)
    net = build(NetSpec(arch), 10).train()
    with torch.no_grad():
        net(torch.randn(64, 3, 32, 32))
    return net.eval().requires_grad_(False)


def prepared(method: str, phase: int, arch: str, compute: Compute) -> PhaseRun:
    """Return a phase of a method's second increment, ten classes after ten."""
    training = Training(epochs=1000, batch_size=BATCH)
    model = Model(solver(arch), ArgmaxRule(10), Store(()))
    # As many generated images as new ones, where a toy would have a quarter.
    options = {"ratio": 1.0} if method == "mfgr" else None
    given = toys.task(method, (10, 10), model, arch=arch, training=training, options=options)
    new = toys.image_set(range(10, 20), 128).to(compute.torch_device)
    session = Session(compute, CIFAR, Augment())
    ctx, phases = begin(given, {"new": new, "kept": new.subset(torch.arange(0))}, session)
    return PhaseRun(ctx, dataclasses.replace(phases[phase], steps=100_000), phase, session)


def naive(run: PhaseRun, step: object) -> PhaseRun:
    """Return the run with a step of the naive form: ``step(argument, solver, ctx, batch)``."""
    argument = run.phase.step.args[0]  # type: ignore[attr-defined]
    taken = partial(step, argument, naive_abd.solver_of(run.ctx))  # type: ignore[arg-type]
    run.phase = dataclasses.replace(run.phase, step=taken)
    return run


def runs(arch: str, compute: Compute) -> dict[str, PhaseRun]:
    """Return the kinds of step by name."""
    return {
        "finetune": prepared("finetune", 0, arch, compute),
        "synthesis": prepared("abd", 0, arch, compute),
        "synthesis, naive": naive(prepared("abd", 0, arch, compute), naive_abd.naive_dream),
        "abd": prepared("abd", 1, arch, compute),
        "abd, naive": naive(prepared("abd", 1, arch, compute), naive_abd.naive_step),
        "recording": prepared("mfgr", 0, arch, compute),
        "recording, naive": naive(prepared("mfgr", 0, arch, compute), naive_abd.naive_dream),
        "mfgr": prepared("mfgr", 1, arch, compute),
    }


def parts(run: PhaseRun, repeats: int) -> dict[str, float]:
    """Return the seconds of the parts of a step of synthesis: what dominates it."""
    ctx = run.ctx
    source, teacher = source_of(ctx), ctx.teachers["previous"]
    objective = run.phase.step.args[0]  # type: ignore[attr-defined]
    images = torch.randn(BATCH, 3, 32, 32, device=ctx.device).requires_grad_()

    def generator() -> None:
        source.propose(BATCH, 0).sum().backward()

    def network() -> None:
        teacher(images).logits.sum().backward()

    class Given:
        @staticmethod
        def propose(count: int, step: int) -> torch.Tensor:
            return images

    def look() -> None:
        total(dream(Given(), teacher, objective, 10, BATCH, 0)).backward()  # type: ignore[arg-type]

    work = {"generator": generator, "network": network, "network and losses": look}
    found = {}
    for name, run_part in work.items():
        run_part()
        found[name] = min(seconds(lambda step, f=run_part: f(), 1, ctx.device)  # type: ignore[misc]
                          for _ in range(repeats))  # fmt: skip
    return found


def seconds(step: object, steps: int, device: torch.device) -> float:
    """Return the seconds per step: of processor time, or of the clock on a GPU."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = clock()
    for number in range(steps):
        step(number)  # type: ignore[operator]
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (clock() - start) / steps


def largest_pass(run: PhaseRun) -> int:
    """Make a step; return the images of the trained network's largest pass, 0 without one."""
    passes = [0]
    hook = run.ctx.net.register_forward_pre_hook(lambda net, args: passes.append(len(args[0])))
    run.step(0)
    hook.remove()
    return max(passes)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--arch", default="resnet32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=3, help="steps of each kind in a round")
    parser.add_argument("--rounds", type=int, default=8)
    chosen = parser.parse_args()
    device = pick_device(chosen.device)
    compute = Compute(str(device), torch.get_num_threads(), "float32")
    kinds = runs(chosen.arch, compute)
    for name, run in kinds.items():  # the first step allocates
        seen = largest_pass(run)
        if TRAINED_ON.get(name, seen) != seen:
            raise SystemExit(f"a step of {name} trains on {seen} images")
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(chosen.rounds):
        for name, run in kinds.items():
            taken[name].append(seconds(run.step, chosen.steps, device))
    found = {name: statistics.median(values) for name, values in taken.items()}
    answer = {
        "arch": chosen.arch,
        "batch": BATCH,
        "clock": "wall" if device.type == "cuda" else "processor",
        "seconds_per_step": {name: round(value, 4) for name, value in found.items()},
        "over_finetune": {name: round(v / found["finetune"], 2) for name, v in found.items()},
        "parts_of_synthesis": {
            name: round(value, 4) for name, value in parts(kinds["synthesis"], 3).items()
        },
        "rounds": chosen.rounds,
        "steps": chosen.steps,
        "threads": compute.threads,
        "load_average": os.getloadavg()[0],
        "hardware": hardware(),
        "torch": torch.__version__,
    }
    text = json.dumps(answer, indent=2)
    print(text)
    if chosen.out is not None:
        chosen.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
