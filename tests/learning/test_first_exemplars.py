"""Budgets that one exemplar of each class exceeds: refused before training, or nothing is lost."""

from __future__ import annotations

import numpy as np
import pytest
import small_runs
from PIL import Image
from small_runs import learn

from edgecil import api
from edgecil.engine.loop import Session
from edgecil.errors import BudgetError, Interrupted, UsageError
from edgecil.exemplars import build_exemplars
from edgecil.learning import planning
from edgecil.memory import codecs
from edgecil.memory.budget import Budget
from edgecil.memory.fields import exemplar_fields
from edgecil.memory.store import Store
from edgecil.workspace import Workspace

CODECS = ["raw", "png", "webp-lossless", "jpeg-75"]


def _no_training(*arguments, **settings):
    pytest.fail("the refusal must come before training")


@pytest.mark.parametrize("codec", CODECS)
def test_the_budget_that_is_just_enough_is_taken_and_a_byte_less_refused(
    codec, folders, tmp_path, monkeypatch
):
    """The smallest image of each class may be the one that is kept: that is what is refused on."""
    settings = {"method": "rehearsal", "codec": codec, **small_runs.QUICK}
    asked = {"workspace": tmp_path / ".edgecil", **settings}
    with monkeypatch.context() as patch:
        patch.setattr("edgecil.engine.increment.train", _no_training)
        low, high = 1, 20_000  # what is refused, and what is not
        while high - low > 1:
            middle = (low + high) // 2
            try:
                planning.check_budget(_job(folders[0], memory_budget=middle, **asked))
                high = middle
            except BudgetError:
                low = middle
        with pytest.raises(BudgetError, match="keeps at least"):
            api.learn(folders[0], memory_budget=low, **asked)
    least = _least_by_hand(folders[0], tmp_path / "by-hand", **settings)
    assert high == least
    assert high > {"raw": 6000, "png": 1500, "webp-lossless": 1500, "jpeg-75": 300}[codec]


def _job(folder, workspace, method, memory_budget, **settings):
    request = api._request(folder, method, {**settings, "memory_budget": memory_budget})
    return api.prepare(request, Workspace.find(workspace))


def _least_by_hand(folder, root, codec, **settings):
    """Return the size of the file that keeps the smallest image of each class."""
    encode = codecs.item_codec(codec).encode_item
    smallest = []
    for name in ("class-0", "class-1"):
        files = sorted((folder / name).iterdir())
        images = [np.array(Image.open(path).convert("RGB")) for path in files]
        smallest.append(min(images, key=lambda image: len(encode(image))))
    store = Store(exemplar_fields(codec))
    ranked = [np.array([0]), np.array([1])]
    build_exemplars(Store(store.fields), store, np.stack(smallest), ranked, Budget())
    return store.report().kept_bytes


def test_what_old_classes_take_is_known_to_the_byte(folders, base, monkeypatch):
    root = base("icarl")
    monkeypatch.setattr("edgecil.engine.increment.train", _no_training)
    with pytest.raises(BudgetError, match="keeps at least"):
        learn(folders[1], root, memory_budget=4000, codec="webp-lossless")


def test_a_run_whose_memory_does_not_fit_goes_on_with_more(folders, tmp_path, monkeypatch):
    """Which image is ranked best shows after training: then nothing of it is thrown away."""
    root, straight = tmp_path / "a" / ".edgecil", tmp_path / "b" / ".edgecil"
    settings = {"method": "icarl", "codec": "webp-lossless"}
    learn(folders[0], straight, memory_budget=20_000, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(planning, "_check_first_exemplars", lambda job: None)
        with pytest.raises(BudgetError, match="one exemplar") as caught:
            learn(folders[0], root, memory_budget=1500, **settings)
    assert "--resume --memory-budget" in caught.value.hint and "--discard" in caught.value.hint
    assert Workspace(root).waits
    with pytest.raises(BudgetError, match="keeps at least"):
        api.learn(workspace=root, resume=True)
    assert Workspace(root).waits
    with monkeypatch.context() as patch:
        patch.setattr("edgecil.engine.loop.PhaseRun.step", _no_training)
        result = api.learn(workspace=root, resume=True, memory_budget=20_000)
    assert result.manifest.kept["budget"]["bytes"] == 20_000
    assert small_runs.equal(small_runs.weights(root), small_runs.weights(straight))
    assert not Workspace(root).waits


MNEMONICS = {
    "method": "icarl+mnemonics", "codec": "webp-lossless", "batch_size": 4,
    "options": {"mode": "prototype", "outer_epochs": 2, "pixel_lr": 0.5, "exemplar_epochs": 1},
}  # fmt: skip


def test_where_nothing_was_trained_nothing_waits(folders, tmp_path):
    """Exemplars that are trained may get smaller: what they take now is asked before training."""
    root = tmp_path / ".edgecil"
    with pytest.raises(BudgetError, match="one exemplar of each") as caught:
        learn(folders[0], root, memory_budget=1500, **MNEMONICS)
    assert "waits" not in caught.value.hint and "--memory-budget" in caught.value.hint
    assert not Workspace(root).waits


def flat(folder, labels):
    """Write a folder of images of one colour each: they take more bytes when they are trained."""
    for label in labels:
        where = folder / f"class-{label}"
        where.mkdir(parents=True)
        for number in range(4):
            shade = (40 + 50 * label, 20 * number, 200 - 40 * label)
            Image.new("RGB", (32, 32), shade).save(where / f"{number}.png")
    return folder


@pytest.mark.parametrize("old", [0, 2])
def test_trained_exemplars_that_outgrow_the_budget_go_on_with_a_larger_one(
    old, tmp_path, monkeypatch
):
    """Without old classes it shows when they are stored, with them before the fine-tuning."""
    root, straight = tmp_path / "a" / ".edgecil", tmp_path / "b" / ".edgecil"
    if old:
        for where in (root, straight):
            base = flat(where.parent / "base", range(2))
            learn(base, where, method="icarl", codec="webp-lossless", exemplars_per_class=4)
    new = flat(tmp_path / "new", range(old, old + 2))
    learn(new, straight, exemplars_per_class=4, **MNEMONICS)
    with pytest.raises(BudgetError, match="one exemplar of each") as caught:
        learn(new, root, memory_budget=2000, **MNEMONICS)
    assert "--resume --memory-budget" in caught.value.hint
    for budget, error in ((None, BudgetError), (1900, UsageError)):
        with pytest.raises(error):
            api.learn(workspace=root, resume=True, memory_budget=budget)
        assert Workspace(root).waits
    if not old:
        monkeypatch.setattr("edgecil.engine.loop.PhaseRun.step", _no_training)
    larger = {"memory_budget": 90_000}
    if old:  # stopped in the fine-tuning, it keeps the larger budget
        with monkeypatch.context() as patched, pytest.raises(Interrupted):
            often = small_runs.looking_often(Session.__init__)
            patched.setattr(Session, "__init__", often)
            api.learn(workspace=root, resume=True, **larger, should_stop=lambda: True)
        larger = {}
    result = api.learn(workspace=root, resume=True, **larger)
    assert 2000 < result.manifest.kept["bytes"] < 90_000
    assert result.manifest.kept["exemplars_per_class"] == 4
    assert small_runs.equal(small_runs.weights(root), small_runs.weights(straight))
