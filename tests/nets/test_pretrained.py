"""Foreign weights: names are mapped, misfits are listed, and pickles never run code."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch

from edgecil.errors import DataError, DependencyMissing, UsageError
from edgecil.nets.build import build, net_arrays
from edgecil.nets.net import Net, NetSpec
from edgecil.nets.pretrained import load_backbone, load_classifier
from edgecil_runtime import container

State = dict[str, torch.Tensor]


def net_of(arch: str = "resnet8-b", seed: int = 0) -> Net:
    torch.manual_seed(seed)
    net = build(NetSpec(arch), 3)
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-1, 1)
    return net


@pytest.fixture
def donor() -> State:
    return net_of(seed=9).backbone.state_dict()


def assert_loaded(net: Net, donor: State) -> None:
    found = net.backbone.state_dict()
    for name, value in donor.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(found[name], value), name


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "model.", "module.backbone."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_wrapped_state_dicts_load(
    tmp_path: Path, donor: State, prefix: str, wrapper: str | None
) -> None:
    state: dict[str, Any] = {prefix + name: value for name, value in donor.items()}
    state |= {f"{prefix}fc.weight": torch.zeros(10, 64), f"{prefix}fc.bias": torch.zeros(10)}
    content = {wrapper: state, "epoch": 90, "best": 0.7} if wrapper else state
    torch.save(content, tmp_path / "base.pt")
    net = net_of()
    head = net.head.weight.clone()  # type: ignore[operator]
    note = load_backbone(net, str(tmp_path / "base.pt"))
    assert_loaded(net, donor)
    assert torch.equal(net.head.weight, head)  # type: ignore[arg-type]
    assert "base.pt" in note and "resnet8-b" in note and f"{prefix}fc.weight" in note


def test_safetensors_and_own_version_files_load(tmp_path: Path, donor: State) -> None:
    path = tmp_path / "base.safetensors"
    container.write(path, {name: value.numpy() for name, value in donor.items()})
    net = net_of()
    load_backbone(net, path)
    assert_loaded(net, donor)
    arrays = {f"net/{n}": a for n, a in net_arrays(net).items()}
    container.write(path, {**arrays, "rule/classes": arrays["net/head.bias"]})
    again = net_of(seed=5)
    load_backbone(again, path)
    assert_loaded(again, donor)


def test_half_precision_and_channels_last_are_no_obstacle(tmp_path: Path, donor: State) -> None:
    torch.save({n: v.half() for n, v in donor.items()}, tmp_path / "half.pth")
    net = net_of().to(memory_format=torch.channels_last)
    load_backbone(net, tmp_path / "half.pth")
    weight = net.backbone.layer1[0].conv1.weight  # type: ignore[union-attr, index]
    assert weight.dtype == torch.float32
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(weight, donor["layer1.0.conv1.weight"].half().float())


def test_bfloat16_of_a_safetensors_file_loads_as_that_of_a_checkpoint(
    tmp_path: Path, donor: State
) -> None:
    """numpy has no such type: the file is written by hand."""
    state = {n: v.bfloat16() for n, v in donor.items() if v.is_floating_point()}
    header, data = {}, b""
    for name, value in state.items():
        raw = value.view(torch.int16).numpy().astype("<i2").tobytes()
        header[name] = {"dtype": "BF16", "shape": list(value.shape),
                        "data_offsets": [len(data), len(data) + len(raw)]}  # fmt: skip
        data += raw
    text = json.dumps(header).encode()
    (tmp_path / "w.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    torch.save(state, tmp_path / "w.pt")
    nets = [net_of(), net_of()]
    for net, file in zip(nets, ("w.safetensors", "w.pt"), strict=True):
        load_backbone(net, tmp_path / file)
        assert_loaded(net, {n: v.float() for n, v in state.items()})


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_two_arrays_for_one_place_are_refused(tmp_path: Path, donor: State, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    state = {f"model.{n}": v for n, v in donor.items()} | {
        "backbone.conv1.weight": 2 * donor["conv1.weight"]
    }
    if suffix == ".pt":
        torch.save(state, path)
    else:
        container.write(path, {n: v.numpy() for n, v in state.items()})
    net = net_of()
    before = net_arrays(net)
    for load in (load_backbone, lambda net, path: load_classifier(net, path, "labels.txt")):
        with pytest.raises(DataError, match="holds both") as caught:
            load(net, path)
        for name in ("model.conv1.weight", "backbone.conv1.weight"):
            assert name in caught.value.message
    assert all((a == before[n]).all() for n, a in net_arrays(net).items())


def test_a_misfit_lists_names_and_the_network_that_fits(tmp_path: Path) -> None:
    torch.save(net_of("resnet14-b").backbone.state_dict(), tmp_path / "w.pt")
    net = net_of("resnet8")
    before = net_arrays(net)
    with pytest.raises(UsageError) as caught:
        load_backbone(net, tmp_path / "w.pt")
    assert "unexpected: layer1.1.conv1.weight" in caught.value.message
    assert "more" in caught.value.message
    assert caught.value.hint is not None and "--arch resnet14-b" in caught.value.hint
    assert all((a == before[n]).all() for n, a in net_arrays(net).items())


def test_a_variant_that_no_array_tells_apart_is_never_offered(tmp_path: Path) -> None:
    torch.save(net_of("resnet14-b-linear").backbone.state_dict(), tmp_path / "w.pt")
    with pytest.raises(UsageError) as caught:
        load_backbone(net_of("resnet8"), tmp_path / "w.pt")
    assert caught.value.hint == "it fits --arch resnet14-b"


def test_a_prefix_of_all_names_is_named(tmp_path: Path, donor: State) -> None:
    torch.save({f"resnet.encoder.{n}": v for n, v in donor.items()}, tmp_path / "w.pt")
    wanted = "all names begin with 'resnet.encoder.': remove it and save again"
    with pytest.raises(UsageError) as caught:
        load_backbone(net_of(), tmp_path / "w.pt")
    assert caught.value.hint == wanted
    heads = {"fc.weight": torch.zeros(3, 64), "fc.bias": torch.zeros(3)}
    torch.save({f"resnet.encoder.{n}": v for n, v in (donor | heads).items()}, tmp_path / "w.pt")
    with pytest.raises(UsageError) as caught:
        load_classifier(net_of(), tmp_path / "w.pt", "labels.txt")
    assert caught.value.hint == wanted
    torch.save({f"strange.{i}": v for i, v in enumerate(donor.values())}, tmp_path / "w.pt")
    with pytest.raises(UsageError) as caught:
        load_backbone(net_of(), tmp_path / "w.pt")
    assert caught.value.hint is None, "names that are none of ours without it, either"


def test_missing_and_misshapen_arrays_are_listed(tmp_path: Path, donor: State) -> None:
    del donor["bn1.weight"]
    donor["conv1.weight"] = torch.zeros(16, 1, 3, 3)
    torch.save(donor, tmp_path / "w.pt")
    with pytest.raises(UsageError) as caught:
        load_backbone(net_of(), tmp_path / "w.pt")
    assert "missing: bn1.weight" in caught.value.message
    assert "conv1.weight (16, 1, 3, 3) instead of (16, 3, 3, 3)" in caught.value.message


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, donor: State) -> None:
    donor["bn1.bias"][3] = float("nan")
    torch.save(donor, tmp_path / "w.pt")
    with pytest.raises(DataError, match=r"not finite floats: bn1\.bias"):
        load_backbone(net_of(), tmp_path / "w.pt")


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


class Worse(Evil):
    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", [Evil, Worse])
def test_a_malicious_pickle_does_not_run(tmp_path: Path, donor: State, kind: type[Evil]) -> None:
    trace = tmp_path / "ran"
    torch.save({"state_dict": donor, "extra": kind(trace)}, tmp_path / "w.pt")
    torch.load(tmp_path / "w.pt", weights_only=False)
    assert trace.exists()  # so the pickle is a real one
    trace.unlink()
    with pytest.raises(DataError, match="could run code: only tensors are read") as caught:
        load_backbone(net_of(), tmp_path / "w.pt")
    assert not trace.exists()
    assert "\n" not in caught.value.message


def test_the_refusal_names_what_the_pickle_asks_for(tmp_path: Path, donor: State) -> None:
    torch.save({"state_dict": donor, "args": argparse.Namespace(lr=1)}, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"asks for argparse\.Namespace") as caught:
        load_backbone(net_of(), tmp_path / "w.pth")
    assert caught.value.hint is not None and "state_dict()" in caught.value.hint


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("content", ["", "not weights at all, but text"])
def test_damaged_files_are_named(tmp_path: Path, suffix: str, content: str) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_text(content)
    with pytest.raises(DataError, match=f"broken{suffix}") as caught:
        load_backbone(net_of(), path)
    assert "\n" not in caught.value.message


def test_a_truncated_checkpoint_is_named(tmp_path: Path, donor: State) -> None:
    path = tmp_path / "cut.pt"
    torch.save(donor, path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"cut\.pt is not a PyTorch checkpoint"):
        load_backbone(net_of(), path)


def test_other_contents_and_paths_are_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(DataError, match="holds no state dict"):
        load_backbone(net_of(), tmp_path / "list.pt")
    with pytest.raises(UsageError, match="no weights file") as caught:
        load_backbone(net_of(), "imagenet21k")
    assert caught.value.hint is not None and "--weights imagenet" in caught.value.hint
    (tmp_path / "w.h5").touch()
    with pytest.raises(UsageError, match=r"unknown kind of weights file '\.h5'"):
        load_backbone(net_of(), tmp_path / "w.h5")


@pytest.mark.parametrize("arch", ["resnet18", "resnet18-linear"])
def test_imagenet_weights_come_from_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str
) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(2)
    theirs = models.resnet18().state_dict()
    # What torchvision finds in its cache it does not download.
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    name = Path(models.ResNet18_Weights.IMAGENET1K_V1.url).name
    torch.save(theirs, cache / name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    net = net_of(arch)
    note = load_backbone(net, "imagenet")
    assert_loaded(net, {n: t for n, t in theirs.items() if not n.startswith("fc.")})
    assert "ImageNet" in note


def test_imagenet_without_network_says_what_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchvision.models")

    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    with pytest.raises(DependencyMissing, match=r"https://\S+resnet18\S+ could not be") as caught:
        load_backbone(net_of("resnet18"), "imagenet")
    assert caught.value.hint is not None and "--weights FILE" in caught.value.hint


def test_imagenet_for_a_network_without_such_weights() -> None:
    with pytest.raises(UsageError, match="no ImageNet weights for resnet18-3x3") as caught:
        load_backbone(net_of("resnet18-3x3"), "imagenet")
    assert caught.value.hint is not None and "resnet18 or resnet34" in caught.value.hint


def test_a_torchvision_of_another_build_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "torchvision"
    fake.mkdir()
    error = "operator torchvision::nms does not exist"
    (fake / "__init__.py").write_text(f"raise RuntimeError({error!r})\n")
    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DependencyMissing, match="built for another torch than the installed"):
        load_backbone(net_of("resnet18"), "imagenet")
