"""Networks by name: choice, shapes, storage, and what is said when something does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgecil.errors import UsageError, WorkspaceError
from edgecil.nets.build import architectures, auto_arch, build, load_arrays, net_arrays, shapes
from edgecil.nets.folding import folded
from edgecil.nets.heads import CosineHead
from edgecil.nets.net import Net, NetSpec
from edgecil_runtime import container


def small(seed: int = 0, classes: int = 4) -> Net:
    torch.manual_seed(seed)
    return build(NetSpec("resnet8"), classes)


@pytest.mark.parametrize(
    ("size", "name"), [(8, "resnet32"), (32, "resnet32"), (64, "resnet32"), (224, "resnet18")]
)
def test_auto_arch_names_a_network_and_says_why(size: int, name: str) -> None:
    arch, why = auto_arch(size)
    assert arch == name and arch in architectures()
    assert name in why and f"{size} x {size}" in why


def test_auto_arch_gives_maps_with_room_for_attention() -> None:
    for size in (24, 64, 96):
        net = build(NetSpec(auto_arch(size)[0]), 2).eval()
        with torch.no_grad():
            assert min(net(torch.zeros(1, 3, size, size)).map.shape[2:]) >= 3


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown architecture 'resnet33'") as caught:
        build(NetSpec("resnet33"), 2)
    assert caught.value.hint is not None and "resnet32" in caught.value.hint
    with pytest.raises(UsageError, match="unknown head 'round'"):
        build(NetSpec("resnet8", "round"), 2)  # type: ignore[arg-type]


def test_spec_decides_head_and_width() -> None:
    net = build(NetSpec("resnet8", "cosine", 100), 7)
    assert isinstance(net.head, CosineHead)
    assert (net.classes, net.head.width) == (7, 100)
    again = build(NetSpec.from_json(net.spec.to_json()), 7)
    assert again.spec == net.spec


def test_shapes_are_those_of_a_built_network_and_allocate_nothing() -> None:
    spec = NetSpec("resnet14-b", "cosine")
    state = torch.get_rng_state()
    trees = shapes(spec, 6)
    assert torch.equal(state, torch.get_rng_state())
    net = build(spec, 6)
    values = net.state_dict() | folded(net)
    for tree in trees.values():
        assert tree and all(tuple(values[name].shape) == shape for name, shape in tree.items())
    assert set(trees["parameters"]) == {name for name, _ in net.named_parameters()}
    conv = {n for n, p in net.named_parameters() if p.ndim == 4}
    assert set(trees["conv-weights"]) == conv
    held = set(trees["parameters"]) | set(trees["batchnorm"])
    assert held == set(net_arrays(net))


def test_arrays_go_through_a_file_and_give_the_same_outputs(tmp_path: Path) -> None:
    net, other = small(0).to(memory_format=torch.channels_last), small(1)
    images = torch.randn(8, 3, 32, 32)
    net(images)  # moves the batch-norm statistics
    container.write(tmp_path / "net.safetensors", net_arrays(net))
    arrays, _ = container.read(tmp_path / "net.safetensors")
    load_arrays(other, arrays)
    expected = net.eval()(images).logits
    torch.testing.assert_close(other.eval()(images).logits, expected, rtol=1e-5, atol=1e-6)
    for name, array in net_arrays(net).items():
        assert np.array_equal(array, net_arrays(other)[name])
        assert array.dtype == np.float32


def test_arrays_are_copies() -> None:
    net = small()
    arrays = net_arrays(net)
    arrays["head.weight"][:] = 7
    assert not (net.head.weight == 7).any()  # type: ignore[union-attr]


def test_load_names_what_does_not_fit_and_changes_nothing() -> None:
    net = small()
    before = net_arrays(net)
    arrays = {n: np.zeros_like(a) for n, a in before.items()}
    del arrays["backbone.conv1.weight"]
    arrays["extra"] = np.zeros(3, np.float32)
    arrays["head.weight"] = np.zeros((5, 64), np.float32)
    arrays["head.bias"] = np.zeros(4, np.int64)
    with pytest.raises(WorkspaceError) as caught:
        load_arrays(net, arrays)
    for part in (
        "missing: backbone.conv1.weight",
        "unexpected: extra",
        "head.weight (5, 64) instead of (4, 64)",
        "not floating point: head.bias",
    ):
        assert part in caught.value.message
    assert all(np.array_equal(a, before[n]) for n, a in net_arrays(net).items())


def test_long_lists_are_cut() -> None:
    with pytest.raises(WorkspaceError, match=r"missing: (\S+, ){4}\S+ and \d+ more$"):
        load_arrays(small(), {})
