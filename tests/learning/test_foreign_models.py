"""Models trained elsewhere: they are taken over exactly, gain classes, and go to a device."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import small_runs
import torch
import toys
from PIL import Image
from torch import nn

from edgecil import api, foreign, registry
from edgecil.errors import AdoptError, DataError, UsageError, WorkspaceError
from edgecil.nets.build import build
from edgecil.nets.heads import HiddenHead
from edgecil.nets.net import NetSpec
from edgecil.versions import load_version
from edgecil.workspace import FOREIGN, Workspace

models = pytest.importorskip("torchvision.models")
LOOK = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "image_size": 64}


def torchvision_model(arch: str, classes: int = 3) -> nn.Module:
    """Return torchvision's network with weights of a seed and statistics of seeded images."""
    torch.manual_seed(5)
    model = models.get_model(arch, weights=None, num_classes=classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    with torch.no_grad():
        model.train()(torch.randn(16, 3, 64, 64))
    return model.eval()


@pytest.fixture(scope="session")
def delivered(tmp_path_factory):
    """Return the files of a delivered model: weights and labels."""
    made = {}

    def get(arch, wrap=lambda state: state):
        folder = made.setdefault(arch, tmp_path_factory.mktemp(arch))
        torch.save(wrap(torchvision_model(arch).state_dict()), folder / "base.pt")
        (folder / "labels.txt").write_text("ant\nbee\ncat\n")
        return {"weights": folder / "base.pt", "classes": folder / "labels.txt", "arch": arch}

    return get


def wrapped(state):
    return {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 9}


@pytest.mark.parametrize(
    ("arch", "wrap"),
    [("resnet18", dict), ("resnet50", wrapped), ("mobilenet_v3_small", wrapped),
     ("efficientnet_b0", dict)],
)  # fmt: skip
def test_scores_are_those_of_the_delivered_model(delivered, tmp_path, arch, wrap):
    given = delivered(arch, wrap)
    manifest = api.init(**given, **LOOK, workspace=tmp_path / "w")
    assert (manifest.method, manifest.names) == (FOREIGN, ["ant", "bee", "cat"])
    _, model = load_version(Workspace(tmp_path / "w"))
    images = torch.randn(4, 3, 64, 64)
    outputs = model.net(images)
    scores = model.rule(outputs.features, outputs.logits)
    torch.testing.assert_close(scores, torchvision_model(arch)(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", ["mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0"])
def test_stages_halve_the_map_and_the_last_is_pooled(arch):
    net = build(NetSpec(arch), 3).eval()
    outputs = net(torch.randn(2, 3, 64, 64))
    assert [stage.shape[-1] for stage in outputs.stages] == [16, 8, 4, 2]
    torch.testing.assert_close(outputs.features, outputs.map.mean(dim=(2, 3)))
    torch.testing.assert_close(outputs.logits, net.head(outputs.features))


def test_a_hidden_head_grows_by_rows_and_has_no_closed_form():
    net = build(NetSpec("mobilenet_v3_small"), 3).eval()
    assert isinstance(net.head, HiddenHead) and not hasattr(net.head, "logit_gradient")
    images = torch.randn(2, 3, 64, 64)
    before = net(images).logits
    net.head.grow(2)
    assert (net.classes, net.head.width) == (5, 5)
    assert torch.equal(net(images).logits[:, :3], before)


@pytest.mark.parametrize(
    ("arch", "head"),
    [pytest.param("resnet18", "sigmoid", marks=pytest.mark.slow), ("resnet18", "softmax"),
     pytest.param("mobilenet_v3_small", "sigmoid", marks=pytest.mark.slow),
     ("mobilenet_v3_small", "softmax")],
)  # fmt: skip
def test_it_gains_classes_and_goes_to_a_device(delivered, folders, tmp_path, arch, head):
    root = tmp_path / "w"
    api.init(**delivered(arch), **LOOK, head=head, workspace=root)
    for folder, method in zip(folders, ("lwm", "lwm"), strict=False):
        result = api.learn(
            folder, workspace=root, method=method, epochs=1, batch_size=8, lr=1e-3,
            precision="float32",
        )  # fmt: skip
    manifest = result.manifest
    assert manifest.groups == (3, 2, 2) and manifest.net["arch"] == arch
    assert (manifest.method, manifest.head_kind) == ("lwm", head)
    report = api.export(workspace=root, output=tmp_path, precision="int8")
    assert report.parity.max_abs_diff < 1e-3 and report.labels[0][0] == "ant"
    (found,) = api.predict([next(folders[0].rglob("*.png"))], workspace=root)
    assert found.label in manifest.names
    rows = api.report_memory(workspace=root).rows
    assert [row.kept_bytes for row in rows if row.method == "finetune"] == [0]


def test_attention_of_a_hidden_head_trains_the_backbone():
    from edgecil.losses.attention import attention

    net = build(NetSpec("mobilenet_v3_small"), 3).train()
    outputs = net(torch.randn(4, 3, 64, 64))
    maps = attention(net, outputs, torch.tensor([0, 1, 2, 0]), trains=True)
    assert maps.shape == (4, 4) and maps.detach().abs().max() > 0
    maps.sum().backward()
    hidden = net.head.hidden[0].weight
    assert hidden.grad is not None and hidden.grad.abs().max() > 0
    assert net.backbone.features[0][0].weight.grad.abs().max() > 0


@pytest.fixture(scope="module")
def softmax(delivered, tmp_path_factory):
    """The workspace of a foreign model with softmax outputs, to be read only."""
    root = tmp_path_factory.mktemp("softmax") / ".edgecil"
    api.init(**delivered("resnet18"), **LOOK, workspace=root)
    return root


def test_every_method_continues_or_says_why_not_before_training(softmax, folders, tmp_path):
    root = small_runs.copied(softmax, tmp_path / "w")
    before = small_runs.tree(root)
    able = set()
    for name, info in registry.methods().items():
        if info.kind != "method":
            continue
        try:
            # A plan takes the time of a few steps; those of synthesis are long.
            options = toys.small(name)
            api.plan(
                folders[0], workspace=root, method=name, epochs=1, batch_size=4, options=options
            )
            able.add(name)
        except AdoptError as error:
            assert "from version 1 (foreign): " in error.message
            assert "finetune" in error.hint and "lwf" in error.hint
    assert {"finetune", "lwf", "lwm"} <= able
    assert not able & {"lwf-mc", "icarl", "rehearsal", "joint", "ncm"}
    assert small_runs.tree(root) == before


def test_without_a_method_the_one_for_its_outputs_is_taken(softmax, folders):
    assert api.plan(folders[0], workspace=softmax, epochs=1).method == "lwf"
    with pytest.raises(UsageError, match="unknown method 'foreign'"):
        api.plan(folders[0], workspace=softmax, method="foreign")


def test_int8_of_a_foreign_model_needs_images_and_says_so(softmax, folders, tmp_path):
    with pytest.raises(UsageError, match="none recorded") as caught:
        api.export(workspace=softmax, output=tmp_path)
    assert "--calibrate DIR" in caught.value.hint
    assert "--calibrate synthetic" in caught.value.hint
    report = api.export(
        workspace=softmax, output=tmp_path, calibrate=str(folders[0]), min_agreement=0.0
    )
    assert report.precision == "int8"


@pytest.mark.parametrize(
    ("text", "problem"),
    [("ant\nbee\n", "has 3 classes, .* names 2"), ("", "no class names"),
     ("ant\n\ncat\n", "class 2 has no printable name"), ("ant\nbee\nANT\n", "1 and 3"),
     ("ant\nbee\nc\x00t\n", "class 3 has no printable name")],
)  # fmt: skip
def test_labels_that_do_not_fit_are_refused(delivered, tmp_path, text, problem):
    given = delivered("resnet18")
    labels = tmp_path / "labels.txt"
    labels.write_text(text)
    with pytest.raises((DataError, UsageError), match=problem):
        api.init(**{**given, "classes": labels}, **LOOK, workspace=tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_labels_as_json(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(["ant", "bee"]))
    assert foreign.read_classes(path) == ("ant", "bee")
    path.write_text('{"0": "ant"}')
    with pytest.raises(DataError, match="JSON list"):
        foreign.read_classes(path)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [({}, "--mean, --std, --image-size missing"), ({"preset": "imagnet"}, "no preset"),
     ({"preset": "imagenet", "image_size": 64}, "leave out --image-size"),
     ({**LOOK, "mean": (123.7, 116.3, 103.5)}, r"in \[0, 1\]"),
     ({**LOOK, "resize": 32}, "image size 64 must be in")],
)  # fmt: skip
def test_preprocessing_is_given_once_and_whole(delivered, tmp_path, settings, problem):
    with pytest.raises(UsageError, match=problem):
        api.init(**delivered("resnet18"), **settings, workspace=tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_other_names_are_listed_with_the_nearest(delivered, tmp_path):
    given = delivered("resnet18")
    state = torch.load(given["weights"])
    # As timm and others rename: never half of it is loaded.
    renamed = {re.sub(r"layer(\d)", r"stages_\1", name): value for name, value in state.items()}
    torch.save(renamed, tmp_path / "other.pt")
    with pytest.raises(UsageError) as caught:
        api.init(**{**given, "weights": tmp_path / "other.pt"}, **LOOK, workspace=tmp_path / "w")
    message = caught.value.message
    assert "\n  missing: layer1.0.conv1.weight" in message and "unexpected: " in message
    assert "nearest: stages_1.0.conv1.weight for layer1.0.conv1.weight?" in message
    assert not (tmp_path / "w").exists()


def test_the_network_that_fits_is_named(delivered, tmp_path):
    given = {**delivered("resnet18"), "arch": "resnet34"}
    with pytest.raises(UsageError) as caught:
        api.init(**given, **LOOK, workspace=tmp_path / "w")
    assert "--arch resnet18" in caught.value.hint
    given = {**delivered("mobilenet_v3_small", wrapped), "arch": "resnet18"}
    with pytest.raises(UsageError, match="unexpected: features") as caught:
        api.init(**given, **LOOK, workspace=tmp_path / "w")
    assert "--arch mobilenet_v3_small" in caught.value.hint


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_code_in_a_checkpoint_does_not_run(delivered, tmp_path):
    given = delivered("resnet18")
    torch.save({"state_dict": torch.load(given["weights"]), "x": Trap(str(tmp_path / "ran"))},
               tmp_path / "evil.pt")  # fmt: skip
    with pytest.raises(DataError, match="could run code"):
        api.init(**{**given, "weights": tmp_path / "evil.pt"}, **LOOK, workspace=tmp_path / "w")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "w").exists()


def test_a_workspace_with_a_version_is_left_alone(delivered, base):
    root = base()
    before = small_runs.tree(root)
    with pytest.raises(UsageError, match="has version 1 already"):
        api.init(**delivered("resnet18"), **LOOK, workspace=root)
    assert small_runs.tree(root) == before


def test_images_of_any_size_enter_as_the_preprocessing_says(softmax, tmp_path):
    pixels = np.kron(toys.pixels_of(1, 1)[0], np.ones((4, 4, 1), np.uint8))
    Image.fromarray(pixels).save(tmp_path / "large.png")
    (found,) = api.predict([tmp_path / "large.png"], workspace=softmax)
    manifest, model = load_version(Workspace(softmax))
    assert manifest.input.resize == manifest.input.size == 64
    image = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BILINEAR)
    values = torch.from_numpy(np.asarray(image) / 255.0).float().permute(2, 0, 1)
    mean, std = (torch.tensor(LOOK[name])[:, None, None] for name in ("mean", "std"))
    logits = model.net(((values - mean) / std)[None]).logits[0]
    assert found.label == manifest.names[int(logits.argmax())]
    assert found.score == pytest.approx(float(logits.max()), abs=0.05)


def test_a_version_cannot_be_made_where_nothing_can_be_written(delivered, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WorkspaceError):
        api.init(**delivered("resnet18"), **LOOK, workspace=tmp_path / "file" / "w")


def test_a_model_without_batch_norm_statistics_is_refused_before_it_is_dreamed_of(
    delivered, tmp_path, folders
):
    """A file without them is not taken; one with those of an untrained network not dreamed of."""
    given = delivered("resnet18")
    state = torchvision_model("resnet18").state_dict()
    bare = {name: value for name, value in state.items() if "running_" not in name}
    torch.save(bare, tmp_path / "bare.pt")
    with pytest.raises(UsageError, match=r"bn1\.running_mean"):
        api.init(**{**given, "weights": tmp_path / "bare.pt"}, **LOOK, workspace=tmp_path / "w")
    assert not (tmp_path / "w").exists()
    untrained = {
        name: torch.full_like(value, float("running_var" in name)) if "running_" in name else value
        for name, value in state.items()
    }
    torch.save(untrained, tmp_path / "untrained.pt")
    api.init(**{**given, "weights": tmp_path / "untrained.pt"}, **LOOK, workspace=tmp_path / "w")
    before = small_runs.tree(tmp_path / "w" / "versions")
    with pytest.raises(AdoptError, match="untrained") as caught:
        api.learn(folders[0], workspace=tmp_path / "w", method="abd", precision="float32", epochs=1)
    assert "running_mean" in caught.value.hint
    assert small_runs.tree(tmp_path / "w" / "versions") == before
