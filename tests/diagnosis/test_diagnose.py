"""The whole diagnosis of small workspaces: numbers, figures, and what is refused."""

import io
import json
import math
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace

import numpy as np
import pytest
import small_runs
import torch
import toys
from PIL import Image

from edgecil import api
from edgecil.data.images import ImageSet
from edgecil.diagnosis import run as running
from edgecil.diagnosis import synthetic as making
from edgecil.diagnosis.distance import bandwidth, mean_image_distance, squared_mmd
from edgecil.diagnosis.look import _attention, evenly, look
from edgecil.diagnosis.run import diagnose
from edgecil.engine.compute import Compute
from edgecil.engine.events import Note, Stage
from edgecil.errors import DataError, DependencyMissing, TrainingError, WorkspaceError
from edgecil.losses.attention import attention_distance, grad_attention
from edgecil.memory.store import Store
from edgecil.nets.build import build
from edgecil.nets.net import NetSpec
from edgecil.settings import CIFAR
from edgecil.synthesis import dreams
from edgecil.synthesis.recording import Recording
from edgecil.upkeep import rename
from edgecil.versions import load_version
from edgecil.workspace import Workspace


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two increments of two classes, and test images of all four."""
    root = tmp_path_factory.mktemp("folders")
    parts = [toys.write_folder(root / str(i), range(2 * i, 2 * i + 2)) for i in range(2)]
    return [*parts, toys.write_folder(root / "test", range(4), count=5, seed=1)]


@pytest.fixture(scope="module")
def known(folders, tmp_path_factory):
    """A workspace with two versions, to be read only."""
    root = tmp_path_factory.mktemp("known") / ".edgecil"
    for folder in folders[:2]:
        small_runs.learn(folder, root, method="lwm", epochs=6, batch_size=8)
    return root


@pytest.fixture(scope="module")
def made(folders, known, tmp_path_factory):
    """The diagnosis of the second version, with synthetic images."""
    return diagnose(
        folders[2], new_data=folders[1], workspace=known, synthetic=6, steps=25, device="cpu",
        output=tmp_path_factory.mktemp("made"),
    )  # fmt: skip


def told(events):
    return [event.text for event in events if isinstance(event, Note)]


def ask(*arguments):
    from edgecil_cli.app import run

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run([str(a) for a in arguments])
    return code, out.getvalue(), err.getvalue()


def features_of(root, folder, version, labels):
    """Return the features of some classes, made without the code under test."""
    _, model = load_version(Workspace(root), version)
    rows = []
    for label in labels:
        for path in sorted((folder / f"class-{label}").iterdir()):
            pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255
            mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CIFAR.mean, CIFAR.std))
            rows.append(model.net(((pixels - mean) / std)[None]).features[0])
    return torch.stack(rows).numpy()


def test_distances_are_from_real_old_test_images_to_new_and_synthetic_ones(made, folders, known):
    old = features_of(known, folders[2], 2, (0, 1))
    new = features_of(known, folders[1], 2, (2, 3))
    real, synthetic = made.distances
    assert (real.sample, real.images) == ("real new", 24)
    assert (synthetic.sample, synthetic.images) == ("synthetic old", 6)
    assert real.mid == pytest.approx(mean_image_distance(old, new), rel=1e-3)
    assert made.bandwidth == pytest.approx(bandwidth(old), rel=1e-3)
    assert real.mmd_squared == pytest.approx(squared_mmd(old, new, bandwidth(old)), rel=1e-2)
    assert synthetic.mid > 0


def test_drift_is_from_the_parent_to_the_version(made, folders, known):
    before, now = (features_of(known, folders[2], v, (0, 1)) for v in (1, 2))
    (drift,) = made.drift
    assert (drift.version, drift.classes, drift.images) == (1, 2, 10)
    assert drift.mid == pytest.approx(mean_image_distance(before, now), rel=1e-3)
    lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(now, axis=1)
    assert drift.cosine == pytest.approx(((before * now).sum(axis=1) / lengths).mean(), rel=1e-4)
    assert 0 < drift.attention < 8


def test_confusion_is_what_evaluate_counts(made, folders, known):
    found = api.evaluate(folders[2], workspace=known, device="cpu")
    assert np.array_equal(made.confusion, found.counts) and made.top1 == found.top1
    assert made.labels == found.labels and made.old == 2


def test_the_report_is_strict_json_and_names_files_that_are_there(made):
    folder = made.files[-1].parent
    data = json.loads((folder / "diagnose.json").read_text(), parse_constant=pytest.fail)
    assert data == made.to_json()
    names = {f"{n}{s}" for n in ("confusion", "features", "attention", "sheet")
             for s in (".png", ".svg")}  # fmt: skip
    assert names <= set(data["files"]) and {p.name for p in folder.iterdir()} == set(data["files"])
    assert sum(data["synthetic"].values()) == 6 and list(data["synthetic"]) == [
        "class-0",
        "class-1",
    ]


def test_figures_are_large_enough_for_print_and_say_what_they_show(made):
    folder = made.files[-1].parent
    words = {
        "confusion": ["class-3", "predicted", "true"],
        "features": ["real old", "real new", "synthetic old", "component 1"],
        "attention": ["version 1", "version 2", "class-0", "attention"],
    }
    for name, wanted in words.items():
        with Image.open(folder / f"{name}.png") as image:
            assert min(image.size) > 400
            assert len(image.convert("L").getcolors(256)) > 20  # lightness alone says something
        text = (folder / f"{name}.svg").read_text()
        assert all(re.search(rf">{word}[^<]*</text>", text) for word in wanted), name


def test_attention_is_that_of_the_true_class_by_autograd(folders, known):
    _, model = load_version(Workspace(known), 2)
    images = toys.image_set(range(4), 3, seed=5)
    found = look(model, images, CIFAR, Compute("cpu", 1, "float32"))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CIFAR.mean, CIFAR.std))
    outputs = model.net((images.pixels.permute(0, 3, 1, 2) / 255 - mean) / std)
    tapped = outputs.map.detach().requires_grad_()
    scores = model.net.head(tapped.mean(dim=(2, 3))).gather(1, images.labels[:, None])[:, 0]
    expected = grad_attention(scores, tapped, create_graph=False).detach()
    assert attention_distance(expected, found.maps.flatten(1)) < 1e-3
    assert found.maps.shape == (12, 8, 8)
    assert torch.allclose(found.scores, outputs.logits, atol=1e-4)


def test_a_first_version_has_old_classes_alone(folders, known, tmp_path):
    found = diagnose(folders[2], workspace=known, version=1, output=tmp_path, device="cpu")
    assert (found.old, found.distances, found.drift) == (2, (), ())
    assert found.confusion.sum() == 10 and (tmp_path / "attention.png").exists()


def test_a_renamed_class_makes_no_step_of_its_own(folders, known, tmp_path, made):
    place = Workspace(small_runs.copied(known, tmp_path / "w"))
    for name in ("wren", "jay"):
        rename(place, place.manifest().names[0], name)
    images = tmp_path / "images"
    shutil.copytree(folders[2], images)
    (images / "class-0").rename(images / "jay")
    found = diagnose(images, workspace=place.root, output=tmp_path / "o", device="cpu")
    assert [(d.version, d.mid) for d in found.drift] == [
        (d.version, pytest.approx(d.mid)) for d in made.drift
    ]


def test_logits_that_are_not_used_have_no_attention(folders, tmp_path):
    for folder in folders[:2]:
        small_runs.learn(folder, tmp_path / "w", method="ncm")
    found = diagnose(folders[2], workspace=tmp_path / "w", output=tmp_path / "o", device="cpu")
    assert found.to_json()["drift"][0]["attention"] is None
    assert found.drift[0].cosine == pytest.approx(1, abs=1e-5)  # the backbone is frozen
    assert not (tmp_path / "o" / "attention.png").exists()


def test_a_map_that_is_empty_has_no_distance():
    """A dead map would else be 0 from any other: as if all had been kept."""
    maps = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(0))
    dead = maps.clone()
    dead[1] = 0
    pairs, distance = _attention(maps, dead.flip(2))
    kept = torch.tensor([0, 2])
    assert pairs == 2 and distance > 0
    whole = attention_distance(maps[kept].flatten(1), dead.flip(2)[kept].flatten(1))
    assert distance == pytest.approx(float(whole))
    pairs, distance = _attention(maps[1:2], dead[1:2])
    assert pairs == 0 and math.isnan(distance)


def test_of_a_stopped_synthesis_the_other_figures_are_there(folders, known, tmp_path, monkeypatch):
    def stopped(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("edgecil.diagnosis.synthetic.synthesise", stopped)
    with pytest.raises(KeyboardInterrupt):
        diagnose(folders[2], workspace=known, output=tmp_path, synthetic=4, device="cpu")
    assert {p.name for p in tmp_path.glob("*.png")} == {"confusion.png", "attention.png"}


def test_what_is_synthesised_and_how_far_it_is_can_be_heard(folders, known, tmp_path):
    said = []
    found = diagnose(
        folders[2], workspace=known, version=1, output=tmp_path, synthetic=2, steps=3,
        listener=said.append, device="cpu",
    )  # fmt: skip
    notes = told(said)
    assert "synthetic images are made from the first version itself: there is none before" in notes
    assert any("by 3 steps of pixels" in text for text in notes)
    done = [(event.done, event.total) for event in said if isinstance(event, Stage)]
    assert done == [(1, 3), (3, 3)]
    unseen = [name for name, images in found.shown.items() if not images]
    assert any(text.endswith(f"taken for: {', '.join(unseen)}") for text in notes) == bool(unseen)


def test_without_scikit_learn_the_rest_is_there(folders, known, tmp_path, monkeypatch):
    def missing(features):
        raise DependencyMissing("t-SNE needs scikit-learn", hint="install it")

    monkeypatch.setattr(running, "neighbour_plane", missing)
    said = []
    found = diagnose(
        folders[2], workspace=known, output=tmp_path, listener=said.append, device="cpu"
    )
    assert said == [Note("t-SNE needs scikit-learn: install it")]
    assert not [p for p in found.files if p.name.startswith("tsne")]


def test_what_cannot_be_diagnosed_is_refused_before_anything_is_written(folders, known, tmp_path):
    new = toys.write_folder(tmp_path / "new", (2,), count=2)
    strange = toys.write_folder(tmp_path / "strange", (7,), count=2)
    target = tmp_path / "out"
    for arguments, error, words in (
        ({"test_data": new}, DataError, "no image of the 2 old classes"),
        ({"test_data": strange}, DataError, "none of its classes"),
        ({"test_data": folders[2], "new_data": folders[0]}, DataError, "no image of the new"),
        ({"test_data": folders[2], "version": 9}, WorkspaceError, "no version 9"),
    ):
        with pytest.raises(error, match=words):
            diagnose(**arguments, workspace=known, output=target, device="cpu")
    assert not target.exists()


def test_the_command_in_its_three_modes(folders, known, tmp_path):
    common = ("diagnose", "--test-data", folders[2], "--workspace", known, "-o", tmp_path)
    code, out, err = ask(*common)
    assert code == 0, err
    assert "MID" in out and "real new" in out and "confusion.png" in out and ".svg" not in out
    code, out, _ = ask(*common, "--json")
    answer = json.loads(out)
    assert code == 0 and answer["ok"] and answer["result"]["path"] == str(tmp_path)
    assert answer["result"]["distances"][0]["sample"] == "real new"
    assert ask(*common, "-q") == (0, f"{tmp_path}\n", "")
    assert ask(*common, "--synthetic", 1)[0] == 2


def test_samples_that_are_spread_have_both_ends():
    assert evenly(3, 5) == [0, 1, 2] and evenly(1, 4) == [0] and evenly(101, 3) == [0, 50, 100]


def test_a_streamed_set_is_looked_at_alike(known):
    _, model = load_version(Workspace(known), 1)
    images = toys.image_set(range(2), 4)
    whole = look(model, images, CIFAR, Compute("cpu", 1, "float32"))
    part = look(model, ImageSet(images.pixels[3:], images.labels[3:]), CIFAR,
                Compute("cpu", 1, "float32"))  # fmt: skip
    assert torch.allclose(whole.features[3:], part.features, atol=1e-5)


def test_after_a_rename_images_are_made_from_the_increment_before(folders, known, tmp_path):
    place = Workspace(small_runs.copied(known, tmp_path / "copy"))
    renamed = rename(place, "class-3", "thing")
    assert renamed.parent == 2
    for version, classes in ((3, 2), (2, 2), (1, 2)):
        manifest, model = load_version(place, version)
        case = running._Case(place, manifest, model, Compute("cpu", 1, "float32"), print)
        before, source = running._before(case)
        assert source.net.classes == len(before.classes) == classes == case.old


@pytest.mark.usefixtures("small_generators")
@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("deepinversion", {"synthesis_steps": 3, "statistics": 7.0, "synthesis_batch": 5},
         {"source": "generator", "lr": 1e-3, "batch": 5, "mode": "eval"}),
        ("abd", {"synthesis_steps": 3, "source": "pixels"},
         {"source": "pixels", "lr": 0.05, "batch": 8, "mode": "eval"}),
        ("icarl+mfgr", {"synthesis_steps": 3, "statistics": 7.0},
         {"source": "generator", "lr": 0.01, "batch": 8, "mode": "train"}),
        ("abd", {"synthesis_steps": 3, "collapse": "accept"}, {"varied": False}),
        ("lwm", {}, {"source": "pixels", "lr": None, "batch": 64, "mode": "eval", "varied": True}),
    ],
)  # fmt: skip
def test_images_are_made_as_the_versions_method_makes_them(
    method, options, expected, known, monkeypatch
):
    manifest, model = load_version(Workspace(known), 2)
    training = {**manifest.training, "batch_size": 8}
    manifest = replace(manifest, method=method, options=options, training=training)
    asked, said, real = [], [], making.synthesise

    def spy(net, preprocess, count, steps, seed, **settings):
        asked.append((steps, settings))
        settings = settings | {"varied": False}
        return real(net, preprocess, count, min(steps, 2), seed, **settings)

    monkeypatch.setattr(making, "synthesise", spy)
    compute = Compute("cpu", 1, "float32")
    for steps in (None, 2):
        version = manifest, model
        made = making.make(version, version, compute, 3, steps, 0, said.append)
        assert made.pixels.shape == (3, 32, 32, 3)
    assert [steps for steps, _ in asked] == [options.get("synthesis_steps", 300), 2]
    settings = asked[0][1]
    assert {name: settings[name] for name in expected} == expected
    assert settings["objective"].statistics == options.get("statistics", 50.0)
    assert isinstance(settings["objective"], Recording) == ("mfgr" in method)
    assert f"{asked[0][0]} steps of" in told(said)[0] and method in told(said)[0]


@pytest.mark.parametrize("method", ["dgr", "ncm", "icarl"])
def test_classes_of_synthetic_images_are_by_the_rule_of_the_version_before(
    method, folders, tmp_path, monkeypatch
):
    """By class means here; images of logits that nobody uses are asked for statistics alone."""
    small = {"vae_width": 2, "vae_latent": 8} if method == "dgr" else {}
    for folder in folders[:2]:
        small_runs.learn(folder, tmp_path / "w", method=method, options=small)
    place, asked, said = Workspace(tmp_path / "w"), [], []
    real = making.synthesise

    def spy(*arguments, **settings):
        asked.append(settings)
        return real(*arguments, **settings)

    monkeypatch.setattr(making, "synthesise", spy)
    before, version = load_version(place, 1), load_version(place, 2)
    compute = Compute("cpu", 1, "float32")
    made = making.make(before, version, compute, 20, 3, 0, said.append)
    again = making.make(before, version, compute, 20, 3, 0, said.append)
    assert np.array_equal(made.pixels, again.pixels) and made.pixels.shape == (20, 32, 32, 3)
    seen = look(before[1], ImageSet(torch.from_numpy(made.pixels), torch.zeros(20).long()), CIFAR,
                compute)  # fmt: skip
    assert made.labels.tolist() == seen.scores.argmax(dim=1).tolist()
    if method == "dgr":
        assert not asked and "from what version 1 keeps" in told(said)[0]
        vae = before[1].kept.field("vae").shape.build(32, before[1].kept.read("vae"))
        drawn = vae.draw(200).mean(dim=(0, 2, 3))
        shown = torch.from_numpy(made.pixels).float().mean(dim=(0, 1, 2)) / 255
        assert torch.allclose(drawn, shown, atol=0.05)
        gone = forgotten(before)
        making.make(gone, version, compute, 2, 1, 0, said.append)
        assert asked and "not stored any more" in told(said)[-1]
        return
    wanted = asked[0]["objective"]
    assert "makes none of its own" in told(said)[0] and wanted.statistics
    assert (wanted.content, wanted.diversity, asked[0]["varied"]) == (
        (0, 0, False) if method == "ncm" else (1, 1, True)
    )


def forgotten(version):
    """Return a version whose kept memory is gone."""
    manifest, model = version
    return manifest, replace(model, kept=Store(()))


def test_what_to_try_when_no_images_come_out_is_what_diagnose_has(known, folders, tmp_path):
    manifest, model = load_version(Workspace(known), 1)
    with torch.no_grad():
        model.net.head.bias[1] += 1e6
    version = manifest, model
    with pytest.raises(TrainingError, match="collapsed") as caught:
        making.make(version, version, Compute("cpu", 1, "float32"), 16, 1, 0, lambda text: None)
    options = re.findall(r"--[a-z-]+", caught.value.hint)
    _, text, _ = ask("diagnose", "--help")
    assert options and all(option in text for option in options)


def test_a_generator_learns_from_whole_batches_however_few_images_are_wanted(monkeypatch):
    seen = []
    monkeypatch.setattr(dreams, "fit", lambda *a, **k: seen.append(a[4]))
    net = build(NetSpec("resnet8"), 3)
    monkeypatch.setattr(dreams, "check_statistics", lambda net: None)
    for source in ("generator", "pixels"):
        dreams.synthesise(net, CIFAR, 2, 5, source=source, batch=16, lr=0.3, varied=False)
    assert [(s.batch, s.lr) for s in seen] == [(16, 0.3), (16, 0.3)]
