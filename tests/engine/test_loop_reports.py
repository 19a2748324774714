"""The loop: NaN terms are named, stops are seen, modes are kept; and where it computes."""

from __future__ import annotations

import dataclasses
import os
import time

import pytest
import torch
import toys

from edgecil.engine import compute as computing
from edgecil.engine import loop, state
from edgecil.engine.compute import Compute, pick_device, pick_threads, time_precision
from edgecil.engine.increment import begin, train
from edgecil.engine.loop import PhaseRun
from edgecil.errors import Interrupted, TrainingError, UsageError, WorkspaceError
from edgecil.method import Phase, Term
from edgecil.nets.build import build
from edgecil.nets.net import NetSpec
from edgecil.settings import Optim, Training


def step(values):
    """Return a step whose terms take the given values beside a true loss."""

    def run(ctx, batch):
        loss = ctx.net(batch.images).logits.square().mean()
        terms = {name: Term(loss.detach() * 0 + v, 0.0) for name, v in values.items()}
        return {"loss": Term(loss), **terms}

    return run


PLAIN = step({})


def phase_run(steps=PLAIN, session=None, **changes):
    session = session or toys.session()
    ctx, _ = begin(toys.task("finetune", (2,)), {"new": toys.image_set(range(2), 6)}, session)
    return PhaseRun(ctx, Phase("stage", steps, Training(2, 4), **changes), 0, session)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_term_that_is_not_finite_is_named_with_its_phase(value):
    run = phase_run(step({"good": 1.0, "rotten": value}))
    with pytest.raises(TrainingError, match=r"'rotten' became .* in phase 'stage'"):
        run.run()


def test_what_helps_is_said_by_the_method():
    given = toys.task("finetune", (2,))
    rotten = Phase("stage", step({"rotten": float("nan")}), Training(2, 4))
    recipe = dataclasses.replace(given.recipe, phases=lambda setup: (rotten,))
    for hint in (recipe.if_diverging, "a smaller --set strength"):
        task = dataclasses.replace(given, recipe=dataclasses.replace(recipe, if_diverging=hint))
        with pytest.raises(TrainingError, match="'rotten' became nan") as caught:
            train(task, toys.sets_of(task, toys.image_set(range(2), 6)), toys.session())
        assert caught.value.hint == hint
    assert "--lr" in recipe.if_diverging


def test_terms_are_reported_as_means_since_the_last_event_and_unweighted():
    seen = []
    session = toys.session(listener=seen.append, poll_seconds=1e9)
    numbers = iter(range(100))

    def counting(ctx, batch):
        loss = ctx.net(batch.images).logits.square().mean()
        return {"loss": Term(loss), "count": Term(loss.detach() * 0 + next(numbers), 7.0)}

    run = phase_run(counting, session)
    run.run()
    events = [e for e in seen if hasattr(e, "terms")]
    assert [e.step for e in events] == [run.steps]
    assert events[0].terms["count"] == pytest.approx(sum(range(run.steps)) / run.steps)


def test_a_stop_is_seen_saved_and_not_taken_after_the_last_step(tmp_path):
    session = toys.session(folder=tmp_path, should_stop=lambda: True, poll_seconds=0.0)
    run = phase_run(session=session)
    assert run.steps == 6
    with pytest.raises(Interrupted):
        run.run()
    saved = state.load(tmp_path)
    assert (saved.phase, saved.step, saved.images) == (0, 1, 4)
    run.run(first=5)  # the last step ends the phase, stop or not


def test_the_state_is_saved_from_time_to_time(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    run = phase_run(session=toys.session(folder=tmp_path, poll_seconds=0.0))
    run.run()
    saved = state.load(tmp_path)
    assert saved.step == run.steps
    for name, value in run.ctx.net.state_dict().items():
        assert torch.equal(saved.tensors[f"net/{name}"], value)
    assert any(name.startswith("optimiser/") for name in saved.tensors)


def test_a_state_that_cannot_be_written_or_read(tmp_path):
    run = phase_run(session=toys.session(folder=tmp_path / "gone"))
    with pytest.raises(WorkspaceError, match="could not be saved: No such file"):
        run.save(1)
    assert state.load(tmp_path) is None
    (tmp_path / state.FILE).write_bytes(b"1234567890")
    with pytest.raises(WorkspaceError, match="damaged"):
        state.load(tmp_path)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_scalars_stay_scalars_in_the_state(kind, tmp_path):
    session = toys.session(folder=tmp_path)
    given = toys.task("finetune", (2,))
    given = dataclasses.replace(given, spec=NetSpec("resnet8", "cosine"))
    ctx, _ = begin(given, {"new": toys.image_set(range(2), 6)}, session)
    phase = Phase("stage", PLAIN, Training(2, 4, Optim(kind=kind)))
    run = PhaseRun(ctx, phase, 0, session)
    run.run()
    run.save(run.steps)
    saved = state.load(tmp_path)
    assert saved.tensors["net/head.eta"].shape == ()
    found = saved.part("optimiser")
    for name, value in run.optimisers.tensors().items():
        assert found[name].shape == value.shape, name
        assert torch.equal(found[name], value)
    again = PhaseRun(ctx, phase, 0, session)
    again.optimisers.load(found)
    again.step(0)


def test_a_phase_in_eval_mode_leaves_every_buffer_as_it_was():
    run = phase_run(mode="eval")
    before = {k: v.clone() for k, v in run.ctx.net.named_buffers()}
    run.run()
    for name, value in run.ctx.net.named_buffers():
        assert torch.equal(value, before[name]), name
    moved = phase_run(mode="train")
    moved.run()
    assert not torch.equal(
        dict(moved.ctx.net.named_buffers())["backbone.bn1.running_mean"],
        before["backbone.bn1.running_mean"],
    )


def test_what_a_phase_does_not_train_stays_and_gets_no_gradient():
    run = phase_run(trains=("head",), mode="eval")
    before = {k: v.clone() for k, v in run.ctx.net.backbone.state_dict().items()}
    run.run()
    for name, value in run.ctx.net.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in run.ctx.net.backbone.parameters())


def test_precision_is_chosen_by_timing(monkeypatch):
    net = build(NetSpec("resnet8"), 2).to(memory_format=torch.channels_last)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    images = torch.randn(8, 3, 32, 32)
    assert time_precision(net, images, torch.device("cpu")) in ("float32", "bfloat16")
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), f"timing changed {name}"
    for slow, fast in (("float32", "bfloat16"), ("bfloat16", "float32")):
        timings = iter((2.0, 1.0) if slow == "float32" else (1.0, 2.0))
        monkeypatch.setattr(computing, "_seconds", lambda *a, t=timings, **k: next(t))
        assert time_precision(net, images, torch.device("cpu")) == fast


def test_compute_travels_as_json_and_autocast_is_what_it_says():
    compute = Compute("cpu", 3, "bfloat16")
    assert Compute.from_json(compute.to_json()) == compute
    left, right = torch.randn(4, 4), torch.randn(4, 4)
    with compute.autocast():
        assert (left @ right).dtype == torch.bfloat16
    with Compute("cpu", 1, "float32").autocast():
        assert (left @ right).dtype == torch.float32


def test_devices(monkeypatch):
    assert pick_device("cpu").type == "cpu"
    for name in ("tpu", "cuda:77", ""):
        with pytest.raises(UsageError):
            pick_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert str(pick_device("auto")) == "cuda:2"
    assert str(pick_device("cuda")) == "cuda:2"
    assert str(pick_device("cuda:1")) == "cuda:1"


def test_threads_are_those_given_or_the_cores_that_are_free(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert pick_threads() == torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(computing, "SAMPLE_SECONDS", 0.01)
    whole = 0.01 * os.sysconf("SC_CLK_TCK")
    for idle, threads in (([1.0] * 8, 8), ([1.0, 0.9, 0.1, 0.0], 2), ([0.0, 0.1], 1)):
        later = {core: share * whole for core, share in enumerate(idle)}
        samples = iter([dict.fromkeys(later, 0.0), later])
        monkeypatch.setattr(computing, "_idle_ticks", lambda samples=samples: next(samples))
        assert pick_threads() == threads


def test_idle_ticks_are_read_for_the_usable_cores():
    before = computing._idle_ticks()
    assert set(before) == os.sched_getaffinity(0)
    time.sleep(0.05)
    after = computing._idle_ticks()
    assert all(after[core] >= before[core] for core in before)
