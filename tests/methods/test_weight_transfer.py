"""Weight transfer: kernels are scaled, not changed, and the net that leaves is a plain one."""

import pytest
import torch
import toys

from edgecil.nets.build import build
from edgecil.nets.net import NetSpec
from edgecil.parts.weight_transfer import ScaledConv, add_scales, fold_scales


def scales(net):
    return [m.scale for m in net.modules() if isinstance(m, ScaledConv)]


def outputs(net, images):
    with torch.no_grad():
        return net(images)


@pytest.mark.parametrize("arch", ["resnet8", "resnet8-b", "resnet18-3x3"])
def test_scales_of_one_change_nothing_and_any_scales_fold(arch):
    torch.manual_seed(0)
    net = build(NetSpec(arch), 3).eval()
    names = list(net.state_dict())
    kinds = [type(m) for m in net.modules()]
    images = torch.randn(2, 3, 32, 32)
    before = outputs(net, images)
    add_scales(net.backbone)
    assert torch.equal(outputs(net, images).logits, before.logits)
    for scale in scales(net):
        scale.data.uniform_(0.5, 1.5)
    scaled = outputs(net, images)
    assert not torch.allclose(scaled.features, before.features)
    fold_scales(net.backbone)
    assert list(net.state_dict()) == names and [type(m) for m in net.modules()] == kinds
    for left, right in zip(outputs(net, images), scaled, strict=True):
        for a, b in zip(left, right, strict=True):
            assert torch.equal(a, b)


def test_there_is_one_scale_per_kernel():
    # ResNet-32 with option B: 53,808 pairs of output and input channels.
    with torch.device("meta"):
        net = build(NetSpec("resnet32-b"), 10)
        add_scales(net.backbone)
    assert sum(s.numel() for s in scales(net)) == 53_808
    trained = {name for name, _ in net.backbone.named_parameters()}
    assert not any(name.endswith("conv1.weight") for name in trained)
    assert any(name.endswith("bn1.weight") for name in trained)


def test_an_increment_scales_the_kernels_it_began_with(tmp_path):
    options = {
        "weight_transfer": True,
        "exemplars": "herding",
        "adjust": False,
        "exemplar_epochs": 2,
    }
    first, second = toys.learn("lucir+mnemonics", (2, 2), tmp_path, options=options)
    assert [type(m) for m in first.model.net.modules()] == [
        type(m) for m in second.model.net.modules()
    ]
    before = first.model.net.state_dict()
    moved = 0
    for name, weight in second.model.net.state_dict().items():
        if weight.ndim == 4:
            ratio = weight / before[name]
            flat = ratio.flatten(2)
            assert torch.allclose(flat, flat[:, :, :1].expand_as(flat), rtol=1e-4)
            moved += int((flat[:, :, 0] - 1).abs().max() > 1e-3)
    assert moved > 3
