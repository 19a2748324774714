"""A trunk beside its convolution weights: batch norms folded to scale and shift, and biases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


def conv_weights(net: nn.Module) -> dict[str, Tensor]:
    """Return the weights of all convolutions, stem and shortcuts included, by qualified name."""
    return {f"{n}.weight": m.weight for n, m in net.named_modules() if isinstance(m, nn.Conv2d)}


def _norms(net: nn.Module) -> Iterator[tuple[str, nn.BatchNorm2d]]:
    return ((n, m) for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d))


def _others(net: nn.Module) -> dict[str, nn.Parameter]:
    """Return what is trained below the head besides convolution weights and batch norms."""
    folded = {f"{name}.{part}" for name, _ in _norms(net) for part in ("weight", "bias")}
    folded |= set(conv_weights(net))
    named = net.named_parameters()
    return {n: p for n, p in named if n not in folded and n.startswith("backbone.")}


@torch.no_grad()
def folded(net: nn.Module) -> dict[str, Tensor]:
    """Return scale and shift ``(channels,)`` of every batch norm in eval mode, and all biases.

    With the convolution weights they are the whole trunk: a batch norm that does not look at
    the batch is x * scale + shift.
    """
    found: dict[str, Tensor] = {}
    for name, norm in _norms(net):
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        found[f"{name}.scale"] = scale
        found[f"{name}.shift"] = norm.bias - norm.running_mean * scale
    return found | {name: p.detach().clone() for name, p in _others(net).items()}


@torch.no_grad()
def put_folded(net: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Make the batch norms and biases of ``net`` those of :func:`folded`, for eval mode."""
    for name, norm in _norms(net):
        assert norm.running_mean is not None and norm.running_var is not None
        norm.weight.copy_(values[f"{name}.scale"])
        norm.bias.copy_(values[f"{name}.shift"])
        norm.running_mean.zero_()
        norm.running_var.fill_(1)
        norm.eps = 0.0  # mean 0 and variance 1 exactly: nothing is rounded on the way
    for name, parameter in _others(net).items():
        parameter.copy_(values[name])
