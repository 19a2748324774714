"""What a method sees of an increment: its classes, its images, the networks, what is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgecil.data.decode import split_validation
from edgecil.data.images import ImageSet
from edgecil.losses.prototypes import class_sums
from edgecil.memory.store import Store
from edgecil.nets.net import Net, Outputs
from edgecil.nets.rules import Rule
from edgecil.settings import Preprocess, Training


@dataclass(frozen=True)
class Classes:
    """Which head rows each increment added, the running one last.

    ``Classes((10, 5))`` has 10 old classes and 5 new ones. An increment that brings images of
    old classes alone adds none: ``Classes((10, 0), updated=(3,))``.
    """

    groups: tuple[int, ...]
    updated: tuple[int, ...] = ()
    """Head rows of the old classes of which there are new images, too."""

    @property
    def seen(self) -> int:
        """K: all classes so far, the new ones included."""
        return sum(self.groups)

    @property
    def new(self) -> int:
        """K_n: classes of the running increment."""
        return self.groups[-1]

    @property
    def old(self) -> int:
        """K_o: classes before the running increment."""
        return self.seen - self.new

    @property
    def taught(self) -> int:
        """How many classes have new images: the new ones and those of ``updated``."""
        return self.new + len(self.updated)

    @property
    def increment(self) -> int:
        """Number of the running increment; 1 is the base."""
        return len(self.groups)

    @property
    def spans(self) -> tuple[slice, ...]:
        """Head rows of every increment, in order."""
        stops = [sum(self.groups[: i + 1]) for i in range(len(self.groups))]
        return tuple(slice(b - n, b) for b, n in zip(stops, self.groups, strict=True))


@dataclass(frozen=True)
class Setup:
    """What is known before an increment is trained: enough to list its phases."""

    classes: Classes
    training: Training
    images: Mapping[str, int]
    """Number of images of the views ``new`` and ``kept``."""
    pretrained: bool = False
    """True when the network did not start from random weights."""


@dataclass(frozen=True)
class Candidates:
    """Images that may be kept as exemplars; there may be more than the budget takes."""

    rows: Mapping[int, Tensor]
    """For every class with new images the rows of its images (int64), best first: they count
    all kept images, then the new ones."""
    changed: Mapping[int, Tensor] = field(default_factory=dict)
    """By such a row, what an image has become: uint8 ``(R, R, 3)``."""


class Shelf(Protocol):
    """The memory of exemplars before it is filled."""

    def ranked(self) -> Candidates:
        """Return what the selection ranks best, with the network as it is now."""
        ...

    def trial(self, candidates: Candidates) -> tuple[ImageSet, Mapping[str, NDArray[Any]]]:
        """Return what the budget takes of ``candidates``, and its columns, as they decode.

        Old classes first; nothing is stored.

        Raises:
            BudgetError: not one exemplar per class fits.
        """
        ...


@dataclass
class Context:
    """What a method may use while an increment runs."""

    setup: Setup
    net: Net
    """The student; called inside a step it runs in the chosen precision."""
    previous: Net | None
    """A frozen copy of the network learned before, or None at the base increment."""
    previous_rule: Rule | None
    kept: Store
    """Fields of the version learned from (read)."""
    keeps: Store
    """Fields of the version being learned (write)."""
    sets: dict[str, ImageSet]
    """``new`` and ``kept`` images and those of the recipe's sources; after selection
    ``exemplars`` as they decode from storage."""
    device: torch.device
    stream: Callable[[str], torch.Generator]
    """A CPU generator for a purpose, seeded by (seed, increment, phase, step)."""
    autocast: Callable[[], Any]
    """Context manager of the chosen precision."""
    loader: Callable[[ImageSet], Iterator[Tensor]]
    """Evaluation batches ``(N, 3, S, S)`` of a set: centre crop, no augmentation, in order."""
    note: Callable[[str], None]
    """Tell the user something about the method's choices, once."""
    preprocess: Preprocess
    """What the network's input is: its size, and the mean and deviation of its channels."""
    shelf: Shelf | None = None
    """Where exemplars will be kept; None for a method without a selection."""
    view_count: int | None = None
    """How many views of an image the augmentation makes: 1, 2 (mirrored), or None for many."""
    step: int = 0
    """Number of the running step of the phase."""
    total: int = 0
    """Images of the running step's global batch: those of all ranks."""
    offset: int = 0
    """How many of them come before this rank's."""
    agree: Callable[[Any], Any] = lambda value: value
    """Returns the leading rank's value in every rank: for decisions that all must take alike."""
    view: ImageSet | None = None
    """Images of the running phase; the rows of ``Batch.index``."""
    by_view: dict[str, Tensor] = field(default_factory=dict)
    """Caches over the images of the running phase: emptied when it shows others; never saved."""
    teachers: dict[str, nn.Module] = field(default_factory=dict)
    """Frozen, in eval mode and outside the module tree."""
    modules: dict[str, nn.Module] = field(default_factory=dict)
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    """One row per new image for every column of exemplars; ``begin`` sets it."""
    scratch: dict[str, Any] = field(default_factory=dict)
    """Caches that can be derived again; never saved."""

    @property
    def classes(self) -> Classes:
        """Class spans of the running increment."""
        return self.setup.classes

    def show(self, images: ImageSet | None) -> None:
        """Make ``images`` those of the running phase."""
        if images is not self.view:
            self.view = images
            self.by_view = {}

    @torch.no_grad()
    def teach(self, name: str, images: Tensor) -> Outputs:
        """Return a teacher's outputs for ``(N, 3, S, S)`` images, without gradient."""
        outputs: Outputs = self.teachers[name](images)
        return outputs

    def split(self, images: ImageSet, fraction: float, key: str) -> tuple[Tensor, Tensor]:
        """Return row numbers of ``images`` to train on and to hold out, by class.

        The same at every call with the same ``key``, in a resumed run too. A method that holds
        exemplars out for good stores the flag in a column (BiC).
        """
        return split_validation(images.labels, fraction, self.stream(key))

    @torch.no_grad()
    def features(
        self, images: ImageSet, *, mirror: bool = False, teacher: str | None = None
    ) -> Tensor:
        """Return the student's float32 features ``(N, D)`` of a set in eval mode, in one pass.

        With ``mirror`` those of the horizontally flipped images; with ``teacher`` those of that
        teacher instead.
        """
        net = self.net if teacher is None else self.teachers[teacher]
        training = net.training
        net.eval()
        parts = []
        for batch in self.loader(images):
            with self.autocast():
                parts.append(net(batch.flip(3) if mirror else batch).features.float())
        net.train(training)
        return torch.cat(parts)


def ce_span(ctx: Context, scope: str) -> slice:
    """Return the head rows that a softmax cross-entropy of ``scope`` (``new``, ``seen``) uses.

    Over one new class it would be identically zero, and new images of old classes have labels
    outside: then it runs over all seen classes.
    """
    classes = ctx.classes
    if scope == "new" and classes.updated:
        ctx.note("images of known classes: the cross-entropy runs over all seen (ce_scope=seen)")
        scope = "seen"
    elif scope == "new" and classes.new == 1 and classes.old:
        ctx.note("one new class: the cross-entropy runs over all seen classes (ce_scope=seen)")
        scope = "seen"
    return slice(classes.old if scope == "new" else 0, classes.seen)


def class_means(ctx: Context, images: ImageSet, start: int, *, mirror: bool = False) -> Tensor:
    """Return unit-norm means ``(C - start, D)`` of normalised features for classes from ``start``.

    With ``mirror`` the features of the flipped images enter the mean too (iCaRL's code).
    """
    labels = images.labels.to(ctx.device) - start
    features = [ctx.features(images)] + ([ctx.features(images, mirror=True)] if mirror else [])
    count = ctx.classes.seen - start
    # A product, not index_add_: that adds up in any order on a GPU, another last bit every time.
    sums = [class_sums(nn.functional.normalize(part), labels, count)[0] for part in features]
    return nn.functional.normalize(torch.stack(sums).sum(dim=0))
