"""Synthesis from a trained network: statistics, sources, collapse, and whole images."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
import toys
from torch import nn
from torch.nn import functional as F

from edgecil.data.pixels import limits, to_pixels
from edgecil.errors import AdoptError, TrainingError
from edgecil.losses.synthesis import LayerStatistics
from edgecil.nets.build import build
from edgecil.nets.net import Net, NetSpec
from edgecil.nets.taps import freeze
from edgecil.settings import CIFAR, Preprocess
from edgecil.synthesis.dreams import synthesise
from edgecil.synthesis.generator import Generator, generator_shapes
from edgecil.synthesis.objective import Inversion, total
from edgecil.synthesis.pixels import Pixels
from edgecil.synthesis.statistics import Seen, batch_statistics, check_statistics, look, moments
from edgecil.synthesis.training import Schedule, collapsed, dream, fit, insist, shown

SMALL = Preprocess(16, 16, CIFAR.mean, CIFAR.std)


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """Return a network that learned three classes."""
    training = dataclasses.replace(toys.TRAINING, epochs=8)
    (outcome,) = toys.learn("finetune", (3,), tmp_path_factory.mktemp("net"), training=training)
    return freeze(outcome.model.net)


def hooks(net):
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in net.modules())


class TestStatistics:
    def test_moments_are_mean_and_biased_variance(self):
        x = torch.randn(4, 3, 5, 6, dtype=torch.float64) * 3 + 7
        mean, variance = moments(x, torch.full((3,), 6.0, dtype=torch.float64))
        assert torch.allclose(mean, x.mean(dim=(0, 2, 3)), rtol=1e-12)
        assert torch.allclose(variance, x.var(dim=(0, 2, 3), correction=0), rtol=1e-12)

    def test_gradients_of_moments_are_those_of_differences(self):
        x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
        origin = torch.randn(3, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda x: moments(x, origin), x)

    def test_variances_do_not_cancel_far_from_zero(self):
        x = torch.randn(8, 2, 16, 16) + 1000
        _, variance = moments(x, torch.full((2,), 1000.5))
        expected = x.double().var(dim=(0, 2, 3), correction=0)
        assert torch.allclose(variance.double(), expected, rtol=1e-4)

    def test_they_are_those_that_batch_norms_would_normalise_by(self, net):
        twin = copy.deepcopy(net).train()
        images = torch.randn(6, 3, 32, 32)
        for norm in (m for m in twin.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.momentum = 1.0  # what it remembers then is the batch
        with batch_statistics(twin) as layers:
            twin(images)
        norms = {id(layer.running_mean): layer for layer in layers}
        assert len(norms) == len(layers) == 7
        for layer in layers:
            assert torch.allclose(layer.running_mean, layer.mean, atol=1e-5)

    def test_under_autocast_they_are_in_float32(self, net):
        images = torch.randn(4, 3, 32, 32, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            seen = look(net, images)
            losses = Inversion().losses(images, seen, 3)
        assert {x.dtype for layer in seen.layers for x in layer[:4]} == {torch.float32}
        assert {loss.value.dtype for loss in losses.values()} == {torch.float32}
        total(losses).backward()
        assert images.grad.abs().max() > 0

    def test_hooks_are_gone_after_a_look_even_one_that_fails(self, net):
        before = hooks(net)
        look(net, torch.randn(2, 3, 32, 32))
        assert hooks(net) == before
        with pytest.raises(RuntimeError):
            look(net, torch.randn(2, 1, 32, 32))
        assert hooks(net) == before

    def test_networks_without_statistics_are_refused(self, net):
        class Plain(nn.Module):
            feature_dim = 4

            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 3)

        with pytest.raises(AdoptError, match="no batch norms"):
            check_statistics(Net(NetSpec("plain"), Plain(), nn.Linear(4, 2)))
        with pytest.raises(AdoptError, match="untrained"):
            check_statistics(build(NetSpec("resnet8"), 2))
        check_statistics(net)
        for value, words in ((float("nan"), "not finite"), (None, "keep no statistics")):
            broken = copy.deepcopy(net)
            norm = broken.backbone.bn1
            norm.running_var = None if value is None else norm.running_var.fill_(value)
            with pytest.raises(AdoptError, match=words):
                check_statistics(broken)


class TestGenerator:
    @pytest.mark.parametrize(("size", "count"), [(32, 8423939), (64, 8571779), (224, 3326275)])
    def test_it_has_as_many_parameters_as_the_published_one(self, size, count):
        with torch.device("meta"):
            generator = Generator(size)
        assert sum(p.numel() for p in generator.parameters()) == count

    @pytest.mark.parametrize("size", [16, 30, 32, 64, 224])
    def test_images_have_the_size_and_are_normalised(self, size):
        torch.manual_seed(0)
        generator = Generator(size, latent=8, widths=None if size < 100 else (16,) * 6)
        images = generator.propose(4, 0)
        assert images.shape == (4, 3, size, size)
        assert images.mean(dim=(0, 2, 3)).abs().max() < 0.01
        spread = images.std(dim=(0, 2, 3), correction=0)
        assert (spread < 1.001).all()
        # The narrow one's colours differ so little at first that the last eps is felt.
        assert (spread > (0.9 if size < 100 else 0.3)).all()

    def test_shapes_are_those_of_its_state(self):
        state = Generator(32).state_dict()
        shapes = {n: tuple(t.shape) for n, t in state.items() if "tracked" not in n}
        assert shapes == generator_shapes(32)

    def test_ranks_draw_other_images_of_the_same_draw(self):
        generator = Generator(16, latent=32).eval()
        torch.manual_seed(1)
        whole = generator.draw(6)
        torch.manual_seed(1)
        second = generator.draw(3, skip=3)
        assert torch.allclose(whole[3:], second, atol=1e-5)

    @pytest.mark.parametrize("training", [True, False])
    def test_its_layers_are_those_of_the_papers_code(self, training):
        """Smith et al. 2021, section 7: upsampled twice, eps of 0.8, slopes of 0.2, tanh."""
        torch.manual_seed(0)
        generator = Generator(32, latent=8, widths=(6, 5, 4)).double().train(training)
        for value in generator.state_dict().values():
            if value.dtype == torch.float64:
                value.uniform_(0.5, 1.5)
        state = {name: value.clone() for name, value in generator.state_dict().items()}

        def norm(x, name, eps, affine=True):
            kept = [state[f"{name}.running_{what}"].clone() for what in ("mean", "var")]
            scale = (state[f"{name}.weight"], state[f"{name}.bias"]) if affine else (None, None)
            return F.batch_norm(x, *kept, *scale, training=training, eps=eps)

        def conv(x, name):
            return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

        latents = torch.randn(5, 8, dtype=torch.float64)
        x = F.linear(latents, state["linear.weight"], state["linear.bias"]).view(5, 6, 8, 8)
        x = norm(x, "first", 1e-5)
        for number in range(2):
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            x = norm(conv(x, f"doublings.{number}.1"), f"doublings.{number}.2", 0.8)
            x = torch.maximum(x, 0.2 * x)
        x = norm(conv(x, "to_rgb").tanh(), "last", 1e-5, affine=False)
        assert torch.allclose(generator(latents), x, rtol=1e-9, atol=1e-12)


class TestPixels:
    def test_parts_cover_all_images_and_none_is_alone(self):
        pixels = Pixels(SMALL, 9, 4, steps=5)
        assert [len(part) for part in pixels.parts] == [4, 5]
        assert pixels.total_steps == 10
        assert pixels.all().shape == (9, 3, 16, 16)
        assert pixels.draw(20).shape == (20, 3, 16, 16)

    def test_those_that_are_drawn_are_taken_from_all_and_the_others_left_alone(self, monkeypatch):
        pixels, seen = Pixels(SMALL, 13, 5, steps=1), []
        everything, inside = pixels.all(), Pixels._inside
        monkeypatch.setattr(
            Pixels, "_inside", lambda self, x: seen.append(len(x)) or inside(self, x)
        )
        for count, skip in ((4, 0), (40, 3), (1, 7)):
            torch.manual_seed(count)
            drawn = pixels.draw(count, skip)
            torch.manual_seed(count)
            which, mirrored = torch.randint(13, (skip + count,)), torch.rand(skip + count) < 0.5
            for image, row, flip in zip(drawn, which[skip:], mirrored[skip:], strict=True):
                wanted = everything[row]
                assert torch.equal(image, wanted.flip(2) if flip else wanted)
        assert seen == [4, 40, 1]

    def test_only_the_part_of_a_step_gets_gradient(self):
        pixels = Pixels(SMALL, 8, 4, steps=5)
        pixels.propose(4, 7).sum().backward()
        assert pixels.parts[0].grad is None and pixels.parts[1].grad.abs().max() > 0

    def test_values_stay_between_black_and_white(self):
        pixels = Pixels(SMALL, 4, 4, steps=1)
        with torch.no_grad():
            pixels.parts[0].mul_(100)
        low, high = limits(SMALL)
        for images in (pixels.all(), pixels.propose(4, 0)):
            assert (images >= low - 1e-6).all() and (images <= high + 1e-6).all()

    def test_pixels_are_the_inverse_of_normalising(self):
        given = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (SMALL.mean, SMALL.std))
        images = (given.permute(0, 3, 1, 2) / 255 - mean) / std
        assert torch.equal(to_pixels(images, SMALL), given)
        assert torch.equal(to_pixels(images * 1000, SMALL) > 127, images.permute(0, 2, 3, 1) > 0)


def reference_of_eq_7(images, logits, layers, entropy):
    """Return what ABD minimises (eqs. (1) to (7)), number by number, in float64."""
    shares = torch.softmax(logits, dim=1)
    content = 0.0
    for row in logits.tolist():
        mildly = [math.exp(value / 1000) for value in row]
        content -= math.log(max(mildly) / sum(mildly)) / len(logits)
    frequent = shares.mean(dim=0).tolist()
    diversity = sum(p * math.log(p) for p in frequent)
    if entropy == "share":
        diversity = 1 + diversity / math.log(len(frequent))
    statistics = 0.0
    for layer in layers:
        was, now = (v + layer.eps for v in (layer.running_variance, layer.variance))
        moved = (layer.running_mean - layer.mean) ** 2
        divergence = torch.log(now.sqrt() / was.sqrt()) + (was + moved) / (2 * now) - 0.5
        statistics += divergence.mean().item() / len(layers)
    line = torch.tensor([math.exp(-(d**2) / 4) for d in (-2, -1, 0, 1, 2)], dtype=torch.float64)
    kernel = torch.outer(line, line) / torch.outer(line, line).sum()
    padded = F.pad(images, (2, 2, 2, 2), mode="reflect")
    side = images.shape[2]
    blur = sum(
        kernel[i, j] * padded[:, :, i : i + side, j : j + side]
        for i in range(5) for j in range(5)
    )  # fmt: skip
    prior = ((images - blur) ** 2).mean().item()
    return content + diversity + 50 * statistics + 1e-3 * prior


class TestObjective:
    @pytest.mark.parametrize("entropy", ["nats", "share"])
    def test_the_sum_is_that_of_eq_7_with_the_weights_of_the_paper(self, entropy):
        torch.manual_seed(0)
        # Rough images: the prior, whose weight is small, has to be seen in the sum.
        images, logits = 30 * torch.randn(4, 3, 8, 8).double(), 3 * torch.randn(4, 5).double()
        layers = [
            LayerStatistics(m, v.exp(), n, w.exp(), 1e-5)
            for m, v, n, w in (0.3 * torch.randn(2, 4, 6).double())
        ]
        losses = Inversion(entropy=entropy).losses(images, Seen(logits, layers, logits), 5)
        expected = reference_of_eq_7(images, logits, layers, entropy)
        assert total(losses).item() == pytest.approx(expected, rel=1e-10)

    @pytest.mark.parametrize("batch", [1, 2, 5])
    def test_fewer_images_than_classes_and_single_ones_have_finite_losses(self, batch):
        torch.manual_seed(0)
        net = freeze(build(NetSpec("resnet8"), 20))
        generator = Generator(32, latent=16)
        if batch > 1:
            losses = dream(generator, net, Inversion(), 20, batch, 0)
            total(losses).backward()
            assert all(torch.isfinite(p.grad).all() for p in generator.parameters())
        images = torch.randn(batch, 3, 32, 32, requires_grad=True)
        total(Inversion().losses(images, look(net, images), 20)).backward()
        assert torch.isfinite(images.grad).all() and images.grad.abs().max() > 0

    def test_with_one_class_the_diversity_is_left_out(self, net):
        images = torch.randn(4, 3, 32, 32)
        seen = look(net, images)
        assert "diversity" not in Inversion(entropy="share").losses(images, seen, 1)
        assert "diversity" in Inversion(entropy="share").losses(images, seen, 2)

    def test_only_the_classes_asked_for_are_looked_at(self, net):
        images = torch.randn(4, 3, 32, 32)
        seen = look(net, images)
        wide = seen._replace(logits=torch.cat([seen.logits, torch.full((4, 5), 99.0)], dim=1))
        for name, loss in Inversion().losses(images, seen, 3).items():
            assert torch.equal(loss.value, Inversion().losses(images, wide, 3)[name].value)

    def test_a_share_of_entropy_is_zero_for_even_classes(self, net):
        images = torch.randn(3, 3, 32, 32)
        seen = look(net, images)._replace(logits=100 * torch.eye(3))
        losses = Inversion(entropy="share").losses(images, seen, 3)
        assert losses["diversity"].value.item() == pytest.approx(0, abs=1e-6)

    def test_a_weight_of_zero_leaves_a_loss_out(self, net):
        images = torch.randn(4, 3, 32, 32)
        nothing = Inversion(content=0, diversity=0, prior=0)
        assert list(nothing.losses(images, look(net, images), 3)) == ["statistics"]


class TestTraining:
    def test_the_losses_of_a_generator_fall(self, net):
        torch.manual_seed(0)
        generator = Generator(32, latent=16, widths=(16, 16, 8))
        start = total(dream(generator, net, Inversion(), 3, 32, 0)).detach().item()
        fit(generator, net, Inversion(), 3, Schedule(40, 16, 5e-3))
        assert total(dream(generator, net, Inversion(), 3, 32, 0)).detach().item() < 0.8 * start

    def test_the_network_is_left_alone(self, net):
        before = {k: v.clone() for k, v in net.state_dict().items()}
        fit(Generator(32, 16, (8, 8, 8)), net, Inversion(), 3, Schedule(2, 4, 1e-3))
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
        assert not any(p.requires_grad or p.grad is not None for p in net.parameters())

    def test_a_loss_that_is_not_a_number_is_an_error(self, net):
        generator = Generator(32, 16, (8, 8, 8))
        nn.init.constant_(generator.linear.bias, float("nan"))
        with pytest.raises(TrainingError, match="became nan") as caught:
            fit(generator, net, Inversion(), 3, Schedule(2, 4, 1e-3), hint="a smaller rate")
        assert caught.value.hint == "a smaller rate"

    def test_what_counts_as_collapse(self):
        assert collapsed(torch.tensor([0, 7, 0]))
        assert not collapsed(torch.tensor([1, 7, 0]))
        assert not collapsed(torch.tensor([7])), "one class cannot collapse"

    def test_a_collapse_is_said_and_tried_again_until_it_is_over(self):
        counts = iter([[9, 0], [0, 9], [4, 5]])
        said, tried = [], []
        insist(lambda: torch.tensor(next(counts)), tried.append, said.append)
        assert tried == [2, 3]
        assert "class 0" in said[0] and "attempt 3 of 3" in said[1]

    def test_a_collapse_that_stays_is_a_clear_failure(self):
        tried = []
        with pytest.raises(TrainingError, match=r"collapsed in 3 of 3 attempts.*class 1 of 2") as e:
            insist(lambda: torch.tensor([0, 9]), tried.append, lambda text: None, "go on")
        assert tried == [2, 3] and e.value.hint == "go on"

    def test_shown_counts_every_image(self, net):
        counts = shown(Generator(32, 16, (8, 8, 8)).eval(), net, 3, 50)
        assert counts.shape == (3,) and counts.sum() >= 256


class TestSynthesise:
    @pytest.mark.parametrize("source", ["pixels", "generator"])
    def test_images_are_uint8_and_depend_on_the_seed_alone(self, net, source):
        def make(seed):
            return synthesise(net, CIFAR, 6, 8, seed, source=source, batch=6,
                              objective=Inversion(diversity=50.0))  # fmt: skip

        state = torch.get_rng_state()
        images = make(0)
        assert torch.equal(torch.get_rng_state(), state)
        assert images.shape == (6, 32, 32, 3) and images.dtype == torch.uint8
        assert torch.equal(images, make(0))
        assert not torch.equal(images, make(1))

    def test_dreamed_pixels_show_several_classes_and_the_statistics_of_training(self, net):
        images = synthesise(net, CIFAR, 8, 60, batch=8)
        batch = images.permute(0, 3, 1, 2) / 255 - torch.tensor(CIFAR.mean).view(3, 1, 1)
        batch = batch / torch.tensor(CIFAR.std).view(3, 1, 1)
        noise = torch.randn_like(batch)
        with torch.no_grad():
            seen, plain = look(net, batch), look(net, noise)
        only = Inversion(content=0, diversity=0, prior=0)
        assert total(only.losses(batch, seen, 3)) < 0.5 * total(only.losses(noise, plain, 3))
        assert len(seen.logits[:, :3].argmax(dim=1).unique()) > 1

    def test_a_network_that_sees_one_class_in_everything_is_a_clear_failure(self, net):
        stubborn = copy.deepcopy(net)
        stubborn.head.bias[1] += 1e6
        said = []
        with pytest.raises(TrainingError, match="collapsed") as caught:
            synthesise(stubborn, CIFAR, 16, 1, batch=16, say=said.append, hint="other steps")
        assert len(said) == 2 and caught.value.hint == "other steps"
        # Of so few of them it is not said, and it may be what was wanted.
        synthesise(stubborn, CIFAR, 15, 1, batch=15, say=pytest.fail)
        synthesise(stubborn, CIFAR, 16, 1, batch=16, say=pytest.fail, varied=False)

    @pytest.mark.parametrize("mode", ["train", "eval"])
    def test_a_generator_is_judged_by_many_images_drawn_as_those_that_are_wanted(
        self, net, monkeypatch, mode
    ):
        seen = []

        def counting(source, teacher, classes, batch):
            counts = shown(source, teacher, classes, batch)
            seen.append((source.training, int(counts.sum()), batch))
            return torch.tensor([100, 100, 56])

        monkeypatch.setattr("edgecil.synthesis.dreams.shown", counting)
        for count in (1, 2):
            made = synthesise(net, CIFAR, count, 1, source="generator", batch=32, mode=mode)
            assert len(made) == count
        assert seen == [(mode == "train", 256, 32)] * 2

    def test_one_image_and_an_odd_rest_are_made(self, net):
        assert synthesise(net, CIFAR, 1, 1).shape == (1, 32, 32, 3)

    def test_large_images(self, net):
        large = Preprocess(64, 64, CIFAR.mean, CIFAR.std)
        images = synthesise(net, large, 2, 20, batch=2, objective=Inversion(diversity=10.0))
        assert images.shape == (2, 64, 64, 3) and np.ptp(images.numpy()) > 50
