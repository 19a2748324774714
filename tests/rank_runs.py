"""What several ranks do in the tests of distributed training: run by torch's launcher.

``python -m torch.distributed.run --nproc-per-node 2 rank_runs.py FOLDER``; without the launcher
the same code runs in one process. Every rank writes what it ended with.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import numpy as np
import small_runs
import torch
import toys

from edgecil import api
from edgecil.engine import increment, loop
from edgecil.engine.distributed import join
from edgecil.errors import Interrupted
from edgecil.losses.classification import cross_entropy
from edgecil.method import Phase, Recipe, Term
from edgecil.settings import Optim, Training
from edgecil.synthesis import training as synthesis
from edgecil.synthesis.generator import Generator

RANK = int(os.environ.get("RANK", "0"))
LEARN = {"device": "cpu", "epochs": 2, "batch_size": 5}  # 24 images: the last batch has 4
DREAMING = ("abd", "mfgr")
"""Methods that synthesise images; ``mfgr`` makes a batch's as one, and a slice's apart."""
UNEVEN = (11, 3, 1)
"""Images of the runs with batches of 4: the last ones have 3, 3 and 1."""


def write(path, net) -> None:
    """Write all parameters and buffers of a network."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: value.numpy() for name, value in net.state_dict().items()})


def step(ctx, batch):
    """Return the cross-entropy over the seen classes."""
    logits = ctx.net(batch.images).logits
    return {"ce": Term(cross_entropy(logits, batch.labels, slice(0, ctx.classes.seen)))}


def uneven(count: int, out: Path) -> None:
    """Train in eval mode of batch norm, where a batch and its slices are one and the same."""
    images = toys.image_set(range(3), 8)
    images = images.subset(torch.arange(len(images))[:: max(1, 24 // count)][:count])
    training = Training(2, 4, Optim(0.05, 0.9, 1e-3))
    recipe = Recipe("toy", lambda setup: (Phase("p", step, training, mode="eval"),))
    given = dataclasses.replace(toys.task("finetune", (3,)), recipe=recipe)
    session = toys.session(world=join(torch.device("cpu")))
    outcome = increment.train(given, toys.sets_of(given, images), session)
    assert outcome.images == 2 * count
    write(out / f"uneven-{count}" / f"{RANK}.npz", outcome.model.net)


def dreamed(method: str, out: Path) -> None:
    """Learn two classes after three; the leader alone sees that the first images collapsed."""
    folder = out / method
    (base,) = toys.learn("finetune", (3,), folder / f"base-{RANK}")
    training = Training(2, 5, Optim(0.05, 0.9, 1e-3))
    options = {"collapse": "retry", "ratio": 1.0} if method == "mfgr" else {"collapse": "retry"}
    given = toys.task(method, (3, 2), base.model, options=options, training=training)
    recipe, found = given.recipe, []

    def phases(setup):
        return tuple(dataclasses.replace(p, mode="eval") for p in recipe.phases(setup))

    def shown(*arguments):
        found.append(torch.tensor([3, 3, 3] if found or RANK else [9, 0, 0]))
        return found[-1]

    real, synthesis.shown = synthesis.shown, shown
    try:
        given = dataclasses.replace(given, recipe=dataclasses.replace(recipe, phases=phases))
        session = toys.session(world=join(torch.device("cpu")))
        sets = toys.sets_of(given, toys.image_set(range(3, 5)))
        outcome = increment.train(given, sets, session)
    finally:
        synthesis.shown = real
    assert len(found) == 2, "the synthesis ran twice"
    write(folder / f"{RANK}.npz", outcome.model.net)


def learned(root: Path, folders, out: Path, stop_at: int | None = None, **settings) -> None:
    """Learn two increments through the public API, stopping in the second when asked to."""
    settings |= LEARN
    real = increment.train

    def train(*arguments, **settings):
        outcome = real(*arguments, **settings)
        write(out / f"{RANK}.npz", outcome.model.net)
        return outcome

    increment.train = train
    try:
        small_runs.learn(folders[0], root, method="icarl", **settings)
        if stop_at is None:
            small_runs.learn(folders[1], root, **settings)
            return
        try:
            # One rank alone sees the stop: all must follow it.
            small_runs.learn(folders[1], root, should_stop=lambda: RANK == 1, **settings)
        except Interrupted:
            (out / f"{RANK}.stopped").write_text("")
        api.learn(workspace=root, resume=True)
    finally:
        increment.train = real


def main() -> None:
    """Do everything, one after the other."""
    out = Path(sys.argv[1])
    loop.POLL_STEPS = 3
    Generator.__init__.__defaults__ = (16, (8, 8, 8))  # a thousandth of what images need
    folders = [out / "images" / "1", out / "images" / "2"]
    for count in UNEVEN:
        uneven(count, out)
    for method in DREAMING:
        dreamed(method, out)
    learned(out / "whole" / ".edgecil", folders, out / "whole")
    # Images from disk: the same batches on every rank, stopped or not.
    learned(out / "stopped" / ".edgecil", folders, out / "stopped", stop_at=3, stream="yes")


if __name__ == "__main__":
    main()
