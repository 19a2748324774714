"""Deep generative replay: its VAE, what a step computes, and what is kept."""

import copy
import dataclasses

import pytest
import torch
import toys
from torch import nn

from edgecil import registry
from edgecil.data.images import ImageSet
from edgecil.data.pixels import from_unit, to_unit
from edgecil.engine.increment import begin
from edgecil.engine.loop import PhaseRun
from edgecil.engine.selection import dimensions
from edgecil.errors import BudgetError, TrainingError
from edgecil.learning.planning import kept_plan
from edgecil.memory.budget import Budget
from edgecil.memory.plan import plan
from edgecil.method import Origin
from edgecil.methods.dgr import REPLAY, VAE, Options, kept_images, kept_vae, vae_optim
from edgecil.nets.net import NetSpec
from edgecil.settings import CIFAR, Optim, Preprocess, Schedule
from edgecil.synthesis.vae import VaeSpec

TINY = VaeSpec(2, 8)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model of three classes, with its VAE."""
    return toys.learn("dgr", (3,), tmp_path_factory.mktemp("base"))[0].model


def started(previous, sizes=(3, 2), preprocess=CIFAR, training=toys.TRAINING, **options):
    """Return the context of an increment, its phase and its run."""
    given = toys.task("dgr", sizes, previous, options=options, training=training)
    new = toys.image_set(range(sum(sizes[:-1]), sum(sizes)))
    for axis in (1, 2):
        pixels = new.pixels.repeat_interleave(preprocess.resize // toys.SIDE, axis)
        new = ImageSet(pixels, new.labels)
    session = dataclasses.replace(toys.session(), preprocess=preprocess)
    ctx, (phase,) = begin(given, toys.sets_of(given, new), session)
    return ctx, phase, PhaseRun(ctx, phase, 0, session)


def arrays(vae):
    return {name: value.clone() for name, value in vae.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


class TestVae:
    def test_at_32_pixels_it_has_the_published_number_of_parameters(self):
        with torch.device("meta"):
            vae = Options().spec.build(32)
        assert sum(p.numel() for p in vae.parameters()) == 28_722_179

    def test_at_32_pixels_the_plan_says_what_is_published(self):
        recipe = registry.build("dgr")
        kept = kept_plan(recipe, NetSpec("resnet32"), (10, 10), 32, Budget(), [500] * 20)
        assert kept.exact and 0 <= kept.kept_bytes - 4 * 28_722_179 < 2000

    @pytest.mark.parametrize("size", [8, 28, 31, 32, 33, 64, 100])
    def test_images_of_any_size_come_back_in_their_size(self, size):
        vae = TINY.build(size)
        images = torch.rand(2, 3, size, size)
        logits, mean, log_variance = vae(images, vae.noise(2))
        assert logits.shape == images.shape and mean.shape == log_variance.shape == (2, 8)
        drawn = vae.draw(3)
        assert drawn.shape == (3, 3, size, size) and not drawn.requires_grad
        assert 0 <= drawn.min() <= drawn.max() <= 1
        assert vae.inner[1] <= 6
        assert TINY(size) == {n: tuple(v.shape) for n, v in vae.state_dict().items()}

    def test_ranks_draw_parts_of_the_same_images(self):
        vae = TINY.build(32)
        torch.manual_seed(0)
        whole = vae.draw(5)
        torch.manual_seed(0)
        assert torch.allclose(vae.draw(3, skip=2), whole[2:], atol=1e-6)

    def test_latents_are_reparametrised(self):
        vae = TINY.build(32)
        images, noise = torch.rand(2, 3, 32, 32), torch.randn(2, 8)
        logits, mean, log_variance = vae(images, noise)
        wanted = vae.decode(mean + torch.exp(log_variance) ** 0.5 * noise)
        assert torch.allclose(logits, wanted, atol=1e-5)

    def test_it_learns_to_draw_what_it_sees(self):
        torch.manual_seed(0)
        vae = VaeSpec(4, 8).build(32)
        images = toys.image_set(range(2), 16).pixels.permute(0, 3, 1, 2) / 255
        optimiser = torch.optim.Adam(vae.parameters(), 3e-3)
        before = float((vae.draw(64).mean(0) - images.mean(0)).abs().mean())
        for _ in range(80):
            logits, mean, log_variance = vae(images, vae.noise(32))
            loss = nn.functional.binary_cross_entropy_with_logits(logits, images)
            spread = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum() / images.numel()
            optimiser.zero_grad()
            (loss + spread).backward()
            optimiser.step()
        after = float((vae.draw(64).mean(0) - images.mean(0)).abs().mean())
        assert after < 0.5 * before


def test_normalised_images_and_those_in_0_1_are_the_same():
    pixels = torch.randint(256, (2, 3, 8, 8)) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CIFAR.mean, CIFAR.std))
    normalised = (pixels - mean) / std
    assert torch.allclose(to_unit(normalised, CIFAR), pixels, atol=1e-6)
    assert torch.allclose(from_unit(pixels, CIFAR), normalised, atol=1e-5)
    assert to_unit(10 * normalised, CIFAR).aminmax() == (0, 1)


def test_terms_equal_a_plain_reference(base):
    ctx, phase, run = started(base, mu=0.7, temperature=3.0)
    batch = run._batch(0)
    n = len(batch.labels)
    replay, vae = ctx.teachers[REPLAY], ctx.modules[VAE]
    solver = copy.deepcopy(ctx.net).double().train()
    seen = []
    ctx.net.register_forward_hook(lambda module, args, outputs: seen.append(args[0].detach()))
    torch.manual_seed(1)
    terms = phase.step(ctx, batch)
    torch.manual_seed(1)
    drawn = replay.draw(n)
    noise = vae.noise(2 * n)
    (shown,) = seen  # one pass of the student
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CIFAR.mean, CIFAR.std))
    assert 0 <= drawn.min() <= drawn.max() <= 1
    assert torch.equal(shown[:n], batch.images)
    assert torch.allclose(shown[n:], (drawn - mean) / std, atol=1e-5)
    with torch.no_grad():
        taught = copy.deepcopy(ctx.teachers["previous"]).double()(shown[n:].double()).logits[:, :3]
        logits = solver(shown.double()).logits
        rebuilt, centre, log_variance = copy.deepcopy(vae).double()(
            torch.cat([batch.images * std + mean, drawn]).double(), noise.double()
        )
    labels = torch.cat([batch.labels, taught.argmax(1)])
    weights = torch.where(labels < 3, 3 / 5, 2 / 5).double()
    ce = nn.functional.cross_entropy(logits, labels, reduction="none")
    soft = torch.softmax(taught / 3, dim=1)
    kd = -(soft * torch.log_softmax(logits[n:, :3] / 3, dim=1)).sum(1).mean()
    unit = torch.cat([batch.images * std + mean, drawn]).double().clamp(0, 1)
    shares = torch.sigmoid(rebuilt)
    bce = -(unit * shares.log() + (1 - unit) * (1 - shares).log()).mean(dim=(1, 2, 3))
    spread = 0.5 * (centre**2 + log_variance.double().exp() - 1 - log_variance).sum(1).mean()
    wanted = {
        "classification": (1.0, (weights * ce).mean(), {"backbone", "head"}),
        "distillation": (0.7, kd, {"backbone", "head"}),
        "reconstruction": (1.0, (weights * bce).mean(), {VAE}),
        "latent divergence": (1.0, spread / (3 * 32 * 32), {VAE}),
    }
    assert terms.keys() == wanted.keys()
    for name, (weight, value, groups) in wanted.items():
        assert terms[name].weight == weight and set(terms[name].to) == groups, name
        assert float(terms[name].value.detach()) == pytest.approx(float(value), rel=2e-4), name


def test_images_are_drawn_from_what_is_kept_and_normalised(base):
    torch.manual_seed(4)
    wanted = kept_vae(base.kept, 32).draw(5)
    torch.manual_seed(4)
    drawn = registry.build("dgr").draws(base.kept, CIFAR, 5)
    assert drawn.shape == (5, 3, 32, 32) and not drawn.requires_grad
    assert torch.allclose(to_unit(drawn, CIFAR), wanted, atol=1e-6)
    assert len(kept_images(base.kept, CIFAR, 70)) == 70


def test_at_the_base_nothing_is_replayed_and_the_vae_is_trained():
    ctx, phase, run = started(None, (3,))
    assert not ctx.teachers
    batch = run._batch(0)
    logits = copy.deepcopy(ctx.net).train()(batch.images).logits
    terms = phase.step(ctx, batch)
    assert set(terms) == {"classification", "reconstruction", "latent divergence"}
    wanted = nn.functional.cross_entropy(logits, batch.labels)
    assert torch.allclose(terms["classification"].value, wanted)
    before = arrays(ctx.modules[VAE])
    run.run()
    assert not same(before, arrays(ctx.modules[VAE]))


def test_without_distillation_the_term_is_gone(base):
    ctx, phase, run = started(base, mu=0.0)
    assert "distillation" not in phase.step(ctx, run._batch(0))


def test_the_old_vae_stays_and_the_new_one_goes_on_from_it(base):
    kept = {n: torch.from_numpy(a) for n, a in base.kept.read(VAE).items()}
    ctx, _, run = started(base)
    old, new = ctx.teachers[REPLAY], ctx.modules[VAE]
    assert same(arrays(old), kept) and same(arrays(new), kept)
    run.run()
    assert same(arrays(old), kept) and not same(arrays(new), kept)
    assert not any(p.requires_grad for p in old.parameters())
    assert not {p.data_ptr() for p in old.parameters()} & {p.data_ptr() for p in new.parameters()}


def test_a_vae_of_other_sizes_replays_and_another_is_begun(base):
    ctx, phase, run = started(base, vae_width=3)
    assert ctx.teachers[REPLAY].spec == TINY and ctx.modules[VAE].spec == VaeSpec(3, 8)
    phase.step(ctx, run._batch(0))
    run.run()


def test_the_optimiser_is_the_classifiers_or_adam():
    schedule = Schedule("step", (0.4, 0.6))
    classifier = Optim(0.1, 0.9, 2e-4, schedule)
    assert vae_optim(Options(), classifier) == Optim(0.1, 0.9, 0.0, schedule)
    assert vae_optim(Options(vae_lr=0.3), classifier).lr == 0.3
    adam = vae_optim(Options(vae_optimiser="adam"), classifier)
    assert (adam.kind, adam.lr, adam.schedule) == ("adam", 1e-3, schedule)
    ctx, _, run = started(None, (3,), vae_optimiser="adam")
    kinds = {type(o): o for _, o in run.optimisers._parts}
    assert set(kinds) == {torch.optim.SGD, torch.optim.Adam}
    held = {p for g in kinds[torch.optim.Adam].param_groups for p in g["params"]}
    assert held == set(ctx.modules[VAE].parameters())


def test_kept_bytes_are_planned_and_measured_alike_and_go_through_a_file(base, tmp_path):
    sizes = dimensions(NetSpec("resnet8"), (3,), toys.SIDE)
    recipe = toys.built("dgr")
    planned = plan(recipe.fields, sizes)
    assert planned.exact and planned.kept_bytes == base.kept.report().kept_bytes
    base.kept.save(tmp_path / "memory")
    loaded = type(base.kept).load(tmp_path / "memory", recipe.fields)
    vae = TINY.build(toys.SIDE, loaded.read(VAE))
    ctx, _, _ = started(base)
    assert same(arrays(vae), arrays(ctx.teachers[REPLAY]))


def test_shapes_are_those_of_the_networks_input_not_of_stored_images(tmp_path):
    preprocess = Preprocess(24, 32, CIFAR.mean, CIFAR.std)
    ctx, _, _ = started(None, (3,), preprocess)
    sizes = dimensions(NetSpec("resnet8"), (3,), 32, size=24)
    (field,) = toys.built("dgr").fields
    made = {n: tuple(v.shape) for n, v in ctx.modules[VAE].state_dict().items()}
    assert sizes.shapes(field) == made


def test_larger_images_are_learned():
    size = 64
    preprocess = Preprocess(size, size, CIFAR.mean, CIFAR.std)
    training = dataclasses.replace(toys.TRAINING, batch_size=4)
    ctx, _, run = started(None, (3,), preprocess, training)
    run.step(0)
    assert ctx.modules[VAE].draw(2).shape == (2, 3, size, size)


def test_a_budget_smaller_than_the_vae_is_refused_before_training():
    recipe = toys.built("dgr")
    whole = plan(recipe.fields, dimensions(NetSpec("resnet8"), (3,), 32)).kept_bytes
    with pytest.raises(BudgetError, match="keeps at least"):
        kept_plan(recipe, NetSpec("resnet8"), (3,), 32, Budget(bytes=whole - 1), [12] * 3)
    kept_plan(recipe, NetSpec("resnet8"), (3,), 32, Budget(bytes=whole), [12] * 3)
    with pytest.raises(BudgetError):
        kept_plan(
            registry.build("dgr"), NetSpec("resnet32"), (10,), 32, Budget(bytes=100_000_000),
            [500] * 10,
        )  # fmt: skip


def test_it_continues_only_from_a_version_with_a_vae(base):
    recipe = toys.built("dgr")
    fields = tuple(base.kept.field(name) for name in base.kept.names)
    assert recipe.adopt(Origin("dgr", "softmax", "argmax", fields)) is None
    assert "none is kept" in recipe.adopt(Origin("finetune", "softmax", "argmax"))
    assert "softmax" in recipe.adopt(Origin("dgr", "sigmoid", "argmax", fields))


def test_a_vae_that_became_nan_in_the_last_step_is_not_kept(tmp_path, monkeypatch):
    run = PhaseRun.run

    def spoilt(self, first=0):
        run(self, first)
        nn.init.constant_(self.ctx.modules[VAE].mean.bias, float("nan"))

    monkeypatch.setattr(PhaseRun, "run", spoilt)
    with pytest.raises(TrainingError, match=r"vae\.mean\.bias") as caught:
        toys.learn("dgr", (2,), tmp_path, count=4)
    assert "vae_lr" in caught.value.hint
