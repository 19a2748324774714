"""The doctor finds what is wrong with a device, survives it, and says what to do."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgecil_runtime import cli, compatibility, doctor
from edgecil_runtime.cgroups import MemoryCgroup, memory_cgroup
from edgecil_runtime.doctor import OK, WARNING, WRONG

DEVICES = Path(__file__).parents[2] / "devices"


def run(*words, packages=None, **extra):
    """Run the command; ``packages`` is a folder of modules that come before the installed."""
    paths = [str(p) for p in (packages, DEVICES) if p]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **extra}
    return subprocess.run(
        [sys.executable, "-m", "edgecil_runtime", "doctor", *map(str, words)],
        capture_output=True, text=True, timeout=60, env=environment,
    )  # fmt: skip


def findings(done):
    answer = json.loads(done.stdout)
    assert answer["ok"] == (done.returncode == 0) and "Traceback" not in done.stderr
    return {f["name"]: f for f in answer["result"]["findings"]}


def fake(folder, code):
    """Make a package ``onnxruntime`` that runs ``code`` when it is imported."""
    (folder / "onnxruntime").mkdir()
    (folder / "onnxruntime" / "__init__.py").write_text(code)
    return folder


def test_this_machine_is_fit(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout
    assert "this device can run bundles" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    found = findings(run(tmp_path, "--json"))
    assert found["onnxruntime"]["status"] == OK and "CPU" in found["onnxruntime"]["found"]
    assert "free at" in found["disk"]["found"]


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "instruction"),
        ("import os; os.abort()", "an abort"),
        ("raise ImportError('libstdc++.so.6: version GLIBCXX_3.4.30 not found')", "GLIBCXX"),
        ("import sys; sys.exit(3)", "no message"),
    ],
)
def test_an_onnxruntime_that_cannot_be_imported_is_reported_not_suffered(tmp_path, code, what):
    done = run("--json", packages=fake(tmp_path, code))
    assert done.returncode == 1
    found = findings(done)["onnxruntime"]
    assert found["status"] == WRONG and what in found["found"] and "pip install" in found["advice"]
    shown = run(packages=tmp_path).stdout
    assert "something is wrong" in shown and max(map(len, shown.splitlines())) <= 80


def test_an_onnxruntime_for_another_numpy(tmp_path):
    code = "raise ImportError('A module that was compiled using NumPy 1.x cannot be run')"
    found = findings(run("--json", packages=fake(tmp_path, code)))["onnxruntime"]
    assert found["advice"].endswith("pip install 'numpy<2'")


def test_the_advice_for_numpy_in_this_process():
    found = doctor._not_importable("ImportError: numpy.core.multiarray: _ARRAY_API not found")
    assert found.advice.endswith("pip install 'numpy<2'")


def test_an_import_that_hangs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(fake(tmp_path, "import time; time.sleep(60)")))
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.2)
    (found,) = doctor.probe_onnxruntime()
    assert found.status == WRONG and "takes more than 0.2 s" in found.found


def test_releases_that_must_not_be_used():
    (found,) = doctor.check_onnxruntime("1.21.0", ["CPUExecutionProvider"], "aarch64")
    assert found.status == WRONG and "illegal instruction" in found.found
    assert found.advice == "pip install 'onnxruntime!=1.21.0'"
    for version, machine in (("1.21.0", "x86_64"), ("1.21.1", "aarch64")):
        first, limits = doctor.check_onnxruntime(version, ["CPUExecutionProvider"], machine)
        assert first.status == OK and limits.found == "up to IR 10 and opset 22"
    (old,) = doctor.check_onnxruntime("1.15.1", [], "x86_64")
    assert old.status == WRONG and old.advice == "pip install 'onnxruntime>=1.16'"


def test_a_denied_release_explains_the_signal(monkeypatch):
    monkeypatch.setattr(doctor, "installed_packages", lambda: {"onnxruntime": "1.21.0"})
    monkeypatch.setattr(doctor.platform, "machine", lambda: "aarch64")
    found = doctor._killed(signal.SIGILL)
    assert "(SIGILL)" in found.found and "1.21.0 stops with an illegal" in found.advice
    assert doctor._killed(signal.SIGUSR1).found.endswith("signal 10")


def test_two_onnxruntimes_at_once(monkeypatch):
    both = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1", "numpy": "2.4.6"}
    monkeypatch.setattr(doctor, "installed_packages", lambda: both)
    packages, pillow = doctor.check_packages()
    assert packages.status == WRONG and "pip uninstall" in packages.advice
    assert pillow.status == WARNING and "edgecil-runtime[images]" in pillow.advice


def test_python_and_c_library(monkeypatch):
    assert doctor.check_python((3, 11, 2), 64).status == OK
    assert doctor.check_python((3, 8, 10), 64).status == WRONG
    assert "64-bit" in doctor.check_python((3, 11, 2), 32).advice
    for text, status in (("glibc 2.36", OK), ("glibc 2.27", WARNING), (None, WARNING)):
        monkeypatch.setattr(os, "confstr", lambda _, text=text: text)
        assert doctor.check_c_library().status == status

    def unknown(_):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "confstr", unknown)
    assert "musl" in doctor.check_c_library().found


def test_cpus(tmp_path):
    intel, arm = tmp_path / "intel", tmp_path / "arm"
    intel.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx_vnni\n")
    arm.write_text("processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd asimddp\n")
    assert doctor.check_cpu("x86_64", doctor.cpu_flags(str(intel))).status == OK
    without = doctor.check_cpu("x86_64", ["avx2"])
    assert without.status == WARNING and "--target x86-old-atom" in without.advice
    assert "none of avx2" in doctor.check_cpu("x86_64", ["sse4_2"]).found
    pi5 = doctor.check_cpu("aarch64", doctor.cpu_flags(str(arm)))
    assert pi5.found == "aarch64: asimd asimddp" and pi5.advice is None
    assert "little time" in doctor.check_cpu("aarch64", ["asimd"]).advice
    (tmp_path / "none").write_text("processor: 0\n")
    for name in ("none", "missing"):
        assert doctor.cpu_flags(str(tmp_path / name)) == []
    assert doctor.check_cpu("riscv64", []).status == WARNING
    assert doctor.check_cpu("riscv64", ["rv64gc"]).status == OK


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_memory_cgroups(tmp_path, monkeypatch):
    proc, root = tmp_path / "proc", tmp_path / "cgroup"

    def found():
        return memory_cgroup(str(proc), str(root))

    assert found() is None  # no /proc at all
    write(proc / "cgroup", "0::/user/app\n")
    write(root / "cgroup.controllers", "cpu io pids\n")
    assert found() is None  # version 2 without the controller: Raspberry Pi OS
    monkeypatch.setattr(doctor, "memory_cgroup", found)
    assert "cgroup_enable=memory" in doctor.check_cgroup().advice
    write(root / "cgroup.controllers", "cpu io memory pids\n")
    assert found() == MemoryCgroup(2, None)
    assert doctor.check_cgroup().found == "v2, no limit"
    write(root / "user" / "app" / "memory.max", "max\n")
    write(root / "user" / "memory.max", "96000000\n")
    assert found() == MemoryCgroup(2, 96_000_000)
    assert doctor.check_cgroup().found == "v2, limit 96.0 MB"
    write(proc / "cgroup", "5:cpu,cpuacct:/a\n4:memory:/docker/x\n0::/\n")
    write(root / "memory" / "memory.limit_in_bytes", "9223372036854771712\n")
    assert found() == MemoryCgroup(1, None)
    write(root / "memory" / "docker" / "x" / "memory.limit_in_bytes", "80000000\n")
    assert found() == MemoryCgroup(1, 80_000_000)


def test_telemetry_and_space(tmp_path, monkeypatch):
    assert doctor.check_telemetry("1").status == OK
    assert findings(run("--json", ORT_DISABLE_TELEMETRY="0"))["telemetry"]["status"] == WARNING
    done = run(tmp_path / "missing", "--json")
    assert done.returncode == 1 and findings(done)["disk"]["status"] == WRONG
    assert doctor.check_space(str(tmp_path)).status == OK
    assert doctor.check_space(str(tmp_path / "missing")).status == WRONG
    monkeypatch.setattr(doctor, "_ENOUGH_SPACE", 1 << 60)
    assert doctor.check_space(str(tmp_path)).status == WARNING


def test_the_table_of_versions():
    assert compatibility.limits_of("1.15.1") is None
    assert compatibility.limits_of("1.16.3") == (9, 19)
    assert compatibility.limits_of("1.20.0") == (10, 21)
    assert compatibility.limits_of("1.99.0.dev2") == (13, 26)
    assert compatibility.oldest_for(8, 18) == "1.16"
    assert compatibility.oldest_for(10, 20) == "1.18"
    assert compatibility.oldest_for(14, 28) is None
    assert compatibility.load_advice("1.16.3", 8, 18) is None
    assert "onnxruntime>=1.23" in compatibility.load_advice("1.22.1", 11, 22)
    assert "older opset" in compatibility.load_advice("1.31.1", 14, 28)


def test_the_command_in_this_process(tmp_path, capsys, monkeypatch):
    assert cli.main(["doctor", str(tmp_path)]) == 0
    assert "this device can run bundles" in capsys.readouterr().out
    monkeypatch.setenv("PYTHONPATH", str(fake(tmp_path, "import os; os.abort()")))
    assert cli.main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    (tmp_path / "onnxruntime" / "__init__.py").write_text("import sys; sys.exit(2)")
    assert cli.main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "cannot be imported" in shown and "ORT_DISABLE_TELEMETRY=0" in shown


def test_names_that_a_terminal_would_obey_are_escaped(colour, tmp_path, toy, capsys):
    toy.colour_folder(tmp_path, each=1, names=("red",))
    image = tmp_path / "red" / "\x1b[2J.png"
    (tmp_path / "red" / "0.png").rename(image)
    assert cli.main(["predict", str(colour), str(image)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and r"\x1b[2J.png" in shown
    assert cli.main(["info", str(tmp_path / "\x1b[2J")]) == 1
    assert "\x1b" not in capsys.readouterr().err
