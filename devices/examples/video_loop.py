"""Name what a camera sees, from the newest frame: python video_loop.py BUNDLE SOURCE

SOURCE is a camera number or video file (pip install opencv-python-headless), a folder of images,
or "synthetic". When the model is slower, frames are dropped: a queue would fill the memory.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import threading
import time
from pathlib import Path
from typing import Any, Iterator, Optional

import numpy as np

from edgecil_runtime import Classifier, RuntimeFault
from edgecil_runtime.images import is_image_name, read_image


class Latest:
    """Holds one frame: a newer one replaces a frame that nobody has taken yet."""

    def __init__(self) -> None:
        self.dropped, self.problem = 0, ""
        self._frame, self._ended = None, False
        self._changed = threading.Condition()

    def put(self, frame: Any, last: bool = False) -> None:
        """Offer a frame; the last may be None."""
        with self._changed:
            self.dropped += self._frame is not None and not last
            self._frame, self._ended = self._frame if last else frame, last
            self._changed.notify()

    def take(self) -> Optional[Any]:
        """Wait for a frame that was not taken before; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._frame is not None)
            frame, self._frame = self._frame, None
        return frame


def frames(source: str) -> Iterator[Any]:
    """Yield RGB frames (H, W, 3) of uint8."""
    while source == "synthetic":
        yield np.random.randint(0, 256, (480, 640, 3), dtype=np.uint8)
    if Path(source).is_dir():
        yield from (read_image(p) for p in sorted(Path(source).rglob("*")) if is_image_name(p.name))
        return
    import cv2

    video = cv2.VideoCapture(int(source) if source.isdigit() else source)
    if not video.isOpened():
        raise OSError(f"{source}: cannot be opened")
    while (frame := video.read()[1]) is not None:
        yield frame[:, :, ::-1]  # OpenCV has blue first


def feed(latest: Latest, options: argparse.Namespace) -> None:
    """Put frames at a constant rate, as a camera does."""
    try:
        for frame in itertools.islice(frames(options.source), options.frames):
            latest.put(frame)
            time.sleep(1 / options.rate)
    except (ImportError, OSError, RuntimeFault) as error:
        latest.problem = str(error)
    finally:
        latest.put(None, last=True)


def main() -> None:
    """Predict until the source ends or Ctrl-C."""
    parser = argparse.ArgumentParser(description="Name what a camera sees.")
    parser.add_argument("bundle")
    parser.add_argument("source", help="camera number, video file, folder of images, synthetic")
    parser.add_argument("--rate", type=float, default=30, help="frames a second (30)")
    parser.add_argument("--frames", type=int, help="stop after so many")
    options, latest, done, shown = parser.parse_args(), Latest(), 0, ""
    try:
        classifier = Classifier(options.bundle, memory_limit="128MB")
        threading.Thread(target=feed, args=(latest, options), daemon=True).start()
        while (frame := latest.take()) is not None:
            found, done = classifier.predict(frame), done + 1
            if found.label != shown:  # not the same thing 30 times a second
                print(f"{found.label}\t{found.score:.3f}", flush=True)
            shown = found.label
    except RuntimeFault as fault:
        sys.exit(f"error: {fault.message}")
    except KeyboardInterrupt:
        pass
    print(f"{done} frames predicted, {latest.dropped} dropped", file=sys.stderr)
    sys.exit(f"error: {latest.problem}" if latest.problem else 0)


if __name__ == "__main__":
    main()
