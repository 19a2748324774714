"""Two models in one process, within one limit: python two_models.py FIRST SECOND IMAGE...

The first model looks at every image, the second only at those that the first is unsure of or
gives to a class that was asked for: a small network in front of a large one saves most of the
time. What onnxruntime itself needs is shared, so two models take less than two processes would.
"""

from __future__ import annotations

import argparse
import sys

from edgecil_runtime import Classifier, RuntimeFault
from edgecil_runtime.memory import format_size, parse_size


def load(first: str, second: str, limit: int) -> tuple[Classifier, Classifier]:
    """Return both classifiers; what the first does not need is left to the second."""
    one = Classifier(first, memory_limit=limit)
    return one, Classifier(second, memory_limit=limit - one.need.total)


def main() -> int:
    """Print one line per image and return the exit code."""
    parser = argparse.ArgumentParser(description="Two models, one after the other.")
    parser.add_argument("first", help="bundle that sees every image")
    parser.add_argument("second", help="bundle that sees what the first leaves to it")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--limit", type=parse_size, default="128MB", help="for both (128MB)")
    parser.add_argument("--below", type=float, default=0.0, help="scores that are unsure (0)")
    parser.add_argument("--ask", default="", help="class that the second model looks at again")
    options = parser.parse_args()
    try:
        one, two = load(options.first, options.second, options.limit)
        for path in options.images:
            image = one.read(path)  # decoded once for both
            found, by = one.predict(image), one
            if found.score < options.below or found.label == options.ask:
                found, by = two.predict(image), two
            print(f"{path}\t{found.label}\t{found.score:.3f}\t{by.manifest.directory_name}")
    except RuntimeFault as fault:
        print(f"error: {fault.message}", file=sys.stderr)
        return fault.exit_code
    need = one.need.total + two.need.total
    print(f"both need {format_size(need)} of {format_size(options.limit)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
