"""Exemplars that are stored smaller than images are decoded: what is kept is what is seen."""

import numpy as np
import pytest
import small_runs
import toys
from small_runs import learn

from edgecil import api, upkeep
from edgecil.data.images import concat
from edgecil.engine import increment
from edgecil.errors import UsageError
from edgecil.memory.fields import COUNTS, IMAGES
from edgecil.method import Selection
from edgecil.methods import rehearsal
from edgecil.rankings import keep_all
from edgecil.settings import IMAGENET, Preprocess
from edgecil.versions import load_version
from edgecil.workspace import Workspace
from edgecil_runtime.images import fit_square, read_image

SETTINGS = {"method": "rehearsal", "exemplars_per_class": 4, "codec": "raw"}
RAW = 16 * 16 * 3


@pytest.fixture
def in_order(monkeypatch):
    """Exemplars are the first images of a class, so that tests know their files."""
    real = rehearsal.recipe

    def recipe(options):
        made = real(options)
        return toys.dataclasses.replace(made, selection=Selection(keep_all))

    monkeypatch.setattr(rehearsal, "recipe", recipe)


def kept_of(root, version=None):
    return load_version(Workspace(root), version)[1].kept


def files(folder, label, count):
    return [read_image(p) for p in sorted((folder / f"class-{label}").glob("*"))[:count]]


def test_training_sees_the_stored_images_at_the_size_of_new_ones(
    folders, tmp_path, monkeypatch, in_order
):
    root, seen = tmp_path / ".edgecil", {}
    first = learn(folders[0], root, exemplar_size=16, **SETTINGS)
    assert first.manifest.kept["exemplar_size"] == 16
    stored = kept_of(root).read(IMAGES)
    wanted = [fit_square(i, 16) for label in (0, 1) for i in files(folders[0], label, 4)]
    assert np.array_equal(stored, wanted)
    real = increment.train

    def train(task, sets, session, **more):
        seen.update(sets)
        return real(task, sets, session, **more)

    monkeypatch.setattr("edgecil.engine.increment.train", train)
    second = learn(folders[1], root)  # the size is inherited
    assert second.manifest.kept["exemplar_size"] == 16
    pixels = concat([seen["kept"], seen["new"]]).pixels.numpy()
    assert pixels.shape[1:] == (32, 32, 3)
    assert np.array_equal(pixels[:8], [fit_square(i, 32) for i in stored])
    after = kept_of(root)
    assert np.array_equal(after.read(IMAGES)[:8], stored)  # not decoded and stored again
    assert after.read(COUNTS).tolist() == [4] * 4


@pytest.mark.parametrize(
    ("codec", "limit"),
    [("raw", 14_000), ("png", 14_000), ("webp-lossless", 14_000), ("jpeg-75", 7_000)],
)
def test_the_budget_holds_and_smaller_images_are_more(codec, limit, folders, tmp_path):
    counts = {}
    for size in (None, 8):
        root = tmp_path / str(size)
        for folder in folders[:2]:
            result = learn(
                folder, root, method="rehearsal", codec=codec, memory_budget=limit,
                exemplar_size=size,
            )  # fmt: skip
            file = root / "versions" / str(result.manifest.version) / "memory.safetensors"
            assert file.stat().st_size == result.manifest.kept["bytes"] <= limit
        counts[size] = result.manifest.kept["exemplars_per_class"]
    assert counts[8] > counts[None]


def test_the_plan_is_exact(folders, tmp_path):
    root = tmp_path / ".edgecil"
    plan = api.plan(
        folders[0], workspace=root, **small_runs.QUICK, exemplar_size=16, **SETTINGS
    )  # fmt: skip
    kept = learn(folders[0], root, exemplar_size=16, **SETTINGS).manifest.kept
    assert plan.kept["basis"] == "plan"
    assert plan.kept["bytes"] == kept["bytes"]
    assert {"name": IMAGES, "bytes": 8 * RAW} in kept["fields"]
    rows = {row.method: row for row in api.report_memory(workspace=root).rows}
    images = {f["name"]: f["bytes"] for f in rows["icarl"].to_json()["fields"]}
    assert images[IMAGES] == 8 * RAW


def test_a_smaller_size_later_shrinks_what_is_there(folders, tmp_path):
    root = tmp_path / ".edgecil"
    learn(folders[0], root, **SETTINGS)
    before = kept_of(root).read(IMAGES)
    learn(folders[1], root, exemplar_size=16)
    after = kept_of(root).read(IMAGES)
    assert after.shape == (16, 16, 16, 3)
    assert np.array_equal(after[:8], [fit_square(i, 16) for i in before])


def test_margins_around_the_crop_stay(tmp_path):
    """A network that crops 32 of 40 pixels crops as much of a stored image."""
    root = tmp_path / ".edgecil"
    preprocess = Preprocess(32, 40, IMAGENET.mean, IMAGENET.std)
    for number, labels in enumerate((range(2), range(2, 4))):
        folder = toys.write_folder(tmp_path / str(number), labels, count=6)
        result = learn(
            folder, root, preprocess=preprocess if not number else None, exemplar_size=20,
            **SETTINGS,
        )  # fmt: skip
    assert result.manifest.groups == (2, 2)
    assert kept_of(root).read(IMAGES).shape[1:] == (20, 20, 3)


def test_an_image_is_forgotten_by_its_file(folders, tmp_path, in_order):
    root = tmp_path / ".edgecil"
    learn(folders[0], root, exemplar_size=16, **SETTINGS)
    file = folders[0] / "class-1" / "002.png"
    assert upkeep.forget(Workspace(root), str(file)) == {1: 1}
    assert kept_of(root).read(COUNTS).tolist() == [4, 3]


@pytest.mark.parametrize(
    ("settings", "says", "hint"),
    [
        ({"exemplar_size": 0}, "--exemplar-size must be at least 1", None),
        ({"exemplar_size": 33}, "decoded to 32 x 32", "--exemplar-size 32"),
        ({"exemplar_size": 16, "method": "lwm"}, "lwm stores no exemplars", None),
        ({"exemplar_size": 16, "method": "joint", "codec": None}, "stores no exemplars", None),
    ],
)
def test_sizes_of_no_use_are_refused(settings, says, hint, folders, tmp_path):
    root = tmp_path / ".edgecil"
    with pytest.raises(UsageError, match=says) as caught:
        learn(folders[0], root, **{**SETTINGS, **settings})
    assert hint is None or hint in caught.value.hint
    assert not Workspace(root).exists()


def test_stored_images_are_not_enlarged(folders, tmp_path):
    root = tmp_path / ".edgecil"
    learn(folders[0], root, exemplar_size=16, **SETTINGS)
    with pytest.raises(UsageError, match="smaller, not larger"):
        learn(folders[1], root, exemplar_size=24)
    # A method without exemplars goes on; what it inherits has no effect.
    assert learn(folders[1], root, method="finetune").manifest.method == "finetune"
