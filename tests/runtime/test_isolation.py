"""A model in a process of its own: the app survives whatever happens there."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecil_runtime import (
    BundleError,
    Classifier,
    DeadlineError,
    ImageError,
    InputError,
    MemoryLimitError,
    WorkerError,
    isolation,
    isolation_worker,
)
from edgecil_runtime.channel import Channel, Closed, TimedOut

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes of Linux")


def plain(channel, shape=(12, 20)):
    image = np.zeros((*shape, 3), np.uint8)
    image[..., channel] = 200
    return image


def worker_of(model):
    return vars(model)["_model"].process_id


def gone(pid):
    """Whether a process ended and was waited for: a zombie would still be listed."""
    return not Path(f"/proc/{pid}").exists()


@pytest.fixture
def isolated(colour):
    with Classifier(colour, isolate=True, deadline=20) as model:
        yield model


def test_answers_are_those_of_the_model_in_this_process(isolated, colour, tmp_path, toy):
    here = Classifier(colour)
    for channel, name in enumerate(toy.labels):
        image = plain(channel)
        path = tmp_path / f"{name}.png"
        Image.fromarray(image).save(path)
        wanted = here.predict(image)
        for found in isolated.predict_batch([image, path, image[::-1, ::-1]]):
            assert found.label == wanted.label == name
            np.testing.assert_array_equal(found.scores, wanted.scores)
    assert isolated.selftest() == here.selftest()
    np.testing.assert_array_equal(isolated.read(path), here.read(path))
    assert isolated.plan == here.plan and isolated.not_baked == here.not_baked
    assert isolated.need.total > 0
    toy.colour_folder(tmp_path / "set", each=2)
    evaluation = isolated.evaluate(tmp_path / "set")
    assert evaluation.top1 == 1 and evaluation.n == 6
    assert evaluation.usage.peak > 20e6  # of the worker, not of this process
    assert evaluation.usage != here.usage()


def test_a_large_frame_passes(isolated):
    frame = np.broadcast_to(plain(1, (1, 1)), (1080, 1920, 3))
    assert isolated.predict(frame).label == "green"


def test_errors_keep_their_type_and_the_worker(isolated, tmp_path):
    before = worker_of(isolated)
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        isolated.predict(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match="too elongated"):
        isolated.predict(np.zeros((1, 2_000_000, 3), np.uint8))
    for wrong in (None, 3, np.zeros((2, 2)), [[1]]):
        with pytest.raises(InputError):
            isolated.predict(wrong)
    assert isolated.predict(plain(0)).label == "red" and worker_of(isolated) == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_killed_or_crashed_worker_is_replaced(isolated, number):
    before = worker_of(isolated)
    os.kill(before, number)
    with pytest.raises(WorkerError, match=signal.Signals(number).name) as caught:
        for _ in range(100):  # the signal may come after an answer
            isolated.predict(plain(2))
            time.sleep(0.01)
    assert "starts another" in caught.value.hint and caught.value.exit_code == 1
    assert gone(before)
    assert isolated.predict(plain(2)).label == "blue"
    assert worker_of(isolated) not in (None, before)


def test_a_hanging_worker_is_ended_at_the_deadline(colour):
    with Classifier(colour, isolate=True, deadline=0.5) as model:
        stopped = worker_of(model)
        os.kill(stopped, signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(DeadlineError, match=r"no answer in 0\.5 s"):
            model.predict(plain(0))
        assert 0.4 < time.monotonic() - start < 10 and gone(stopped)
        assert model.predict(plain(0)).label == "red"
        # A frame larger than the pipe, and nobody who reads it.
        os.kill(worker_of(model), signal.SIGSTOP)
        with pytest.raises(DeadlineError):
            model.predict(plain(0, (1080, 1920)))


def test_too_little_memory_is_an_error_in_the_app(tmp_path, toy, colour):
    with pytest.raises(MemoryLimitError, match="nothing was loaded") as caught:
        Classifier(colour, isolate=True, memory_limit="20MB")
    figure = caught.value.hint.split()[4].rstrip(",")
    with Classifier(colour, isolate=True, memory_limit=figure) as model:
        assert model.predict(plain(1)).label == "green"
        assert model.usage().peak <= int(figure[:-2]) * 1e6
        with pytest.raises(MemoryLimitError, match="the memory limit leaves"):
            model.predict(np.zeros((5000, 5000, 3), np.uint8))
        assert model.predict(plain(1)).label == "green"
    # The manifest lies about the weights (45 MB), so that the prediction lets it pass.
    lies = {"weights_bytes": 0, "activation_bytes": 0}
    path = toy.resnet_bundle(tmp_path, 18, False, memory=lies)
    with pytest.raises(MemoryLimitError, match="out of memory while loading"):
        Classifier(path, isolate=True, memory_limit="75MB")


def test_a_bundle_that_does_not_load(tmp_path, toy):
    path = toy.make_bundle(tmp_path, toy.colour_model(), "ab", 8, 8)
    with pytest.raises(BundleError, match="expected output"):
        Classifier(path, isolate=True)


def test_nothing_is_left_behind(colour):
    def descriptors():
        gc.collect()
        return sorted(os.listdir("/proc/self/fd"))

    before, seen = descriptors(), []
    with Classifier(colour, isolate=True) as closed:
        seen.append(worker_of(closed))
    closed.close()
    with pytest.raises(InputError, match="closed"):
        closed.predict(plain(0))
    dropped = Classifier(colour, isolate=True)
    seen.append(worker_of(dropped))
    del dropped
    killed = Classifier(colour, isolate=True)
    seen.append(worker_of(killed))
    os.kill(seen[-1], signal.SIGKILL)
    with pytest.raises(WorkerError):
        while True:
            killed.predict(plain(0))
    killed.close()
    assert descriptors() == before
    assert all(gone(pid) for pid in seen)


def test_workers_end_with_their_app_however_it_ends(colour):
    code = (
        "import os, sys\nfrom edgecil_runtime import Classifier\n"
        f"c = Classifier({str(colour)!r}, isolate=True)\n"
        "print(vars(c)['_model'].process_id, flush=True)\n"
        "sys.argv[1] == 'kill' and os.kill(os.getpid(), 9)\n"
    )
    for ending in ("kill", "exit"):
        done = subprocess.run(
            [sys.executable, "-c", code, ending], capture_output=True, text=True, timeout=60
        )
        pid, deadline = int(done.stdout), time.monotonic() + 10
        while Path(f"/proc/{pid}/cmdline").exists() and time.monotonic() < deadline:
            if not Path(f"/proc/{pid}/cmdline").read_bytes():  # ended; init has not waited yet
                break
            time.sleep(0.02)
        else:
            assert gone(pid)


def test_several_threads_share_a_worker(isolated):
    wrong = []

    def work(channel, label):
        found = {isolated.predict(plain(channel)).label for _ in range(20)}
        wrong.extend(found - {label})

    threads = [
        threading.Thread(target=work, args=item) for item in enumerate(("red", "green", "blue"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_fork_of_the_app_leaves_the_worker_alone(isolated):
    process = vars(vars(isolated)["_model"])["_process"]
    assert isolation._end(process, os.getpid() + 1) == 0
    assert isolated.predict(plain(0)).label == "red"


def test_an_interrupted_call_starts_again(isolated, monkeypatch):
    before, real = worker_of(isolated), Channel.receive

    def interrupted(self, deadline=None):
        monkeypatch.setattr(Channel, "receive", real)
        raise KeyboardInterrupt

    monkeypatch.setattr(Channel, "receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        isolated.predict(plain(0))
    assert gone(before)
    # An answer to the interrupted question would say "red".
    assert isolated.predict(plain(2)).label == "blue"


def test_options_that_make_no_sense(colour):
    for wrong in ({"deadline": 1.0}, {"isolate": True, "deadline": 0}):
        with pytest.raises(InputError, match="deadline"):
            Classifier(colour, **wrong)


def test_messages_of_any_size_pass_and_ends_are_noticed():
    here, there = os.pipe(), os.pipe()
    try:
        near, far = Channel(here[0], there[1]), Channel(there[0], here[1])
        with pytest.raises(TimedOut):
            near.receive(time.monotonic() + 0.01)
        with pytest.raises(TimedOut):  # a pipe holds some of it, nobody reads
            near.send({"a": 1}, b"x" * 5_000_000, time.monotonic() + 0.1)
        for size in (0, 1, 100_000):
            far.send({"size": size}, b"y" * size)
            assert near.receive() == ({"size": size}, bytearray(b"y" * size))
        os.close(here[1])
        with pytest.raises(Closed):
            near.receive()
        os.close(there[0])
        with pytest.raises(Closed):
            near.send({"a": 1})
    finally:
        os.close(here[0])
        os.close(there[1])


def serving(words):
    """The worker's own code in a thread of this process; returns the app's end and the thread."""
    here, there = os.pipe(), os.pipe()
    far = Channel(here[0], there[1])

    def work():
        with contextlib.suppress(Closed):
            isolation_worker.serve([str(word) for word in words], far)

    thread = threading.Thread(target=work)
    thread.start()
    return Channel(there[0], here[1]), thread, (*here, *there)


def test_the_worker_answers_until_nobody_asks(colour, tmp_path):
    near, thread, descriptors = serving([colour, 0, 1, tmp_path])
    ready, _ = near.receive()
    assert ready["plan"][0] == "fast" and ready["not_baked"] == "nothing is baked"
    image = plain(1)
    near.send({"shape": image.shape}, image.tobytes())
    scores = np.frombuffer(near.receive()[1], np.float32)
    assert scores.argmax() == 1
    Image.fromarray(image).save(tmp_path / "a.png")
    near.send({"file": str(tmp_path / "a.png")})
    answer, again = near.receive()
    assert answer["seconds"] > 0
    np.testing.assert_array_equal(np.frombuffer(again, np.float32), scores)
    near.send({})
    assert len(near.receive()[0]["usage"]) == 6
    near.send({"file": str(tmp_path / "none.png")})
    fault = near.receive()[0]
    assert fault["error"]["code"] == "bad_image" and not fault["fatal"]
    near.send({"shape": [1, 2, 3]}, b"not six bytes")  # never sent by us: start again after it
    fault = near.receive()[0]
    assert fault["error"]["code"] == "worker_ended" and fault["fatal"]
    thread.join(10)
    assert not thread.is_alive()
    for descriptor in descriptors:
        os.close(descriptor)


def test_the_worker_says_why_it_cannot_start(colour):
    near, thread, descriptors = serving([colour, 1_000_000, 1])
    fault = near.receive()[0]
    assert fault["error"]["code"] == "memory_limit" and fault["fatal"]
    assert "raise the limit" in fault["error"]["hint"]
    thread.join(10)
    for descriptor in descriptors:
        os.close(descriptor)
    fault = isolation_worker._fault(MemoryError("no room"), fatal=True)
    assert fault["error"]["code"] == "memory_limit"


def test_a_pipe_that_is_not_ready_after_all(monkeypatch):
    here = os.pipe()
    near = Channel(here[0], here[1])
    real_write, real_read, refused = os.write, os.readv, []

    def once(real):
        def work(*words):
            if real not in refused:
                refused.append(real)
                raise BlockingIOError
            return real(*words)

        return work

    monkeypatch.setattr(os, "write", once(real_write))
    monkeypatch.setattr(os, "readv", once(real_read))
    near.send({"a": 1}, b"x")
    assert near.receive() == ({"a": 1}, bytearray(b"x"))
    assert refused == [real_write, real_read]

    def broken(*_):
        raise OSError("gone")

    monkeypatch.setattr(os, "readv", broken)
    near.send({"a": 1})
    with pytest.raises(Closed):
        near.receive()
    for descriptor in here:
        os.close(descriptor)


def test_what_is_printed_does_not_end_up_among_the_answers(colour, monkeypatch):
    import runpy

    reading, writing = os.pipe()
    answers, back = os.pipe()
    os.close(writing)  # nobody asks anything
    ends, moved = iter((reading, back)), []

    def leave(status):
        raise SystemExit(status)

    monkeypatch.setattr(os, "dup", lambda descriptor: next(ends))
    monkeypatch.setattr(os, "dup2", lambda *words: moved.append(words))
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(sys, "argv", ["x", str(colour), "0", "1"])
    monkeypatch.delitem(sys.modules, "edgecil_runtime.isolation_worker")
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("edgecil_runtime.isolation_worker", run_name="__main__")
    assert caught.value.code == 0 and moved == [(2, 1)]
    assert "plan" in Channel(answers, back).receive()[0]
    for descriptor in (reading, answers, back):
        os.close(descriptor)
