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

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from edgecil.context import Candidates, Context, Setup
from edgecil.data.images import Batch, ImageSet
from edgecil.memory.fields import IMAGES, Field
from edgecil.memory.store import Store
from edgecil.nets.rules import ArgmaxRule, Rule
from edgecil.settings import Augment, Optim, Preprocess, Training
from edgecil.synthesis.dreams import Dreaming

Groups = tuple[str, ...]
STUDENT: Groups = ("backbone", "head")
SOFTMAX_BASE = "softmax cross-entropy"


class Term(NamedTuple):
    """One weighted scalar of a loss and the parameter groups it sends gradient to.

    Groups are ``backbone``, ``head`` and the names of the method's own modules. The engine
    minimises the sum of ``weight * value``; a contract test checks the claim of ``to``.
    """

    value: Tensor
    weight: float = 1.0
    to: Groups = STUDENT


Terms = Mapping[str, Term]


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
    does must be in the network, in modules or teachers. A dry run prepares every phase, too, on a
    network that the phases before have hardly trained.
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
    smaller: str = "--batch-size {}"
    """The setting that gives its steps fewer images; ``{}`` is half their batch size."""
    again: Callable[[Context, int], bool] | None = None
    """Asked when the phase is over, with how often it has run. Where it returns True, it has made
    ready for the phase to run once more, with fresh optimisers and other random numbers. Ranks
    must answer alike: what they measure they settle by ``ctx.agree``."""


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
    holds both in their shares, from two images on at least one of each (BiC's held-out images)."""
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
    """True when its steps ask teachers by :func:`edgecil.parts.lessons.lesson` alone: a plug-in may
    then put others in their place."""
    temperature: float | None = None
    """T of its term ``distillation``, which is KD_T of all old units: a plug-in may then distil
    more images alike. None: it has no such term."""
    dreams: Dreaming | None = None
    """How it makes images of old classes, where it does."""
    draws: Callable[[Store, Preprocess, int], Tensor] | None = None
    """Returns so many images ``(N, 3, S, S)`` of old classes, normalised and on the CPU, from what
    is kept of them, where a kept module draws them."""
    sources: tuple[Source, ...] = ()
    selection: Selection | None = None
    begin: Callable[[Context], None] = nothing
    """Runs after the engine has grown the head."""
    end: Callable[[Context], None] = nothing
    rule: Callable[[Context], Rule] = argmax_rule
    reads_rule: bool = False
    """True when it has a use for a corrected classifier before it (``Context.previous_rule``). For
    other methods the correction is written into the head that they continue."""
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

    @property
    def stored_images(self) -> Field | None:
        """The field of exemplars that a codec encodes; None where none are kept, or references."""
        fields = (f for f in self.fields if f.name == IMAGES and f.codec != "reference")
        return next(fields, None)

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


def needs_head(*kinds: str) -> Callable[[Origin], str | None]:
    """Return an ``adopt`` that accepts networks whose logits are of one of ``kinds``."""

    def adopt(origin: Origin) -> str | None:
        if origin.head_kind in kinds:
            return None
        wanted = " or ".join(kinds)
        return f"its distillation needs {wanted} outputs, the model has {origin.head_kind} ones"

    return adopt
