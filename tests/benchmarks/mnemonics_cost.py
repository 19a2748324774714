"""Seconds and peak memory of training exemplars' pixels, each way in a process of its own.

    python tests/benchmarks/mnemonics_cost.py cost.json --outer-steps 2 --inner-steps 10

ResNet-32, ten classes of 20 exemplars of 32 x 32 pixels, 128 outer images; random weights and
images, for neither matters to the cost. Ways: ``unrolled`` with every step's graph held at once,
``checkpointed`` as the plug-in does it, ``prototype``; and ``idle``, which does everything but
the steps, for the memory that is there anyway. ``unrolled`` needs memory in proportion to inner
steps times inner batch; try ``--inner-batch 16`` first.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call

from edgecil.losses.classification import cross_entropy
from edgecil.losses.prototypes import class_prototypes, prototype_logits
from edgecil.memory.process import peak_memory
from edgecil.nets.build import build
from edgecil.nets.net import NetSpec
from edgecil.parts.unrolled import Descent, checkpointed, unrolled

CLASSES, EACH, OUTER = 10, 20, 128
WAYS = ("idle", "prototype", "checkpointed", "unrolled")


def measure(way: str, outer_steps: int, inner_steps: int, inner_batch: int) -> dict[str, float]:
    """Return wall and processor seconds of an outer step and peak memory of the process."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = build(NetSpec("resnet32"), CLASSES).eval()
    labels = torch.arange(CLASSES).repeat_interleave(EACH)
    pixels = nn.Parameter(torch.randn(CLASSES * EACH, 3, 32, 32))
    images, answers = torch.randn(OUTER, 3, 32, 32), torch.randint(CLASSES, (OUTER,))
    span = slice(0, CLASSES)
    optimiser = torch.optim.Adam([pixels], lr=0.01)

    def inner(weights, exemplars, step):
        rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(step))
        rows = rows[:inner_batch]
        logits = functional_call(net, dict(weights), (exemplars[rows],)).logits
        return cross_entropy(logits, labels[rows], span)

    def loss():
        if way == "prototype":
            with torch.no_grad():
                queries = net(images).features
            features = net(pixels).features
            fixed = torch.zeros(CLASSES, features.shape[1])
            means = class_prototypes(features, labels, fixed)
            return cross_entropy(prototype_logits(queries, means), answers, span)
        train = checkpointed if way == "checkpointed" else unrolled
        weights = train(Descent(inner, inner_steps, 0.01), dict(net.named_parameters()), pixels)
        return cross_entropy(functional_call(net, weights, (images,)).logits, answers, span)

    wall, cpu = time.monotonic(), time.process_time()
    for _ in range(0 if way == "idle" else outer_steps):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    return {
        "seconds_per_outer_step": (time.monotonic() - wall) / outer_steps,
        "cpu_seconds_per_outer_step": (time.process_time() - cpu) / outer_steps,
        "peak_rss_bytes": peak_memory()["peak_rss_bytes"],
    }


def main() -> None:
    """Measure every way in a child process and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--outer-steps", type=int, default=2)
    parser.add_argument("--inner-steps", type=int, default=10)
    parser.add_argument("--inner-batch", type=int, default=128)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    settings = (given.outer_steps, given.inner_steps, given.inner_batch)
    if given.way:
        given.output.write_text(json.dumps(measure(given.way, *settings)))
        return
    found = {}
    for way in WAYS:
        subprocess.run([sys.executable, *sys.argv, "--way", way], check=True)
        found[way] = json.loads(given.output.read_text())
        print(way, found[way])
    names = ("outer_steps", "inner_steps", "inner_batch")
    hardware = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
    report = {"settings": dict(zip(names, settings, strict=True)), **hardware, "ways": found}
    given.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
