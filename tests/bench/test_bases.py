"""Runs that begin alike train the base increment once, and nothing else changes."""

from __future__ import annotations

import dataclasses

import pytest
import toys
from small_runs import PROTOCOL, same

from edgecil.bench import layouts
from edgecil.bench.bases import Bases, key
from edgecil.bench.runner import Run, Variant, execute
from edgecil.engine.events import PhaseStarted
from edgecil.learning.request import LearnRequest


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    toys.write_folder(root / "train", range(6))
    toys.write_folder(root / "test", range(6), 6, seed=1)
    return layouts.read("folders", root)


def result(data, folder, method, bases=None, **settings):
    """Return the result of a run, and the first step of every phase that was run."""
    steps = []

    def listen(event):
        if isinstance(event, PhaseStarted):
            steps.append((event.step, event.steps))

    run = Run(PROTOCOL, Variant.parse(method), 0, settings, "float32")
    return execute(run, data, folder / method, listener=listen, bases=bases), steps


def test_the_result_is_that_of_a_run_of_its_own(data, tmp_path):
    bases = Bases(tmp_path / "bases")
    _, trained = result(data, tmp_path, "finetune", bases)
    assert [step for step, _ in trained] == [0, 0, 0]
    for method in ("lwf", "lwf-coreset", "ewc"):
        alone, _ = result(data, tmp_path / "alone", method)
        found, steps = result(data, tmp_path, method, bases)
        assert steps[0][0] == steps[0][1] > 0, "the base was trained again"
        assert same(found, alone)
    assert len(list(bases.folder.iterdir())) == 1


def test_a_method_that_begins_otherwise_takes_no_base_of_others(data, tmp_path):
    bases = Bases(tmp_path / "bases")
    for method in ("finetune", "lwm", "lucir"):
        _, steps = result(data, tmp_path, method, bases)
        assert steps[0][0] == 0
    _, steps = result(data, tmp_path, "icarl", bases, exemplars_per_class=2)
    assert steps[0][0] == steps[0][1], "icarl begins like lwm, however much it keeps"
    assert len(list(bases.folder.iterdir())) == 2


def test_the_key_changes_with_all_that_changes_the_training_and_with_nothing_else():
    request = LearnRequest("images/", "lwf", seed=1)
    same_key = {"codec": "raw", "memory_budget": 5000, "method": "finetune", "new_data": "other/"}
    for name, value in same_key.items():
        assert key(dataclasses.replace(request, **{name: value})) == key(request), name
    other_key = {"seed": 2, "epochs": 3, "lr": 0.2, "batch_size": 5, "precision": "bfloat16",
                 "arch": "resnet18", "preset": "mfgr", "method": "lwf-mc",
                 "class_order": ("b", "a")}  # fmt: skip
    keys = {key(dataclasses.replace(request, **{k: v})) for k, v in other_key.items()}
    assert len(keys | {key(request)}) == 1 + len(other_key)
    assert key(dataclasses.replace(request, method="lucir")) is None
    heavier = dataclasses.replace(request, options={"ce_weight": 5})
    assert key(heavier) is None, "the base increment has another loss"
