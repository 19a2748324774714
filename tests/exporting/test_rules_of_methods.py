"""What a method decides by is what its exported graph decides by."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
import toys
from torch.nn import functional as F

from edgecil.data.pixels import to_values
from edgecil.exporting.graph import core_graph
from edgecil.exporting.sessions import open_session
from edgecil.model import Model
from edgecil.nets.rules import ArgmaxRule, CorrectedRule
from edgecil.settings import CIFAR

METHODS = [
    "icarl", "bic", "bic:pairs=all", "lucir", "lucir+mnemonics:weight_transfer=on",
    "bic+mnemonics:weight_transfer=on", "lwf-coreset+mnemonics", "eeil", "ewc", "mas+muc",
]  # fmt: skip


@torch.no_grad()
def by_hand(model: Model, images: torch.Tensor) -> torch.Tensor:
    """Return the scores that the method's paper decides by, ``(N, C)``, in float64."""
    net = model.net.double()
    outputs = net(images.double())
    features, logits = outputs.features, outputs.logits
    arrays = {name: torch.tensor(a).double() for name, a in model.rule.arrays().items()}
    if model.rule.kind == "nearest-mean":
        return F.normalize(features) @ F.normalize(arrays["means"]).T
    if model.rule.kind == "bias-corrected":
        return logits[:, : len(arrays["scale"])] * arrays["scale"] + arrays["shift"]
    if model.net.spec.head == "cosine":
        rows = F.normalize(net.head.weight.double())
        return net.head.eta.double() * (F.normalize(features) @ rows.T)[:, :3]
    return logits[:, :3]


@pytest.mark.parametrize("method", METHODS)
def test_the_graph_decides_as_the_method_does(method: str, tmp_path) -> None:
    model = toys.learn(method, (2, 1), tmp_path)[-1].model
    images = to_values(toys.image_set(range(3)).pixels, CIFAR)
    graph = core_graph(model.net, model.rule, CIFAR)
    (found,) = open_session(graph).run(None, {"normalised": images.numpy()})
    np.testing.assert_allclose(found, by_hand(model, images), atol=2e-5, rtol=2e-5)
    if isinstance(model.rule, CorrectedRule):
        assert not torch.equal(model.rule.scale, torch.ones(3))
        # The correction is in the head's weights: there is no node for it.
        plain = core_graph(model.net.float(), ArgmaxRule(3), CIFAR)
        nodes = [Counter(node.op_type for node in g.graph.node) for g in (graph, plain)]
        assert nodes[0] == nodes[1]
