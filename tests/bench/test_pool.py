"""What is reused of earlier calls, and what is not: results, half-done runs, the precision."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import small_runs
import torch
import toys
from small_runs import PROTOCOL, same

from edgecil.bench import pool, runner, worker
from edgecil.bench.protocol_files import parse
from edgecil.bench.runner import Run, Variant
from edgecil.engine import loop
from edgecil.errors import DataError, Interrupted, UsageError
from edgecil.settings import CIFAR, Training


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    toys.write_folder(root / "train", range(6), 4)
    toys.write_folder(root / "test", range(6), 2, seed=1)
    return root


@pytest.fixture
def started(monkeypatch):
    """Let runs be made in this process; returns those that were started."""
    runs = []

    def make(waiting, data, out, jobs, say):
        runs.extend(waiting)
        made = {run.key: worker.make(run, data, out, lambda: False) for run in waiting}
        return {key: fault for key, fault in made.items() if fault}

    monkeypatch.setattr(pool, "_make", make)
    return runs


def run(method="finetune", seed=0, precision="float32", device="auto", **changes):
    protocol = dataclasses.replace(PROTOCOL, **{"epochs": 2, "split": (3, 3), **changes})
    return Run(protocol, Variant.parse(method), seed, {}, precision, device)


@pytest.fixture
def stopped(monkeypatch):
    """Let a run stop in its second increment."""

    def make(asked, data, out):
        init = small_runs.looking_often(loop.Session.__init__)
        monkeypatch.setattr(loop.Session, "__init__", init)
        rows = out / ".work" / asked.key / runner.ROWS
        with pytest.raises(Interrupted):
            worker.make(asked, data, out, rows.exists)

    return make


OTHERWISE = [
    {"epochs": 3},
    {"training": Training(epochs=2)},
    {"order": "numpy 1993"},
    {"preprocess": CIFAR},
    {"precision": "bfloat16"},
    {"device": "cpu"},
]


class TestReuse:
    @pytest.mark.parametrize("changes", OTHERWISE, ids=lambda c: next(iter(c)))
    def test_what_was_made_under_other_settings_is_refused(self, tmp_path, data, started, changes):
        path = worker.result_path(tmp_path, run())
        known = {"method": "finetune", "options": {}, "settings": {}, "seed": 0}
        path.write_text(json.dumps(known | {"protocol": "small", "digest": run().digest}))
        (found,) = pool.run_all([run()], data, tmp_path)
        assert found.path == path and not started
        with pytest.raises(UsageError, match=r"finetune-seed0\.json was made under other settings"):
            pool.run_all([run(**changes)], data, tmp_path)
        assert not started

    def test_results_of_another_protocol_are_refused(self, data, tmp_path, started):
        """As quick and quick-mirrored have, with the same names."""
        pool.run_all([run()], data, tmp_path)
        for method in ("finetune", "lwf"):
            with pytest.raises(UsageError, match="is of another protocol, small") as refused:
                pool.run_all([run(method, name="small-mirrored")], data, tmp_path)
            assert "--out" in refused.value.hint
        assert started == [run()]

    def test_a_run_is_not_continued_with_other_settings(self, data, tmp_path, started, stopped):
        """An edit of a protocol's file between a stop and the same command."""
        text = (
            'summary = "s"\nlayout = "folders"\nsplit = [3, 3]\norder = "natural"\n'
            'arch = "resnet8"\nepochs = 2\n'
        )
        before, after = (
            Run(parse("mine", t)["mine"], Variant("finetune"), 0, precision="float32")
            for t in (text, text.replace("epochs = 2", "epochs = 3"))
        )
        stopped(before, data, tmp_path)
        with pytest.raises(UsageError, match=r"\.work/finetune-seed0 was made under other"):
            pool.run_all([after], data, tmp_path)
        assert not started
        assert pool.run_all([before], data, tmp_path)[0].fault is None
        assert not (tmp_path / ".work" / before.key).exists()

    def test_words_change_nothing(self):
        assert run(summary="else", source="a paper", notes=("x",)).digest == run().digest

    def test_an_older_result_has_no_digest_and_counts_by_its_protocol(
        self, data, tmp_path, started
    ):
        (made,) = pool.run_all([run()], data, tmp_path)
        result = json.loads(made.path.read_text())
        assert result.pop("digest") == run().digest
        made.path.write_text(json.dumps(result))
        pool.run_all([run(epochs=3)], data, tmp_path)
        assert len(started) == 1

    def test_a_file_that_is_no_result_does_not_count_as_one(self, data, tmp_path, started):
        worker.result_path(tmp_path, run()).write_text("{}")
        with pytest.raises(DataError, match="is not a result of edgecil bench"):
            pool.run_all([run()], data, tmp_path)

    def test_what_is_given_twice_is_made_once(self, data, tmp_path, started):
        outcomes = pool.run_all([run(), run(), run(seed=1), run()], data, tmp_path)
        assert [o.run for o in outcomes] == started == [run(), run(seed=1)]

    def test_a_run_goes_on_from_another_directory(
        self, data, tmp_path, started, stopped, monkeypatch
    ):
        whole = pool.run_all([run()], data, tmp_path / "whole")[0].path
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")

        def stop(waiting, data, out, jobs, say):
            stopped(waiting[0], data, out)
            raise Interrupted("stopped")

        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(pool, "_make", stop)
            pool.run_all([run()], Path(os.path.relpath(data)), Path("out"))
        monkeypatch.chdir(tmp_path)
        found = pool.run_all([run()], data, tmp_path / "here" / "out")[0]
        assert found.fault is None
        assert same(json.loads(found.path.read_text()), json.loads(whole.read_text()))


class TestPrecision:
    @pytest.fixture
    def timings(self, monkeypatch):
        """The sizes of the images that were timed; the answer is bfloat16."""
        shapes = []

        def time_precision(net, images, device):
            shapes.append(tuple(images.shape[-2:]))
            return "bfloat16"

        monkeypatch.setattr("edgecil.learning.run.time_precision", time_precision)
        return shapes

    def test_is_timed_once_and_kept_with_the_work(self, data, tmp_path, started, timings):
        for method in ("finetune", "lwf"):
            (found,) = pool.run_all([run(method, precision="auto")], data, tmp_path)
            result = json.loads(found.path.read_text())
            assert result["training"]["precision"] == "bfloat16"
            assert result["digest"] == run(method, precision="auto").digest
        assert timings == [(32, 32)]
        assert [r.timed for r in started] == ["bfloat16", "bfloat16"]

    def test_at_the_size_that_is_trained_at(self, data, tmp_path, monkeypatch, timings):
        monkeypatch.setattr(pool, "_make", lambda *arguments: {})
        size = dataclasses.replace(CIFAR, size=48, resize=56)
        sizes = ({"preprocess": size}, {"image_size": 64}, {"image_size": None})
        for number, changes in enumerate(sizes):
            pool.run_all([run(precision="auto", **changes)], data, tmp_path / str(number))
        assert timings == [(48, 48), (64, 64), (32, 32)]

    def test_that_is_asked_for_is_not_timed(self, data, tmp_path, started, timings):
        pool.run_all([run()], data, tmp_path)
        assert not timings and started == [run()]


class TestFaults:
    @pytest.mark.parametrize(
        ("error", "message", "code"),
        [
            (
                torch.OutOfMemoryError("CUDA out of memory. Tried"),
                "memory ran out",
                "out_of_memory",
            ),
            (MemoryError(), "memory ran out", "out_of_memory"),
            (OSError(28, "No space left on device", "x/y"), "x/y: No space left", "bad_workspace"),
        ],
    )
    def test_while_evaluating_ends_one_run(
        self, data, tmp_path, monkeypatch, started, error, message, code
    ):
        evaluate, times = runner.evaluate_images, iter(range(100))

        def once(*arguments):
            if next(times) == 1:
                raise error
            return evaluate(*arguments)

        monkeypatch.setattr(runner, "evaluate_images", once)
        bad, good = pool.run_all([run(), run(seed=1)], data, tmp_path)
        assert good.fault is None and good.path.exists()
        assert message in bad.fault.message and bad.fault.code == code
        assert pool.run_all([run()], data, tmp_path)[0].fault is None

    def test_a_result_that_cannot_be_written_is_not_lost(
        self, data, tmp_path, monkeypatch, started
    ):
        def full(path, data):
            if path.suffix == ".json":
                raise OSError(28, "No space left on device", str(path))
            path.write_bytes(data)

        with monkeypatch.context() as patch:
            patch.setattr(worker, "write_atomic", full)
            (bad,) = pool.run_all([run()], data, tmp_path)
        assert "No space left" in bad.fault.message and not bad.path.exists()
        monkeypatch.setattr(runner, "learn", None)  # nothing is learned again
        (good,) = pool.run_all([run()], data, tmp_path)
        assert good.fault is None and good.path.exists()

    def test_what_no_run_should_meet_is_raised(self, data, tmp_path, monkeypatch, started):
        def wrong(*arguments):
            raise RuntimeError("expected a tensor")

        monkeypatch.setattr(runner, "evaluate_images", wrong)
        with pytest.raises(RuntimeError, match="expected a tensor"):
            pool.run_all([run()], data, tmp_path)
