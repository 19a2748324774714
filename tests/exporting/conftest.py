"""One small trained network and its exports, shared: exporting takes seconds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exporting.pictures_of_classes import CLASSES, SMALL, normalised, pictures
from onnx import ModelProto
from torch.nn import functional as F

from edgecil.exporting.graph import core_graph
from edgecil.nets.build import build
from edgecil.nets.net import Net, NetSpec
from edgecil.nets.rules import ArgmaxRule


@pytest.fixture(scope="session")
def net() -> Net:
    """A ResNet-8 trained for a few steps: random weights would say nothing about int8."""
    torch.manual_seed(0)
    model = build(NetSpec("resnet8"), CLASSES)
    data = pictures(240, SMALL.resize, seed=1)
    inputs = normalised(data.pixels, SMALL)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.train()
    for step in range(24):
        rows = torch.arange(step * 48, step * 48 + 48) % 240
        loss = F.cross_entropy(model(inputs[rows]).logits, data.labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


@pytest.fixture(scope="session")
def rule() -> ArgmaxRule:
    """The rule of the shared network."""
    return ArgmaxRule(CLASSES)


@pytest.fixture(scope="session")
def core(net: Net, rule: ArgmaxRule) -> ModelProto:
    """The core graph of the shared network; not to be changed."""
    return core_graph(net, rule, SMALL)


@pytest.fixture(scope="session")
def calibration_pixels() -> np.ndarray:
    """Stored images (48, 40, 40, 3)."""
    return pictures(48, SMALL.resize, seed=2).pixels.numpy()
