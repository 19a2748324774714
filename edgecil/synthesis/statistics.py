"""What a network's batch norms see of a batch, beside what they remember of training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgecil.errors import AdoptError
from edgecil.losses.synthesis import LayerStatistics, at_least_float32
from edgecil.nets.arithmetic import full_precision

HINT = "lwm and lwf-mc keep old classes without synthetic images"


class Seen(NamedTuple):
    """One forward pass of synthetic images: logits ``(N, width)``, every batch norm, features."""

    logits: Tensor
    layers: list[LayerStatistics]
    features: Tensor


def _norms(net: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


@torch.no_grad()
def check_statistics(net: nn.Module) -> None:
    """Do nothing for a network whose batch norms remember what they were trained on.

    Raises:
        AdoptError: it has no batch norm, or none that remembers anything: the statistics are
            missing, not finite, or those of a network that was never trained.
    """
    norms = _norms(net)
    if not norms:
        raise AdoptError(
            "the network has no batch norms: without their statistics no images can be "
            "synthesised from it",
            hint=HINT,
        )
    missing = sum(n.running_mean is None or n.running_var is None for n in norms)
    if missing:
        raise AdoptError(f"{missing} batch norms of the network keep no statistics", hint=HINT)
    means = [n.running_mean for n in norms if n.running_mean is not None]
    variances = [n.running_var for n in norms if n.running_var is not None]
    if not all(bool(torch.isfinite(v).all()) for v in means + variances):
        raise AdoptError("batch-norm statistics of the network are not finite", hint=HINT)
    if not any(bool(v.any()) for v in means) and all(bool((v == 1).all()) for v in variances):
        raise AdoptError(
            "the batch norms of the network hold the statistics of an untrained one "
            "(mean 0, variance 1): they were not imported with the weights",
            hint="edgecil init --weights with a file that has running_mean and running_var; "
            + HINT,
        )


class _Moments(torch.autograd.Function):
    # On a CPU torch.var_mean over channels takes several times as long as these passes, and its
    # gradient, which is linear in the input, is several passes more.

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
        shifted = inputs - origin.view(1, -1, 1, 1)
        mean = shifted.mean(dim=(0, 2, 3))
        variance = (shifted.square().mean(dim=(0, 2, 3)) - mean.square()).clamp_min(0)
        mean = mean + origin
        ctx.save_for_backward(inputs, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        inputs, mean = ctx.saved_tensors
        of_mean, of_variance = (g * (mean.numel() / inputs.numel()) for g in gradients)
        slope, rise = 2 * of_variance, of_mean - 2 * of_variance * mean
        rise, slope = (v.view(1, -1, 1, 1) for v in (rise, slope))
        return torch.addcmul(rise, inputs, slope), None


def moments(inputs: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance ``(channels,)`` of ``(N, channels, h, w)``.

    ``origin`` ``(channels,)`` is any value near the mean: squares are taken of differences from
    it, so that nothing cancels. Differentiable once with respect to the inputs.
    """
    mean, variance = _Moments.apply(inputs, origin)
    return mean, variance


@contextlib.contextmanager
def batch_statistics(net: nn.Module) -> Iterator[list[LayerStatistics]]:
    """Collect what every batch norm sees of the forward passes made inside the context.

    In the order of execution, differentiable, and in float32 at least whatever precision the
    pass has. The hooks are gone after the context, however it ends.
    """
    layers: list[LayerStatistics] = []

    def tap(norm: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None and norm.running_var is not None
        with full_precision(args[0]):
            inputs = at_least_float32(args[0])
            mean, variance = moments(inputs, norm.running_mean.to(inputs.dtype))
        layers.append(
            LayerStatistics(mean, variance, norm.running_mean, norm.running_var, norm.eps)
        )

    with contextlib.ExitStack() as hooks:
        for norm in _norms(net):
            hooks.callback(norm.register_forward_pre_hook(tap).remove)
        yield layers


def look(net: nn.Module, images: Tensor) -> Seen:
    """Return what a trained network in eval mode sees in images ``(N, 3, S, S)``; one pass."""
    with batch_statistics(net) as layers:
        outputs = net(images)
    return Seen(outputs.logits, layers, outputs.features)
