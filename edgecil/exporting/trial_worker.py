"""The child process that loads a bundle as a device does, and says what it took.

It reads {"bundle": FOLDER} from stdin and writes {"peak_rss_bytes", "anon_bytes", "modules"}
or {"error": TEXT} to stdout.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def trial(folder: str) -> dict[str, Any]:
    """Return the memory of this process after the bundle passed its own test."""
    from edgecil_runtime import Classifier, RuntimeFault
    from edgecil_runtime.memory import usage

    try:
        Classifier(folder).selftest()
    except RuntimeFault as error:
        return {"error": error.message}
    used = usage()
    return {
        "peak_rss_bytes": used.peak if used else None,
        "anon_bytes": used.anonymous if used else None,
        "modules": sorted(name for name in sys.modules if "." not in name),
    }


if __name__ == "__main__":
    json.dump(trial(json.load(sys.stdin)["bundle"]), sys.stdout)
