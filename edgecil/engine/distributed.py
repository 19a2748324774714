"""Several processes as one trainer: torch's launcher and process groups, nothing home-made.

Started by ``torchrun``, every rank draws the same global batch and takes its slice. One
all-reduce a step carries the gradients, weighted by the share of images, and the averaged
batch-norm statistics, so that all ranks are equal to the bit after every step. Batch statistics
are those of the slice, as in DistributedDataParallel.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The ranks that train together; (0, 1) is a single process."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this rank selects, writes and reports."""
        return self.rank == 0

    def any(self, flag: bool, device: torch.device) -> bool:
        """Return whether ``flag`` is true in any rank."""
        if self.size == 1:
            return flag
        value = torch.tensor(float(flag), device=device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value.item())

    def share(self, value: T) -> T:
        """Return the leading rank's ``value`` in every rank."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box)
        return box[0]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()

    def reduce(self, parameters: list[nn.Parameter], net: nn.Module, share: float) -> None:
        """Replace gradients by their sum weighted with ``share``, batch-norm statistics by means.

        ``share`` is this rank's part of the images of the global batch, in [0, 1]. Other buffers of
        ``net`` are equal in all ranks as they are.
        """
        if self.size == 1:
            return
        gradients = [
            (torch.zeros_like(p) if p.grad is None else p.grad).mul_(share) for p in parameters
        ]
        statistics = _statistics(net)
        parts = gradients + [s / self.size for s in statistics]
        flat = torch.cat([part.flatten() for part in parts])
        dist.all_reduce(flat)
        pieces = torch.split(flat, [part.numel() for part in parts])
        for parameter, gradient, piece in zip(parameters, gradients, pieces, strict=False):
            # Copied back, not viewed: fused optimisers need the parameter's memory format.
            parameter.grad = gradient.copy_(piece.view_as(parameter))
        for buffer, piece in zip(statistics, pieces[len(gradients) :], strict=True):
            buffer.copy_(piece.view_as(buffer))


def _statistics(net: nn.Module) -> list[Tensor]:
    """Return the running means and variances of all batch norms that have some."""
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    both = [s for norm in norms for s in (norm.running_mean, norm.running_var)]
    return [s for s in both if s is not None]


def join(device: torch.device) -> World:
    """Return the world that ``torchrun`` set up, joining its process group on the first call."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return World(dist.get_rank(), size)
