"""The examples run as they are: processes of their own, real images, real requests."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from edgecil_runtime.bundle import MODEL, SELFTEST, write_bundle

DEVICES = Path(__file__).parents[2] / "devices"
EXAMPLES = DEVICES / "examples"


def environment():
    return {**os.environ, "PYTHONPATH": str(DEVICES), "PYTHONUNBUFFERED": "1"}


def run(name, *words):
    return subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, words)],
        capture_output=True, text=True, timeout=60, env=environment(),
    )  # fmt: skip


def hear_interrupts():
    """Undo what a shell does to jobs in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def running(name, *words):
    """Start an example and stop it by Ctrl-C at the end."""
    process = subprocess.Popen(
        [sys.executable, EXAMPLES / name, *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        preexec_fn=hear_interrupts,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)


@pytest.fixture
def images(toy, tmp_path):
    return toy.colour_folder(tmp_path / "images", each=2)


def successor(bundle, folder):
    """Write version 3 of a bundle, with the same graph."""
    files = {name: (bundle / name).read_bytes() for name in (MODEL, SELFTEST)}
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["files"]
    return write_bundle(folder, {**manifest, "version": 3, "parent": 2}, files)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_are_short_and_say_how_to_call_them(path):
    text = path.read_text()
    assert len(text.splitlines()) < 100
    assert f"python {path.name} " in text


def test_video_from_a_folder(colour, images):
    done = run("video_loop.py", colour, images, "--rate", 20)
    assert done.returncode == 0, done.stderr
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["blue", "green", "red"]
    assert done.stderr == "6 frames predicted, 0 dropped\n"


def test_a_camera_that_is_faster_than_the_model(toy, tmp_path):
    slow = toy.resnet_bundle(tmp_path, 18, True)
    done = run("video_loop.py", slow, "synthetic", "--rate", 5000, "--frames", 30)
    assert done.returncode == 0, done.stderr
    words = done.stderr.split()
    assert int(words[0]) >= 1 and int(words[3]) > 0
    assert int(words[0]) + int(words[3]) == 30


def test_a_video_of_a_bad_bundle(images):
    done = run("video_loop.py", images, "synthetic")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stdout == ""


def test_a_video_that_is_not_there(colour, tmp_path):
    done = run("video_loop.py", colour, tmp_path / "none.mp4")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


@pytest.fixture
def service(colour):
    """The port of a running HTTP service."""
    with running("serve_http.py", colour, "--port", 0) as process:
        yield int(process.stdout.readline().rpartition(":")[2])


def ask(port, method, path, body=None, headers=()):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, dict(headers))
        response = connection.getresponse()
        return response.status, json.loads(response.read() or "null")
    finally:
        connection.close()


def test_http_answers_and_refuses(service, images):
    assert ask(service, "GET", "/healthz") == (200, {"model": "toy-v2"})
    picture = (images / "green" / "0.png").read_bytes()
    status, answer = ask(service, "POST", "/predict", picture)
    assert status == 200 and answer["label"] == "green" and 0 < answer["score"] <= 1
    assert ask(service, "GET", "/etc/passwd")[0] == 404
    assert ask(service, "POST", "/elsewhere", picture)[0] == 404
    status, answer = ask(service, "POST", "/predict", b"no image")
    assert status == 400 and "cannot read this image" in answer["error"]
    big = [("Content-Length", str(10**12))]
    assert ask(service, "POST", "/predict", headers=big)[0] == 413
    assert ask(service, "POST", "/predict", headers=[("Content-Length", "-1")])[0] == 413
    bomb = picture[:16] + (100_000).to_bytes(4, "big") * 2 + picture[24:]
    assert ask(service, "POST", "/predict", bomb)[0] == 400


def test_http_under_many_connections_and_silent_clients(service, images):
    picture = (images / "red" / "0.png").read_bytes()
    silent = [socket.create_connection(("127.0.0.1", service)) for _ in range(4)]
    statuses = []

    def client():
        for _ in range(5):
            try:
                statuses.append(ask(service, "POST", "/predict", picture)[0])
            except (OSError, http.client.HTTPException):
                statuses.append(503)  # turned away before it had sent everything

    clients = [threading.Thread(target=client) for _ in range(12)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    for connection in silent:
        connection.close()
    assert set(statuses) <= {200, 503} and statuses.count(200) >= 5
    assert ask(service, "GET", "/healthz")[0] == 200


def test_hot_swap_misses_no_request(colour, images, tmp_path):
    root = tmp_path / "root"
    device = [sys.executable, "-m", "edgecil_runtime", "install", "--root", str(root)]
    subprocess.run([*device, str(colour)], check=True, env=environment(), capture_output=True)
    newer = successor(colour, tmp_path / "newer")
    with running("hot_swap.py", root, images / "red" / "0.png") as process:
        assert process.stdout.readline() == "now toy-v2\n"
        subprocess.run([*device, str(newer)], check=True, env=environment(), capture_output=True)
        assert process.stdout.readline() == "now toy-v3\n"
        time.sleep(1.0)  # until the new version has been asked, too
    answered = dict(line.split(" answered ") for line in process.stdout.read().splitlines())
    assert set(answered) == {"toy-v2", "toy-v3"} and all(int(n) > 0 for n in answered.values())
    assert process.returncode == 0 and process.stderr.read() == ""


def test_hot_swap_without_an_installed_version(tmp_path):
    done = run("hot_swap.py", tmp_path, "x.png")
    assert done.returncode == 1 and done.stderr.startswith("error: ")


def test_two_models_share_one_limit(colour, images, tmp_path):
    second = successor(colour, tmp_path)
    pictures = [images / name / "0.png" for name in ("red", "green")]
    done = run("two_models.py", colour, second, *pictures, "--ask", "green")
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [(row[1], row[3]) for row in rows] == [("red", "toy-v2"), ("green", "toy-v3")]
    assert "of 128.0 MB" in done.stderr
    tight = run("two_models.py", colour, second, *pictures, "--limit", "30MB")
    assert tight.returncode == 3 and tight.stderr.startswith("error: ")


def test_the_newest_frame_wins():
    from importlib import util

    spec = util.spec_from_file_location("video_loop", EXAMPLES / "video_loop.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    latest = module.Latest()
    for value in range(3):
        latest.put(np.full((1, 1, 3), value, np.uint8))
    assert latest.take()[0, 0, 0] == 2 and latest.dropped == 2
    latest.put(np.zeros((1, 1, 3), np.uint8))
    latest.put(None, last=True)
    assert latest.take() is not None and latest.take() is None
