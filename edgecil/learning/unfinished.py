"""The unfinished run of a workspace: what it began with, and what becomes of it after an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from edgecil.engine import state
from edgecil.engine.compute import Compute
from edgecil.errors import (
    AdoptError,
    BudgetError,
    DataError,
    Interrupted,
    OutOfMemory,
    TrainingError,
    UsageError,
    WorkspaceError,
)
from edgecil.learning.prepare import Job
from edgecil.learning.request import LearnRequest
from edgecil.workspace import Workspace


@dataclass(frozen=True)
class Unfinished:
    """A run that was interrupted, and what it goes on with."""

    request: LearnRequest
    settled: dict[str, Any]
    """What was saved beside the request: version, compute, and the identity of its images."""
    first_budget: int | None
    """Bytes that it began with."""
    rebudgeted: bool
    """Whether another budget in bytes takes the place of the first one."""

    @classmethod
    def of(cls, workspace: Workspace, memory_budget: int | None) -> Unfinished:
        """Return the interrupted run of a workspace, to go on under ``memory_budget`` bytes.

        Raises:
            WorkspaceError: there is none, or it is damaged.
        """
        request, settled = LearnRequest.load(workspace.run)
        first = request.memory_budget
        rebudgeted = memory_budget not in (None, first)
        if rebudgeted:
            request = replace(
                request, memory_budget=memory_budget, exemplars_per_class=None, exemplars_total=None
            )
        return cls(request, settled, first, rebudgeted)

    def is_committed(self, workspace: Workspace) -> bool:
        """Return whether the run was killed when all but its clean-up was done."""
        return self.settled["version"] in workspace.versions()

    @property
    def compute(self) -> Compute:
        """Where and how it computes."""
        return Compute.from_json(self.settled["compute"])

    def refuse_changes(self, job: Job, workspace: Workspace) -> None:
        """Refuse to go on with other images or another version than the run began with.

        Raises:
            WorkspaceError: something changed.
        """
        for name, value in _identity(job).items():
            if self.settled[name] == value:
                continue
            what = {"fingerprint": f"the images in {job.request.new_data}"}
            what["parent"] = "the current version"
            began = self.settled["parent"] if name == "parent" else None
            earlier = workspace.command(f"edgecil rollback {began}")
            back = f", or first {earlier}" if began else ""
            over = workspace.command("edgecil learn --discard --new-data dir/")
            raise WorkspaceError(
                f"{what.get(name, f'the {name}')} changed since the run was interrupted",
                hint=f"{over} to start over{back}",
            )

    def load_state(self, job: Job, workspace: Workspace, *, leads: bool) -> state.Saved | None:
        """Return the state that was saved last; a new budget is that of the run from now on.

        Raises:
            UsageError: exemplars are trained, as many as the first budget takes, and it is
                another one now. A larger one is taken at the end of a phase: what was trained
                may not have fit the first.
        """
        saved = state.load(workspace.run)
        if not self.rebudgeted:
            return saved
        selection, now = job.recipe.selection, job.task.budget.bytes
        trained = selection is not None and selection.candidates is not None
        larger = now is not None and self.first_budget is not None and now >= self.first_budget
        if saved is not None and trained and not (saved.over and larger):
            again = workspace.command("edgecil learn --resume")
            raise UsageError(
                f"{job.recipe.name} trains as many exemplars as its first budget takes: it is "
                "settled",
                hint=f"{again}, or --discard to start over",
            )
        if leads:
            job.request.save(workspace.run, **self.settled)  # if this is stopped, too, it stays
        return saved


def begin(job: Job, workspace: Workspace, compute: Compute) -> None:
    """Write what a run must know to be resumed."""
    number = {"version": workspace.next_version(), "compute": compute.to_json()}
    job.request.save(workspace.run, **number, **_identity(job))


def _identity(job: Job) -> dict[str, Any]:
    parent = job.parent.version if job.parent else None
    others = {f"images of {name}": value for name, value in job.other_fingerprints.items()}
    return {"fingerprint": job.images.fingerprint, "parent": parent, **others}


@contextmanager
def kept_where_it_can_go_on(
    request: LearnRequest, workspace: Workspace, *, leads: bool
) -> Iterator[None]:
    """Keep the run that fails inside where it can be resumed, and say how; else discard it.

    Raises:
        EdgecilError: the one that was raised inside, with a hint.
    """

    def discard() -> None:
        if leads:
            workspace.discard_run()

    try:
        yield
    except BudgetError as error:
        if not state.exists(workspace.run):  # nothing was trained yet
            discard()
            raise
        # Hours of training are not thrown away because their memory is too small.
        stores = workspace.command("edgecil learn --resume --memory-budget BYTES")
        hint = f"what was trained waits: {stores} stores it, --discard starts over"
        raise BudgetError(error.message, hint=hint) from None
    except Interrupted as error:
        again = workspace.command("edgecil learn --resume")
        raise Interrupted(error.message, hint=again) from None
    except OutOfMemory as error:
        # Other programs may have had the memory: the run waits.
        place = "--discard", "--workspace", str(workspace.root)
        over = request.command(*error.smaller.split(), *place)
        hint = f"{over}; or make room and {workspace.command('edgecil learn --resume')}"
        raise OutOfMemory(error.message, smaller=error.smaller, hint=hint) from error
    except (AdoptError, TrainingError, DataError):
        # It would fail in the same way again: there is nothing to resume.
        discard()
        raise
