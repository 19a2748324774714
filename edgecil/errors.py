"""Errors of the workstation library, by what the caller can do about them.

EdgecilError
├── UsageError            an unknown method, option or value                   (exit 2)
├── DataError             the image folder cannot be learned from              (exit 1)
├── WorkspaceError        the workspace is missing, busy, damaged or newer      (exit 1)
│   └── UnfinishedRun     an interrupted run waits to be resumed or discarded  (exit 1)
├── AdoptError            a method cannot continue from what is kept            (exit 1)
├── TrainingError         training failed; the last good version is untouched  (exit 1)
├── OutOfMemory           the device had no room for a step; the run can go on   (exit 1)
├── BudgetError           the kept memory cannot fit the budget                (exit 3)
├── VerificationError     an exported graph does not agree with the model      (exit 4)
├── DependencyMissing     a package that this command needs is not there       (exit 1)
└── Interrupted           stopped on request; the run can be resumed           (exit 130)
"""

from __future__ import annotations

import sys


class EdgecilError(Exception):
    """Base of every error that edgecil raises on purpose.

    ``code`` names the error in JSON answers, ``exit_code`` is the process status of the
    command line, ``hint`` is the next command or change to try, or None.
    """

    code = "error"
    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(EdgecilError):
    """An unknown method or option, or a value out of its range."""

    code = "usage"
    exit_code = 2


class DataError(EdgecilError):
    """The image folder cannot be learned from."""

    code = "bad_data"


class WorkspaceError(EdgecilError):
    """The workspace is missing, locked by another writer, damaged or written by a newer edgecil."""

    code = "bad_workspace"


class UnfinishedRun(WorkspaceError):
    """An interrupted run waits to be resumed or discarded."""

    code = "unfinished_run"


class AdoptError(EdgecilError):
    """The method cannot continue from what the current version keeps."""

    code = "cannot_adopt"


class TrainingError(EdgecilError):
    """Training failed; the last good version is untouched."""

    code = "training_failed"


class OutOfMemory(EdgecilError):
    """The device had no room for a step of training; the run so far is saved.

    ``smaller`` is what to add to the command so that this phase needs less.
    """

    code = "out_of_memory"

    def __init__(self, message: str, *, smaller: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint or f"start over with {smaller}")
        self.smaller = smaller


def out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that there was no memory left, on whatever device."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")  # where it is not imported it raised nothing
    if torch is None or not isinstance(error, RuntimeError):
        return False
    # What the allocator of the CPU raises has no class of its own.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class BudgetError(EdgecilError):
    """The kept memory cannot fit the budget."""

    code = "over_budget"
    exit_code = 3


class VerificationError(EdgecilError):
    """A gate of the export failed: the written graph is not the model."""

    code = "verification_failed"
    exit_code = 4


class DependencyMissing(EdgecilError):
    """A package that this command needs is missing or does not match the others."""

    code = "dependency_missing"


class Interrupted(EdgecilError):
    """Stopped on request (Ctrl-C, time limit); the run was saved and can be resumed."""

    code = "interrupted"
    exit_code = 130
