"""The one place that knows onnxruntime: importing it, options, and what its errors mean."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, List, Tuple

from edgecil_runtime.compatibility import load_advice, parse_version
from edgecil_runtime.errors import BundleError, RuntimeFault, RuntimeMissing
from edgecil_runtime.manifest import Manifest
from edgecil_runtime.memory import Plan

_INSTALL = "pip install 'edgecil-runtime[cpu]'"
# How onnxruntime says that it got no memory: from new, from its arena, from the kernel.
_NO_MEMORY = re.compile(
    r"bad_alloc|bad allocation|Available memory of|Failed to allocate|out of memory", re.IGNORECASE
)
_shared_arena = False
_sessions = 0


def load_onnxruntime(minimum: str = "0") -> Any:
    """Return the onnxruntime module.

    Raises:
        RuntimeMissing: not installed, not loadable, or older than ``minimum``.
    """
    try:
        import onnxruntime
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime":
            raise RuntimeMissing("onnxruntime is not installed", hint=_INSTALL) from None
        reason = " ".join(str(error).split())
        raise RuntimeMissing(f"onnxruntime cannot be loaded: {reason}", hint=_INSTALL) from None
    if parse_version(onnxruntime.__version__) < parse_version(minimum):
        raise RuntimeMissing(
            f"the model needs onnxruntime {minimum} or later, this is {onnxruntime.__version__}",
            hint=f"pip install 'onnxruntime>={minimum}'",
        )
    return onnxruntime


def providers() -> List[str]:
    """Return the execution providers of every session, in order of preference."""
    return ["CPUExecutionProvider"]


def share_arena() -> None:
    """Let later sessions use one arena that grows by exactly what is asked.

    onnxruntime's own arenas grow by powers of two, which counts in RLIMIT_DATA though it is
    never touched. The setting is process-wide and for good: only the command line uses it.
    """
    global _shared_arena
    if _shared_arena:
        return
    runtime = load_onnxruntime()
    try:
        info = runtime.OrtMemoryInfo(
            "Cpu", runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT
        )
        config = runtime.OrtArenaCfg({"arena_extend_strategy": 1})  # kSameAsRequested
        runtime.create_and_register_allocator(info, config)
    except Exception:  # older releases refuse a second registration; their own arena works too
        return
    _shared_arena = True


def cores() -> int:
    """Return the number of CPUs that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def create_session(path: Path, manifest: Manifest, plan: Plan, threads: int) -> Any:
    """Return a session on the model file, checked against its manifest.

    Raises:
        MemoryError: onnxruntime could not allocate.
        RuntimeMissing: no onnxruntime, or one that is too old.
        BundleError: the model cannot be loaded, or is not what the manifest says.
    """
    global _sessions
    runtime = load_onnxruntime(manifest.requires.onnxruntime)
    options = runtime.SessionOptions()
    # Explicit, or it pins threads to cores and complains inside containers.
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors reach the caller as exceptions, not the terminal
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, plan.level)
    # A pattern is kept per input shape, so it only pays where the shape never changes.
    options.enable_mem_pattern = manifest.fixed_input
    if not plan.packs:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if threads >= cores():
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if _shared_arena:
        options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        session = runtime.InferenceSession(os.fspath(path), options, providers=providers())
    except RuntimeFault:  # of the watch for thrashing, which looks in at any time
        raise
    except Exception as error:
        raise_if_memory(error)
        raise BundleError(
            f"{path}: onnxruntime {runtime.__version__} cannot load the model "
            f"(opset {manifest.requires.opset}, IR {manifest.requires.ir}): {one_line(error)}",
            hint=load_advice(runtime.__version__, manifest.requires.ir, manifest.requires.opset),
        ) from None
    _sessions += 1
    _check_ports(session, path, manifest)
    return session


def is_first_session() -> bool:
    """Return whether no session was made in this process yet; the first one costs more."""
    return _sessions == 0


def raise_if_memory(error: BaseException) -> None:
    """Raise MemoryError when ``error`` says that an allocation failed.

    Raises:
        MemoryError: with onnxruntime's own words.
    """
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        raise MemoryError(one_line(error)) from None


def one_line(error: BaseException) -> str:
    """Return the message of ``error`` in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _check_ports(session: Any, path: Path, manifest: Manifest) -> None:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    side = manifest.preprocess.size
    wanted = (1, side, side, 3) if manifest.fixed_input else (1, None, None, 3)
    found = [(port.name, port.type, port.shape) for port in inputs]
    good = len(inputs) == 1 and inputs[0].name == manifest.input_name
    good = good and inputs[0].type == "tensor(uint8)" and _matches(inputs[0].shape, wanted)
    if not good:
        raise BundleError(
            f"{path}: expected one input {manifest.input_name} uint8 {wanted}, got {found}"
        )
    named = [port for port in outputs if port.name == manifest.output_name]
    scores = (1, len(manifest.labels))
    if not named or named[0].type != "tensor(float)" or not _matches(named[0].shape, scores):
        ports = [(port.name, port.type, port.shape) for port in outputs]
        raise BundleError(
            f"{path}: expected output {manifest.output_name} float32 {scores}, got {ports}"
        )


def _matches(shape: Any, wanted: Tuple[Any, ...]) -> bool:
    # A dimension that is text or None in the graph may take any size.
    return len(shape) == len(wanted) and all(
        not isinstance(have, int) or wanted[axis] in (None, have) for axis, have in enumerate(shape)
    )
