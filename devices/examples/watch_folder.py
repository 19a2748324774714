"""Name every image that arrives in a folder: python watch_folder.py BUNDLE FOLDER

One line per image on stdout: file name, class, score. Write images under another name (such as
photo.part) and rename them when complete; only names that end like an image are looked at.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Dict

from edgecil_runtime import Classifier, ImageError, MemoryLimitError, RuntimeFault
from edgecil_runtime.images import is_image_name

POLL_SECONDS = 0.5


def scan(classifier: Classifier, folder: Path, seen: Dict[str, int]) -> None:
    """Predict the images that are new or changed since the last scan."""
    present = {}
    for path in sorted(folder.iterdir()):
        if is_image_name(path.name) and path.is_file():
            present[path.name] = path.stat().st_mtime_ns
    for name, changed in present.items():
        if seen.get(name) == changed:
            continue
        try:
            found = classifier.predict(folder / name)
        except (ImageError, MemoryLimitError) as error:  # one bad file must not stop the watch
            print(f"skipped: {error}", file=sys.stderr, flush=True)
        else:
            print(f"{name}\t{found.label}\t{found.score:.4f}", flush=True)
    seen.clear()  # files that are gone are forgotten, so memory does not grow
    seen.update(present)


def main() -> int:
    """Watch until Ctrl-C and return the exit code."""
    parser = argparse.ArgumentParser(description="Name every image that arrives in a folder.")
    parser.add_argument("bundle")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--memory-limit", default="128MB", help="what the model may add (128MB)")
    parser.add_argument("--once", action="store_true", help="look once and stop")
    options = parser.parse_args()
    seen: Dict[str, int] = {}
    try:
        classifier = Classifier(options.bundle, memory_limit=options.memory_limit)
        classifier.selftest()
        while True:
            scan(classifier, options.folder, seen)
            if options.once:
                return 0
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        return 0
    except RuntimeFault as fault:
        print(f"error: {fault.message}\nhint: {fault.hint}", file=sys.stderr)
        return fault.exit_code


if __name__ == "__main__":
    sys.exit(main())
