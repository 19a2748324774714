"""Memory limits: where they come from, how they are kept, and what is said when they are not."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgecil_runtime import (
    Classifier,
    InputError,
    MemoryLimitError,
    _environment,
    code_pages,
    limits,
    memory,
)
from edgecil_runtime import model as model_module
from edgecil_runtime import session as session_module
from edgecil_runtime.cgroups import MemoryCgroup
from edgecil_runtime.limits import FaultWatch, Limit, resolve
from edgecil_runtime.own_process import OwnProcess, refuse_hopeless

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
DEVICES = Path(__file__).parents[2] / "devices"
MEMORY_CGROUP = Path("/sys/fs/cgroup/memory")


def python(code, *words, enter="", timeout=120):
    """Run code in a process of its own and return it; ``enter`` is a cgroup."""
    command = [sys.executable, "-c", code, *map(str, words)]
    if enter:
        command = ["sh", "-c", f'echo $$ > {enter}/cgroup.procs && exec "$@"', "sh", *command]
    environment = {**os.environ, "PYTHONPATH": str(DEVICES), "ORT_DISABLE_TELEMETRY": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)


@pytest.fixture
def cgroup():
    """A memory cgroup (v1), or a skip where none can be made."""
    path = MEMORY_CGROUP / f"edgecil_limits_{os.getpid()}"
    try:
        path.mkdir()
        (path / "memory.limit_in_bytes").write_text(str(200_000_000))
    except OSError as error:
        pytest.skip(f"no memory cgroup: {error}")
    yield path
    path.rmdir()


def test_sizes_and_the_smallest_automatic_limit(monkeypatch):
    assert resolve(None) is None
    assert resolve("96MB") == Limit(96_000_000, "as asked")
    with pytest.raises(InputError):
        resolve("lots")
    physical = resolve("auto")
    assert physical.bytes > 100e6
    monkeypatch.setattr(limits, "memory_cgroup", lambda: MemoryCgroup(2, 70_000_000))
    assert resolve("auto") == Limit(70_000_000, "memory cgroup v2")
    monkeypatch.setattr(limits, "memory_cgroup", lambda: MemoryCgroup(1, None))
    real = resource.getrlimit

    def limited(which):
        return (60_000_000, -1) if which == resource.RLIMIT_AS else real(which)

    monkeypatch.setattr(resource, "getrlimit", limited)
    assert resolve("auto") == Limit(60_000_000, "RLIMIT_AS")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (-1, -1))
    monkeypatch.setattr(limits, "memory_cgroup", lambda: None)
    assert resolve("auto").source == "memory of this machine"
    monkeypatch.setattr(os, "sysconf", lambda name: -1)
    assert resolve("auto") is None

    def unknown(name):
        raise ValueError(name)

    monkeypatch.setattr(os, "sysconf", unknown)
    assert resolve("auto") is None


def test_auto_leaves_out_what_the_app_uses_already(colour, monkeypatch):
    monkeypatch.setattr(limits, "memory_cgroup", lambda: MemoryCgroup(1, 10**9))
    used = memory.usage().resident
    model = Classifier(colour, memory_limit="auto")
    assert 10**9 - used - 50e6 < model.memory_limit < 10**9 - used + 50e6
    monkeypatch.setattr(limits, "memory_cgroup", lambda: MemoryCgroup(1, 30_000_000))
    with pytest.raises(MemoryLimitError, match="nothing was loaded"):
        Classifier(colour, memory_limit="auto")


def test_a_second_model_costs_less_than_the_first(colour, tmp_path, toy):
    code = (
        "import sys\nfrom edgecil_runtime import Classifier\n"
        "a = Classifier(sys.argv[1]); b = Classifier(sys.argv[1])\n"
        "print(a.need.runtime, b.need.runtime)\n"
    )
    first, second = map(int, python(code, colour).stdout.split())
    assert 0 < second < first - 5e6


def refusing(monkeypatch, plans):
    """Let session creation fail for plans of these names."""
    real, asked = session_module.create_session, []

    def create(path, manifest, plan, threads):
        asked.append(plan.name)
        if plan.name in plans:
            raise MemoryError("bad_alloc")
        return real(path, manifest, plan, threads)

    monkeypatch.setattr(model_module, "create_session", create)
    return asked


def test_loading_goes_down_the_ladder(tmp_path, toy, monkeypatch):
    path = toy.resnet_bundle(tmp_path, 32, True)
    asked = refusing(monkeypatch, {"fast"})
    model = Classifier(path, memory_limit="300MB")
    assert asked == ["fast", "unpacked"] and model.plan == "unpacked"
    packed = Classifier.scores(Classifier(path), np.zeros((32, 32, 3), np.uint8))
    np.testing.assert_allclose(
        model.scores(np.zeros((32, 32, 3), np.uint8)), packed, rtol=1e-3, atol=1e-3
    )
    refusing(monkeypatch, {"fast", "unpacked"})
    with pytest.raises(MemoryLimitError, match="out of memory while loading the model") as caught:
        Classifier(path, memory_limit="300MB")
    assert caught.value.hint == "raise the limit to 375MB"


class Failing:
    """A session that runs out of memory."""

    def run(self, *_):
        raise RuntimeError("std::bad_alloc")


def test_predicting_goes_down_the_ladder(tmp_path, toy):
    model = Classifier(toy.resnet_bundle(tmp_path, 32, True))
    inner, image = vars(model)["_model"], np.zeros((32, 32, 3), np.uint8)
    wanted = model.scores(image)
    inner._session = Failing()
    np.testing.assert_allclose(model.scores(image), wanted, rtol=1e-3, atol=1e-3)
    assert model.plan == "unpacked"
    inner._session = Failing()
    with pytest.raises(MemoryLimitError, match="out of memory while predicting"):
        model.predict(image)
    # Another thread was quicker: what failed is not the session any more.
    inner._make_leaner(Failing(), MemoryError())
    model.close()
    with pytest.raises(InputError, match="closed"):
        model.predict(image)


def test_reading_an_image_without_memory(colour, tmp_path, monkeypatch):
    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr(model_module, "read_image", no_memory)
    with pytest.raises(MemoryLimitError, match=r"out of memory while reading .*a\.png"):
        Classifier(colour).predict(tmp_path / "a.png")


def test_the_watch_tells_thrashing_from_a_cold_start():
    watch = FaultWatch(Limit(50_000_000, "memory cgroup v1"))
    start = time.monotonic()
    for second in range(1, 10):  # 900 pages read from a cold disk
        watch.check(100 * second, start + second)
    watch.check(5000, start + 10)
    watch.check(5001, start + 11)  # calm again: not in a row
    for second in (12, 13):
        watch.check(5000 + 100 * second, start + second)
    with pytest.raises(
        MemoryLimitError, match=r"50\.0 MB \(memory cgroup v1\): thrashing, 100"
    ) as c:
        watch.check(5000 + 1400, start + 14)
    assert c.value.hint == "raise the limit to 63MB" and c.value.exit_code == 3
    watch.needed = 80_000_000
    for second in (15, 16):
        watch.check(5000 + 100 * second, start + second)
    with pytest.raises(MemoryLimitError) as caught:
        watch.check(5000 + 1700, start + 17)
    assert caught.value.hint == "raise the limit to 80MB"


def test_settled_processes_have_no_faults_to_spare():
    watch = FaultWatch(None)
    watch.settled()
    base, start = memory.usage().major_faults, time.monotonic()
    watch.check(base, start)
    with pytest.raises(MemoryLimitError, match="too little memory: thrashing"):
        for second in (1, 2, 3):
            watch.check(base + 40 * second, start + second)


def test_the_watch_looks_every_second_and_lets_the_process_end():
    code = (
        "import time\nfrom edgecil_runtime import limits\n"
        "seen = []\nlimits.FaultWatch.check = lambda self, *found: seen.append(found)\n"
        "watch = limits.FaultWatch(None); watch.start()\n"
        "while len(seen) < 2: time.sleep(0.05)\n"
        "print(seen[1][1] - seen[0][1] > 0.5)\n"
    )
    done = python(code)
    assert (done.returncode, done.stdout) == (0, "True\n")


def test_the_hard_stop_makes_allocations_fail():
    code = (
        "from edgecil_runtime import limits, memory\n"
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (2**40, 2**40))\n"
        "assert limits.set_hard_stop(memory.usage().resident + 20_000_000)\n"
        "small = bytearray(10_000_000)\n"
        "try:\n    bytearray(40_000_000)\nexcept MemoryError:\n    print('stopped')\n"
    )
    assert python(code).stdout == "stopped\n"


def test_without_proc_nothing_is_measured_and_nothing_breaks(monkeypatch, colour):
    class Nowhere(type(Path())):
        def read_text(self, *_):
            raise FileNotFoundError

    monkeypatch.setattr(memory, "Path", Nowhere)
    assert memory.usage() is None and limits.set_hard_stop(10**9) is False
    watch = FaultWatch(None)
    watch.settled()
    watch._look()
    assert OwnProcess(None).in_use() == 0
    assert Classifier(colour, memory_limit="200MB").usage() is None
    assert code_pages.mappings("/nowhere") == []


SETTLE = """
import sys, json
from edgecil_runtime import code_pages, memory
import onnxruntime
before = memory.usage()
shed = [m for m in code_pages.mappings()]
code_pages.shed()
after = memory.usage()
sum(i * i for i in range(10**5)); json.dumps({"a": [1.5, None]}); sorted("hello")
locked = code_pages.pin()
status = dict(x.split(":", 1) for x in open("/proc/self/status"))
print(before.file_backed, after.file_backed, before.anonymous, after.anonymous,
      locked, int(status["VmLck"].split()[0]) * 1024)
"""


def test_code_is_let_go_and_what_is_used_is_locked():
    done = python(SETTLE)
    assert done.returncode == 0, done.stderr
    file_before, file_after, anon_before, anon_after, locked, kernel = map(int, done.stdout.split())
    assert file_after < file_before - 8e6  # most of onnxruntime's and numpy's code
    assert abs(anon_after - anon_before) < 1e6  # nothing that was written is lost
    assert locked == kernel and 0 < locked < 20e6


def test_pinning_stops_where_it_is_not_allowed(monkeypatch):
    class Library:
        @staticmethod
        def mlock(*_):
            return -1

    monkeypatch.setattr(code_pages, "_libc", Library)
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    assert code_pages.pin() == 0
    monkeypatch.setattr(code_pages, "mappings", lambda: (_ for _ in ()).throw(OSError))
    assert code_pages.pin() == 0


def test_written_mappings_are_never_let_go(tmp_path):
    smaps = tmp_path / "smaps"
    block = "{} {} 00000000 08:01 {} {}\nRss: 8 kB\nAnonymous: {} kB\n"
    smaps.write_text(
        block.format("1000-3000", "r-xp", 12, "/lib/a.so", 0)
        + block.format("3000-4000", "r--p", 12, "/lib/a.so", 4)  # relocated constants
        + block.format("4000-5000", "rw-p", 12, "/lib/a.so", 0)
        + block.format("5000-6000", "r-xp", 0, "[vdso]", 0)
        + block.format("6000-7000", "r--p", 13, "/usr/share/with space", 0)
    )
    assert code_pages.mappings(str(smaps)) == [(0x1000, 0x3000), (0x6000, 0x7000)]


def test_an_own_process_without_a_limit_does_nothing(colour):
    process = OwnProcess(None)
    process.prepare()
    model = Classifier(colour, process=process)
    for _ in range(10):
        assert model.predict(np.zeros((8, 8, 3), np.uint8)).index in (0, 1, 2)
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


def test_hopeless_limits_are_refused_before_the_imports(colour, tmp_path):
    code = (
        "import sys\nfrom edgecil_runtime.own_process import refuse_hopeless\n"
        "from edgecil_runtime.limits import resolve\n"
        "from edgecil_runtime.errors import MemoryLimitError\n"
        "try:\n    refuse_hopeless(sys.argv[1], resolve('20MB'))\n"
        "except MemoryLimitError as e:\n    print('numpy' in sys.modules, e)\n"
    )
    assert python(code, colour).stdout.startswith("False toy-v2 needs ")
    refuse_hopeless(colour, None)
    refuse_hopeless(colour, Limit(10**9, "x"))
    refuse_hopeless(tmp_path, Limit(1, "x"))  # no bundle: something else will say so


def test_heaps_other_than_glibc_are_left_alone(monkeypatch):
    import ctypes

    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    _environment.tighten_heap()


def evaluate(path, folder, *more, enter="", timeout=120):
    code = "import sys\nfrom edgecil_runtime.cli import main\nsys.exit(main(sys.argv[1:]))"
    words = ["evaluate", path, folder, "--json", "-q", *more]
    done = python(code, *words, enter=enter, timeout=timeout)
    assert done.stdout.count("\n") == 1, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize("limit", ["5MB", "40MB"])
def test_the_figure_in_the_error_really_does(tmp_path, toy, limit):
    path = toy.resnet_bundle(tmp_path, 32, True)
    toy.colour_folder(tmp_path / "set", each=3, names=("class 0", "class 1"))
    code, answer = evaluate(path, tmp_path / "set", "--memory-limit", limit)
    assert code == 3 and "nothing was loaded" in answer["error"]["message"]
    for part in ("interpreter", "runtime", "weights"):
        assert part in answer["error"]["message"]
    figure = answer["error"]["hint"].split()[4].rstrip(",")
    code, answer = evaluate(path, tmp_path / "set", "--memory-limit", figure)
    assert code == 0 and answer["result"]["n"] == 6
    assert answer["result"]["peak_rss_bytes"] <= int(figure[:-2]) * 1e6


def test_automatic_under_a_kernel_limit(cgroup, tmp_path, toy):
    path = toy.resnet_bundle(tmp_path, 32, True)
    toy.colour_folder(tmp_path / "set", each=6, names=("class 0", "class 1"))
    limit = cgroup / "memory.limit_in_bytes"
    limit.write_text("58000000")
    code, answer = evaluate(path, tmp_path / "set", enter=cgroup)
    assert code == 0, answer
    assert answer["result"]["memory_limit_bytes"] == pytest.approx(58e6, abs=4096)
    assert answer["result"]["peak_rss_bytes"] < 58e6
    limit.write_text("30000000")
    code, answer = evaluate(path, tmp_path / "set", enter=cgroup)
    assert code == 3 and "nothing was loaded" in answer["error"]["message"]
    assert "oom_kill 0" in (cgroup / "memory.oom_control").read_text()


@pytest.mark.slow
def test_one_hundred_thousand_predictions_do_not_grow(tmp_path, toy):
    code = (
        "import sys, numpy\nfrom edgecil_runtime import Classifier, memory\n"
        "c = Classifier(sys.argv[1]); x = numpy.zeros((32, 32, 3), 'uint8')\n"
        "for i in range(100_000):\n"
        "    if i == 100: early = memory.usage().resident\n"
        "    c.predict(x)\n"
        "print(memory.usage().resident - early)\n"
    )
    done = python(code, toy.resnet_bundle(tmp_path, 32, True), timeout=600)
    assert int(done.stdout) < 1_000_000
