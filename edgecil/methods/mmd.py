"""Multi-model distillation: old classes are taught by the network that learned them.

M2KD's ablation "MMD" (section 4.4), over ``lwf-mc`` or ``icarl``. Kept between increments: all
earlier networks, whole.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgecil.method import Recipe
from edgecil.options import option
from edgecil.parts.snapshots import History, add_snapshots

PAPER = (
    "Zhou, Mai, Zhang, Xu, Wu and Davis: M2KD: Multi-model and Multi-level Knowledge "
    "Distillation for Incremental Learning, 2019"
)


@dataclass(frozen=True)
class Options:
    """Options of ``mmd``."""

    skip: int = option(0, "oldest snapshots to drop; the next one teaches their classes", low=0)


def plug(host: Recipe, options: Options) -> Recipe:
    """Return ``host`` with all earlier networks as teachers."""
    return add_snapshots(host, History(pruning=0.0, skip=options.skip))
