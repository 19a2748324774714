"""An evaluation that was cut off continues where it was, and says the same in the end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgecil_runtime import Classifier, InputError
from edgecil_runtime.evaluation_log import IMAGES_PER_SYNC, EvaluationLog, Outcome

DEVICES = Path(__file__).parents[2] / "devices"
IDENTITY = {"model": "a", "images": "b"}
OUTCOMES = [Outcome(i % 3, None if i % 5 == 4 else i % 2, i % 2 == 0, i / 8) for i in range(10)]


@pytest.fixture
def images(toy, tmp_path):
    return toy.colour_folder(tmp_path / "images", each=6)


def opened(path, **changes):
    return EvaluationLog(path, {**IDENTITY, **changes}, 3)


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "log"
    with opened(path) as log:
        assert list(log.earlier()) == []
        for outcome in OUTCOMES:
            log.add(outcome)
    return path


def test_outcomes_come_back(written):
    with opened(written) as log:
        assert list(log.earlier()) == OUTCOMES


def test_every_cut_keeps_the_whole_lines_before_it(written):
    data = written.read_bytes()
    header = data.index(b"\n") + 1
    for cut in range(0, len(data), 19):
        for tail in (b"", b"\0" * 40, b"[9, 9, true, 0.5]\n"):
            whole = max(0, data[header:cut].count(b"\n")) if cut >= header else 0
            if cut < header and tail:
                continue
            written.write_bytes(data[:cut] + tail)
            with opened(written) as log:
                assert list(log.earlier()) == OUTCOMES[:whole]
                log.add(OUTCOMES[0])
            with opened(written) as log:
                assert list(log.earlier()) == [*OUTCOMES[:whole], OUTCOMES[0]]


@pytest.mark.parametrize(
    "line",
    [b"[0, 0, true]\n", b"[0, 0, 1, 0.5]\n", b"[3, 0, true, 0.5]\n", b"[0, -1, true, 0.5]\n",
     b"[0, 0, true, -0.5]\n", b"[true, 0, true, 0.5]\n", b"7\n", b"[0, 0, true, 0.5]",
     b"[" * 5000],
)  # fmt: skip
def test_lines_that_say_something_else_end_the_log(written, line):
    with open(written, "ab") as file:
        file.write(line + b"[0, 0, true, 0.5]\n")
    with opened(written) as log:
        assert list(log.earlier()) == OUTCOMES


def test_the_log_of_something_else_is_left_alone(written, tmp_path):
    before = written.read_bytes()
    for changes in ({"model": "c"}, {"images": "c"}):
        with pytest.raises(InputError, match="belongs to another model") as caught:
            opened(written, **changes)
        assert caught.value.hint.startswith("remove it")
    assert written.read_bytes() == before
    photo = tmp_path / "photo"
    photo.write_bytes(b"\x89PNG\r\n")
    with pytest.raises(InputError):
        opened(photo)
    assert photo.read_bytes() == b"\x89PNG\r\n"


def test_lines_reach_the_disk_in_time(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(file) or real(file))
    with opened(tmp_path / "log") as log:
        at_start = len(synced)
        for _ in range(2 * IMAGES_PER_SYNC):
            log.add(OUTCOMES[0])
        assert len(synced) == at_start + 2
        size = (tmp_path / "log").stat().st_size
    assert size == (tmp_path / "log").stat().st_size


def test_a_resumed_evaluation_equals_one_in_one_go(colour, images, tmp_path):
    (images / "green" / "3.png").write_bytes(b"broken")
    log = tmp_path / "log"
    classifier = Classifier(colour)
    whole = classifier.evaluate(images, skip_bad=True)
    predicted = []

    class Cut(Exception):
        pass

    def cut(done, _):
        if done == 11:
            raise Cut

    with pytest.raises(Cut):
        classifier.evaluate(images, cut, skip_bad=True, resume_file=log)
    real = classifier.file_scores
    classifier.file_scores = lambda path: predicted.append(path) or real(path)
    resumed = classifier.evaluate(images, skip_bad=True, resume_file=log)
    assert len(predicted) == 18 - 11
    np.testing.assert_array_equal(resumed.confusion, whole.confusion)
    assert (resumed.top5_hits, resumed.skipped, resumed.n) == (whole.top5_hits, 1, 17)
    assert len(resumed.milliseconds) == 17
    again = classifier.evaluate(images, skip_bad=True, resume_file=log)
    assert len(predicted) == 18 - 11 and again.n == 17  # all of it was there


def test_other_images_are_another_evaluation(colour, images, tmp_path):
    classifier = Classifier(colour)
    classifier.evaluate(images, resume_file=tmp_path / "log")
    (images / "red" / "0.png").unlink()
    with pytest.raises(InputError, match="other images"):
        classifier.evaluate(images, resume_file=tmp_path / "log")


def test_a_killed_process_loses_at_most_what_was_not_synced(toy, tmp_path):
    bundle = toy.resnet_bundle(tmp_path, 32, True)
    images = toy.colour_folder(tmp_path / "images", each=900, names=("class 0",))
    log = tmp_path / "log"
    words = [sys.executable, "-m", "edgecil_runtime", "evaluate", bundle, images, "--json"]
    words += ["--resume-file", str(log)]
    environment = {**os.environ, "PYTHONPATH": str(DEVICES)}
    process = subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not log.exists() or log.stat().st_size < 3_000:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = log.read_bytes()
    assert kept.count(b"\n") >= IMAGES_PER_SYNC
    done = subprocess.run(words, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["result"]["n"] == 900
    whole = kept[: kept.rindex(b"\n")]
    assert log.read_bytes().startswith(whole) and log.read_bytes().count(b"\n") == 901
