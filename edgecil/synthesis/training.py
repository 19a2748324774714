"""One step of synthesis, a loop around it, and what to do when all images become one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from edgecil.errors import TrainingError
from edgecil.synthesis.objective import Losses, total
from edgecil.synthesis.statistics import Seen, look

LOOKED_AT = 256
"""Images that are classified to see whether more than one class is shown."""
ATTEMPTS = 3
"""Seeds that are tried before a collapse is an error."""
CHECKED_EVERY = 10
"""Steps between two checks for NaN: reading a value back waits for the device."""


class Source(Protocol):
    """Where synthetic images come from: a generator, or pixels; a module."""

    def propose(self, count: int, step: int) -> Tensor:
        """Return images ``(N, 3, S, S)`` to improve in a step of training, in the graph."""
        ...

    def draw(self, count: int, skip: int = 0) -> Tensor:
        """Return ``count`` images as they are used, from the global random numbers.

        ``skip`` images come before them in the same draw: those of other ranks.
        """
        ...


class Objective(Protocol):
    """What is asked of images."""

    def losses(self, images: Tensor, seen: Seen, classes: int) -> Losses:
        """Return weighted scalars for images that show the first ``classes`` units."""
        ...


def dream(
    source: Source, net: nn.Module, objective: Objective, classes: int, count: int, step: int
) -> Losses:
    """Return the losses of one step: images, one look of the network at them, the objective.

    ``net`` is frozen and in eval mode: no gradient of its weights is computed.
    """
    images = source.propose(count, step)
    return objective.losses(images, look(net, images), classes)


@torch.no_grad()
def shown(source: Source, net: nn.Module, classes: int, batch: int) -> Tensor:
    """Return how many of some drawn images are taken for each class, int64 ``(classes,)``."""
    counts = torch.zeros(classes, dtype=torch.int64)
    for _ in range(0, LOOKED_AT, batch):
        images = source.draw(batch)
        found = net(images).logits[:, :classes].argmax(dim=1)
        counts += torch.bincount(found, minlength=classes).cpu()
    return counts


def collapsed(counts: Tensor) -> bool:
    """Return whether all images are taken for one class although there are more."""
    return len(counts) > 1 and int((counts > 0).sum()) == 1


@dataclass(frozen=True)
class Schedule:
    """How long a source is trained outside the engine: ``steps`` of ``batch`` images by Adam."""

    steps: int
    batch: int
    lr: float


def fit(
    source: Source,
    net: nn.Module,
    objective: Objective,
    classes: int,
    schedule: Schedule,
    told: Callable[[int, int], None] = lambda done, total: None,
    hint: str | None = None,
) -> None:
    """Train ``source`` in place from the global random numbers.

    ``told(done, total)`` hears of the steps from time to time; ``hint`` is the error's.

    Raises:
        TrainingError: a loss became NaN or infinite.
    """
    assert isinstance(source, nn.Module)
    source.train()
    adam = torch.optim.Adam(source.parameters(), lr=schedule.lr)
    for step in range(schedule.steps):
        adam.zero_grad(set_to_none=True)
        losses = dream(source, net, objective, classes, schedule.batch, step)
        total(losses).backward()  # type: ignore[no-untyped-call]
        adam.step()
        if step % CHECKED_EVERY == 0 or step + 1 == schedule.steps:
            told(step + 1, schedule.steps)
            for name, loss in losses.items():
                value = float(loss.value.detach())
                if not math.isfinite(value):
                    raise TrainingError(
                        f"the loss {name!r} became {value} while images were synthesised",
                        hint=hint,
                    )
    source.eval()


def wants_another(
    found: Tensor, attempt: int, say: Callable[[str], None], hint: str | None = None
) -> bool:
    """Return whether attempt number ``attempt``, from 1, collapsed; another is announced then.

    ``found`` are the images per class that :func:`shown` counted; ``hint`` is the error's.

    Raises:
        TrainingError: it was the last of ``ATTEMPTS``.
    """
    if not collapsed(found):
        return False
    if attempt >= ATTEMPTS:
        raise TrainingError(
            f"synthesis collapsed in {ATTEMPTS} of {ATTEMPTS} attempts: all images are taken for "
            f"class {int(found.argmax())} of {len(found)}",
            hint=hint,
        )
    say(
        f"all synthetic images are taken for class {int(found.argmax())}: once more with "
        f"another seed (attempt {attempt + 1} of {ATTEMPTS})"
    )
    return True


def insist(
    counts: Callable[[], Tensor],
    again: Callable[[int], None],
    say: Callable[[str], None],
    hint: str | None = None,
) -> None:
    """Call ``again(attempt)``, from 2 on, until what ``counts`` says is not collapsed.

    Raises:
        TrainingError: after ``ATTEMPTS`` all images are still taken for one class.
    """
    attempt = 1
    while wants_another(counts(), attempt, say, hint):
        attempt += 1
        again(attempt)
