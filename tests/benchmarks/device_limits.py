"""The device runtime against a plain onnxruntime load of the same model, under kernel limits.

ResNet-32 at 32 pixels and ResNet-18 at 224, fp32 and int8, exported and baked here (their
weights are drawn: memory and speed do not depend on them). Peak memory, cold start, latency,
what ``predict`` adds, growth over many predictions, and behaviour in a memory cgroup, for which
it must be root. Libraries are copied first: pages that another process has in use would be
counted there. Run it on a machine with nothing else to do::

    python tests/benchmarks/device_limits.py --out docs/results/device-limits.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from PIL import Image

import edgecil
import edgecil_runtime
from edgecil.bench.runner import hardware
from edgecil.exporting.versions import export_version
from edgecil.nets.build import build
from edgecil.nets.net import NetSpec
from edgecil.nets.rules import ArgmaxRule
from edgecil.settings import Preprocess
from edgecil_runtime.baking import FOLDER, bake
from edgecil_runtime.bundle import MODEL

CLASSES = 100
NETS = {"resnet32": (32, 32, 400), "resnet18": (224, 256, 100)}  # size, resize, images
LIMITS_MB = {"resnet32": (None, 80, 60, 56, 52), "resnet18": (None, 110, 80, 72)}
CGROUP = Path("/sys/fs/cgroup/memory")
SECONDS = 60
PROBE = Path(__file__).with_name("device_probe.py")


def make_bundle(arch: str, precision: str, scratch: Path) -> Path:
    """Return an exported bundle, its baked form beside it."""
    size, resize, _ = NETS[arch]
    torch.manual_seed(0)
    net = build(NetSpec(arch), CLASSES)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as if it had been trained
            module.running_var.uniform_(0.5, 1.5)
    labels = [(f"class {i}", 1) for i in range(CLASSES)]
    pixels = np.random.default_rng(0).integers(0, 256, (8, resize, resize, 3), np.uint8)
    report = export_version(
        net, ArgmaxRule(CLASSES), Preprocess(size, resize, (0.5,) * 3, (0.25,) * 3), labels,
        name=f"{arch}-{precision}", version=1, parent=None, method="finetune",
        output=scratch / f"{arch}-{precision}", calibration=pixels, precision=precision,
        min_agreement=0.0,
    )  # fmt: skip
    bake(report.path, report.path.parent / FOLDER)
    return report.path


def make_images(arch: str, scratch: Path) -> Path:
    """Return a folder of class folders of PNG files in the size of the network's input."""
    size, _, count = NETS[arch]
    draw = np.random.default_rng(1)
    for number in range(count):
        place = scratch / f"images-{arch}" / f"class {number % 4}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (size, size, 3), np.uint8)).save(
            place / f"{number}.png"
        )
    return scratch / f"images-{arch}"


class Machine:
    """A private copy of Python's library and the packages, and a memory cgroup if possible."""

    def __init__(self, scratch: Path) -> None:
        site = scratch / "site"
        site.mkdir()
        for package in (np, onnxruntime, Image, edgecil_runtime):
            source = Path(str(package.__file__)).parent
            shutil.copytree(source, site / source.name)
        for libraries in ("numpy.libs", "pillow.libs"):  # beside the packages in their wheels
            if (found := Path(str(np.__file__)).parent.parent / libraries).is_dir():
                shutil.copytree(found, site / libraries)
        library = Path(str(sysconfig.get_config_var("LIBDIR")), str(
            sysconfig.get_config_var("INSTSONAME")))  # fmt: skip
        if library.is_file():
            shutil.copy(library, scratch)
        self._environment = {
            **os.environ, "PYTHONPATH": str(site), "LD_LIBRARY_PATH": str(scratch),
            "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        self._group = CGROUP / f"edgecil_limits_{os.getpid()}"
        try:
            self._group.mkdir()
            self.has_cgroup = True
        except OSError:
            self.has_cgroup = False

    def probe(
        self, *words: object, limit_mb: int | None = None, timeout: float = SECONDS
    ) -> dict[str, Any]:
        """Return what a probe says, with ``exit_code`` and ``seconds``."""
        return self.run([str(PROBE), *map(str, words)], limit_mb, timeout)

    def run(
        self, words: list[str], limit_mb: int | None = None, timeout: float = SECONDS
    ) -> dict[str, Any]:
        """Return the JSON answer of a Python command, under a kernel limit if one is given."""
        command = [sys.executable, "-S", *words]
        if limit_mb is not None:
            (self._group / "memory.limit_in_bytes").write_text(str(limit_mb * 10**6))
            (self._group / "memory.force_empty").write_text("0")
            os.sync()  # or what was just written would stay
            Path("/proc/sys/vm/drop_caches").write_text("1")
            enter = f'echo $$ > {self._group}/cgroup.procs && exec "$@"'
            command = ["sh", "-c", enter, "sh", *command]
        began, clock = time.time(), time.perf_counter()
        try:
            done = subprocess.run(
                command, env=self._environment, capture_output=True, text=True,
                timeout=timeout, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"limit_mb": limit_mb, "outcome": f"not finished after {timeout:g} s"}
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        answer = json.loads(lines[-1]) if lines else {"error": done.stderr[-300:]}
        if "first" in answer:
            answer["to_first_s"] = answer.pop("first") - began
        return {
            "limit_mb": limit_mb, "outcome": "ok" if done.returncode == 0 else "error",
            "exit_code": done.returncode, "seconds": time.perf_counter() - clock, **answer,
        }  # fmt: skip

    def close(self) -> None:
        """Remove the cgroup."""
        if self.has_cgroup:
            (self._group / "memory.force_empty").write_text("0")
            self._group.rmdir()


def folder_runs(machine: Machine, arch: str, bundle: Path, images: Path) -> list[dict[str, Any]]:
    """Return one row per limit, plain and runtime, each beside its unconstrained latency."""
    rows = []
    for kind, words in (("plain", ["plain", bundle / MODEL, images]),
                        ("runtime", ["runtime", bundle, images, "auto"])):  # fmt: skip
        free: dict[str, Any] = {}
        for limit in LIMITS_MB[arch]:
            if limit is not None and not machine.has_cgroup:
                continue
            row = {"kind": kind, **machine.probe(*words, limit_mb=limit)}
            if row["outcome"] == "ok":
                free = row if limit is None else free
                for name in ("mean", "p50"):
                    row[f"{name}_times_free"] = row[f"{name}_ms"] / free[f"{name}_ms"]
            rows.append(row)
            print_row(bundle.name, row)
    return rows


def print_row(name: str, row: dict[str, Any]) -> None:
    """Print one line of the table."""
    limit = f"{row['limit_mb']} MB" if row["limit_mb"] else "none"
    text = f"{name:<18}{row['kind']:<9}{limit:>7}  "
    if row["outcome"] != "ok":
        print(text + row["outcome"] + " " + row.get("error", "")[:200], flush=True)
        return
    print(
        f"{text}{row['p50_ms']:6.2f} ms {row['p50_times_free']:5.2f} x  mean {row['mean_ms']:6.2f}"
        f" {row['mean_times_free']:5.2f} x  peak {row['peak_mb']:5.1f}  "
        f"anon {row['anonymous_mb']:5.1f}  faults {row['major_faults']:5d}",
        flush=True,
    )


def cold_starts(machine: Machine, bundle: Path, side: int, times: int) -> dict[str, Any]:
    """Return the median seconds from the start of a process to its first prediction."""
    found = {}
    for kind in ("plain", "runtime", "isolated"):
        path = bundle / MODEL if kind == "plain" else bundle
        runs = [machine.probe("first", kind, path, side)["to_first_s"] for _ in range(times)]
        found[kind] = {"median_s": statistics.median(runs), "best_s": min(runs)}
    return found


def refusals(machine: Machine, bundle: Path, images: Path) -> list[dict[str, Any]]:
    """Return what the command says to limits below the need, and whether its figure does."""
    command = ["-m", "edgecil_runtime", "evaluate", str(bundle), str(images), "--json", "-q"]
    rows = []
    for limit in ("20MB", "40MB"):
        refused = machine.run([*command, "--memory-limit", limit])
        figure = str(refused["error"]["hint"]).split()[4].rstrip(",")
        again = machine.run([*command, "--memory-limit", figure])
        rows.append({
            "limit": limit, "exit_code": refused["exit_code"], "figure": figure,
            "exit_code_with_it": again["exit_code"],
            "peak_mb": again.get("result", {}).get("peak_rss_bytes", 0) / 1e6,
        })  # fmt: skip
    return rows


def measure(machine: Machine, arch: str, scratch: Path, count: int) -> list[dict[str, Any]]:
    """Return the results of one network in both precisions."""
    images, found = make_images(arch, scratch), []
    for precision in ("int8", "fp32"):
        bundle = make_bundle(arch, precision, scratch)
        side = NETS[arch][0]
        row: dict[str, Any] = {
            "net": arch, "size": side, "precision": precision,
            "file_bytes": (bundle / MODEL).stat().st_size,
            "folder": folder_runs(machine, arch, bundle, images),
        }  # fmt: skip
        if precision == "int8":
            row["cold_start"] = cold_starts(machine, bundle, side, 7)
            row["overhead"] = machine.probe("overhead", bundle, side, 300)
            row["refusals"] = refusals(machine, bundle, images)
            if arch == "resnet32":
                row["growth"] = machine.probe("growth", bundle, side, count, timeout=1800)
            for name in ("cold_start", "overhead", "refusals", "growth"):
                print(f"{bundle.name:<18}{name}: {json.dumps(row.get(name))}", flush=True)
        found.append(row)
    return found


def main() -> None:
    """Measure all networks, print the table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--predictions", type=int, default=100_000, help="of the growth test")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(Path(folder))
        try:
            for arch in NETS:
                rows += measure(machine, arch, Path(folder), given.predictions)
        finally:
            machine.close()
    result = {
        "benchmark": "device limits: one thread; MB of 10^6 bytes; page cache dropped under limits",
        "rows": rows, "cgroup": machine.has_cgroup, "hardware": hardware(),
        "onnxruntime": onnxruntime.__version__, "edgecil": edgecil.__version__,
    }  # fmt: skip
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
