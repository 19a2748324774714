"""Whether this device can run bundles, and if not, what to do: ``edgecil-device doctor``.

Every check is a function of what the machine says about itself and returns findings; nothing
here loads onnxruntime into this process, because a bad release stops the process that does.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import struct
import subprocess
import sys
from argparse import Namespace
from textwrap import wrap
from typing import Any, Dict, List, NamedTuple, Optional

from edgecil_runtime.cgroups import memory_cgroup
from edgecil_runtime.compatibility import (
    OLDEST,
    denied,
    limits_of,
    parse_version,
)
from edgecil_runtime.cpu import cpu_flags
from edgecil_runtime.memory import format_size

OK, WARNING, WRONG = "ok", "warning", "wrong"
WIDTH = 80
PROBE_SECONDS = 120
_ENOUGH_SPACE = 64_000_000
_INSTALL = "pip install --upgrade 'edgecil-runtime[cpu]'"
_PROBE = """
import json, sys
import onnxruntime
import numpy
print(json.dumps([onnxruntime.__version__, onnxruntime.get_available_providers()]))
"""
_SIGNALS = {
    signal.SIGILL: "an instruction that this CPU does not have (SIGILL)",
    signal.SIGSEGV: "a segmentation fault (SIGSEGV)",
    signal.SIGBUS: "a bus error (SIGBUS)",
    signal.SIGKILL: "being killed, perhaps for want of memory (SIGKILL)",
    signal.SIGABRT: "an abort (SIGABRT)",
}


class Finding(NamedTuple):
    """One thing that was looked at: ``status`` is ok, warning or wrong; ``advice`` what to do."""

    name: str
    status: str
    found: str
    advice: Optional[str] = None


def examine(folder: str = ".") -> List[Finding]:
    """Return the findings about this device; ``folder`` is where bundles will be installed."""
    return [
        check_python(sys.version_info[:3], struct.calcsize("P") * 8),
        check_c_library(),
        *check_packages(),
        *probe_onnxruntime(),
        check_cpu(platform.machine(), cpu_flags()),
        check_cgroup(),
        check_telemetry(os.environ.get("ORT_DISABLE_TELEMETRY")),
        check_space(folder),
    ]


def doctor(options: Namespace) -> Dict[str, Any]:
    """Return all findings, and whether none of them is wrong."""
    findings = examine(options.folder)
    return {
        "fit": all(finding.status != WRONG for finding in findings),
        "findings": [finding._asdict() for finding in findings],
    }


def show_doctor(result: Dict[str, Any]) -> str:
    """Return the findings, and below each what to do about it."""
    lines = []
    for finding in result["findings"]:
        head = f"{finding['status']:<9}{finding['name']:<15}"
        lines += wrap(head + finding["found"], WIDTH, subsequent_indent=" " * len(head))
        if finding["advice"]:
            lines += wrap(
                f"{' ' * len(head)}-> {finding['advice']}",
                WIDTH,
                subsequent_indent=" " * (len(head) + 3),
            )
    verdict = "this device can run bundles" if result["fit"] else "something is wrong, see above"
    return "\n".join([*lines, "", verdict])


def check_python(version: Any, bits: int) -> Finding:
    """Return whether this Python is new enough and has packages of onnxruntime at all."""
    found = f"{'.'.join(map(str, version))}, {bits} bit, {platform.machine()}"
    if bits < 64:
        advice = "install a 64-bit system: there is no onnxruntime package for 32-bit ones"
        return Finding("python", WRONG, found, advice)
    if tuple(version) < (3, 9):
        return Finding("python", WRONG, found, "install Python 3.9 or later")
    return Finding("python", OK, found)


def check_c_library() -> Finding:
    """Return whether packages built for glibc run here."""
    try:
        found = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):  # musl does not know the name
        found = ""
    if not found:
        advice = "onnxruntime's packages need glibc: use a Debian image rather than Alpine"
        return Finding("c library", WARNING, "not glibc (musl?)", advice)
    if parse_version(found) < (2, 28):
        advice = "recent onnxruntime packages need glibc 2.28: upgrade the system for a newer one"
        return Finding("c library", WARNING, found, advice)
    return Finding("c library", OK, found)


def installed_packages() -> Dict[str, str]:
    """Return the versions of the packages that matter here, by name."""
    from importlib.metadata import distributions

    names = {str(d.metadata["Name"]).lower(): d.version for d in distributions() if d.metadata}
    wanted = ("numpy", "pillow")
    return {n: v for n, v in names.items() if n in wanted or n.startswith("onnxruntime")}


def check_packages() -> List[Finding]:
    """Return whether numpy, Pillow and exactly one onnxruntime are installed."""
    found = installed_packages()
    runtimes = {n: v for n, v in found.items() if n in ("onnxruntime", "onnxruntime-gpu")}
    listed = ", ".join(f"{name} {version}" for name, version in sorted(found.items())) or "none"
    findings = [Finding("packages", OK, listed)]
    if len(runtimes) > 1:
        advice = "pip uninstall onnxruntime onnxruntime-gpu, then install one: they share files"
        findings = [Finding("packages", WRONG, listed, advice)]
    if "pillow" not in found:
        advice = "to read image files: pip install 'edgecil-runtime[images]'"
        findings.append(Finding("pillow", WARNING, "not installed", advice))
    return findings


def probe_onnxruntime() -> List[Finding]:
    """Return whether a child process survives importing numpy and onnxruntime, and which."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE],
            capture_output=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        text = f"importing it takes more than {PROBE_SECONDS} s"
        return [Finding("onnxruntime", WRONG, text, "look for a lack of memory or a slow disk")]
    if done.returncode < 0:
        return [_killed(-done.returncode)]
    if done.returncode:
        return [_not_importable(done.stderr.decode("utf-8", "replace"))]
    version, providers = json.loads(done.stdout.splitlines()[-1])
    return check_onnxruntime(version, providers, platform.machine())


def _killed(number: int) -> Finding:
    what = _SIGNALS.get(signal.Signals(number), f"signal {number}")
    version = installed_packages().get("onnxruntime", "VERSION")
    reason = denied(version, platform.machine())
    known = f"{version} {reason}: " if reason else ""
    advice = f"{known}install another release: pip install 'onnxruntime!={version}'"
    return Finding("onnxruntime", WRONG, f"importing it ends in {what}", advice)


def _not_importable(stderr: str) -> Finding:
    lines = stderr.strip().splitlines() or ["no message"]
    advice = _INSTALL
    if "compiled using NumPy 1" in stderr or "_ARRAY_API" in stderr:
        advice = "this onnxruntime was built for numpy 1: pip install 'numpy<2'"
    return Finding("onnxruntime", WRONG, f"cannot be imported: {lines[-1][:200]}", advice)


def check_onnxruntime(version: str, providers: List[str], machine: str) -> List[Finding]:
    """Return whether a release may be used here, and which models it loads."""
    limits = limits_of(version)
    if limits is None:
        return [Finding("onnxruntime", WRONG, version, f"pip install 'onnxruntime>={OLDEST}'")]
    reason = denied(version, machine)
    if reason is not None:
        advice = f"pip install 'onnxruntime!={version}'"
        return [Finding("onnxruntime", WRONG, f"{version} {reason}", advice)]
    names = ", ".join(name.replace("ExecutionProvider", "") for name in providers)
    return [
        Finding("onnxruntime", OK, f"{version} ({names})"),
        Finding("models", OK, f"up to IR {limits.ir} and opset {limits.opset}"),
    ]


def check_cpu(machine: str, flags: List[str]) -> Finding:
    """Return which instructions int8 arithmetic has here."""
    if not flags:
        return Finding("cpu", WARNING, f"{machine}: flags unknown", "measure the speed of int8")
    arm = machine in ("aarch64", "arm64")
    wanted = ("asimd", "asimddp", "i8mm") if arm else ("avx2", "avx_vnni", "avx512_vnni")
    found = [flag for flag in wanted if flag in flags]
    shown = f"{machine}: {' '.join(found) or 'none of ' + ', '.join(wanted)}"
    if arm:
        slow = "no dot product: int8 saves memory here, and little time"
        return Finding("cpu", OK, shown, None if "asimddp" in flags else slow)
    if machine == "x86_64" and not {"avx_vnni", "avx512_vnni"} & set(flags):
        advice = "int8 sums may saturate without VNNI: export with --target x86-old-atom"
        return Finding("cpu", WARNING, shown, advice)
    return Finding("cpu", OK, shown)


def check_cgroup() -> Finding:
    """Return the memory limit that the kernel keeps, if it can."""
    group = memory_cgroup()
    if group is None:
        advice = (
            "limits of Docker and systemd are not kept here: on Raspberry Pi OS add "
            "cgroup_enable=memory to cmdline.txt and reboot, or rely on --memory-limit"
        )
        return Finding("memory cgroup", WARNING, "the kernel has none", advice)
    limit = "no limit" if group.limit is None else f"limit {format_size(group.limit)}"
    return Finding("memory cgroup", OK, f"v{group.version}, {limit}")


def check_telemetry(setting: Optional[str]) -> Finding:
    """Return whether onnxruntime will send data about its use."""
    if setting == "1":
        return Finding("telemetry", OK, "off")
    advice = "unset ORT_DISABLE_TELEMETRY or set it to 1: onnxruntime 1.29 and later report use"
    return Finding("telemetry", WARNING, f"ORT_DISABLE_TELEMETRY={setting}", advice)


def check_space(folder: str) -> Finding:
    """Return the space for bundles; an update needs room for a second one."""
    try:
        status = os.statvfs(folder)
    except OSError as error:
        return Finding("disk", WRONG, f"{folder}: {error.strerror}", "give a folder that exists")
    free = status.f_bavail * status.f_frsize
    found = f"{format_size(free)} free at {folder}"
    if free < _ENOUGH_SPACE:
        advice = "an update keeps the old bundle until the new one works: free some space"
        return Finding("disk", WARNING, found, advice)
    return Finding("disk", OK, found)
