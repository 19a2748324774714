"""Images of what a trained network knows, as uint8 pixels: for calibration, and to look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from edgecil.data.pixels import to_pixels
from edgecil.data.streams import stream_seed
from edgecil.nets.net import Net
from edgecil.nets.taps import freeze
from edgecil.settings import Preprocess
from edgecil.synthesis.generator import Generator
from edgecil.synthesis.objective import Inversion
from edgecil.synthesis.pixels import Pixels
from edgecil.synthesis.statistics import check_statistics
from edgecil.synthesis.training import Objective, Schedule, fit, insist, shown

RATES = {"pixels": 0.05, "generator": 1e-3}
"""Adam's learning rate of each source."""
FEWEST = 16
"""Images of pixels from which on it is no chance that all show one class: with two classes
2^-15. A generator shows as many as one likes."""


@dataclass(frozen=True)
class Dreaming:
    """How a method makes images."""

    source: Literal["pixels", "generator"] = "pixels"
    steps: int = 300
    """Of each batch of pixels, or of the generator."""
    lr: float | None = None
    """Adam's learning rate; None: that of the source."""
    batch: int = 0
    """Images of a step; 0: as many as in a step of training."""
    objective: Objective = field(default_factory=Inversion)
    mode: Literal["eval", "train"] = "eval"
    """Of the generator, when images are drawn from it."""
    varied: bool = True
    """Whether images that all show one class are made again."""


def _silent(text: str) -> None:
    """Tell nobody."""


def synthesise(
    net: Net,
    preprocess: Preprocess,
    count: int,
    steps: int,
    seed: int = 0,
    *,
    source: Literal["pixels", "generator"] = "pixels",
    batch: int = 64,
    lr: float | None = None,
    mode: Literal["eval", "train"] = "eval",
    objective: Objective | None = None,
    varied: bool = True,
    say: Callable[[str], None] = _silent,
    told: Callable[[int, int], None] = lambda done, total: None,
    hint: str | None = None,
) -> Tensor:
    """Return ``count`` synthetic images, uint8 ``(count, S, S, 3)`` on the CPU.

    ``net`` is not changed, and computes where it is; the result depends on the arguments alone.
    ``steps`` are those of each batch of pixels, or of the generator, which learns from ``batch``
    images at a time however few are wanted; ``told(done, total)`` hears of them. Images that
    shall be ``varied`` and are all taken for one class are made again, up to three times in all,
    and ``say`` is told: of a generator many more are looked at than are wanted, and fewer than
    ``FEWEST`` of pixels are not judged. ``hint`` is what an error tells to try.

    Raises:
        AdoptError: the network has no batch-norm statistics.
        TrainingError: a loss became NaN, or all images show one class in every attempt.
    """
    check_statistics(net)
    teacher, wanted = freeze(net), objective or Inversion()
    device = next(teacher.parameters()).device
    rate = RATES[source] if lr is None else lr
    made: Pixels | Generator

    def attempt(number: int) -> None:
        nonlocal made
        torch.manual_seed(stream_seed(seed, "synthesis", number))
        if source == "pixels":
            made = Pixels(preprocess, count, min(batch, count), steps).to(device)
            length = made.total_steps
        else:
            made, length = Generator(preprocess.size).to(device), steps
        fit(made, teacher, wanted, teacher.classes, Schedule(length, batch, rate), told, hint)
        made.train(mode == "train")

    def counts() -> Tensor:
        return shown(made, teacher, teacher.classes, batch)

    cuda = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        attempt(1)
        if varied and (source == "generator" or count >= FEWEST):
            insist(counts, attempt, say, hint)
        images = made.all() if isinstance(made, Pixels) else _drawn(made, count, batch)
    return to_pixels(images, preprocess).cpu()


@torch.no_grad()
def _drawn(generator: Generator, count: int, batch: int) -> Tensor:
    # Whole batches: in train mode an image depends on those beside it.
    return torch.cat([generator.draw(batch) for _ in range(0, count, batch)])[:count]
