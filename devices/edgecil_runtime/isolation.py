"""A model in a process of its own, under a hard limit: what happens there stays there.

The worker is started afresh (no fork of a process that may have threads), talks over two pipes,
and ends when they are closed, however its parent ended.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Dict, NoReturn, Optional, Tuple

import numpy as np

from edgecil_runtime import errors, memory
from edgecil_runtime.bundle import Bundle
from edgecil_runtime.channel import Channel, Closed, Payload, TimedOut
from edgecil_runtime.errors import (
    DeadlineError,
    InputError,
    MemoryLimitError,
    RuntimeFault,
    WorkerError,
)
from edgecil_runtime.images import PathLike, read_image
from edgecil_runtime.spawn import child_command, child_environment, last_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOADING_SECONDS = 60.0
"""Time to load a model; a shorter deadline is for predictions only."""
_ENDING_SECONDS = 5.0
_FAULTS = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, RuntimeFault)
}


class Worker:
    """The same as :class:`~.model.Model`, computed in another process.

    ``limit`` in bytes is the peak of that process. A call that takes longer than ``deadline``
    seconds ends it. After an end of any kind the next call starts it again.

    Raises:
        RuntimeFault: see ``Classifier``.
    """

    def __init__(
        self,
        bundle: Bundle,
        limit: Optional[int],
        threads: int,
        deadline: Optional[float],
        baked: Optional[PathLike],
    ) -> None:
        self._arguments = [str(bundle.path), str(limit or 0), str(threads)]
        self._arguments += [] if baked is None else [os.path.abspath(baked)]
        self._name = bundle.manifest.directory_name
        self._limit = limit
        self._max_pixels = bundle.manifest.max_pixels
        self._deadline = deadline
        self._lock = threading.Lock()
        self._closed = False
        self._process: Optional[subprocess.Popen[bytes]] = None
        with self._lock:
            self._start()

    def file_scores(self, path: PathLike) -> Tuple[NDArray[np.float32], float]:
        """Return the scores ``(C,)`` of an image file, and the seconds without reading it.

        Raises:
            RuntimeFault: see ``Classifier.predict``.
        """
        answer, scores = self._ask({"file": os.path.abspath(path)})
        return np.frombuffer(scores, np.float32), float(answer["seconds"])

    def read(self, path: PathLike) -> NDArray[np.uint8]:
        """Return an image file as uint8 RGB ``(H, W, 3)``, decoded in the process of the app.

        Raises:
            ImageError: the file cannot be read, or the image has too many pixels.
        """
        return read_image(path, self._max_pixels)

    def scores(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the scores ``(C,)`` of uint8 RGB ``(H, W, 3)``, in the order of the labels.

        Raises:
            RuntimeFault: see ``Classifier.predict``.
        """
        self._check_room(pixels.nbytes)
        data = np.ascontiguousarray(pixels).reshape(-1).data
        _, scores = self._ask({"shape": pixels.shape}, data)
        return np.frombuffer(scores, np.float32)

    def _check_room(self, size: int) -> None:
        if self._limit is None:
            return
        room = self._limit - self.need.total + self.need.image
        if size > room:
            raise MemoryLimitError(
                f"{self._name}: an image of {memory.format_size(size)}, the memory limit leaves "
                f"{memory.format_size(room)}",
                hint=f"raise the limit to {memory.round_up(self._limit + size - room)}",
            )

    def usage(self) -> Optional[memory.Usage]:
        """Return the memory of the worker; None where the system does not tell.

        Raises:
            WorkerError: it ended.
        """
        answer, _ = self._ask({})
        return None if answer["usage"] is None else memory.Usage(*answer["usage"])

    def close(self) -> None:
        """End the worker; it cannot be used again."""
        with self._lock:
            self._closed = True
            self._end()

    @property
    def process_id(self) -> Optional[int]:
        """The number of the worker's process; None when it is not running."""
        return None if self._process is None else self._process.pid

    def _ask(self, message: Dict[str, Any], payload: Payload = b"") -> Tuple[Dict[str, Any], Any]:
        with self._lock:
            if self._closed:
                raise InputError(f"{self._name}: the classifier is closed")
            if self._process is None:
                self._start()
            return self._exchange(message, payload, self._deadline)

    def _start(self) -> None:
        process = subprocess.Popen(
            [*child_command("edgecil_runtime.isolation_worker"), *self._arguments],
            env=child_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdin is not None and process.stdout is not None
        self._process = process
        self._channel = Channel(process.stdout.fileno(), process.stdin.fileno())
        self._finalizer = weakref.finalize(self, _end, process, os.getpid())
        answer, _ = self._exchange(None, b"", LOADING_SECONDS)
        self.plan = memory.Plan(*answer["plan"])
        self.need = memory.Need(*answer["need"])
        self.not_baked: Optional[str] = answer["not_baked"]

    def _exchange(
        self, message: Optional[Dict[str, Any]], payload: Payload, seconds: Optional[float]
    ) -> Tuple[Dict[str, Any], bytearray]:
        """Return the answer to a message; without one, the first word of a new worker."""
        deadline = None if seconds is None else time.monotonic() + seconds
        try:
            if message is not None:
                self._channel.send(message, payload, deadline)
            answer, scores = self._channel.receive(deadline)
        except TimedOut:
            self._end()
            raise DeadlineError(
                f"{self._name}: no answer in {seconds:g} s; its process was ended",
                hint="the next call starts another one; raise the deadline if this happens again",
            ) from None
        except Closed:
            self._raise_ended()
        except BaseException:  # such as Ctrl-C: an answer would now belong to another question
            self._end()
            raise
        if "error" not in answer:
            return answer, scores
        if answer["fatal"]:
            self._end()
        fault = answer["error"]
        raise _FAULTS.get(fault["code"], WorkerError)(fault["message"], hint=fault["hint"])

    def _raise_ended(self) -> NoReturn:
        status = self._end()
        raise WorkerError(
            f"{self._name}: {last_words(status)}",
            hint="the next call starts another one"
            + (", which was perhaps killed for its memory: give memory_limit" * (status == -9)),
        )

    def _end(self) -> int:
        """Return the exit status of the worker after making sure that it has ended."""
        process, self._process = self._process, None
        if process is None:
            return 0
        self._finalizer.detach()
        return _end(process, os.getpid())


def _end(process: subprocess.Popen[bytes], owner: int) -> int:
    if os.getpid() != owner:  # a fork of the app: the worker is not ours
        return 0
    assert process.stdin is not None and process.stdout is not None
    if process.poll() is None:
        try:
            process.wait(0.05)  # one that was killed needs a moment to be gone
        except subprocess.TimeoutExpired:
            process.kill()
    status = process.wait(_ENDING_SECONDS)
    process.stdin.close()
    process.stdout.close()
    return status
