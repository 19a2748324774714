"""M2KD: every earlier snapshot teaches its own classes, rebuilt from the pruned network.

Multi-model and auxiliary distillation, and mask-based pruning that lets one trunk hold all
snapshots (Zhou et al. 2019). Kept between increments: which increment owns each weight, the
batch norms of every snapshot, and the head rows that teach. A method of its own over LwF-MC's
loss, and a plug-in: ``icarl+m2kd``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from edgecil.method import Preset, Recipe
from edgecil.options import option
from edgecil.parts.auxiliary import Auxiliary, add_auxiliary
from edgecil.parts.lessons import REDUCTION_HELP, REDUCTIONS, sigmoid_recipe
from edgecil.parts.snapshots import History, add_snapshots
from edgecil.settings import Augment, Optim, Schedule, Training

PAPER = (
    "Zhou, Mai, Zhang, Xu, Wu and Davis: M2KD: Multi-model and Multi-level Knowledge "
    "Distillation for Incremental Learning, 2019"
)


@dataclass(frozen=True)
class Options:
    """Options of ``m2kd``."""

    pruning: float = option(
        0.75, "part of the free weights left to later increments; 0 keeps whole snapshots",
        low=0.0, high=0.95,
    )  # fmt: skip
    skip: int = option(0, "oldest snapshots to drop; the next one teaches their classes", low=0)
    auxiliary: float = option(1.0, "weight lambda of the auxiliary loss (eq. (4))", low=0.0)
    alpha: float = option(0.5, "weight of the ground truth in it (eq. (3))", low=0.0)
    reduction: Literal["sum", "mean"] = option("sum", REDUCTION_HELP, choices=REDUCTIONS)
    finetune_lr: float = option(
        1.0, "learning rate after pruning, as a part of the training's", low=0.0
    )
    decay_base_only: bool = option(False, "weight decay in the first increment only (paper)")


def plug(host: Recipe, options: Options) -> Recipe:
    """Return ``host`` with multi-model and auxiliary distillation."""
    side = options.auxiliary > 0
    history = History(
        options.pruning, options.skip, side, options.finetune_lr, options.decay_base_only
    )
    recipe = add_snapshots(host, history)
    if not side:
        return recipe
    settings = Auxiliary(options.auxiliary, options.alpha, options.reduction)
    return add_auxiliary(recipe, settings, prefix="snapshots.")


def recipe(options: Options) -> Recipe:
    """Return the recipe of M2KD."""
    # Its base has a second stage, and an auxiliary head that is trained along.
    return replace(plug(sigmoid_recipe("m2kd", options.reduction), options), base=None)


# Section 4.2; lr 2.0 is iCaRL's, which belongs to the mean over 100 units.
_CIFAR = Training(80, 128, Optim(2.0, 0.9, 1e-5, Schedule("step", (0.5,), 0.2)))
_ILSVRC = Training(60, 128, Optim(2.0, 0.9, 1e-5, Schedule("step", (1 / 3, 2 / 3), 0.2)))
_MIRROR = Augment("centre")


def _preset(training: Training, arch: str, steps_down: int) -> Preset:
    # "Decays by a factor of 5 every" so many epochs: once more before the fine-tuning.
    finetune_lr = round(0.2 ** (steps_down + 1), 6)
    options = {"reduction": "mean", "decay_base_only": True, "finetune_lr": finetune_lr}
    return Preset(training, options, arch, head_width=100, augment=_MIRROR)


PRESETS: Mapping[str, Preset] = {
    "m2kd": _preset(_CIFAR, "resnet32", 1),
    "m2kd-ilsvrc": _preset(_ILSVRC, "resnet18", 2),
}
