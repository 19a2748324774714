"""Taps and teachers: hooks live only inside their context, frozen copies stay as they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgecil.nets.build import build
from edgecil.nets.net import Net, NetSpec
from edgecil.nets.taps import forward_outputs, freeze

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return build(NetSpec("resnet8-b"), 3)


def hooks(net: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in net.modules())


def test_outputs_are_those_of_the_forwards(net: Net) -> None:
    with forward_outputs(net) as outputs:
        first, second = net(IMAGES), net(IMAGES[:2])
    net(IMAGES)
    assert outputs == [first, second]


def test_hooks_are_gone_afterwards_even_after_an_exception(net: Net) -> None:
    before = hooks(net)
    with pytest.raises(RuntimeError), forward_outputs(net) as outputs:
        assert hooks(net) == before + 1
        net(torch.zeros(1, 1, 8, 8))
    assert hooks(net) == before and outputs == []


def test_a_frozen_copy_survives_training_of_the_original(net: Net) -> None:
    net.to(memory_format=torch.channels_last)
    net(IMAGES).logits.sum().backward()
    teacher = freeze(net)
    before = {name: t.clone() for name, t in teacher.state_dict().items()}
    net.train()
    optimiser = torch.optim.SGD(net.parameters(), lr=1.0)
    net(IMAGES).logits.square().sum().backward()
    optimiser.step()
    net.head.grow(2)  # type: ignore[operator]
    assert not any(m.training for m in teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(t, before[name]) for name, t in teacher.state_dict().items())
    assert teacher.classes == 3 and net.classes == 5
    assert teacher.backbone.conv1.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr, operator]
    assert all(p.requires_grad for p in net.backbone.parameters())
