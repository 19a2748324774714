"""The base increment, trained once for all runs that begin alike.

Without old classes, distillation and penalties have nothing to act on: many methods begin with
one and the same training, and differ in what they keep of it. Its run state, as it is when the
first phase ends, is put aside under a key of everything that it depends on; a run with the same
key resumes from there. Resuming is exact to the bit, and so are the results; seconds and images
are those of the training that was done.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from edgecil import registry
from edgecil.engine import state
from edgecil.engine.events import Event, Listener, PhaseStarted, Stage
from edgecil.learning.request import LearnRequest
from edgecil.workspace import REQUEST, Workspace


def key(request: LearnRequest) -> str | None:
    """Return a name for the first phase of a base increment, or None when it is like no other."""
    assert request.method is not None
    preset = registry.preset_of(request.method, request.preset)
    options = registry.with_preset(preset, request.options)
    recipe = registry.build(request.method, options)
    if recipe.base is None:
        return None
    # What is left out acts when the phase is over: on what is kept, and how.
    free = ("method", "options", "preset", "codec", "memory_budget", "exemplars_per_class",
            "exemplars_total", "exemplar_size", "new_data")  # fmt: skip
    settings = {k: v for k, v in asdict(request).items() if k not in free}
    settings["threads"] = torch.get_num_threads()
    settings["base"] = recipe.base, recipe.head_kind, recipe.head_width
    settings["recipe"] = asdict(recipe.training)
    settings["preset"] = preset and asdict(replace(preset, options={}))
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Bases:
    """Run states at the end of first phases, in a folder that runs side by side may share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, request: LearnRequest, workspace: Workspace) -> bool:
        """Make ``request`` an interrupted run of an empty workspace, where its base is there.

        Returns whether it did: ``learn(None, workspace, resume=True)`` then continues.
        """
        name = key(request)
        if name is None or not (self.folder / name).is_dir():
            return False
        _, settled = LearnRequest.load(self.folder / name)
        workspace.run.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.folder / name / state.FILE, workspace.run / state.FILE)
        request.save(workspace.run, **settled)
        return True

    def watching(
        self, request: LearnRequest, workspace: Workspace, listener: Listener
    ) -> Callable[[Event], None]:
        """Return a listener that puts the run state aside when the first phase has ended."""
        name = key(request)
        if name is None or (self.folder / name).exists():
            return listener
        in_first = False

        def watch(event: Event) -> None:
            nonlocal in_first
            if in_first and isinstance(event, PhaseStarted | Stage):
                self._keep(name, workspace.run)
            if isinstance(event, PhaseStarted):
                in_first = event.number == 0
            elif isinstance(event, Stage):
                in_first = False
            listener(event)

        return watch

    def _keep(self, name: str, run: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=self.folder, prefix=".new-"))
        for file in (REQUEST, state.FILE):
            shutil.copyfile(run / file, made / file)
        try:
            os.rename(made, self.folder / name)
        except OSError:  # another run was quicker
            shutil.rmtree(made)
