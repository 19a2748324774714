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
from edgecil.synthesis.training import Objective, Schedule, fit, insist

RATES = {"pixels": 0.05, "generator": 1e-3}
"""Adam's learning rate of each source."""
ATTEMPTS = 3


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
) -> Tensor:
    """Return ``count`` synthetic images, uint8 ``(count, S, S, 3)`` on the CPU.

    ``net`` is not changed, and computes where it is; the result depends on the arguments alone.
    ``steps`` are those of each batch of pixels, or of the generator, which learns from ``batch``
    images at a time however few are wanted; ``told(done, total)`` hears of them. Images that
    shall be ``varied`` and are all taken for one class are made again, up to three times in all,
    and ``say`` is told.

    Raises:
        AdoptError: the network has no batch-norm statistics.
        TrainingError: a loss became NaN, or all images show one class in every attempt.
    """
    check_statistics(net)
    teacher, wanted = freeze(net), objective or Inversion()
    device = next(teacher.parameters()).device
    part, rate = min(batch, count), RATES[source] if lr is None else lr
    images = torch.empty(0)

    def attempt(number: int) -> None:
        nonlocal images
        torch.manual_seed(stream_seed(seed, "synthesis", number))
        made: Pixels | Generator
        if source == "pixels":
            made = Pixels(preprocess, count, part, steps).to(device)
            length = made.total_steps
        else:
            made, length = Generator(preprocess.size).to(device), steps
        fit(made, teacher, wanted, teacher.classes, Schedule(length, batch, rate), told)
        made.train(mode == "train")
        with torch.no_grad():
            images = made.all() if isinstance(made, Pixels) else _drawn(made, count, part)

    def counts() -> Tensor:
        with torch.no_grad():
            logits = torch.cat([teacher(part).logits for part in torch.split(images, part)])
        return torch.bincount(logits[:, : teacher.classes].argmax(dim=1), minlength=teacher.classes)

    cuda = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        attempt(1)
        if count > 1 and varied:
            insist(counts, attempt, ATTEMPTS, say)
    return to_pixels(images, preprocess).cpu()


def _drawn(generator: Generator, count: int, batch: int) -> Tensor:
    starts = range(0, count, batch)
    return torch.cat([generator.draw(min(batch, count - start)) for start in starts])
