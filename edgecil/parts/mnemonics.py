"""What Mnemonics adds to a host: exemplars that are chosen, optimised, adjusted, trained on.

Liu et al. 2020. After the host's phases the network is held still while the pixels of the new
exemplars are trained (eq. (9)), then those of the old ones, each half with the other as its
validation data (eq. (10)); then the network is fine-tuned on exemplars alone (section 4.3),
exactly as they decode from what will be stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call

from edgecil.context import Candidates, Context, Setup
from edgecil.data.images import Batch, ImageSet, concat
from edgecil.data.pixels import to_pixels, to_values
from edgecil.losses.classification import binary_cross_entropy, cross_entropy, one_hot
from edgecil.losses.prototypes import class_prototypes, prototype_logits
from edgecil.method import ModuleSpec, Phase, Term, Terms
from edgecil.nets.arithmetic import full_precision
from edgecil.parts.learned_exemplars import Learned, halves
from edgecil.parts.unrolled import Descent, Weights, checkpointed
from edgecil.settings import Optim, Schedule, Training

NEW, HALF_A, HALF_B = "mnemonics", "mnemonics A", "mnemonics B"


@dataclass(frozen=True)
class Mnemonics:
    """Which exemplars are optimised, and how."""

    unrolled: bool
    """Through the training of a temporary model; else through class means (the released code)."""
    learns: bool
    """Whether the pixels of new exemplars are trained."""
    adjusts: bool
    """Whether the pixels of old exemplars are trained."""
    finetuning: int
    """Epochs on exemplars alone; 0: none."""
    inner_steps: int
    inner_lr: float
    inner_batch: int
    """Exemplars drawn for each of these steps; 0: all of them."""
    epochs: int
    pixel_optim: Optim
    halve_every: int
    """Epochs after which the rate of the pixels is halved."""
    sigmoid: bool
    """Whether the host's logits are trained as sigmoids."""
    apart: str | None
    """The column of exemplars that the host holds apart: they stay as they are (BiC)."""

    def loss(self, logits: Tensor, labels: Tensor, seen: int) -> Tensor:
        """Return L_c over the seen classes, in the host's meaning of logits; a scalar (eq. (2))."""
        if self.sigmoid:
            return binary_cross_entropy(logits[:, :seen], one_hot(labels, 0, seen))
        return cross_entropy(logits, labels, slice(0, seen))


def _free(method: Mnemonics, ctx: Context, name: str) -> Tensor:
    """Return bool ``(N,)``: which images of a set the host does not hold apart."""
    labels = ctx.sets[name].labels
    if method.apart is None or not len(labels):
        return torch.ones(len(labels), dtype=torch.bool)
    flags = ctx.columns[method.apart] if name == "new" else ctx.kept.read(method.apart)
    return ~torch.from_numpy(flags)


def _usable(method: Mnemonics, ctx: Context, name: str) -> ImageSet:
    """Return the images of a set that the host does not hold apart."""
    images, free = ctx.sets[name], _free(method, ctx, name)
    return images if bool(free.all()) else images.subset(free.to(images.labels.device))


def _new_rows(ctx: Context, counts: Tensor) -> Tensor:
    """Return the rows of the new images that the selection ranks.

    First the best ``counts`` ``(K_n,)`` of every class, class by class, then the others.
    """
    assert ctx.shelf is not None
    ranked, classes = ctx.shelf.ranked().rows, ctx.classes
    rows = [ranked[label] - len(ctx.sets["kept"]) for label in range(classes.old, classes.seen)]
    best = [of_class[:n] for of_class, n in zip(rows, counts.tolist(), strict=True)]
    spare = [of_class[n:] for of_class, n in zip(rows, counts.tolist(), strict=True)]
    return torch.cat(best + spare)


def _taken(ctx: Context) -> Tensor:
    """Return the labels of the exemplars that the budget takes as the network is at first.

    An estimate, made once: the network that ranks in the end is another, and so is the size of
    encoded images once they are optimised.
    """
    assert ctx.shelf is not None
    key = "exemplars that fit"
    if key not in ctx.scratch:
        ctx.scratch[key] = ctx.shelf.trial(ctx.shelf.ranked())[0].labels
    found: Tensor = ctx.scratch[key]
    return found


def build_new(method: Mnemonics, ctx: Context) -> Learned:
    """Return room for as many new exemplars as the budget is likely to take.

    Rows are those of all new images that may be stored: should the budget take more of them in
    the end, those behind are stored as they are, so that no class has fewer than the others.
    """
    taken, side = _taken(ctx), ctx.preprocess.resize
    labels = taken[taken >= ctx.classes.old].clone()
    values = torch.zeros(len(labels) if method.learns else 0, 3, side, side)
    return Learned(torch.full((len(ctx.sets["new"]),), -1), labels, values)


def build_half(method: Mnemonics, number: int, ctx: Context) -> Learned:
    """Return half A (0) or B (1) of the old exemplars that fit beside the new ones."""
    kept = ctx.sets["kept"]
    rows = torch.zeros(0, dtype=torch.int64)
    if method.adjusts and len(kept):
        counts = torch.bincount(_taken(ctx).cpu(), minlength=ctx.classes.seen)
        labels = kept.labels.cpu()
        ranks = torch.arange(len(labels)) - torch.searchsorted(labels, labels)
        stays = ranks < counts[labels]
        rows = halves(labels, stays & _free(method, ctx, "kept"))[number]
    at = rows.to(kept.labels.device)
    pixels = kept.pixels.index_select(0, at)
    return Learned(rows, kept.labels[at], to_values(pixels, ctx.preprocess))


def modules(method: Mnemonics) -> tuple[ModuleSpec, ...]:
    """Return new exemplars and both halves of the old ones."""
    return (
        ModuleSpec(NEW, partial(build_new, method)),
        ModuleSpec(HALF_A, partial(build_half, method, 0)),
        ModuleSpec(HALF_B, partial(build_half, method, 1)),
    )


def learned(ctx: Context, name: str) -> Learned:
    """Return one of the modules."""
    found = ctx.modules[name]
    assert isinstance(found, Learned)
    return found


@torch.no_grad()
def choose(ctx: Context) -> None:
    """Rank the new images with the network as it is now; their pixels are the beginning."""
    new, own = ctx.sets["new"], learned(ctx, NEW)
    counts = torch.bincount(own.labels.cpu() - ctx.classes.old, minlength=ctx.classes.new)
    rows = _new_rows(ctx, counts)
    own.rows[: len(rows)] = rows.to(own.rows.device)
    if own.count:
        begin = new.pixels.index_select(0, rows[: own.count].to(new.labels.device))
        own.values.copy_(to_values(begin.to(ctx.device), ctx.preprocess))


def candidates(ctx: Context) -> Candidates:
    """Return the exemplars to store: chosen before fine-tuning, as they were optimised."""
    assert ctx.shelf is not None
    own, kept = learned(ctx, NEW), len(ctx.sets["kept"])
    if not own.decided:  # nothing was optimised or trained on: the host chooses, as ever
        return ctx.shelf.ranked()
    rows = own.rows[own.rows >= 0].cpu()
    labels = ctx.sets["new"].labels.cpu()[rows]
    by_class = {c: rows[labels == c] + kept for c in range(ctx.classes.old, ctx.classes.seen)}
    changed: dict[int, Tensor] = {}
    for name, first in ((NEW, kept), (HALF_A, 0), (HALF_B, 0)):
        group = learned(ctx, name)
        if group.count:
            at = (group.rows[: group.count].cpu() + first).tolist()
            changed |= zip(at, to_pixels(group.values, ctx.preprocess).cpu(), strict=True)
    return Candidates(by_class, changed)


def exemplars(method: Mnemonics, ctx: Context) -> ImageSet:
    """Return what will be stored, as it decodes, but for images that the host holds apart."""
    assert ctx.shelf is not None
    images, columns = ctx.shelf.trial(candidates(ctx))
    if method.apart is None:
        return images
    return images.subset(~torch.from_numpy(columns[method.apart]).to(images.labels.device))


def outer_images(method: Mnemonics, name: str, ctx: Context) -> ImageSet:
    """Return the validation data of a group of exemplars."""
    if name == NEW:
        parts = [_usable(method, ctx, "new")]
        if not method.unrolled and len(ctx.sets["kept"]):
            parts.append(_usable(method, ctx, "kept"))
        return parts[0] if len(parts) == 1 else concat(parts)
    other = learned(ctx, HALF_B if name == HALF_A else HALF_A)
    # A single old exemplar has no other half: it is its own, and hardly moves.
    return (other if other.count else learned(ctx, name)).images(ctx.preprocess)


def _active(method: Mnemonics, ctx: Context, name: str) -> Tensor:
    """Return the positions of the exemplars of a group that are trained."""
    own = learned(ctx, name)
    if name != NEW:
        return torch.arange(own.count, device=ctx.device)
    rows = own.rows[: own.count].cpu()
    return torch.nonzero(_free(method, ctx, "new")[rows])[:, 0].to(ctx.device)


def held(method: Mnemonics, name: str, ctx: Context) -> Mapping[str, Tensor]:
    """Return the mask that holds the exemplars that are not trained, against decay as well."""
    if method.apart is None:
        return {}
    values = learned(ctx, name).values
    mask = torch.zeros_like(values)
    mask[_active(method, ctx, name)] = 1
    return {f"{name}.values": mask}


def unrolled_loss(
    method: Mnemonics, name: str, active: Tensor, ctx: Context, batch: Batch
) -> Tensor:
    """Return L_c(Theta'(E); D): of a temporary model trained on the exemplars (eqs. (8), (9)).

    Batch norms keep the statistics of the network, here and in the fine-tuning that the
    temporary training stands for.
    """
    own, seen = learned(ctx, name), ctx.classes.seen
    generator = ctx.stream(f"inner steps of {name}, {ctx.step}")
    few = min(method.inner_batch or len(active), len(active))
    picks = [
        active[torch.randperm(len(active), generator=generator)[:few].to(active.device)]
        for _ in range(method.inner_steps)
    ]

    def logits(weights: Weights, images: Tensor) -> Tensor:
        found: Tensor = functional_call(ctx.net, dict(weights), (images,)).logits
        return found

    def inner(weights: Weights, images: Tensor, step: int) -> Tensor:
        rows = picks[step]
        return method.loss(logits(weights, images[rows]), own.labels[rows], seen)

    descent = Descent(inner, method.inner_steps, method.inner_lr)
    trained = checkpointed(descent, dict(ctx.net.named_parameters()), own.inputs(ctx.preprocess))
    return method.loss(logits(trained, batch.images), batch.labels, seen)


def prototype_loss(
    method: Mnemonics, name: str, active: Tensor, ctx: Context, batch: Batch
) -> Tensor:
    """Return the cross-entropy of cosines to class means, which the exemplars move.

    What the released code of Mnemonics minimises, with the network held still.
    """
    own = learned(ctx, name)
    with torch.no_grad():
        queries = ctx.net(batch.images).features
    features = ctx.net(own.inputs(ctx.preprocess)[active]).features
    key = f"prototypes of {name}"
    if key not in ctx.scratch:
        ctx.scratch[key] = _fixed(method, ctx, features.detach())
    prototypes = class_prototypes(features, own.labels[active], ctx.scratch[key])
    logits = prototype_logits(queries, prototypes)
    return cross_entropy(logits, batch.labels, slice(0, ctx.classes.seen))


@torch.no_grad()
def _fixed(method: Mnemonics, ctx: Context, like: Tensor) -> Tensor:
    """Return mean features ``(K, D)`` of the old exemplars as they were stored and of the new.

    Those that the host holds apart have no part in it.
    """
    fixed = like.new_zeros(ctx.classes.seen, like.shape[1])
    own = learned(ctx, NEW)
    if own.count:
        new = own.images(ctx.preprocess).subset(_active(method, ctx, NEW))
    else:
        rows = own.rows[: len(own.labels)].cpu()
        rows = rows[_free(method, ctx, "new")[rows]]
        new = ctx.sets["new"].subset(rows.to(ctx.sets["new"].labels.device))
    for images in (_usable(method, ctx, "kept"), new):
        if len(images):
            features = ctx.features(images)
            fixed = class_prototypes(features, images.labels.to(features.device), fixed)
    return fixed


def pixel_step(method: Mnemonics, name: str, ctx: Context, batch: Batch) -> Terms:
    """Return the validation loss of a group of exemplars, which trains their pixels."""
    own = learned(ctx, name)
    own.project(ctx.preprocess)
    active = _active(method, ctx, name)
    loss = unrolled_loss if method.unrolled else prototype_loss
    with full_precision(batch.images):
        # Without any that is trained the term still has a gradient: of zero.
        value = loss(method, name, active, ctx, batch) if len(active) else 0 * own.values.sum()
    return {"exemplars": Term(value, to=(name,))}


def finetune_step(method: Mnemonics, ctx: Context, batch: Batch) -> Terms:
    """Return L_c on exemplars: as many of each class as are stored."""
    logits = ctx.net(batch.images).logits
    return {"fine-tuning": Term(method.loss(logits, batch.labels, ctx.classes.seen))}


def phases(method: Mnemonics, setup: Setup) -> tuple[Phase, ...]:
    """Return what follows the host's phases; nothing where there is nothing to do.

    The base increment is not fine-tuned: it has no old classes to be unfair to (section 4.3).
    """
    halvings = range(method.halve_every, method.epochs, method.halve_every)
    schedule = Schedule("step", tuple(n / method.epochs for n in halvings), 0.5)
    batch = setup.training.batch_size
    training = Training(method.epochs, batch, replace(method.pixel_optim, schedule=schedule))
    old = setup.images["kept"] > 0
    names = [NEW] * method.learns + [HALF_A, HALF_B] * (method.adjusts and old)
    found = [
        Phase(name, partial(pixel_step, method, name), training,
              partial(outer_images, method, name), trains=(name,), mode="eval",
              masks=partial(held, method, name))
        for name in names
    ]  # fmt: skip
    if method.finetuning and old:
        plain = Optim(method.inner_lr, 0.0, 0.0, Schedule("constant"))
        found.append(
            Phase("fine-tuning on exemplars", partial(finetune_step, method),
                  Training(method.finetuning, batch, plain), partial(exemplars, method),
                  mode="eval")
        )  # fmt: skip
    if found:
        found[0] = replace(found[0], prepare=choose)
    return tuple(found)
