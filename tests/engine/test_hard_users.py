"""The interfaces under their hardest users, as toys that run: later methods stand on these."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
import toys
from torch import nn
from torch.func import functional_call

from edgecil.data.images import concat
from edgecil.engine import increment
from edgecil.losses.classification import cross_entropy
from edgecil.losses.distillation import sigmoid_losses
from edgecil.memory.fields import Field, exemplar_fields
from edgecil.method import ModuleSpec, Phase, Recipe, Selection, Term, one_phase, previous_net
from edgecil.nets.taps import freeze
from edgecil.rankings import random_ranking
from edgecil.settings import Optim, Training
from edgecil.synthesis.statistics import batch_statistics


def plain_step(ctx, batch):
    span = slice(0, ctx.classes.seen)
    return {"ce": Term(cross_entropy(ctx.net(batch.images).logits, batch.labels, span))}


def train(recipe, groups, previous=None, **changes):
    """Return the outcome of an increment with a recipe that is not registered."""
    given = dataclasses.replace(toys.task("finetune", groups, previous), recipe=recipe)
    given = dataclasses.replace(given, **changes)
    first = sum(groups[:-1])
    new = toys.image_set(range(first, first + groups[-1]))
    return increment.train(given, toys.sets_of(given, new), toys.session())


def conv_weights(net):
    return {n: p for n, p in net.named_parameters() if p.ndim == 4}


class TestMasksAndSnapshots:
    """M2KD in small: prune, freeze what the increment owns, rebuild the old snapshot."""

    FIELDS = (
        Field("labels", "conv-weights", "which increment owns a weight", "U8"),
        Field("batchnorm", "batchnorm", "statistics of every snapshot", per_increment=True),
        Field("rows", ("C_new", "D"), "head rows of every snapshot", per_increment=True),
    )

    @staticmethod
    def prune(ctx):
        t = ctx.classes.increment
        owned = ctx.kept.read("labels") if "labels" in ctx.kept else {}
        labels = {}
        for name, weight in conv_weights(ctx.net).items():
            before = owned.get(name, np.zeros(tuple(weight.shape), np.uint8))
            free = before == 0
            size = np.where(free, weight.detach().abs().numpy(), 0)
            keep = free & (size > np.quantile(size[free], 0.5))
            labels[name] = np.where(keep, t, before).astype(np.uint8)
            weight.data *= torch.from_numpy(labels[name] > 0)
        ctx.scratch["labels"] = labels

    @staticmethod
    def masks(value, ctx):
        labels = ctx.scratch.get("labels") or (
            ctx.kept.read("labels") if "labels" in ctx.kept else {}
        )
        return {
            name: torch.from_numpy(labels[name] == value)
            for name in conv_weights(ctx.net)
            if name in labels
        }

    def phases(self, setup):
        t = setup.classes.increment
        return (
            Phase("train", plain_step, setup.training, masks=partial(self.masks, 0)),
            Phase("fine-tune", plain_step, setup.training, prepare=self.prune,
                  masks=partial(self.masks, t)),
        )  # fmt: skip

    @staticmethod
    def end(ctx):
        t, span = ctx.classes.increment, ctx.classes.spans[-1]
        for name in ("batchnorm", "rows") if t > 1 else ():
            ctx.keeps.copy(name, ctx.kept)
        state = ctx.net.state_dict()
        ctx.keeps.write("labels", ctx.scratch["labels"])
        names = [n for n in state if "bn" in n and not n.endswith("tracked")]
        ctx.keeps.write("batchnorm", {n: state[n].numpy() for n in names}, t)
        ctx.keeps.write("rows", ctx.net.head.weight[span].numpy(), t)

    def test_the_first_snapshot_is_rebuilt_to_the_bit_after_the_second_increment(self):
        recipe = Recipe("toy-m2kd", self.phases, fields=self.FIELDS, end=self.end)
        first = train(recipe, (3,)).model
        # Weight decay and momentum are on: neither may move an owned weight.
        second = train(recipe, (3, 2), first).model
        kept = second.kept
        snapshot = freeze(second.net)
        labels = kept.read("labels")
        for name, weight in conv_weights(snapshot).items():
            weight.data *= torch.from_numpy(labels[name] == 1)
        snapshot.load_state_dict(
            {n: torch.from_numpy(v) for n, v in kept.read("batchnorm", 1).items()}, strict=False
        )
        for name, weight in conv_weights(first.net).items():
            assert torch.equal(weight, conv_weights(snapshot)[name]), name
        images = torch.randn(4, 3, 32, 32)
        features = snapshot(images).features
        assert torch.equal(features, first.net(images).features)
        assert np.array_equal(kept.read("rows", 1), first.net.head.weight.numpy())
        assert (labels["backbone.conv1.weight"] == 2).any()


class Pixels(nn.Module):
    """Exemplar pixels as parameters ``(K, 3, 32, 32)``."""

    def __init__(self, start):
        super().__init__()
        self.values = nn.Parameter(start.clone())


class TestUnrolledExemplars:
    """Mnemonics in small: two inner steps, the outer loss reaches the pixels through them."""

    STEPS, RATE = 2, 0.1

    @staticmethod
    def build(ctx):
        torch.manual_seed(ctx.stream("pixels").initial_seed())
        return Pixels(torch.randn(3, 3, 32, 32))

    def step(self, ctx, batch):
        theta = {n: p.detach().requires_grad_() for n, p in ctx.net.named_parameters()}
        buffers = {n: b.clone() for n, b in ctx.net.named_buffers()}
        labels, span = torch.arange(3), slice(0, 3)

        def logits(weights, images):
            return functional_call(ctx.net, (weights, buffers), (images,)).logits

        for _ in range(self.STEPS):
            inner = cross_entropy(logits(theta, ctx.modules["pixels"].values), labels, span)
            grads = torch.autograd.grad(inner, list(theta.values()), create_graph=True)
            pairs = zip(theta.items(), grads, strict=True)
            theta = {n: p - self.RATE * g for (n, p), g in pairs}
        outer = cross_entropy(logits(theta, batch.images), batch.labels, span)
        ctx.scratch.setdefault("outer", []).append(outer.item())
        return {"outer": Term(outer, to=("pixels",))}

    def test_the_gradient_flows_through_the_unrolled_steps_into_the_pixels(self):
        kept = {}

        def phases(setup):
            optim = Optim(lr=5.0, weight_decay=0.0)
            return (
                Phase("train", plain_step, setup.training),
                Phase("exemplars", self.step, Training(12, 64, optim), trains=("pixels",),
                      mode="eval"),
            )  # fmt: skip

        def end(ctx):
            kept["net"] = {k: v.clone() for k, v in ctx.net.state_dict().items()}
            kept["moved"] = ctx.modules["pixels"].values.detach() - self.build(ctx).values.detach()
            kept["outer"] = ctx.scratch["outer"]

        recipe = Recipe(
            "toy-mnemonics", phases, modules=(ModuleSpec("pixels", self.build),), end=end
        )
        outcome = train(recipe, (3,))
        assert kept["moved"].abs().max() > 0
        assert np.mean(kept["outer"][-4:]) < np.mean(kept["outer"][:4])
        alone = train(Recipe("toy", one_phase(plain_step)), (3,))
        for name, value in alone.model.net.state_dict().items():
            assert torch.equal(value, outcome.model.net.state_dict()[name]), name


class TestGenerator:
    """MFGR or ABD in small: a generator that lives for one phase, then feeds the student."""

    @staticmethod
    def build(ctx):
        torch.manual_seed(ctx.stream("generator").initial_seed())
        return nn.Sequential(nn.Linear(8, 3 * 32 * 32), nn.Unflatten(1, (3, 32, 32)))

    @staticmethod
    def dream(ctx, batch):
        noise = torch.randn(6, 8)
        with batch_statistics(ctx.teachers["previous"]) as layers:
            logits = ctx.teachers["previous"](ctx.modules["generator"](noise)).logits
        statistics = sum(layer.mean.square().mean() for layer in layers)
        oneness = torch.nn.functional.cross_entropy(logits, logits.argmax(dim=1))
        return {
            "one-hot": Term(oneness, to=("generator",)),
            "statistics": Term(statistics, 0.1, to=("generator",)),
        }

    @staticmethod
    def learn(ctx, batch):
        with torch.no_grad():
            dreamed = ctx.modules["generator"](torch.randn(4, 8))
        images = torch.cat([batch.images, dreamed])
        teacher = ctx.teach("previous", images).logits
        outputs = ctx.net(images)  # one forward of the concatenation, as ABD
        labels = torch.cat([batch.labels, teacher[-4:].argmax(dim=1)])
        losses = sigmoid_losses(outputs.logits, labels, ctx.classes.old, teacher)
        head = ctx.net.head(outputs.features.detach())
        return {
            **{name: Term(value) for name, value in losses.items()},
            "fine-tuning": Term(
                cross_entropy(head, labels, slice(0, ctx.classes.seen)), to=("head",)
            ),
        }

    def phases(self, setup):
        if not setup.classes.old:
            return (Phase("train", plain_step, setup.training),)
        adam = Training(optim=Optim(lr=1e-3, kind="adam", weight_decay=0.0))
        return (
            Phase("dream", self.dream, adam, view=None, steps=5, trains=("generator",)),
            Phase("train", self.learn, setup.training),
        )

    def test_a_phase_without_images_trains_its_module_and_nothing_else(self):
        recipe = Recipe(
            "toy-abd", self.phases, teachers=previous_net,
            modules=(ModuleSpec("generator", self.build),),
        )  # fmt: skip
        first = train(recipe, (3,)).model
        before = {k: v.clone() for k, v in first.net.state_dict().items()}
        outcome = train(recipe, (3, 2), first)
        for name, value in first.net.state_dict().items():
            assert torch.equal(value, before[name])
        assert outcome.training_bytes["modules"] >= 4 * 8 * 3 * 32 * 32
        assert outcome.model.net.classes == 5


class TestHeldOut:
    """BiC in small: held-out images are never trained on, in any increment."""

    FLAG = Field("exemplars.held_out", ("K",), "kept apart for the bias stage", "BOOL")

    def recipe(self, seen):
        def begin(ctx):
            _, held = ctx.split(ctx.sets["new"], 0.25, "held-out")
            flags = np.zeros(len(ctx.sets["new"]), bool)
            flags[held.numpy()] = True
            ctx.columns["exemplars.held_out"] = flags

        def parts(ctx, held):
            sets = []
            for name in ("new", "kept"):
                images = ctx.sets[name]
                if not len(images):
                    continue
                flags = (
                    ctx.columns["exemplars.held_out"] if name == "new"
                    else ctx.kept.read("exemplars.held_out")
                )  # fmt: skip
                sets.append(images.subset(torch.from_numpy(flags == held)))
            return concat(sets)

        def remember(held, ctx, batch):
            rows = parts(ctx, held).pixels[batch.index].flatten(1).tolist()
            seen.setdefault(held, set()).update(map(tuple, rows))
            return plain_step(ctx, batch)

        def phases(setup):
            return (
                Phase("train", partial(remember, False), setup.training,
                      view=lambda ctx: parts(ctx, False)),
                Phase("bias", partial(remember, True), setup.training, trains=("head",),
                      view=lambda ctx: parts(ctx, True), mode="eval"),
            )  # fmt: skip

        return Recipe(
            "toy-bic", phases, begin=begin, fields=(*exemplar_fields(), self.FLAG),
            selection=Selection(random_ranking),
        )  # fmt: skip

    def test_training_and_bias_stage_never_share_an_image_over_three_increments(self):
        seen, previous, groups = {}, None, ()
        for size in (2, 2, 1):
            groups = (*groups, size)
            previous = train(self.recipe(seen), groups, previous).model
            flags = previous.kept.read("exemplars.held_out")
            assert 0 < flags.sum() < len(flags)
        assert seen[True] and seen[False]
        assert not seen[True] & seen[False]


def test_a_mask_on_something_that_is_not_trained_is_refused():
    def phases(setup):
        masks = {"backbone.conv1.weight": torch.ones(16, 3, 3, 3)}
        return (Phase("t", plain_step, setup.training, trains=("head",), masks=lambda ctx: masks),)

    with pytest.raises(KeyError, match=r"backbone\.conv1\.weight"):
        train(Recipe("toy", phases), (2,))
