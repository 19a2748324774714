"""What a process says of its own memory."""

from __future__ import annotations

import json
import subprocess
import sys

CHILD = """
import json
from edgecil.memory.process import peak_memory
print(json.dumps(peak_memory()))
"""


def peak_of_a_child() -> int:
    """Return the peak that a small process reports."""
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, check=True)
    found: int = json.loads(done.stdout)["peak_rss_bytes"]
    return found


def test_the_peak_is_that_of_the_process_and_not_of_its_parent() -> None:
    small = peak_of_a_child()
    ballast = bytearray(b"1") * (2 * small)
    assert peak_of_a_child() < 1.2 * small
    assert len(ballast) == 2 * small
