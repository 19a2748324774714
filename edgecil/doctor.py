"""Whether this workstation can train and export, and if not, what to do.

Nothing here loads torch or onnxruntime into this process: a broken one must not stop the
command that finds it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import filelock

from edgecil.errors import EdgecilError
from edgecil.units import count, format_bytes
from edgecil.workspace import Workspace
from edgecil_runtime.cpu import cpu_flags
from edgecil_runtime.doctor import (
    OK,
    WARNING,
    WRONG,
    Finding,
    check_packages,
    probe_onnxruntime,
)

PROBE_SECONDS = 120
ENOUGH_SPACE = 1_000_000_000
REINSTALL = "install both from one index: pip install --force-reinstall torch torchvision"
_PACKAGES = ("torch", "torchvision", "onnx", "onnxscript", "numpy", "pillow")
_TORCH = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
print(json.dumps({
    "version": torch.__version__, "cuda": torch.version.cuda, "threads": torch.get_num_threads(),
    "gpus": [torch.cuda.get_device_name(number) for number in range(count)],
}))
"""
_TORCHVISION = "import torchvision; from torchvision.ops import nms"


def examine(workspace: Workspace) -> list[Finding]:
    """Return the findings about this machine and the workspace, if there is one."""
    return [
        Finding("python", OK, f"{platform.python_version()}, {platform.machine()}"),
        *check_versions(),
        *probe_torch(),
        *check_packages(),
        *probe_onnxruntime(),
        check_cpu(cpu_flags()),
        check_cores(),
        _space(workspace),
        *check_workspace(workspace),
    ]


def check_versions() -> list[Finding]:
    """Return which packages are installed, and which are not."""
    found, missing = [], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    findings = [Finding("libraries", OK, ", ".join(found))]
    if missing:
        text = f"not installed: {', '.join(missing)}"
        findings.append(Finding("libraries", WRONG, text, f"pip install {' '.join(missing)}"))
    return findings


def _run(code: str) -> tuple[str, str | None]:
    """Return what a child process printed and, if it failed, the last line of why."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False,
            timeout=PROBE_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "", f"it takes more than {PROBE_SECONDS} s"
    if done.returncode < 0:
        return "", f"it is killed by signal {-done.returncode}"
    if done.returncode:
        return "", (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
    return done.stdout, None


def probe_torch() -> list[Finding]:
    """Return whether torch and torchvision can be imported, fit each other, and see the GPU."""
    answer, failed = _run(_TORCH)
    if failed:
        return [Finding("torch", WRONG, f"cannot be imported: {failed}", REINSTALL)]
    torch = json.loads(answer.splitlines()[-1])
    findings = [Finding("torch", OK, f"{torch['version']}, {count(torch['threads'], 'thread')}")]
    _, failed = _run(_TORCHVISION)
    if failed:
        findings.append(Finding("torchvision", WRONG, f"cannot be used: {failed}", REINSTALL))
    return [*findings, *_pair(torch["version"]), check_gpu(torch, driver_version())]


def _pair(torch: str) -> list[Finding]:
    """Return a finding when the installed torchvision was made for another torch."""
    try:
        required = metadata.requires("torchvision") or []
    except metadata.PackageNotFoundError:
        return []
    wanted = next((m[1] for r in required if (m := re.match(r"torch\s*\(?==([\d.]+)", r))), None)
    if wanted is None or torch.split("+")[0] == wanted:
        return []
    return [Finding("torchvision", WRONG, f"made for torch {wanted}, not {torch}", REINSTALL)]


def driver_version(path: str = "/proc/driver/nvidia/version") -> str | None:
    """Return the version of the NVIDIA driver of this machine, or None without one."""
    try:
        found = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", Path(path).read_text())
    except OSError:
        return None
    return found[1] if found else "of an unknown version"


def check_gpu(torch: dict[str, Any], driver: str | None) -> Finding:
    """Return whether torch uses the GPU that is there."""
    if torch["gpus"]:
        return Finding("gpu", OK, f"{', '.join(torch['gpus'])}; CUDA {torch['cuda']}")
    if driver is None:
        return Finding("gpu", OK, "none: training runs on the CPU")
    found = f"driver {driver}, but torch sees no GPU"
    if torch["cuda"] is None:
        advice = "this torch is built for CPUs only: install the CUDA build from pytorch.org"
    else:
        advice = f"this torch wants CUDA {torch['cuda']}: upgrade the driver; nvidia-smi tells more"
    return Finding("gpu", WARNING, found, advice)


def check_cpu(flags: list[str]) -> Finding:
    """Return the instruction sets that training and int8 use."""
    fast = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16",
            "asimd", "asimddp", "bf16", "i8mm")  # fmt: skip
    found = [flag for flag in fast if flag in flags]
    if not found:
        return Finding("cpu", WARNING, "neither AVX2 nor NEON", "training will be slow here")
    return Finding("cpu", OK, " ".join(found))


def check_cores() -> Finding:
    """Return how many cores may be used, and whether OMP_NUM_THREADS fits them."""
    cores = len(os.sched_getaffinity(0))
    setting = os.environ.get("OMP_NUM_THREADS")
    if setting is None:
        return Finding("cores", OK, f"{cores} usable, OMP_NUM_THREADS not set")
    found = f"{cores} usable, OMP_NUM_THREADS={setting}"
    if not setting.isdigit() or not 1 <= int(setting) <= cores:
        return Finding("cores", WARNING, found, f"set it to at most {cores}, or unset it")
    return Finding("cores", OK, found)


def _space(workspace: Workspace) -> Finding:
    folder = workspace.root if workspace.root.is_dir() else Path.cwd()
    free = shutil.disk_usage(folder).free
    found = f"{format_bytes(free)} free at {folder}"
    if free < ENOUGH_SPACE:
        dry = workspace.command("edgecil gc --dry-run")
        advice = f"free some: {dry} says what old versions take"
        return Finding("disk", WARNING, found, advice)
    return Finding("disk", OK, found)


def check_workspace(workspace: Workspace) -> list[Finding]:
    """Return the state of the workspace: its versions, a writer, an interrupted run."""
    if not workspace.root.is_dir():
        return [Finding("workspace", OK, f"none at {workspace.root}")]
    findings = [_versions(workspace)]
    if (workspace.root / "lock").exists():
        try:
            with filelock.FileLock(workspace.root / "lock", timeout=0):
                pass
        except (filelock.Timeout, OSError):
            text = "another process is writing to the workspace, or it is read-only"
            findings.append(Finding("lock", WARNING, text, "wait for it"))
    if workspace.waits:
        text = "an interrupted run waits"
        again = workspace.command("edgecil learn --resume")
        findings.append(Finding("run", WARNING, text, f"{again}, or --discard"))
    return findings


def _versions(workspace: Workspace) -> Finding:
    try:
        if not workspace.exists():
            return Finding("workspace", OK, f"{workspace.root}: no version yet")
        manifest = workspace.manifest()
        for name in manifest.files:
            workspace.read(manifest.version, name)
    except EdgecilError as error:
        back, others = map(workspace.command, ("edgecil rollback", "edgecil history"))
        advice = error.hint or f"{back}, or {others} for other versions"
        return Finding("workspace", WRONG, error.message, advice)
    classes = len(manifest.classes)
    return Finding(
        "workspace", OK, f"{workspace.root}: version {manifest.version}, {classes} classes"
    )
