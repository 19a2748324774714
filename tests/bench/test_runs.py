"""Runs under a protocol: resumed to the same result, measured by hand, side by side."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import small_runs
import toys
from small_runs import PROTOCOL, same

from edgecil import api
from edgecil.bench import layouts, pool, results, runner, worker
from edgecil.bench.protocol import Published
from edgecil.bench.runner import Run, Variant, execute
from edgecil.data import resident
from edgecil.data.disk import PixelFile
from edgecil.engine import loop
from edgecil.errors import BudgetError, Interrupted, OutOfMemory, UsageError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set of six classes: 12 training and 6 test images each."""
    root = tmp_path_factory.mktemp("data")
    toys.write_folder(root / "train", range(6))
    toys.write_folder(root / "test", range(6), 6, seed=1)
    return root


def run(method="finetune", seed=0, **settings):
    return Run(PROTOCOL, Variant.parse(method), seed, settings, "float32")


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    """The result of one run."""
    return execute(run("lwm"), layouts.read("folders", data), tmp_path_factory.mktemp("w") / "run")


class TestOneRun:
    def test_is_what_the_commands_give_step_by_step(self, data, done, tmp_path):
        names = layouts.read("folders", data).classes
        for number in range(3):
            folder = tmp_path / str(number)
            folder.mkdir()
            for name in names[2 * number : 2 * number + 2]:
                (folder / name).symlink_to(data / "train" / name)
            api.learn(
                folder, method="lwm", workspace=tmp_path / "ws", precision="float32", epochs=2,
                record_ranges=False, arch="resnet8" if number == 0 else "auto",
            )  # fmt: skip
            found = api.evaluate(data / "test", workspace=tmp_path / "ws", ignore_unknown=True)
            assert done["accuracy"][number] == found.top1
            assert done["task_aware"][number] == found.task_aware
            assert done["task_aware_released"][number] == found.task_aware_released
            assert done["by_increment"][number] == found.by_increment()
        assert done["confusion"] == found.counts.tolist()

    def test_measures_follow_from_the_accuracies_of_the_increments(self, done):
        last = done["by_increment"][-1]
        assert done["final"] == pytest.approx(np.mean(last))  # equal numbers of test images
        assert done["final_task_mean"] == pytest.approx(done["final"])
        assert done["average"] == pytest.approx(np.mean(done["accuracy"]))
        assert done["average_without_base"] == pytest.approx(np.mean(done["accuracy"][1:]))
        weighted = np.dot(done["accuracy"], [2, 4, 6]) / 12
        assert done["average_weighted"] == pytest.approx(weighted)
        assert done["forgetting_of_base"] == pytest.approx(done["accuracy"][0] - last[0])
        best = max(done["by_increment"][0][0], done["by_increment"][1][0])
        drops = [best - last[0], done["by_increment"][1][1] - last[1]]
        assert done["forgetting"] == pytest.approx(np.mean(drops))

    def test_says_with_what_it_was_made(self, data, done):
        assert done["labels"] == list(layouts.read("folders", data).classes)
        assert len(done["confusion"]) == len(done["labels"])
        assert done["preset"] is None
        assert done["preprocess"]["size"] == 32
        assert done["augment"]["crop"] == "pad"  # the method's own: the protocol has none
        clock = sum(done["cpu_seconds"])
        assert done["images_per_second"] == pytest.approx(sum(done["images"]) / clock)
        assert "omega" not in done  # it needs other runs

    def test_an_interrupted_run_ends_like_an_uninterrupted_one(
        self, data, done, tmp_path, monkeypatch
    ):
        listing, work = layouts.read("folders", data), tmp_path / "run"
        often = small_runs.looking_often(loop.Session.__init__)
        monkeypatch.setattr(loop.Session, "__init__", often)
        with pytest.raises(Interrupted):
            execute(run("lwm"), listing, work, should_stop=(work / "rows.json").exists)
        assert len(json.loads((work / "rows.json").read_text())) == 1
        assert same(execute(run("lwm"), listing, work), done)

    def test_a_version_without_its_row_is_measured_not_learned_again(self, data, done, tmp_path):
        """A kill between the commit of a version and the note of its measures."""
        listing, work = layouts.read("folders", data), tmp_path / "run"

        class Killed(Exception):
            pass

        def die(number, row):
            if number == 2:
                raise Killed

        with pytest.raises(Killed):
            execute(run("lwm"), listing, work, on_increment=die)
        rows = json.loads((work / "rows.json").read_text())
        (work / "rows.json").write_text(json.dumps(rows[:1]))
        assert same(execute(run("lwm"), listing, work), done)

    def test_test_images_that_do_not_fit_into_memory_are_streamed(
        self, data, done, tmp_path, monkeypatch
    ):
        tested, evaluate = [], runner.evaluate_images
        monkeypatch.setattr(
            runner,
            "evaluate_images",
            lambda m, images, *r: tested.append(images) or evaluate(m, images, *r),
        )
        monkeypatch.setattr(resident, "free_host_bytes", lambda: 0)
        found = execute(run("lwm"), layouts.read("folders", data), tmp_path / "run")
        assert same(found, done)
        parts = [part for images in tested for part in images.pixels._parts]
        assert len(tested) == 3 and all(isinstance(part, PixelFile) for part in parts)

    def test_budget_and_codec_reach_the_store(self, data, tmp_path):
        found = execute(
            run("icarl", memory_budget=30_000, codec="jpeg-75"), layouts.read("folders", data),
            tmp_path / "run",
        )  # fmt: skip
        assert 0 < max(found["kept_bytes"]) <= 30_000
        assert found["settings"] == {"memory_budget": 30_000, "codec": "jpeg-75"}

    def test_the_seed_and_the_options_change_the_result(self, data, done, tmp_path):
        listing = layouts.read("folders", data)
        other = execute(run("lwm", seed=1), listing, tmp_path / "a")
        plain = execute(run("lwm:gamma=0"), listing, tmp_path / "b")
        assert other["confusion"] != done["confusion"]
        assert plain["options"] == {"gamma": "0"}


class TestManyRuns:
    def test_results_that_are_there_are_not_made_again(self, data, tmp_path):
        said = []
        runs = [run("finetune"), run("ncm")]
        first = pool.run_all(runs, data, tmp_path / "out", jobs=2, say=said.append)
        assert [o.fault for o in first] == [None, None]
        before = [o.path.stat().st_mtime_ns for o in first]
        again = pool.run_all(runs, data, tmp_path / "out", say=said.append)
        assert [o.path.stat().st_mtime_ns for o in again] == before
        assert said[-2:] == ["finetune seed 0: is there", "ncm seed 0: is there"]

    def test_a_run_that_fails_leaves_the_others_alone(self, data, tmp_path):
        # More than flat images would need, less than these: it shows when they are encoded.
        given = {"memory_budget": 1500, "codec": "webp-lossless"}
        runs = [run("finetune", **given), run("icarl", **given)]
        good, bad = pool.run_all(runs, data, tmp_path / "out", jobs=2)
        assert good.fault is None and good.path.exists()
        assert "budget is 1.5 kB" in bad.fault.message and not bad.path.exists()
        assert (bad.fault.code, bad.fault.exit_code) == ("over_budget", 3)

    def test_nothing_starts_when_one_cannot_be_made(self, data, tmp_path):
        out = tmp_path / "out"
        with pytest.raises(UsageError, match="unknown method 'icrl'"):
            pool.run_all([run("finetune"), run("icrl")], data, out)
        with pytest.raises(BudgetError, match="for 6 classes, the budget is 10 B"):
            pool.run_all([run("finetune"), run("icarl", memory_budget=10)], data, out)
        assert not out.exists()

    def test_out_of_memory_is_told_across_processes(self, data, tmp_path, monkeypatch):
        def fails(*arguments, **settings):
            raise OutOfMemory("no room", smaller="--batch-size 64")

        monkeypatch.setattr(worker, "execute", fails)
        fault = worker.make(run(), data, tmp_path, lambda: False)
        assert fault is not None
        assert pickle.loads(pickle.dumps(fault)) == fault
        assert (fault.message, fault.hint) == ("no room", "run it with --batch-size 64")


@pytest.fixture
def long_bench(data, tmp_path):
    """Starts three runs, one after the other, that would take for ever."""
    protocol = tmp_path / "small.toml"
    protocol.write_text(
        'summary = "small"\nlayout = "folders"\nsplit = [3, 3]\norder = "natural"\n'
        'arch = "resnet8"\nepochs = 30000\n'
    )
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "cli", ROOT / "devices")))
    command = [
        sys.executable, "-m", "edgecil_cli", "bench", str(protocol), "--data", str(data),
        "--methods", "finetune,lwm,lwf", "--out", str(tmp_path / "out"), "--precision", "float32",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        start_new_session=True, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def wait_until(process, ready):
    deadline = time.monotonic() + 120
    while not ready():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)


def workers(process):
    """Return the commands of the processes that a process spawned to work."""
    listed = Path(f"/proc/{process.pid}/task").glob("*/children")
    found = [Path(f"/proc/{pid}/cmdline") for p in listed for pid in p.read_text().split()]
    return [p for p in found if p.exists() and b"spawn_main" in p.read_bytes()]


class TestControlC:
    def test_saves_and_the_same_command_goes_on(self, long_bench, tmp_path):
        request = tmp_path / "out" / ".work" / "finetune-seed0" / "workspace" / "run"
        wait_until(long_bench, (request / "request.json").exists)
        time.sleep(1.5)
        os.killpg(long_bench.pid, signal.SIGINT)
        _, said = long_bench.communicate(timeout=60)
        assert long_bench.returncode == 130, said
        assert "Traceback" not in said
        assert list(request.glob("*.safetensors")), said  # the state to go on from
        assert [p.name for p in (tmp_path / "out" / ".work").iterdir()] == ["finetune-seed0"]

    def test_while_a_worker_is_starting(self, long_bench, tmp_path):
        wait_until(long_bench, lambda: workers(long_bench))
        time.sleep(0.3)  # it imports now
        os.killpg(long_bench.pid, signal.SIGINT)
        _, said = long_bench.communicate(timeout=60)
        assert long_bench.returncode == 130, said
        assert "Traceback" not in said
        assert "error: stopped; what was learned is saved" in said
        assert not (tmp_path / "out" / ".work").exists()

    def test_a_worker_that_dies_is_a_run_that_failed(self, long_bench, tmp_path):
        """As when the system is short of memory; the next one starts."""
        work = tmp_path / "out" / ".work"
        wait_until(long_bench, (work / "finetune-seed0").exists)
        (killed,) = workers(long_bench)
        os.kill(int(killed.parent.name), signal.SIGKILL)
        wait_until(long_bench, (work / "lwm-seed0").exists)
        os.killpg(long_bench.pid, signal.SIGINT)
        _, said = long_bench.communicate(timeout=60)
        assert "finetune seed 0: its process was killed by signal 9" in said
        assert "Traceback" not in said

    def test_of_the_command_alone_stops_its_workers(self, long_bench, tmp_path):
        request = tmp_path / "out" / ".work" / "finetune-seed0" / "workspace" / "run"
        wait_until(long_bench, (request / "request.json").exists)
        long_bench.send_signal(signal.SIGINT)
        _, said = long_bench.communicate(timeout=60)
        assert long_bench.returncode == 130, said
        assert "stopping when the step in progress is done" in said


class TestVariants:
    def test_a_name_and_its_text_are_the_same_thing(self):
        text = "lwm:gamma=0.2:beta=1"
        assert str(Variant.parse(text)) == text
        assert Variant.parse(text) == Variant("lwm", {"gamma": "0.2", "beta": "1"})

    @pytest.mark.parametrize("text", ["", ":a=1", "lwm:gamma", "lwm:=2", "lwm:gamma="])
    def test_anything_else_is_refused(self, text):
        with pytest.raises(UsageError, match="is no method"):
            Variant.parse(text)


class TestTable:
    def result(self, method, seed, accuracy, **more):
        return {
            "method": method, "options": {}, "settings": {}, "seed": seed, "classes": [2, 4],
            "protocol": "p", "accuracy": accuracy, "average": float(np.mean(accuracy)),
            "final": accuracy[-1], "forgetting": 0.1 * seed, "kept_bytes": [0, 1000],
            "images": [400, 400], "seconds": [9.0, 9.0], "cpu_seconds": [1.0, 3.0],
            "training": {"device": "cpu"}, "omega": None, **more,
        }  # fmt: skip

    def write(self, folder, rows):
        for row in rows:
            path = folder / f"{row['method']}-{row['seed']}.json"
            path.write_text(results.to_text(row))

    def test_means_and_deviations_over_seeds(self, tmp_path):
        self.write(tmp_path, [self.result("lwm", s, [0.9, v]) for s, v in ((0, 0.5), (1, 0.7))])
        text = results.markdown(results.load(tmp_path))
        row = text.splitlines()[2].split(" | ")
        assert row[1:3] == ["90.0", "60.0"]
        assert row[3] == "75.0 ± 7.1"  # 70 and 80: sample deviation 7.07
        assert row[6:] == ["—", "200", "2 |"]

    def test_images_per_second_are_those_of_a_core_or_of_a_gpu(self, tmp_path):
        gpu = {"training": {"device": "cuda:0"}}
        old = self.result("icarl", 0, [0.9, 0.5])
        del old["cpu_seconds"]
        self.write(tmp_path, [self.result("lwm", 0, [0.9, 0.5]),
                              self.result("lwf", 0, [0.9, 0.5], **gpu), old])  # fmt: skip
        found = {s.name: s.images_per_second for s in results.summaries(results.load(tmp_path))}
        assert found == {"lwm": 200.0, "lwf": 800 / 18, "icarl": None}

    def test_omega_is_the_mean_share_of_the_oracle_of_the_same_seed(self, tmp_path):
        rows = [self.result("joint", 0, [0.9, 0.8]), self.result("lwm", 0, [0.9, 0.4]),
                self.result("lwm", 1, [0.9, 0.4])]  # fmt: skip
        self.write(tmp_path, rows)
        found = {(r["name"], r["seed"]): r["omega"] for r in results.load(tmp_path)}
        assert found == {("joint", 0): 1.0, ("lwm", 0): 0.75, ("lwm", 1): None}

    def test_what_a_paper_prints_stands_below_ours(self, tmp_path):
        self.write(tmp_path, [self.result("lwm", 0, [0.9, 0.5])])
        paper = {"lwm": Published.of({"table": "MFGR Table 5", "accuracy": [88.0, 44.0]}),
                 "icarl": Published("elsewhere", final=50.0)}  # fmt: skip
        lines = results.markdown(results.load(tmp_path), paper).splitlines()
        assert len(lines) == 4
        assert lines[3].split(" | ")[:4] == ["| published: MFGR Table 5", "88.0", "44.0", "66.0"]
