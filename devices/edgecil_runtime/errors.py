"""Errors of the device runtime, by what the caller can do about them.

RuntimeFault
├── BundleError          the bundle is damaged, hostile or from a newer schema   (exit 4)
├── MemoryLimitError     the model does not fit the memory limit                 (exit 3)
├── ImageError           one input image cannot be read or is too large          (exit 1)
├── InputError           a path, array or option given by the caller is wrong    (exit 1)
└── RuntimeMissing       no onnxruntime is installed                             (exit 1)
"""

from __future__ import annotations

from typing import Optional


class RuntimeFault(Exception):
    """Base of every error that the runtime raises on purpose.

    ``code`` names the error in JSON answers, ``exit_code`` is the process status that the
    command line returns, ``hint`` is the next thing to try (one line) or None.
    """

    code = "runtime_fault"
    exit_code = 1

    def __init__(self, message: str, *, hint: Optional[str] = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


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
    """No onnxruntime distribution is installed, or it cannot be imported."""

    code = "runtime_missing"
