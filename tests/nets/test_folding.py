"""A trunk is its convolution weights and what is folded: put together again, it is the same."""

import pytest
import torch
from torch import nn

from edgecil.nets.build import build, shapes, stage_channels
from edgecil.nets.folding import conv_weights, folded, put_folded
from edgecil.nets.net import NetSpec


@pytest.fixture
def net():
    """A network whose batch norms have seen something."""
    net = build(NetSpec("resnet8-b"), 3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias)
    for _ in range(3):
        net(torch.randn(8, 3, 32, 32))
    return net.eval()


def test_folded_norms_and_weights_are_the_trunk_in_eval_mode(net):
    images = torch.randn(4, 3, 32, 32)
    other = build(NetSpec("resnet8-b"), 3).eval()
    with torch.no_grad():
        for name, weight in conv_weights(other).items():
            weight.copy_(conv_weights(net)[name])
        put_folded(other, folded(net))
        assert torch.allclose(other(images).features, net(images).features, atol=1e-5)


def test_putting_back_what_was_folded_changes_no_bit_the_second_time(net):
    values = folded(net)
    put_folded(net, values)
    again = folded(net)
    assert all(torch.equal(again[name], value) for name, value in values.items())


def test_a_convolution_bias_is_kept_as_it_is():
    net = build(NetSpec("resnet8"), 3)
    net.backbone.conv1.bias = nn.Parameter(torch.randn(16))
    assert torch.equal(folded(net)["backbone.conv1.bias"], net.backbone.conv1.bias)


@pytest.mark.parametrize("arch", ["resnet32", "resnet18"])
def test_the_planned_tree_is_that_of_the_values(arch):
    net = build(NetSpec(arch), 2)
    tree = shapes(NetSpec(arch), 2)
    assert tree["folded"] == {name: tuple(v.shape) for name, v in folded(net).items()}
    assert tree["conv-weights"] == {n: tuple(w.shape) for n, w in conv_weights(net).items()}


def test_the_second_stage_has_the_channels_that_the_paper_means():
    assert stage_channels(NetSpec("resnet32"))[1] == 32
    assert stage_channels(NetSpec("resnet18"))[1] == 128
