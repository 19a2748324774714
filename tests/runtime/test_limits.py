"""Memory limits: where they come from, how they are kept, and what is said when they are not."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

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
    own_process,
)
from edgecil_runtime import model as model_module
from edgecil_runtime import session as session_module
from edgecil_runtime.cgroups import MemoryCgroup
from edgecil_runtime.limits import FaultWatch, Limit, resolve
from edgecil_runtime.own_process import OwnProcess, refuse_hopeless

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
DEVICES = Path(__file__).parents[2] / "devices"


def python(code, *words, enter="", timeout=120):
    """Run code in a process of its own and return it; ``enter`` is a cgroup."""
    command = [sys.executable, "-c", code, *map(str, words)]
    if enter:
        command = ["sh", "-c", f'echo $$ > {enter}/cgroup.procs && exec "$@"', "sh", *command]
    environment = {**os.environ, "PYTHONPATH": str(DEVICES), "ORT_DISABLE_TELEMETRY": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)


class Cgroup(NamedTuple):
    """A memory cgroup: its folder, the file of its limit, and the file that counts kills."""

    path: Path
    limit: Path
    kills: Path


@pytest.fixture
def cgroup():
    """A memory cgroup of version 1 or 2, or a skip where none can be made."""
    first = Path("/sys/fs/cgroup/memory")
    names = ("memory.limit_in_bytes", "memory.oom_control")
    if not first.is_dir():
        first, names = Path("/sys/fs/cgroup"), ("memory.max", "memory.events")
    path = first / f"edgecil_limits_{os.getpid()}"
    made = Cgroup(path, *(path / name for name in names))
    try:
        path.mkdir()
        made.limit.write_text("200000000")
    except OSError as error:
        if path.is_dir():
            path.rmdir()
        pytest.skip(f"no memory cgroup: {error}")
    yield made
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


def test_a_process_never_gets_more_than_the_system_allows(monkeypatch):
    monkeypatch.setattr(limits, "memory_cgroup", lambda: MemoryCgroup(1, 40_000_000))
    assert limits.of_process("60MB") == Limit(40_000_000, "memory cgroup v1")
    assert limits.of_process("30MB") == Limit(30_000_000, "as asked")
    assert limits.of_process(None) is None


def test_auto_leaves_out_what_the_app_uses_already(colour, monkeypatch):
    used = memory.usage().resident
    monkeypatch.setattr(limits, "memory_cgroup", lambda: MemoryCgroup(1, used + 10**9))
    model = Classifier(colour, memory_limit="auto")
    assert 10**9 - 50e6 < model.memory_limit < 10**9 + 50e6
    monkeypatch.setattr(limits, "memory_cgroup", lambda: MemoryCgroup(1, 30_000_000))
    with pytest.raises(MemoryLimitError, match=r"the limit is 0.0 MB .*; nothing was loaded"):
        Classifier(colour, memory_limit="auto")  # the app alone has more


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


def test_files_are_forgotten_where_that_is_possible(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"x" * 10_000)
    code_pages.forget([tmp_path / "a"])
    assert (tmp_path / "a").read_bytes() == b"x" * 10_000
    monkeypatch.delattr(os, "posix_fadvise")
    code_pages.forget(["/nowhere"])


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


def figure_of(error):
    """Return the megabytes that an error asks for, the same in its message and its hint."""
    hinted = int(error["hint"].split()[4].rstrip(",")[:-2])
    assert f"toy-v2 needs about {hinted} MB, the limit is " in error["message"]
    parts = error["message"].split("(")[1].split(")")[0].split(", ")
    assert sum(float(part.split()[-2]) for part in parts) == pytest.approx(hinted, abs=0.5)
    return hinted


@pytest.mark.parametrize("command", ["evaluate", "selftest"])
def test_both_stages_ask_for_the_same_and_it_is_not_too_much(tmp_path, toy, command):
    path = toy.resnet_bundle(tmp_path, 32, True)
    folder = toy.colour_folder(tmp_path / "set", each=3, names=("class 0",))
    code = "import sys\nfrom edgecil_runtime.cli import main\nsys.exit(main(sys.argv[1:]))"
    words = [command, path, *([folder] if command == "evaluate" else []), "--json", "-q"]

    def under(megabytes):
        done = python(code, *words, "--memory-limit", f"{megabytes}MB")
        return done.returncode, json.loads(done.stdout)

    early = [figure_of(answer["error"]) for _, answer in map(under, (10, 30, 44))]
    assert max(early) - min(early) <= 1
    status, answer = under(early[0] - 6)  # by the prediction, after the imports
    assert status == 3 and "nothing was loaded" in answer["error"]["message"]
    assert abs(figure_of(answer["error"]) - early[0]) <= 3
    status, answer = under(early[0])
    assert status == 0, answer
    if command == "evaluate":
        predicted = sum(answer["result"]["predicted_bytes"].values())
        assert predicted <= early[0] * 1e6 <= 1.1 * predicted


def test_automatic_under_a_kernel_limit(cgroup, tmp_path, toy):
    path = toy.resnet_bundle(tmp_path, 32, True)
    toy.colour_folder(tmp_path / "set", each=6, names=("class 0", "class 1"))
    cgroup.limit.write_text("58000000")
    code, answer = evaluate(path, tmp_path / "set", enter=cgroup.path)
    assert code == 0, answer
    assert answer["result"]["memory_limit_bytes"] == pytest.approx(58e6, abs=4096)
    assert answer["result"]["peak_rss_bytes"] < 58e6
    # Whatever is asked for, the kernel's limit counts.
    cgroup.limit.write_text("30000000")
    code, answer = evaluate(path, tmp_path / "set", "--memory-limit", "90MB", enter=cgroup.path)
    assert code == 3 and "nothing was loaded" in answer["error"]["message"]
    assert "oom_kill 0" in cgroup.kills.read_text()


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


@pytest.fixture
def no_process_wide_changes(monkeypatch):
    """What acts on a whole process is only recorded: this one is pytest's."""
    done = []
    monkeypatch.setattr(FaultWatch, "start", lambda self: done.append("watch"))
    monkeypatch.setattr(resource, "setrlimit", lambda *limit: done.append(limit))
    monkeypatch.setattr(code_pages, "pin", lambda: done.append("pin"))
    monkeypatch.setattr(session_module, "_shared_arena", False)
    return done


def test_an_own_process_settles_within_its_limit(colour, no_process_wide_changes):
    done = no_process_wide_changes
    limit = Limit(int(1.5 * memory.usage().peak), "as asked")
    process = OwnProcess(limit)
    process.prepare()
    before = process.in_use()
    model = Classifier(colour, limit.bytes, process=process)
    assert model.need.interpreter == pytest.approx(before, rel=0.2)
    stops = [item for item in done if item[0] == resource.RLIMIT_DATA]
    assert done[0] == "watch" and len(stops) == 1
    assert stops[0][1][0] > memory.usage().data
    for _ in range(8):
        assert model.predict(np.zeros((8, 8, 3), np.uint8)).index in (0, 1, 2)
    assert done.count("pin") == 3  # after 2, 4 and 8
    # A limit that is far away needs no pages locked.
    process = OwnProcess(Limit(10**12, "memory of this machine"))
    for _ in range(20):
        process.after_prediction()
    assert done.count("pin") == 3
    model.close()


def test_a_watch_is_a_timer_of_the_main_thread(monkeypatch):
    timers, kept = [], []
    monkeypatch.setattr(signal, "setitimer", lambda *words: timers.append(words))
    monkeypatch.setattr(limits.atexit, "register", lambda *words: kept.append(words))
    before = signal.getsignal(signal.SIGALRM)
    try:
        watch = FaultWatch(None)
        watch.start()
        assert signal.getsignal(signal.SIGALRM) == watch._look
        watch._look()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert timers == [(signal.ITIMER_REAL, 1.0, 1.0)]
    assert kept == [(signal.setitimer, signal.ITIMER_REAL, 0)]


def test_the_hard_stop_respects_what_the_system_allows(monkeypatch):
    asked = []
    monkeypatch.setattr(resource, "setrlimit", lambda *words: asked.append(words[1]))
    now = memory.usage()
    for hard, expected in (
        (resource.RLIM_INFINITY, now.data + 10**9 - now.resident),
        (12345, 12345),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda which, hard=hard: (hard, hard))
        assert limits.set_hard_stop(10**9)
        assert asked.pop() == (pytest.approx(expected, abs=5e6), hard)


def test_hopeless_limits_name_a_figure(colour, monkeypatch):
    def figure(now, reads_files=True):
        monkeypatch.setattr(own_process, "usage", lambda: now)
        with pytest.raises(MemoryLimitError, match="nothing was loaded") as caught:
            refuse_hopeless(colour, Limit(20_000_000, "as asked"), reads_files)
        return figure_of(vars(caught.value))

    fresh = memory.Usage(15_000_000, 16_000_000, 9_000_000, 6_000_000, 9_000_000, 0)
    assert 40 < figure(None) <= figure(fresh) < 60
    # A Python that takes more needs more; where no file is read, room for Pillow is kept free.
    assert figure(fresh._replace(anonymous=14_000_000)) == figure(fresh) + 5
    assert figure(fresh, reads_files=False) > figure(fresh)


def test_pillow_may_be_missing(monkeypatch, colour):
    from edgecil_runtime import own_process

    monkeypatch.setitem(sys.modules, "PIL", None)
    own_process._import_pillow()


def test_an_arena_that_cannot_be_shared_is_done_without(monkeypatch):
    import onnxruntime

    def refused(*_):
        raise RuntimeError("an allocator is registered already")

    monkeypatch.setattr(session_module, "_shared_arena", False)
    monkeypatch.setattr(onnxruntime, "create_and_register_allocator", refused)
    session_module.share_arena()
    assert session_module._shared_arena is False
    monkeypatch.undo()
    monkeypatch.setattr(session_module, "_shared_arena", True)
    session_module.share_arena()  # once is enough


def test_an_onnxruntime_that_cannot_be_imported(monkeypatch):
    from edgecil_runtime import RuntimeMissing

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeMissing, match="not installed"):
        session_module.load_onnxruntime()
    real = __import__

    def broken(name, *rest, **more):
        if name == "onnxruntime":
            raise ImportError("libfoo.so.1: cannot open shared object file")
        return real(name, *rest, **more)

    monkeypatch.setattr("builtins.__import__", broken)
    with pytest.raises(RuntimeMissing, match=r"cannot be loaded: libfoo\.so\.1"):
        session_module.load_onnxruntime()


def test_processors_are_counted_everywhere(monkeypatch):
    assert session_module.cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert session_module.cores() == os.cpu_count()


def test_spare_processors_may_spin(colour, monkeypatch):
    monkeypatch.setattr(session_module, "cores", lambda: 4)
    assert Classifier(colour).predict(np.zeros((8, 8, 3), np.uint8)).index == 0


def test_a_session_that_fails_for_another_reason(colour):
    model = Classifier(colour)

    class Broken:
        def run(self, *_):
            raise RuntimeError("no such output")

    vars(model)["_model"]._session = Broken()
    from edgecil_runtime import BundleError

    with pytest.raises(BundleError, match=r"model\.onnx: no such output"):
        model.predict(np.zeros((8, 8, 3), np.uint8))


def test_the_watch_may_end_any_call(colour, monkeypatch):
    model, error = Classifier(colour), MemoryLimitError("too little memory: thrashing")

    class Watched:
        def run(self, *_):
            raise error

    vars(model)["_model"]._session = Watched()
    with pytest.raises(MemoryLimitError, match="thrashing"):
        model.predict(np.zeros((8, 8, 3), np.uint8))
    import onnxruntime

    def loading(*_, **__):
        raise error

    monkeypatch.setattr(onnxruntime, "InferenceSession", loading)
    with pytest.raises(MemoryLimitError, match="thrashing"):
        Classifier(colour)


def test_a_call_during_a_reload_waits_for_it(colour):
    model = Classifier(colour)
    inner = vars(model)["_model"]
    session, inner._session, answers = inner._session, None, []
    image = np.zeros((8, 8, 3), np.uint8)
    with inner._lock:
        other = threading.Thread(target=lambda: answers.append(model.predict(image).index))
        other.start()
        other.join(0.2)
        assert not answers
        inner._session = session
    other.join(10)
    assert answers == [0]


def test_trimming_without_glibc(monkeypatch):
    def missing(name):
        raise OSError

    monkeypatch.setattr(memory.ctypes, "CDLL", missing)
    memory.trim()


def test_the_device_keeps_blas_from_starting_threads(monkeypatch):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    _environment.prepare_device()
    assert "OPENBLAS_NUM_THREADS" not in os.environ  # numpy is here: too late
    monkeypatch.setattr(sys, "modules", {})
    _environment.prepare_device()
    assert os.environ.pop("OPENBLAS_NUM_THREADS") == "1"


def test_pinning_counts_what_it_locked(monkeypatch):
    locked = []

    class Library:
        @staticmethod
        def mlock(start, size):
            locked.append((start.value, size.value))
            return 0

    monkeypatch.setattr(code_pages, "_libc", Library)
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    total, page = code_pages.pin(), os.sysconf("SC_PAGE_SIZE")
    assert total == sum(size for _, size in locked) > 1e6
    assert all(start % page == size % page == 0 for start, size in locked)
    inside = code_pages.mappings()
    assert all(any(m.start <= a and a + n <= m.stop for m in inside) for a, n in locked)


def test_a_model_that_onnxruntime_refuses(tmp_path, toy):
    from edgecil_runtime import BundleError

    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(toy.colour_model()[0])
    model.graph.node[-1].input[0] = "missing"
    path = toy.make_bundle(tmp_path, (model.SerializeToString(), 0, 0), "abc", 8, 8)
    with pytest.raises(BundleError, match=r"cannot load the model \(opset 18, IR 8\): .*missing"):
        Classifier(path)


def test_a_process_that_reads_no_files_needs_no_pillow(no_process_wide_changes, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    OwnProcess(Limit(10**9, "as asked")).prepare(reads_files=False)
    assert no_process_wide_changes == ["watch"]
