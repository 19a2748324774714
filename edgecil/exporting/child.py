"""Child processes that import onnxruntime but never torch, so that their memory is their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import edgecil
import edgecil_runtime
from edgecil.errors import EdgecilError


def run_child(module: str, job: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON answer of ``python -m module`` to a JSON job.

    Raises:
        EdgecilError: the process failed; the message has its last line.
    """
    roots = [str(Path(str(m.__file__)).parent.parent) for m in (edgecil, edgecil_runtime)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*roots, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", module],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise EdgecilError(f"the process {module} failed: {lines[-1]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
