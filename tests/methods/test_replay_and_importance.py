"""What single methods promise beyond the contract: balance, held-out images, importance."""

import copy
import dataclasses
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toys
from torch.nn import functional as F

from edgecil.context import Classes, class_means
from edgecil.data.loader import evaluation_batches
from edgecil.engine import increment
from edgecil.engine.increment import begin
from edgecil.engine.loop import PhaseRun
from edgecil.errors import TrainingError
from edgecil.exporting.graph import core_graph, core_module
from edgecil.memory.budget import Budget
from edgecil.methods import bic, lucir
from edgecil.parts.importance import fisher, penalty, per_image, sensitivity
from edgecil.parts.views import balanced, first_of_each, half_old, remember_trained
from edgecil.rankings import interleave
from edgecil.settings import CIFAR


def context(method, sizes, folder, **changes):
    """Return the context at the start of the last of several increments."""
    *before, _ = sizes
    previous = toys.learn(method, tuple(before), folder, **changes)[-1].model if before else None
    given = toys.task(method, sizes, previous, **changes)
    first = sum(before)
    new = toys.image_set(range(first, sum(sizes)))
    ctx, phases = begin(given, toys.sets_of(given, new), toys.session())
    return ctx, phases


class TestImportance:
    def reference(self, ctx, images, score, fold):
        """One backward pass per image."""
        net = ctx.net.eval()
        names = [n for n, _ in net.backbone.named_parameters()]
        total = {n: torch.zeros(p.shape) for n, p in net.backbone.named_parameters()}
        net.requires_grad_(True)
        for image in torch.cat(list(ctx.loader(images))):
            value = score(net(image[None]), torch.tensor(0.5))
            grads = torch.autograd.grad(value, list(net.backbone.parameters()))
            for name, grad in zip(names, grads, strict=True):
                total[name] += fold(grad) / len(images)
        return total

    @pytest.mark.parametrize("fold", [torch.square, torch.abs])
    def test_is_the_mean_over_single_images(self, fold, tmp_path, monkeypatch):
        ctx, _ = context("ewc", (3,), tmp_path)
        images = toys.image_set(range(3), 3)

        def score(outputs, noise):
            logits = outputs.logits.float()
            return logits[0, 0] * noise + logits[0].square().sum()

        ctx.stream = lambda name: torch.Generator().manual_seed(0)
        monkeypatch.setattr(torch, "rand", lambda n, generator: torch.full((n,), 0.5))
        found = per_image(ctx, images, score, fold)
        wanted = self.reference(ctx, images, score, fold)
        assert found.keys() == wanted.keys()
        for name, value in found.items():
            assert torch.allclose(value, wanted[name], rtol=2e-3, atol=1e-6), name

    def test_fisher_is_of_the_class_that_is_drawn_from_the_softmax(self, tmp_path, monkeypatch):
        ctx, _ = context("ewc", (3,), tmp_path)
        images = toys.image_set(range(3), 4)
        draws = torch.linspace(0.02, 0.98, len(images))
        monkeypatch.setattr(torch, "rand", lambda n, generator: draws[:n])
        found = fisher(ctx, images)
        net = copy.deepcopy(ctx.net).eval().requires_grad_(True)
        weights = dict(net.backbone.named_parameters())
        wanted = {name: torch.zeros_like(value) for name, value in weights.items()}
        drawn = []
        for image, draw in zip(torch.cat(list(ctx.loader(images))), draws, strict=True):
            logs = torch.log_softmax(net(image[None]).logits[0, :3], dim=0)
            drawn.append(int(torch.searchsorted(logs.detach().exp().cumsum(0), draw)))
            slopes = torch.autograd.grad(logs[drawn[-1]], list(weights.values()))
            for name, slope in zip(weights, slopes, strict=True):
                wanted[name] += slope.square() / len(images)
        assert len(set(drawn)) == 3  # neither the labels nor the likeliest classes
        for name, value in found.items():
            torch.testing.assert_close(value, wanted[name], rtol=2e-3, atol=1e-7)

    @pytest.mark.parametrize("measure", [fisher, sensitivity])
    def test_does_not_depend_on_the_batch_size(self, measure, tmp_path):
        ctx, _ = context("ewc", (3,), tmp_path)
        images, session = toys.image_set(range(3), 4), toys.session()
        found = []
        for size in (12, 5):
            ctx.loader = partial(
                evaluation_batches, preprocess=session.preprocess, batch_size=size, device="cpu"
            )
            found.append(measure(ctx, images))
        for name, value in found[0].items():
            assert torch.allclose(value, found[1][name], rtol=1e-3, atol=1e-8), name

    @pytest.mark.parametrize("measure", [fisher, sensitivity])
    def test_is_measured_in_eval_mode_and_leaves_the_network_alone(self, measure, tmp_path):
        ctx, _ = context("ewc", (3,), tmp_path)
        images = toys.image_set(range(3), 4)
        ctx.net.eval()
        wanted = measure(ctx, images)
        before = {name: value.clone() for name, value in ctx.net.state_dict().items()}
        found = measure(ctx, images)
        ctx.net.train()
        trained = measure(ctx, images)
        for name, value in wanted.items():
            assert torch.equal(value, found[name]) and torch.equal(value, trained[name])
        assert all(torch.equal(v, before[k]) for k, v in ctx.net.state_dict().items())

    @pytest.mark.parametrize(("method", "factor"), [("ewc", 0.5), ("mas", 1.0)])
    def test_beyond_what_a_step_can_follow_it_diverges_and_a_clamped_one_holds(
        self, method, factor, tmp_path
    ):
        training = toys.TRAINING.updated(epochs=10)
        (base,) = toys.learn(method, (3,), tmp_path, training=training)
        (field,) = base.model.kept.names
        importance = {n: torch.from_numpy(v) for n, v in base.model.kept.read(field).items()}
        largest = max(float(v.max()) for v in importance.values())
        # lr 2 s F = 2 (1 + m) is where plain descent with momentum begins to diverge.
        strength = 2 * (1 + 0.9) / (2 * factor * training.optim.lr * largest)
        new = toys.image_set(range(3, 5))

        def learn(times, clamp):
            options = {"strength": times * strength, "clamp": clamp}
            given = toys.task(method, (3, 2), base.model, training=training, options=options)
            return increment.train(given, toys.sets_of(given, new), toys.session()).model.net

        with pytest.raises(TrainingError) as caught:
            learn(100, False)
        assert "--set strength" in caught.value.hint and "clamp" in caught.value.hint
        moved = [
            float(penalty(learn(times, True), base.model.net, importance)) for times in (1e-4, 100)
        ]
        assert moved[1] < 0.1 * moved[0]

    @pytest.mark.parametrize(("method", "factor"), [("ewc", 0.5), ("mas", 1.0)])
    def test_the_penalty_is_that_of_the_paper(self, method, factor, tmp_path):
        """EWC, eq. (3): lambda / 2 sum F d^2; MAS, eq. (4): lambda sum Omega d^2."""
        options = {"strength": 7.0, "clamp": False}
        ctx, phases = context(method, (3, 2), tmp_path, options=options)
        run = PhaseRun(ctx, phases[0], 0, toys.session())
        with torch.no_grad():
            for parameter in ctx.net.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        term = phases[0].step(ctx, run._batch(0))["penalty"]
        (kept,) = ctx.kept.names
        before, now = ctx.previous.state_dict(), ctx.net.state_dict()
        distance = sum(
            float((torch.tensor(value).double() * (now[name] - before[name]).square()).sum())
            for name, value in ctx.kept.read(kept).items()
        )
        assert distance > 0 and term.to == ("backbone",)
        wanted = 7.0 * factor * distance
        assert float(term.value.detach()) * term.weight == pytest.approx(wanted, rel=1e-4)

    def test_the_penalty_is_the_weighted_square_distance(self, tmp_path):
        ctx, _ = context("ewc", (3, 2), tmp_path)
        importance = {
            n: torch.rand(p.shape) for n, p in ctx.net.named_parameters() if "backbone" in n
        }
        assert penalty(ctx.net, ctx.previous, importance) == 0
        with torch.no_grad():
            for parameter in ctx.net.parameters():
                parameter.add_(0.5)
        wanted = 0.25 * sum(float(v.double().sum()) for v in importance.values())
        assert float(penalty(ctx.net, ctx.previous, importance)) == pytest.approx(wanted, rel=1e-4)

    @pytest.mark.parametrize("method", ["ewc", "mas", "mas+muc"])
    def test_rows_that_no_loss_reaches_stay_to_the_bit(self, method, tmp_path):
        decay = toys.TRAINING.updated(weight_decay=0.1)
        first, second, third = (
            o.model.net.head for o in toys.learn(method, (2, 2, 1), tmp_path, training=decay)
        )
        for name in ("weight", "bias"):
            rows = [getattr(head, name) for head in (first, second, third)]
            assert torch.equal(rows[0], rows[1][:2])
            assert not torch.equal(rows[1], rows[2][:4])  # one new class: the loss is over all
        options = {"ce_scope": "seen"}
        *_, last = toys.learn(method, (2, 2), tmp_path / "s", training=decay, options=options)
        assert not torch.equal(last.model.net.head.bias[:2], first.bias)

    def test_a_strong_penalty_keeps_the_weights_and_none_lets_them_go(self, tmp_path):
        moved = []
        training = toys.TRAINING.updated(epochs=8, lr=0.005)
        for number, strength in enumerate((0.0, 10.0)):
            first, second = toys.learn(
                "mas", (2, 2), tmp_path / str(number), options={"strength": strength},
                training=training,
            )  # fmt: skip
            pairs = zip(
                first.model.net.backbone.parameters(), second.model.net.backbone.parameters(),
                strict=True,
            )  # fmt: skip
            importance = first.model.kept.read("sensitivity")
            weights = [torch.from_numpy(v) for v in importance.values()]
            moved.append(
                sum(
                    float((w * (a - b).square()).sum())
                    for w, (a, b) in zip(weights, pairs, strict=True)
                )
            )
        assert moved[1] < 0.9 * moved[0]


class TestBalancedViews:
    def test_every_class_has_equally_many_images(self, tmp_path):
        ctx, _ = context("eeil", (3, 2), tmp_path)
        remember_trained(ctx)
        counts = torch.bincount(balanced(ctx).labels)
        assert counts.tolist() == [5] * 5  # what the store holds of each old class

    def test_a_new_class_with_few_images_sets_the_number(self, tmp_path):
        ctx, _ = context("eeil", (3, 2), tmp_path)
        new = ctx.sets["new"]
        few = torch.cat(
            [torch.nonzero(new.labels == 3)[:2, 0], torch.nonzero(new.labels == 4)[:, 0]]
        )
        ctx.sets["new"] = new.subset(few)
        remember_trained(ctx)
        assert torch.bincount(balanced(ctx).labels).tolist() == [2] * 5

    def test_exemplars_of_the_oversampled_view_are_half_and_the_store_stays_unique(self, tmp_path):
        ctx, _ = context("lwf-coreset", (3, 2), tmp_path)
        view = half_old(ctx)
        assert int((view.labels < 3).sum()) == int((view.labels >= 3).sum()) == 24
        outcomes = toys.learn("lwf-coreset", (3, 2, 1), tmp_path / "more")
        for outcome in outcomes:
            stored = outcome.model.kept.read("exemplars.images").reshape(-1, 32 * 32 * 3)
            assert len(np.unique(stored, axis=0)) == len(stored)

    def test_the_first_of_each_class_come_in_order(self):
        labels = torch.tensor([2, 0, 2, 1, 0, 2, 0])
        assert first_of_each(labels, 2).tolist() == [0, 1, 2, 3, 4]


class TestBic:
    def test_held_out_images_are_never_trained_on(self, tmp_path, monkeypatch):
        seen = set()
        step = bic.step

        def remember(options, ctx, batch):
            rows = ctx.view.pixels[batch.index].flatten(1)
            seen.update(map(bytes, rows.numpy()))
            return step(options, ctx, batch)

        monkeypatch.setattr(bic, "step", remember)
        for outcome in toys.learn("bic", (2, 2, 1), tmp_path, budget=Budget(per_class=10)):
            flags = outcome.model.kept.read(bic.HELD.name)
            images = outcome.model.kept.read("exemplars.images").reshape(len(flags), -1)
            assert 0 < flags.sum() < len(flags)
            assert not {bytes(image) for image in images[flags]} & seen
        assert seen

    def test_every_prefix_of_the_ranking_holds_its_share(self):
        trained, held = torch.arange(450), 1000 + torch.arange(50)
        merged = interleave([trained, held], [450, 50])
        assert merged[merged < 1000].tolist() == trained.tolist()
        for length in range(10, 500, 10):
            assert int((merged[:length] >= 1000).sum()) == length // 10
        assert all(1000 in merged[:length] for length in range(2, 10))
        assert interleave([trained[:0], held], [0, 50]).tolist() == held.tolist()

    def noted(self, ctx):
        said = []
        ctx.note = said.append
        bic.begin(bic.Options(), ctx)
        return said

    @pytest.mark.parametrize("fit", ["exact", "early-stopped"])
    def test_two_exemplars_of_each_class_suffice_to_fit_the_bias(self, fit, tmp_path):
        few = {"budget": Budget(per_class=2), "options": {"fit": fit, "fit_epochs": 20}}
        first, second = toys.learn("bic", (2, 2), tmp_path, **few)
        assert first.model.kept.read(bic.HELD.name).tolist() == [False, True] * 2
        assert second.model.rule.scale[2] != 1

    def test_one_exemplar_of_each_class_cannot_and_it_is_said_before_training(self, tmp_path):
        ctx, _ = context("bic", (2, 2), tmp_path, budget=Budget(per_class=1))
        (said,) = self.noted(ctx)
        assert "stays as it is" in said
        assert bic.rule(bic.Options(), ctx).scale.tolist() == [1] * 4

    def test_a_rare_class_is_left_out_of_the_fit_and_the_others_are_corrected(self, tmp_path):
        ctx, _ = context("bic", (2, 2), tmp_path, budget=Budget(per_class=10))
        ctx.note = lambda text: None
        new = ctx.sets["new"]
        ctx.sets["new"] = new.subset(torch.cat([torch.arange(12), torch.arange(12, 15)]))
        (said,) = self.noted(ctx)
        assert "1 of 4 classes" in said
        found = bic.rule(bic.Options(), ctx)
        assert found.scale[2] == found.scale[3] != 1
        with torch.no_grad():  # what the rare class says takes no part
            ctx.net.head.bias[3] += 7
        assert torch.equal(bic.rule(bic.Options(), ctx).scale, found.scale)

    def test_all_pairs_stay_where_the_last_one_replaces_the_others(self, tmp_path):
        rules = {
            kind: toys.learn(
                "bic", (2, 2, 2), tmp_path / kind, budget=Budget(per_class=10),
                options={"pairs": kind},
            )[-1].model.rule
            for kind in ("last", "all")
        }  # fmt: skip
        assert rules["last"].scale[:4].tolist() == [1] * 4
        assert rules["all"].scale[:2].tolist() == [1] * 2
        assert rules["all"].scale[2] == rules["all"].scale[3] != 1


def test_class_means_are_exact_and_added_up_in_a_fixed_order(monkeypatch):
    """``index_add_`` would not be: on a GPU it adds in any order."""
    draws = torch.Generator().manual_seed(0)
    images = toys.image_set(range(4), 7)
    features = {m: torch.randn(len(images), 16, generator=draws) for m in (False, True)}
    ctx = SimpleNamespace(
        device=torch.device("cpu"), classes=Classes((2, 2)),
        features=lambda given, mirror=False: features[mirror],
    )  # fmt: skip
    for name in ("index_add_", "index_add", "scatter_add_", "index_put_"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, n=name: pytest.fail(n))
    for mirror in (False, True):
        found = class_means(ctx, images, 0, mirror=mirror)
        units = [F.normalize(features[m].double()) for m in {False, mirror}]
        sums = [sum(u[images.labels == c].sum(0) for u in units) for c in range(4)]
        wanted = F.normalize(torch.stack(sums)).float()
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)


class TestLucir:
    def test_old_rows_stay_to_the_bit_and_new_ones_are_imprinted(self, tmp_path):
        first, second = toys.learn("lucir", (3, 2), tmp_path)
        assert torch.equal(first.model.net.head.weight, second.model.net.head.weight[:3])
        ctx, _ = context("lucir", (3, 2), tmp_path / "again")
        features = ctx.features(ctx.sets["new"])
        cosines = ctx.net.head.cosines(features)[:, 3:]
        own = cosines.gather(1, ctx.sets["new"].labels[:, None] - 3)
        assert own.mean() > cosines.mean()

    def test_the_margin_is_of_cosines_whatever_their_scale(self, tmp_path):
        ctx, phases = context("lucir", (3, 2), tmp_path)
        batch = PhaseRun(ctx, phases[0], 0, toys.session())._batch(0)
        found = []
        for eta in (1.0, 20.0):
            ctx.net.head.eta.data.fill_(eta)
            ctx.net.eval()
            found.append(float(phases[0].step(ctx, batch)["margin ranking"].value.detach()))
        assert found[0] == found[1] > 0

    def test_fine_tuning_moves_the_head_and_nothing_else(self, tmp_path):
        ctx, phases = context("lucir", (3, 2), tmp_path, options={"balanced_finetuning": True})
        assert [p.name for p in phases] == ["train", "class-balanced fine-tuning"]
        assert phases[1].trains == ("head",) and phases[1].mode == "eval"
        assert lucir.new_rows(ctx)["head.weight"].sum(dim=1).tolist() == [0, 0, 0, 64, 64]

    @pytest.fixture(scope="class")
    @classmethod
    def mobile(cls, tmp_path_factory):
        """Two increments on a network whose head has a hidden layer."""
        return toys.learn(
            "lucir", (3, 2), tmp_path_factory.mktemp("mobile"), count=6,
            arch="mobilenet_v3_small", training=toys.TRAINING.updated(epochs=1),
        )  # fmt: skip

    def test_a_hidden_layer_is_part_of_the_features(self, mobile, tmp_path):
        first, second = (outcome.model.net for outcome in mobile)
        assert torch.equal(first.head.rows.weight, second.head.rows.weight[:3])
        given = toys.task("lucir", (3, 2), mobile[0].model, arch="mobilenet_v3_small")
        ctx, phases = begin(given, toys.sets_of(given, toys.image_set(range(3, 5))), toys.session())
        new = ctx.sets["new"]
        seen = F.normalize(ctx.net.head.hidden(ctx.features(new)).detach())
        means = torch.stack([F.normalize(seen[new.labels == c].mean(0), dim=0) for c in (3, 4)])
        torch.testing.assert_close(F.normalize(ctx.net.head.rows.weight[3:].detach()), means)
        run = PhaseRun(ctx, phases[0], 0, toys.session())
        run.step(0)
        with torch.no_grad():
            terms = phases[0].step(ctx, run._batch(0))
        assert terms["less-forget"].to == ("backbone", "head")
        assert float(terms["less-forget"].value) > 0

    def test_fine_tuning_holds_a_hidden_layer(self, mobile, tmp_path):
        given = toys.task(
            "lucir", (3, 2), mobile[0].model, arch="mobilenet_v3_small",
            options={"balanced_finetuning": True},
        )  # fmt: skip
        ctx, phases = begin(given, toys.sets_of(given, toys.image_set(range(3, 5))), toys.session())
        before = {k: v.clone() for k, v in ctx.net.state_dict().items()}
        phases[1].prepare(ctx)
        PhaseRun(ctx, phases[1], 1, toys.session()).step(0)
        moved = {k for k, v in ctx.net.state_dict().items() if not torch.equal(v, before[k])}
        assert moved == {"head.rows.weight", "head.rows.eta"}

    def test_the_graph_of_a_hidden_cosine_head_equals_torch(self, mobile):
        ort = pytest.importorskip("onnxruntime")
        model, images = mobile[-1].model, torch.randn(4, 3, 32, 32)
        core = core_graph(model.net, model.rule, CIFAR)
        session = ort.InferenceSession(core.SerializeToString())
        (found,) = session.run(None, {"normalised": images.numpy()})
        module = core_module(model.net, model.rule)
        assert found.shape == (4, 5)
        assert np.allclose(found, module(images).numpy(), atol=1e-4)

    def test_a_step_asks_the_device_nothing(self, tmp_path, monkeypatch):
        ctx, phases = context("lucir", (3, 2), tmp_path)
        batch = PhaseRun(ctx, phases[0], 0, toys.session())._batch(0)
        for asked in ("__bool__", "item", "tolist", "__float__", "__int__"):
            monkeypatch.setattr(torch.Tensor, asked, lambda *_, a=asked: pytest.fail(a))
        only_new = dataclasses.replace(batch, labels=torch.full_like(batch.labels, 4))
        for given in (batch, only_new):
            terms = phases[0].step(ctx, given)
        monkeypatch.undo()
        value = terms["margin ranking"].value
        assert float(value.detach()) == 0
        value.backward()
        assert not any(p.grad is not None and p.grad.any() for p in ctx.net.parameters())
