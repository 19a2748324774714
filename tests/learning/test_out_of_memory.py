"""Too little memory in a step: what the phase needs less with is said, and nothing is lost."""

from __future__ import annotations

import shlex

import pytest
import small_runs
import torch
from small_runs import learn, tree

from edgecil import api
from edgecil.errors import OutOfMemory
from edgecil.learning.request import LearnRequest
from edgecil.workspace import Workspace

pytestmark = pytest.mark.usefixtures("small_generators")

OPTIONS = {"synthesis_steps": 3, "collapse": "accept"}
PHASES = {
    "synthesis": ("edgecil.parts.dreaming.synthesis_step", "--set synthesis_batch=8"),
    "train": ("edgecil.methods.deepinversion.step", "--batch-size 8"),
}
ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    MemoryError(),
)


def failing(error):
    def step(*arguments):
        raise error

    return step


@pytest.fixture(scope="module")
def known(folders, tmp_path_factory):
    root = tmp_path_factory.mktemp("known") / ".edgecil"
    learn(folders[0], root, method="deepinversion", options=OPTIONS)
    return root


@pytest.fixture
def own(known, tmp_path):
    return small_runs.copied(known, tmp_path / "with a space" / ".edgecil")


@pytest.mark.parametrize("phase", PHASES)
def test_the_phase_and_what_makes_it_smaller_are_named(phase, own, folders, monkeypatch):
    where, smaller = PHASES[phase]
    before = tree(own / "versions")
    for error in ERRORS:
        with monkeypatch.context() as patch:
            patch.setattr(where, failing(error))
            with pytest.raises(OutOfMemory, match=f"'{phase}' with a batch size of 16") as caught:
                learn(folders[1], own, batch_size=16, discard=True)
        assert caught.value.__cause__ is not None
        assert caught.value.smaller == smaller and smaller in caught.value.hint
    assert tree(own / "versions") == before and Workspace(own).current() == 1
    # With room the run goes on, and what was synthesised is not made again.
    if phase == "train":
        monkeypatch.setattr(PHASES["synthesis"][0], failing(AssertionError("made again")))
    assert api.learn(workspace=own, resume=True).manifest.version == 2


def test_fewer_images_than_one_are_not_asked_for(own, folders, monkeypatch):
    monkeypatch.setattr(PHASES["synthesis"][0], failing(ERRORS[0]))
    with pytest.raises(OutOfMemory) as caught:
        learn(folders[1], own, options={"synthesis_batch": 1})
    assert caught.value.smaller == "--device cpu"


def test_other_errors_stay_what_they_are(own, folders, monkeypatch):
    monkeypatch.setattr(PHASES["train"][0], failing(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        learn(folders[1], own)


def test_the_hint_can_be_typed(own, folders, monkeypatch, capsys):
    from edgecil_cli.app import run

    command = ["learn", "--new-data", str(folders[1]), "--workspace", str(own), "--epochs", "1",
               "--batch-size", "16", "--no-record-ranges", "--seed", "3"]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(PHASES["synthesis"][0], failing(ERRORS[0]))
        assert run(command) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "phase 'synthesis'" in told and "bug" not in told
    typed = told[told.index("edgecil learn --new-data") :].partition(";")[0]
    assert run([*shlex.split(typed)[1:], "--quiet"]) == 0, typed
    manifest = Workspace(own).manifest()
    assert manifest.version == 2 and manifest.options["synthesis_batch"] in (8, "8")
    assert (manifest.training["batch_size"], manifest.training["seed"]) == (16, 3)


def test_a_dry_run_names_the_phase_too(own, folders, monkeypatch):
    monkeypatch.setattr(PHASES["train"][0], failing(ERRORS[1]))
    with pytest.raises(OutOfMemory, match="'train' with a batch size of 16") as caught:
        api.plan(folders[1], workspace=own, batch_size=16)
    assert PHASES["train"][1] in caught.value.hint


def test_an_option_that_is_asked_for_anew_stands_once():
    request = LearnRequest("x/", "abd", {"synthesis_batch": "64", "mu": "0.2"})
    command = request.command("--set", "synthesis_batch=32", "--discard")
    expected = "edgecil learn --new-data x/ --method abd --set mu=0.2 --set synthesis_batch=32"
    assert command == f"{expected} --discard"
    request = LearnRequest("x/", "abd", batch_size=64, lr=0.2)
    command = request.command("--batch-size", "32")
    assert command == "edgecil learn --new-data x/ --method abd --lr 0.2 --batch-size 32"


def test_a_request_as_a_command_line():
    request = LearnRequest(
        "a b/", "lwf", {"balance": True}, lr=0.2, skip_bad=True, record_ranges=False,
        class_order=("y", "x"),
    )  # fmt: skip
    expected = "edgecil learn --new-data 'a b/' --method lwf --set balance=True --lr 0.2"
    assert request.command("--discard") == f"{expected} --skip-bad --no-record-ranges --discard"
