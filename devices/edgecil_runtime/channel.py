"""Messages between two processes: a JSON object and raw bytes, over a pair of pipes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import struct
import time
from typing import Any, Dict, Optional, Tuple, Union

_HEAD = struct.Struct("<II")  # bytes of the JSON object, bytes that follow it
_F_SETPIPE_SZ = 1031  # linux/fcntl.h; in Python's own module since 3.10
_PIPE_BYTES = _CHUNK = 1 << 20

Payload = Union[bytes, memoryview]


class Closed(Exception):
    """The other end is closed: its process has ended."""


class TimedOut(Exception):
    """The other end did not answer in time."""


class Channel:
    """One end: reads from one file descriptor and writes to another, both not its own.

    A deadline is a time of ``time.monotonic()``, None waits as long as it takes.
    """

    def __init__(self, reading: int, writing: int) -> None:
        self._reading = reading
        self._writing = writing
        for descriptor in (reading, writing):
            os.set_blocking(descriptor, False)
        with contextlib.suppress(OSError):  # more than the system allows: slower, that is all
            fcntl.fcntl(writing, _F_SETPIPE_SZ, _PIPE_BYTES)

    def send(
        self, message: Dict[str, Any], payload: Payload = b"", deadline: Optional[float] = None
    ) -> None:
        """Write one message.

        Raises:
            Closed: nobody reads.
            TimedOut: it was not read in time.
        """
        text = json.dumps(message).encode()
        self._write(_HEAD.pack(len(text), len(payload)) + text, deadline)
        self._write(payload, deadline)

    def receive(self, deadline: Optional[float] = None) -> Tuple[Dict[str, Any], bytearray]:
        """Return the next message.

        Raises:
            Closed: there will be none.
            TimedOut: it did not come in time.
        """
        text_bytes, payload_bytes = _HEAD.unpack(self._read(_HEAD.size, deadline))
        message: Dict[str, Any] = json.loads(self._read(text_bytes, deadline))
        return message, self._read(payload_bytes, deadline)

    def _write(self, data: Payload, deadline: Optional[float]) -> None:
        rest = memoryview(data)
        while rest:
            _wait(self._writing, select.POLLOUT, deadline)
            try:
                rest = rest[os.write(self._writing, rest[:_CHUNK]) :]
            except BlockingIOError:
                continue
            except OSError:
                raise Closed from None

    def _read(self, size: int, deadline: Optional[float]) -> bytearray:
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            _wait(self._reading, select.POLLIN, deadline)
            try:
                count = os.readv(self._reading, [rest])
            except BlockingIOError:
                continue
            except OSError:
                raise Closed from None
            if count == 0:
                raise Closed
            rest = rest[count:]
        return data


def _wait(descriptor: int, events: int, deadline: Optional[float]) -> None:
    poll = select.poll()
    poll.register(descriptor, events)
    left = None if deadline is None else max(0.0, deadline - time.monotonic())
    if not poll.poll(None if left is None else 1e3 * left):
        raise TimedOut
