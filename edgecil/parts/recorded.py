"""Generated images of old classes beside new ones: how many, how they are drawn, what they cost.

MFGR (Xin et al. 2021), as a method and over a host.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgecil.context import Classes, Context, Setup
from edgecil.method import Phase
from edgecil.options import option
from edgecil.parts.dreaming import DreamOptions, source_of
from edgecil.synthesis.dreams import Dreaming
from edgecil.synthesis.recording import Recording


@dataclass(frozen=True)
class RecordingOptions(DreamOptions):
    """How old classes are recorded (eq. (7)) and drawn from; defaults are the paper's weights."""

    synthesis_lr: float = option(1e-2, "Adam's learning rate of the generator", low=0.0, high=10.0)
    content: float = option(1.0, "weight of one-hot predictions, in eq. (4)", low=0.0)
    diversity: float = option(5.0, "lambda_1, weight of even classes, in eq. (4)", low=0.0)
    statistics: float = option(20.0, "lambda_2, weight of batch norms (eq. (5))", low=0.0)
    samples: float = option(0.1, "lambda_3, weight of unlike images (eq. (6))", low=0.0)
    activation: float = option(0.0, "weight of large features (released code: 0.1)", low=0.0)
    prior: float = option(0.0, "weight of smooth images (ABD eq. (6))", low=0.0)
    content_temperature: float = option(
        1.0, "what logits are divided by in the one-hot loss", low=0.01, high=1e6
    )
    ratio: float = option(
        1.0, "generated images per old class over real ones per new class", low=0.0, high=100.0
    )
    most: int = option(
        512, "generated images per step at most, where the ratio wants more; 0: no limit", low=0
    )
    synthetic: int = option(0, "generated images per step, whatever the ratio; 0: by it", low=0)

    @property
    def manner(self) -> Dreaming:
        """How images are made: drawn in train mode (see :func:`generated`)."""
        return replace(super().manner, mode="train")

    def objective(self) -> Recording:
        """Return what is asked of the generator."""
        return Recording(
            self.content, self.diversity, self.statistics, self.prior, self.content_temperature,
            self.entropy, self.samples, self.activation,
        )  # fmt: skip


def balanced(options: RecordingOptions, classes: Classes, real: int) -> int:
    """Return how many images the ratio wants beside ``real`` new ones.

    Section 6.2: as many of each old class as of each new one.
    """
    return round(options.ratio * real * classes.old / classes.new)


def count_of(options: RecordingOptions, classes: Classes, real: int) -> int:
    """Return how many images to generate beside ``real`` new ones: at least 2.

    By default no more than the 512 of the released code: beside one new class after 99 a balanced
    batch of 128 would have 12,672.
    """
    count = options.synthetic or balanced(options, classes, real)
    if options.most and not options.synthetic:
        count = min(count, options.most)
    return max(2, count)


def generated(options: RecordingOptions, ctx: Context, real: int) -> Tensor:
    """Return images ``(N, 3, S, S)`` of old classes to learn beside a rank's ``real`` new ones.

    Their number is that of the global batch, of which every rank makes its part, at least two:
    batch norms need them.
    """
    count = count_of(options, ctx.classes, ctx.total)
    if not options.synthetic and count < balanced(options, ctx.classes, ctx.total):
        ctx.note(
            f"old classes want as many generated images each as new ones have: {options.most} are "
            "made in a step at most (--set most=N for another number, 0 for no limit)"
        )
    first, stop = (place * count // ctx.total for place in (ctx.offset, ctx.offset + real))
    # In train mode, as in the released code: a batch then has the moments of normalised images.
    source = source_of(ctx).train()
    with torch.no_grad():
        images: Tensor = source.draw(max(2, stop - first), skip=first)
    return images.float().contiguous(memory_format=torch.channels_last)


def advised(options: RecordingOptions, train: Phase, setup: Setup) -> Phase:
    """Return ``train`` with what gives its steps fewer images, where most of them are generated."""
    batch = setup.training.batch_size
    count = count_of(options, setup.classes, batch)
    return train if count <= batch else replace(train, smaller=f"--set synthetic={count // 2}")
