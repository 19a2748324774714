"""Residual networks: counts of the published ones, torchvision's outputs, shortcuts, seeds."""

from __future__ import annotations

from math import prod

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgecil.nets.build import build, multiply_adds, shapes
from edgecil.nets.net import Net, NetSpec
from edgecil.nets.resnet import RESNETS, PadShortcut, ResNet


def net_of(arch: str, classes: int = 3, seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return build(NetSpec(arch), classes).eval()


def randomise_batchnorms(net: nn.Module) -> None:
    """Give every batch norm values that a mistake in order or place would show."""
    generator = torch.Generator().manual_seed(7)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.data.uniform_(0.5, 1.5, generator=generator)


# Convolution weights, batch-norm channels and parameters at 100 classes of the papers' networks.
@pytest.mark.parametrize(
    ("arch", "head", "conv", "channels", "parameters"),
    [
        ("resnet32", "linear", 461_232, 1_136, 470_004),
        ("resnet32-linear", "linear", 461_232, 1_136, 470_004),
        ("resnet32-b", "linear", 463_792, 1_232, 472_756),
        ("resnet32-b-linear", "cosine", 463_792, 1_232, 472_656 + 1),
        ("resnet34-3x3", "linear", 21_259_968, 8_512, 21_328_292),
        ("resnet18", "linear", 11_166_912, 4_800, 11_227_812),
    ],
)
def test_counts(arch: str, head: str, conv: int, channels: int, parameters: int) -> None:
    trees = shapes(NetSpec(arch, head), 100)  # type: ignore[arg-type]
    total = {name: sum(prod(shape) for shape in tree.values()) for name, tree in trees.items()}
    assert total["conv-weights"] == conv
    assert total["batchnorm"] == 4 * channels
    assert total["parameters"] == parameters
    assert total["backbone"] == conv + 2 * channels


@pytest.mark.parametrize(
    ("arch", "size", "millions"),
    [("resnet32", 32, 68.9), ("resnet18", 224, 1_814), ("resnet34-3x3", 32, 1_159)],
)
def test_multiply_adds(arch: str, size: int, millions: float) -> None:
    net = net_of(arch)
    assert multiply_adds(net, size) / 1e6 == pytest.approx(millions, rel=1e-3)
    assert not any(m._forward_hooks for m in net.modules())


@pytest.mark.parametrize("arch", ["resnet18", "resnet34"])
def test_equals_torchvision(arch: str) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(1)
    theirs = models.get_model(arch, num_classes=5).eval()
    randomise_batchnorms(theirs)
    ours = net_of(arch, classes=5)
    ours.backbone.load_state_dict({n: t for n, t in theirs.state_dict().items() if n[:2] != "fc"})
    ours.head.load_state_dict(theirs.fc.state_dict())
    images = torch.randn(2, 3, 80, 80)
    maps: list[Tensor] = []
    for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
        stage.register_forward_hook(lambda module, args, output: maps.append(output))
    with torch.no_grad():
        expected, outputs = theirs(images), ours(images)
    torch.testing.assert_close(outputs.logits, expected)
    for stage_output, theirs_output in zip(outputs.stages, maps, strict=True):
        torch.testing.assert_close(stage_output, theirs_output)


def test_outputs_belong_together() -> None:
    net = net_of("resnet20-b")
    outputs = net(torch.randn(2, 3, 32, 32))
    sizes = [tuple(stage.shape) for stage in outputs.stages]
    assert sizes == [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]
    assert outputs.map is outputs.stages[-1]
    torch.testing.assert_close(outputs.features, outputs.map.flatten(2).mean(2))
    torch.testing.assert_close(outputs.logits, net.head(outputs.features))
    assert net.feature_dim == 64 and net.classes == 3


@pytest.mark.parametrize("size", [8, 9])
def test_option_a_shortcut(size: int) -> None:
    x = torch.randn(2, 4, size, size)
    y = PadShortcut(4, 8, 2)(x)
    # As a convolution: the identity for the middle channels, nothing for the added ones.
    weight = torch.zeros(8, 4, 1, 1)
    weight[2:6] = torch.eye(4)[:, :, None, None]
    assert torch.equal(y, F.conv2d(x, weight, stride=2))


def test_option_a_has_no_parameters_where_option_b_has() -> None:
    a, b = (set(net_of(name).state_dict()) for name in ("resnet8", "resnet8-b"))
    assert a < b
    assert all(".downsample." in name for name in b - a)


@pytest.mark.parametrize("arch", ["resnet8", "resnet8-b", "resnet18", "resnet18-3x3"])
def test_only_the_linear_nets_have_negative_features(arch: str) -> None:
    images = torch.randn(2, 3, 32, 32)
    rectified, linear = net_of(arch), net_of(f"{arch}-linear")
    linear.load_state_dict(rectified.state_dict())
    with torch.no_grad():
        expected, outputs = rectified(images), linear(images)
    assert (outputs.map < 0).any()
    assert torch.equal(outputs.map.relu(), expected.map)
    assert torch.equal(outputs.stages[0], expected.stages[0])


@pytest.mark.parametrize("arch", sorted(RESNETS))
def test_every_network_has_its_depth(arch: str) -> None:
    with torch.device("meta"):
        backbone = ResNet(RESNETS[arch])
    layers = [n for n, m in backbone.named_modules() if isinstance(m, nn.Conv2d)]
    depth = int(arch.removeprefix("resnet").split("-")[0])
    assert len([n for n in layers if "downsample" not in n]) == depth - 1
    assert arch.endswith("-linear") == (not RESNETS[arch].last_relu)


def test_weights_are_he_normal_and_follow_the_seed() -> None:
    first, again, other = (net_of("resnet18", seed=seed) for seed in (3, 3, 0))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    weight = first.backbone.layer4[1].conv1.weight  # type: ignore[union-attr, index]
    assert not torch.equal(weight, other.backbone.layer4[1].conv1.weight)  # type: ignore[union-attr, index]
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    assert weight.mean().item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("arch", ["resnet8", "resnet18"])
def test_bfloat16_and_channels_last_agree_with_float32(arch: str) -> None:
    net = net_of(arch, classes=4)
    images = torch.randn(2, 3, 32, 32)
    expected = net(images)
    last = net.to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last(images).logits, expected.logits, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = last(images)
    assert outputs.map.dtype == torch.bfloat16
    assert outputs.map.is_contiguous(memory_format=torch.channels_last)
    assert outputs.features.dtype == outputs.logits.dtype == torch.float32
    error = (outputs.logits - expected.logits).norm() / expected.logits.norm()
    assert error < 0.05
    outputs.logits.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())


def test_float64_stays_float64() -> None:
    net = net_of("resnet8").double()
    assert net(torch.randn(1, 3, 32, 32, dtype=torch.float64)).logits.dtype == torch.float64
