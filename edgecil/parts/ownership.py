"""Which increment owns which weight, while an increment runs: labels, masks, pruning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgecil.context import Context
from edgecil.errors import TrainingError
from edgecil.nets.folding import conv_weights
from edgecil.parts.pruning import as_of, free_share, full_layers, take

LABELS = "snapshots.labels"
NOTABLE_SHARE = 0.1
"""Free part of the weights below which the user is told."""


class Owners(nn.Module):
    """The labels of all convolution weights, as buffers: part of the run state."""

    def __init__(self, labels: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, value in labels.items():
            self.register_buffer(name.replace(".", "/"), value)

    def labels(self) -> dict[str, Tensor]:
        """Return the labels by the name of their weight; changing them in place is lasting."""
        return {name.replace("/", "."): value for name, value in self.named_buffers()}


def build_owners(ctx: Context) -> Owners:
    """Return the labels as they were kept; at the base nobody owns anything."""
    if LABELS in ctx.kept:
        return Owners({name: torch.from_numpy(a) for name, a in ctx.kept.read(LABELS).items()})
    weights = conv_weights(ctx.net)
    return Owners({n: torch.zeros(w.shape, dtype=torch.uint8) for n, w in weights.items()})


def prune(ratio: float, ctx: Context) -> None:
    """Take the largest free weights for this increment, and make the others zero."""
    increment = ctx.classes.increment
    weights = conv_weights(ctx.net)
    for name, labels in _owners(ctx).labels().items():
        labels.copy_(take(weights[name], labels, increment, ratio))
        weights[name].data.copy_(as_of(weights[name], labels, increment))


def free_weights(ctx: Context) -> dict[str, Tensor]:
    """Return the masks of what nobody owns."""
    return {name: labels == 0 for name, labels in _owners(ctx).labels().items()}


def own_weights(ctx: Context) -> dict[str, Tensor]:
    """Return the masks of what this increment has taken."""
    increment = ctx.classes.increment
    return {name: labels == increment for name, labels in _owners(ctx).labels().items()}


def owner_arrays(ctx: Context) -> dict[str, NDArray[Any]]:
    """Return the labels for the field that keeps them."""
    # In C order: labels of weights in channels_last would be flattened in another one.
    found = _owners(ctx).labels()
    return {name: labels.cpu().contiguous().numpy() for name, labels in found.items()}


def _owners(ctx: Context) -> Owners:
    owners = ctx.modules["owners"]
    assert isinstance(owners, Owners)
    return owners


def check_room(ctx: Context, ratio: float) -> None:
    """Tell the user when few weights are free, and refuse when a layer has none to take.

    Raises:
        TrainingError: a layer has no free weight left.
    """
    if LABELS not in ctx.kept:
        return
    labels = {name: torch.from_numpy(a) for name, a in ctx.kept.read(LABELS).items()}
    share, full = free_share(labels), full_layers(labels, ratio)
    done = ctx.classes.increment - 1
    if full:
        raise TrainingError(
            f"{done} increments left {share:.2%} of the weights free, and none to take in "
            f"{len(full)} layers, such as {full[0]}",
            hint="--method lwf-mc goes on from here; a new one (--workspace DIR) lasts longer with "
            "a higher --set pruning=0.9, or with pruning=0",
        )
    if share < NOTABLE_SHARE:
        ctx.note(f"{done} increments left {share:.1%} of the weights free to learn with")
