"""Change to a new version without missing a request: python hot_swap.py ROOT IMAGE

ROOT is where "edgecil-device install" puts versions. While requests are answered, a second
thread looks for a new version, loads it and lets it pass its self-test; only then the next
request gets it. A request that is under way keeps the model it began with, and a version that
fails is reported and not used. For a moment both models are in memory: leave room for two.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections import Counter
from typing import Counter as Counts

from edgecil_runtime import Classifier, RuntimeFault
from edgecil_runtime.slots import Slots

POLL_SECONDS = 0.5


class Current:
    """The classifier of the installed version; ask for it once per request."""

    def __init__(self, root: str) -> None:
        self.slots = Slots(root)
        self.installed = self.slots.current_path()
        self.classifier = self.slots.open(memory_limit="96MB")
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self) -> None:
        """Look for another version until the program ends."""
        while True:
            time.sleep(POLL_SECONDS)
            try:
                if self.slots.current_path() != self.installed:
                    self.installed = self.slots.current_path()
                    self.swap(self.slots.open(memory_limit="96MB"))
            except RuntimeFault as fault:
                print(f"not used: {fault.message}", file=sys.stderr, flush=True)

    def swap(self, fresh: Classifier) -> None:
        """Let the next request have ``fresh``, if it passes its self-test."""
        fresh.selftest()
        self.classifier = fresh  # one assignment: a request sees either the old or the new
        print(f"now {fresh.manifest.directory_name}", flush=True)


def main() -> int:
    """Answer requests until Ctrl-C or ``--seconds``, then say who answered how many."""
    parser = argparse.ArgumentParser(description="Change to new versions while predicting.")
    parser.add_argument("root")
    parser.add_argument("image", help="stands for what requests bring")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    options = parser.parse_args()
    answered: Counts[str] = Counter()
    try:
        current = Current(options.root)
        print(f"now {current.classifier.manifest.directory_name}", flush=True)
        end = time.monotonic() + options.seconds
        while time.monotonic() < end:
            classifier = current.classifier
            classifier.predict(options.image)
            answered[classifier.manifest.directory_name] += 1
    except KeyboardInterrupt:
        pass
    except RuntimeFault as fault:
        print(f"error: {fault.message}", file=sys.stderr)
        return fault.exit_code
    for name, count in answered.items():
        print(f"{name} answered {count}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
