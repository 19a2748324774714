"""Networks by name: building, choosing, describing and storing them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgecil.errors import UsageError, WorkspaceError
from edgecil.nets.folding import folded
from edgecil.nets.heads import CosineHead, HiddenHead, LinearHead
from edgecil.nets.mobile import TRUNKS, mobile_net
from edgecil.nets.net import Net, NetSpec
from edgecil.nets.resnet import RESNETS, ResNet
from edgecil.nets.taps import freeze
from edgecil.spelling import nearest

Tree = dict[str, tuple[int, ...]]
HEADS = {"linear": LinearHead, "cosine": CosineHead}
SMALL, MEDIUM = 48, 96
"""Image sides in pixels from which on a network with a larger stride is chosen."""


def architectures() -> tuple[str, ...]:
    """Return the names of all networks, for ``--arch``."""
    return (*RESNETS, *TRUNKS)


def check_arch(name: str) -> None:
    """Do nothing for a known network.

    Raises:
        UsageError: the name is unknown; the nearest ones are offered.
    """
    if name not in architectures():
        raise UsageError(f"unknown architecture {name!r}", hint=nearest(name, architectures()))


def auto_arch(image_size: int) -> tuple[str, str]:
    """Return a network that suits square images of ``image_size`` pixels, and why."""
    if image_size < MEDIUM:
        side = -(-image_size // 4)
        why = f"its last map is {side} x {side}, and it is small enough to train on a CPU"
        name = "resnet32"
    else:
        why, name = "its stem divides the size by four, as in networks for ImageNet", "resnet18"
    return name, f"{name} for images of {image_size} x {image_size} pixels: {why}"


def build(spec: NetSpec, classes: int) -> Net:
    """Return a network with random weights, drawn from the global generator.

    Raises:
        UsageError: the architecture or head is unknown, or the fixed width is too small.
        DependencyMissing: it is one of torchvision's, and torchvision cannot be imported.
    """
    check_arch(spec.arch)
    if spec.head not in HEADS:
        raise UsageError(f"unknown head {spec.head!r}", hint=f"use {' or '.join(HEADS)}")
    if spec.arch in RESNETS:
        trunk = ResNet(RESNETS[spec.arch])
        return Net(spec, trunk, HEADS[spec.head](trunk.feature_dim, classes, spec.width))
    backbone, hidden, outputs = mobile_net(spec.arch)
    rows = HEADS[spec.head](outputs, classes, spec.width)
    return Net(spec, backbone, rows if hidden is None else HiddenHead(hidden, rows))


@cache
def shapes(spec: NetSpec, classes: int) -> Mapping[str, Tree]:
    """Return trees of array shapes by name, for the memory plan; nothing is allocated.

    ``conv-weights`` are the weights of all convolutions, ``batchnorm`` scale, shift, mean and
    variance of every batch norm, ``folded`` what :func:`edgecil.nets.folding.folded` makes of
    them, ``backbone`` the parameters below the head and ``parameters``
    all of them.
    """
    with torch.device("meta"):
        net = build(spec, classes)
    trees: dict[str, Tree] = {"conv-weights": {}, "batchnorm": {}}
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            trees["conv-weights"][f"{name}.weight"] = tuple(module.weight.shape)
        elif isinstance(module, nn.BatchNorm2d):
            for part in ("weight", "bias", "running_mean", "running_var"):
                trees["batchnorm"][f"{name}.{part}"] = tuple(getattr(module, part).shape)
    every = {name: tuple(p.shape) for name, p in net.named_parameters()}
    below = {name: shape for name, shape in every.items() if name.startswith("backbone.")}
    beside = {name: tuple(value.shape) for name, value in folded(net).items()}
    return {**trees, "folded": beside, "backbone": below, "parameters": every}


@cache
def stage_channels(spec: NetSpec) -> tuple[int, ...]:
    """Return the channels of every stage's output; nothing is allocated."""
    with torch.device("meta"):
        backbone = build(spec, 1).eval().backbone
        return tuple(stage.shape[1] for stage in backbone(torch.empty(1, 3, 64, 64)))


def multiply_adds(net: Net, size: int) -> int:
    """Return the multiply-adds of convolutions and head for one image of ``size`` pixels."""
    trial = freeze(net).cpu().float()
    total = sum(p.numel() for p in trial.head.parameters() if p.ndim == 2)

    def count(module: nn.Module, args: Any, output: Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d)
        total += module.weight[0].numel() * output.numel()

    for module in trial.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        trial(torch.zeros(1, 3, size, size))
    return total


def _stored(net: nn.Module) -> dict[str, Tensor]:
    # The batch counters of batch norms act on nothing: momentum is fixed.
    state = net.state_dict()
    return {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}


def net_arrays(net: nn.Module) -> dict[str, NDArray[Any]]:
    """Return copies of all parameters and batch-norm statistics by name: what inference needs."""
    return {name: np.array(t.cpu().numpy(), order="C") for name, t in _stored(net).items()}


def array_shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what :func:`net_arrays` gives; ``net`` may be on the meta device."""
    return {name: tuple(t.shape) for name, t in _stored(net).items()}


def mismatches(
    net: nn.Module, shapes_found: Mapping[str, tuple[int, ...]], limit: int = 5
) -> list[str]:
    """Return what keeps arrays of these shapes from filling ``net``, at most ``limit`` a kind."""
    wanted = array_shapes(net)
    wrong = [n for n in wanted if n in shapes_found and shapes_found[n] != wanted[n]]
    kinds = {
        "missing": [n for n in wanted if n not in shapes_found],
        "unexpected": [n for n in shapes_found if n not in wanted],
        "of another shape": [f"{n} {shapes_found[n]} instead of {wanted[n]}" for n in wrong],
    }
    return [
        f"{kind}: {', '.join(names[:limit])}"
        + (f" and {len(names) - limit} more" if len(names) > limit else "")
        for kind, names in kinds.items()
        if names
    ]


@torch.no_grad()
def fill(net: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy ``values`` into parameters and statistics of the same names."""
    for name, tensor in _stored(net).items():
        tensor.copy_(values[name])


def load_arrays(net: nn.Module, arrays: Mapping[str, Any]) -> None:
    """Put what :func:`net_arrays` gave back into a network of the same kind.

    Raises:
        WorkspaceError: an array is missing, unexpected or of another shape, or holds no floats.
    """
    problems = mismatches(net, {name: tuple(a.shape) for name, a in arrays.items()})
    whole = [name for name, a in arrays.items() if np.asarray(a).dtype.kind != "f"]
    problems += [f"not floating point: {', '.join(whole[:5])}"] if whole else []
    if problems:
        raise WorkspaceError("the stored weights do not fit the network; " + "; ".join(problems))
    fill(net, {name: torch.from_numpy(np.array(a)) for name, a in arrays.items()})
