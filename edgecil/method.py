"""What a learning method is: a recipe of named slots that the one engine executes.

A method file in ``edgecil/methods`` gives

* a docstring whose first line is the summary shown by ``edgecil methods``;
* ``Options``, a frozen dataclass of :func:`edgecil.options.option` fields, which are set with
  ``--set name=value``;
* ``recipe(options) -> Recipe``; or, for a plug-in laid over a host,
  ``plug(host: Recipe, options) -> Recipe``;
* optionally ``PRESETS``, a paper's settings by name, and ``PAPER``: authors, title, year.

One increment runs like this::

    recipe.begin(ctx)                      # grow the head, imprint, freeze: book-keeping
    ctx.teachers = recipe.teachers(ctx)    # frozen, eval, outside the module tree
    for phase in recipe.phases(setup):
        phase.prepare(ctx)                 # prune, add a temporary teacher, build a generator
        for each epoch, each batch of phase.view:
            terms = phase.step(ctx, batch) # forwards only; named terms say whom they train
            engine: backward, masks, optimiser, NaN check, progress, run state
    exemplars are ranked by recipe.selection, encoded and stored within the budget
    recipe.end(ctx)                        # importance and other declared fields
    rule = recipe.rule(ctx)                # how features and logits become scores
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgecil.data.decode import split_validation
from edgecil.data.images import Batch, ImageSet
from edgecil.memory.fields import Field
from edgecil.memory.store import Store
from edgecil.nets.net import Net, Outputs
from edgecil.nets.rules import ArgmaxRule, Rule
from edgecil.settings import Augment, Optim, Preprocess, Training

Groups = tuple[str, ...]
STUDENT: Groups = ("backbone", "head")
SOFTMAX_BASE = "softmax cross-entropy"


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


class Term(NamedTuple):
    """One weighted scalar of a loss and the parameter groups it sends gradient to.

    Groups are ``backbone``, ``head`` and the names of the method's own modules. The engine
    minimises the sum of ``weight * value``; a contract test checks the claim of ``to``.
    """

    value: Tensor
    weight: float = 1.0
    to: Groups = STUDENT


Terms = Mapping[str, Term]


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
    offset: int = 0
    """Images of the running step's global batch that come before this rank's."""
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


Step = Callable[[Context, "Batch"], Terms]
View = Literal["new", "kept", "new+kept"] | Callable[[Context], ImageSet]


def nothing(ctx: Context) -> None:
    """Do nothing: the default of optional slots."""


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one objective.

    ``view`` names the images (None: the step makes its own, and ``steps`` counts),
    ``trains`` the parameter groups, ``masks`` optionally gives per parameter name a mask of
    elements that may change, which holds for gradient, weight decay and momentum alike.
    ``prepare`` runs when the phase begins and not again when a run resumes inside it: what it
    does must be in the network, in modules or teachers.
    """

    name: str
    step: Step
    training: Training
    view: View | None = "new"
    steps: int | None = None
    trains: Groups = STUDENT
    masks: Callable[[Context], Mapping[str, Tensor]] | None = None
    prepare: Callable[[Context], None] = nothing
    mode: Literal["train", "eval"] = "train"
    part: float = 1.0
    """Epochs of this phase as a part of those that ``training`` gives."""
    optims: Mapping[str, Optim] = field(default_factory=dict)
    """Optimisers of single groups; the others use ``training.optim``."""


@dataclass(frozen=True)
class ModuleSpec:
    """A named net or tensor beyond the student.

    ``build`` must depend on the context alone, so that a resumed run can build it and load
    its tensors. ``lifetime`` is a phase's name, ``increment`` or ``kept`` (then a field holds it).
    """

    name: str
    build: Callable[[Context], nn.Module]
    lifetime: str = "increment"


@dataclass(frozen=True)
class Source:
    """A folder of images beside the new ones, at any depth, that show none of the classes.

    ``Context.sets`` has them decoded as ``name``. An ``option`` of the method gives ``folder``
    (see :func:`edgecil.options.option`); without one the method is refused before training.
    """

    name: str
    option: str
    folder: str


@dataclass(frozen=True)
class Selection:
    """How exemplars are chosen: ``rank`` orders the images of one class, best first.

    ``rank(features (N, D), count, generator)`` returns int64 indices of at most ``count``
    images. ``everything`` keeps all images (joint training).
    """

    rank: Callable[[Tensor, int, torch.Generator], Tensor]
    everything: bool = False
    apart: str | None = None
    """A boolean column: images of either value are ranked apart, and every prefix of the list
    holds both in their shares (BiC's held-out images)."""
    candidates: Callable[[Context], Candidates] | None = None
    """Gives what is stored when the phases are over, in place of ``rank``: images that were
    chosen, or made, before."""


@dataclass(frozen=True)
class Origin:
    """What an increment continues from, for :attr:`Recipe.adopt`."""

    method: str | None
    """None after ``init`` from a foreign model."""
    head_kind: str
    rule_kind: str
    kept: tuple[Field, ...] = ()
    """Declarations of the fields that hold something."""

    @property
    def kept_fields(self) -> tuple[str, ...]:
        """Names of the fields that hold something."""
        return tuple(item.name for item in self.kept)


def previous_net(ctx: Context) -> dict[str, nn.Module]:
    """Return the network before this increment as the only teacher; none at the base."""
    return {} if ctx.previous is None else {"previous": ctx.previous}


def no_teachers(ctx: Context) -> dict[str, nn.Module]:
    """Return no teachers."""
    return {}


def argmax_rule(ctx: Context) -> Rule:
    """Return the rule that takes the logits of the classes seen so far as scores."""
    return ArgmaxRule(ctx.classes.seen)


def needs_nothing(origin: Origin) -> str | None:
    """Accept every origin."""
    return None


@dataclass(frozen=True)
class Recipe:
    """A method, as slots. A plug-in maps a recipe to a recipe with ``dataclasses.replace``."""

    name: str
    phases: Callable[[Setup], tuple[Phase, ...]]
    head_kind: Literal["softmax", "sigmoid", "cosine", "unused"] = "softmax"
    """What the logits mean: a distillation that makes no sense on them is refused."""
    forms: Mapping[str, Recipe] = field(default_factory=dict)
    """The method for logits that mean something else, by what these mean: it takes the place of
    this recipe where a model with such logits is continued."""
    head_width: int | None = None
    fields: tuple[Field, ...] = ()
    modules: tuple[ModuleSpec, ...] = ()
    teachers: Callable[[Context], dict[str, nn.Module]] = no_teachers
    asks_lessons: bool = False
    """True when its steps ask teachers by :func:`edgecil.lessons.lesson` alone: a plug-in may
    then put others in their place."""
    sources: tuple[Source, ...] = ()
    selection: Selection | None = None
    begin: Callable[[Context], None] = nothing
    """Runs after the engine has grown the head."""
    end: Callable[[Context], None] = nothing
    rule: Callable[[Context], Rule] = argmax_rule
    adopt: Callable[[Origin], str | None] = needs_nothing
    """Returns why the method cannot continue from an origin, or None when it can."""
    training: Training = field(default_factory=Training)
    """Defaults that suit this method; the user's settings override them."""
    base: str | None = None
    """Methods with the same word here train the first phase of the base increment alike, to the
    bit; None: like no other. Comparisons train it once."""
    if_diverging: str = "a smaller --lr usually helps"
    """What to try when a loss term or a weight becomes NaN or infinite."""
    fresh_start: bool = False
    """True when every increment starts from random weights."""
    updates_known: bool = False
    """True when its losses are right for new images of old classes (``Classes.updated``), beside
    new classes or without any. Others are refused such images."""

    def on(self, head_kind: str) -> Recipe:
        """Return the form of the method that continues logits of a kind; mostly itself."""
        return self.forms.get(head_kind, self)


@dataclass(frozen=True)
class Preset:
    """A paper's settings for a method, as far as the paper or its code gives them."""

    training: Training
    options: Mapping[str, Any] = field(default_factory=dict)
    arch: str | None = None
    head_width: int | None = None
    augment: Augment | None = None


def one_phase(step: Step, view: View = "new") -> Callable[[Setup], tuple[Phase, ...]]:
    """Return the phases of a method that trains the whole network once per increment."""
    return lambda setup: (Phase("train", step, setup.training, view),)


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


def needs_head(*kinds: str) -> Callable[[Origin], str | None]:
    """Return an ``adopt`` that accepts networks whose logits are of one of ``kinds``."""

    def adopt(origin: Origin) -> str | None:
        if origin.head_kind in kinds:
            return None
        wanted = " or ".join(kinds)
        return f"its distillation needs {wanted} outputs, the model has {origin.head_kind} ones"

    return adopt


def class_means(ctx: Context, images: ImageSet, start: int, *, mirror: bool = False) -> Tensor:
    """Return unit-norm means ``(C - start, D)`` of normalised features for classes from ``start``.

    With ``mirror`` the features of the flipped images enter the mean too (iCaRL's code).
    """
    labels = images.labels.to(ctx.device) - start
    features = [ctx.features(images)] + ([ctx.features(images, mirror=True)] if mirror else [])
    count = ctx.classes.seen - start
    total = torch.zeros(count, features[0].shape[1], device=ctx.device)
    for part in features:
        total.index_add_(0, labels, nn.functional.normalize(part))
    return nn.functional.normalize(total)
