"""Errors of the device runtime, by what the caller can do about them.

RuntimeFault
├── BundleError          the bundle is damaged, hostile or from a newer schema   (exit 4)
├── MemoryLimitError     the model does not fit the memory limit                 (exit 3)
├── ImageError           one input image cannot be read or is too large          (exit 1)
├── InputError           a path, array or option given by the caller is wrong    (exit 1)
├── UpdateError          an install, rollback or commit that cannot be done now    (exit 1)
├── WorkerError          the process that a model was isolated in ended           (exit 1)
│   └── DeadlineError    ... because it did not answer in time                    (exit 1)
└── RuntimeMissing       onnxruntime or another package is not installed         (exit 1)
"""

from __future__ import annotations

from typing import Optional


def printable(text: str) -> str:
    """Return ``text`` with every character escaped that does not print, such as line ends."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class RuntimeFault(Exception):
    """Base of every error that the runtime raises on purpose.

    ``code`` names the error in JSON answers, ``exit_code`` is the process status that the
    command line returns, ``hint`` is the next thing to try (one line) or None.
    """

    code = "runtime_fault"
    exit_code = 1

    def __init__(self, message: str, *, hint: Optional[str] = None) -> None:
        # Names from files and words of onnxruntime end up in terminals and logs: one line, and
        # no control characters that a terminal would obey.
        self.message = printable(message)
        self.hint = None if hint is None else printable(hint)
        super().__init__(self.message)


class BundleError(RuntimeFault):
    """The bundle is damaged, incomplete, hostile or written by a newer schema."""

    code = "bad_bundle"
    exit_code = 4


class MemoryLimitError(RuntimeFault):
    """The model does not fit the memory limit; nothing was loaded, or it was unloaded."""

    code = "memory_limit"
    exit_code = 3


class ImageError(RuntimeFault):
    """One image cannot be read, is truncated, or has more pixels than allowed."""

    code = "bad_image"


class InputError(RuntimeFault):
    """A path, array or option given by the caller is wrong."""

    code = "bad_input"


class RuntimeMissing(RuntimeFault):
    """A package that this needs, such as onnxruntime, is missing or cannot be imported."""

    code = "runtime_missing"


class UpdateError(RuntimeFault):
    """An install, rollback or commit cannot be done now; what is installed is as it was."""

    code = "update_refused"


class WorkerError(RuntimeFault):
    """The process of an isolated model ended; the next call starts another one."""

    code = "worker_ended"


class DeadlineError(WorkerError):
    """An isolated model did not answer in time; its process was ended."""

    code = "deadline"
