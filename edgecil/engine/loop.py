"""The one training loop. It owns backward, masks, optimiser, NaN check, progress and stopping."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from edgecil.context import Context
from edgecil.data.images import Batch, ImageSet, concat
from edgecil.data.loader import Loader, rank_slice
from edgecil.data.streams import stream_seed, streams
from edgecil.engine import state
from edgecil.engine.clock import Clock
from edgecil.engine.compute import Compute
from edgecil.engine.distributed import World
from edgecil.engine.events import Listener, PhaseStarted, Progress, ignore
from edgecil.engine.optim import Optimisers
from edgecil.errors import Interrupted, OutOfMemory, TrainingError, out_of_memory
from edgecil.method import Phase, Terms
from edgecil.settings import Augment, Preprocess

SAVE_SECONDS = 60.0
POLL_STEPS = 20
"""How often several ranks look; they must agree, and therefore count steps."""


@dataclass
class Session:
    """What a run needs besides the method: arithmetic, randomness, and who is listening."""

    compute: Compute
    preprocess: Preprocess
    augment: Augment
    seed: int = 0
    world: World = field(default_factory=World)
    listener: Listener = ignore
    should_stop: Callable[[], bool] = lambda: False
    deadline: float = math.inf
    """``time.monotonic()`` at which the run stops cleanly."""
    poll_seconds: float = 0.2
    """How often losses are read back, progress is reported and a stop is noticed."""
    folder: Path | None = None
    """Where the run state goes; None keeps nothing."""
    clock: Clock = field(default_factory=Clock)
    images: int = 0
    phases: int = 0
    """Number of phases of the increment."""
    first_teachers: tuple[str, ...] = ()
    largest: dict[str, int] = field(default_factory=dict)
    """Largest bytes seen of each kind of training memory."""


def view_of(ctx: Context, phase: Phase) -> ImageSet | None:
    """Return the images of a phase's view."""
    if phase.view is None or callable(phase.view):
        return phase.view(ctx) if phase.view else None
    if phase.view not in ctx.sets:  # joined once: phases that share a view share its caches
        parts = [ctx.sets[name] for name in phase.view.split("+")]
        parts = [part for part in parts if len(part)]
        ctx.sets[phase.view] = parts[0] if len(parts) == 1 else concat(parts)
    return ctx.sets[phase.view]


class _Tally:
    """Running sums of the terms on the device, read back a few times per second."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps = 0

    def add(self, terms: Terms) -> None:
        for name, term in terms.items():
            value = term.value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.steps += 1

    def means(self, phase: str) -> dict[str, float]:
        """Return the means since the last call.

        Raises:
            TrainingError: one of them is not finite.
        """
        values = {name: float(total) / max(1, self.steps) for name, total in self.sums.items()}
        self.sums, self.steps = {}, 0
        for name, value in values.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss term {name!r} became {value} in phase {phase!r}; "
                    "the last good version is untouched"
                )
        return values


class PhaseRun:
    """One phase being executed."""

    def __init__(
        self, ctx: Context, phase: Phase, number: int, session: Session, attempt: int = 1
    ) -> None:
        self.ctx, self.phase, self.number, self.session = ctx, phase, number, session
        self.attempt = attempt
        images = view_of(ctx, phase)
        ctx.show(images)
        self.loader = images and Loader(
            images, session.preprocess, session.augment, phase.training.batch_size, ctx.device
        )
        self.images = len(images) if images else 0
        self.per_epoch = self.loader.steps if self.loader else 1
        epochs = phase.training.epochs_for(self.images, phase.part) if self.loader else 0
        self.steps = epochs * self.per_epoch if phase.steps is None else phase.steps
        self.optimisers = Optimisers(ctx, phase)
        ctx.net.train(phase.mode == "train")
        for parameter in ctx.net.parameters():
            parameter.requires_grad_(False)
        for parameter in self.optimisers.parameters:
            parameter.requires_grad_(True)
        self.tally = _Tally()

    def _key(self) -> tuple[int, *tuple[int | str, ...]]:
        key = self.session.seed, self.ctx.classes.increment, self.number
        return key if self.attempt == 1 else (*key, f"attempt {self.attempt}")

    def _batch(self, step: int) -> Batch | None:
        if self.loader is None:
            return None
        epoch, inside = divmod(step, self.per_epoch)
        world, size = self.session.world, self.phase.training.batch_size
        self.ctx.total = min(size, self.images - inside * size)
        self.ctx.offset = rank_slice(0, self.ctx.total, world.rank, world.size).start
        return self.loader.batch(
            epoch, inside, streams(*self._key(), "epoch"), world.rank, world.size
        )

    def _share(self, batch: Batch) -> float:
        """Return this rank's part of the global batch, and count the latter's images."""
        self.session.images += self.ctx.total
        return len(batch.labels) / self.ctx.total

    def step(self, step: int) -> None:
        """Execute one step of the phase."""
        torch.manual_seed(stream_seed(*self._key(), "step", step))
        self.ctx.step = step
        batch = self._batch(step)
        world = self.session.world
        share = self._share(batch) if batch is not None else 1 / world.size
        self.optimisers.zero()
        if share:
            with self.session.compute.autocast():
                terms = self.phase.step(self.ctx, batch)  # type: ignore[arg-type]
            self.tally.add(terms)
            loss = torch.stack([term.weight * term.value for term in terms.values()]).sum()
            loss.backward()  # type: ignore[no-untyped-call]
        world.reduce(self.optimisers.parameters, self.ctx.net, share)
        self.optimisers.step(step / self.steps)

    def _report(self, step: int, since: float, first: int, images: int) -> None:
        elapsed = max(1e-9, time.monotonic() - since)
        done = max(1, step - first)
        self.session.listener(
            Progress(
                self.phase.name, step // self.per_epoch, self.steps // self.per_epoch,
                step, self.steps, (self.session.images - images) / elapsed,
                elapsed / done * (self.steps - step), self.tally.means(self.phase.name),
            )
        )  # fmt: skip

    def _place(self, step: int) -> str:
        """Return where a step is, in words: ``epoch 97 of 4000``, in the run's only phase."""
        number, total = step // self.per_epoch + 1, -(-self.steps // self.per_epoch)
        unit = "epoch" if self.per_epoch > 1 else "step"
        phase = f" of phase {self.phase.name}" if self.session.phases > 1 else ""
        return f"{unit} {number} of {total}{phase}"

    def _stop_wanted(self) -> bool:
        session = self.session
        wanted = session.should_stop() or time.monotonic() >= session.deadline
        return session.world.any(wanted, self.ctx.device)

    def save(self, step: int) -> None:
        """Write the run state, on the leading rank."""
        session = self.session
        session.clock.count()
        if session.folder is not None and session.world.leads:
            state.save(
                session.folder, self.ctx, self.optimisers.tensors(), session.first_teachers,
                phase=self.number, step=step, attempt=self.attempt, over=step == self.steps,
                compute=session.compute.to_json(),
                seconds=session.clock.seconds, cpu_seconds=session.clock.cpu_seconds,
                images=session.images,
            )  # fmt: skip

    def run(self, first: int = 0) -> None:
        """Execute the steps from ``first`` on.

        Raises:
            TrainingError: a term became NaN or infinite.
            OutOfMemory: there was no room for a step.
            Interrupted: a stop was asked for; the run state is saved.
        """
        with self.room():
            self._run(first)

    @contextlib.contextmanager
    def room(self) -> Iterator[None]:
        """Name the phase, and what would need less, where the memory runs out inside.

        Raises:
            OutOfMemory: in place of what torch raises.
        """
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            count = self.phase.training.batch_size
            raise OutOfMemory(
                f"the memory of {self.ctx.device} ran out in phase {self.phase.name!r} with "
                f"a batch size of {count}; versions stay as they were",
                smaller=self.phase.smaller.format(count // 2) if count > 1 else "--device cpu",
            ) from error

    def _run(self, first: int) -> None:
        session, start = self.session, time.monotonic()
        session.clock.start()
        session.listener(
            PhaseStarted(
                self.phase.name, self.number, session.phases, first, self.steps, self.images
            )
        )
        images, polled, saved = session.images, start, start
        for step in range(first, self.steps):
            self.step(step)
            now = time.monotonic()
            ranks = session.world.size > 1
            due = (step + 1) % POLL_STEPS == 0 if ranks else now - polled >= session.poll_seconds
            if not due and step + 1 < self.steps:
                continue
            polled = now
            self._report(step + 1, start, first, images)
            if step + 1 < self.steps and self._stop_wanted():
                self.save(step + 1)
                raise Interrupted(f"stopped in {self._place(step)}; the run is saved")
            if not ranks and now - saved >= SAVE_SECONDS:
                self.save(step + 1)
                saved = time.monotonic()
        # What follows may take long, or fail: a phase that is over is not run again.
        self.save(self.steps)
